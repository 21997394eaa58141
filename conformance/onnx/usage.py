"""Writes tests of models as people write them: legal, and off the beaten path of exporters.

    python conformance/onnx/usage.py [--force]

Result, under ~/.cache/tongtu/onnx-usage: one folder a test in ONNX's layout, as `dump.py` writes them, and `index.txt`.
Every model is written in ONNX's text form; the results are those of ONNX Runtime, or of ONNX's reference evaluator
where ONNX Runtime has no kernel for the types.
"""

import json
import pathlib
import sys

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import onnxdata

VERSION = 4
"""Raised when the tests change; part of the stamp."""


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def strings(*values):
    return np.array(values, object)


def tensor_of(value, name):
    if value.dtype == object:
        return helper.make_tensor(name, TensorProto.STRING, value.shape, [v.encode() for v in value.ravel()])
    return numpy_helper.from_array(value, name)


class Cases:
    """Writes tests into a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.names = []

    def add(self, name, body, *cases, opset=17, ir=8, weights=None, reference=False, change=None, extra="",
            check=True):
        """One test: a graph in text form, and inputs of its data sets."""
        text = f'<ir_version: {ir}, opset_import: ["" : {opset}{extra}]>\n' + body
        model = parser.parse_model(text)
        for key, value in (weights or {}).items():
            model.graph.initializer.append(tensor_of(np.asarray(value), key))
        if change:
            change(model)
        if check:
            onnx.checker.check_model(model)
        folder = self.folder / name
        folder.mkdir(parents=True)
        onnx.save(model, folder / "model.onnx")
        runner = ReferenceEvaluator(model) if reference else onnxdata.session(folder / "model.onnx")
        listed = [value.name for value in model.graph.input]
        outputs = [value.name for value in model.graph.output]
        for number, case in enumerate(cases or ({},)):
            got = runner.run(None, case)
            names = [key for key in listed if key in case]
            target = folder / f"test_data_set_{number}"
            target.mkdir()
            for kind, keys, values in (("input", names, [case[key] for key in names]), ("output", outputs, got)):
                for index, (key, value) in enumerate(zip(keys, values, strict=True)):
                    message = (
                        numpy_helper.from_list(value, key) if isinstance(value, list)
                        else tensor_of(np.asarray(value), key)
                    )
                    (target / f"{kind}_{index}.pb").write_bytes(message.SerializeToString())
        kinds = [value.type.WhichOneof("value").removesuffix("_type") for value in model.graph.output]
        meta = {"rtol": 1e-3, "rtol_bfloat16": 2.0**-6, "atol": 1e-5, "ops": [],
                "inputs": ["tensor"] * len(listed), "outputs": kinds}
        (folder / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
        self.names.append(name)


def graphs(c):
    """What stands where in a graph: inputs, outputs, initialisers, names."""
    x = normal(0, 2, 3)
    c.add("output_is_input", "g (float[2, 3] x) => (float[2, 3] x, float[2, 3] y) { y = Neg(x) }", {"x": x})
    c.add("output_is_initialiser", "g (float[2] x) => (float[2] w, float[2] y) { y = Add(x, w) }",
          {"x": normal(1, 2)}, weights={"w": normal(2, 2)})
    c.add("output_is_constant", "g (float[2] x) => (float[2] y, int64[3] k) {"
          " y = Abs(x) k = Constant<value_ints = [1, 2, 3]>() }", {"x": normal(1, 2)})
    c.add("output_used_inside", "g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { y = Neg(x) z = Exp(y) }",
          {"x": x})
    c.add("same_value_twice", "g (float[2, 3] x) => (float[2, 3] a, float[2, 3] b) {"
          " a = Identity(x) b = Identity(x) }", {"x": x})
    c.add("no_inputs", "g () => (float[2] y) { y = Mul(w, w) }", weights={"w": normal(2, 2)})
    c.add("unused_input", "g (float[2, 3] x, float[N] unused) => (float[2, 3] y) { y = Neg(x) }",
          {"x": x, "unused": normal(1, 4)})
    c.add("unused_nodes", "g (float[2, 3] x) => (float[2, 3] y) { y = Neg(x) z = Exp(y) u, v = Split<axis = 1,"
          " num_outputs = 2>(x) }", {"x": x}, opset=18)

    def listed(model):
        """The initialisers are listed among the inputs, as every model before IR 4 does."""
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    c.add("initialiser_is_input", "g (float[2, 3] x) => (float[2, 4] y) { y = MatMul(x, w) }", {"x": x}, ir=3,
          opset=8, weights={"w": normal(3, 3, 4)}, change=listed)
    def unnamed(model):
        for node in model.graph.node:
            node.name = ""
        model.graph.name = "no name"

    c.add("nodes_without_names", "g (float[2, 3] x) => (float[2, 3] y) { a = Neg(x) b = Exp(a) y = Abs(b) }",
          {"x": x}, change=unnamed)

    def shapeless(model):
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")

    c.add("output_without_shape", "g (float[N, 3] x) => (float[N] y) { y = ReduceSum<keepdims = 0>(x, a) }",
          {"x": x}, weights={"a": ints(1)}, change=shapeless, check=False)

    c.add("shared_dims", "g (float[N, K] a, float[K, N] b) => (float[N, N] y) { y = MatMul(a, b) }",
          {"a": normal(1, 2, 3), "b": normal(2, 3, 2)}, {"a": normal(1, 5, 1), "b": normal(2, 1, 5)})
    c.add("different_names_same_size", "g (float[A, K] a, float[B, K] b) => (float[C, K] y) { y = Add(a, b) }",
          {"a": normal(1, 4, 3), "b": normal(2, 4, 3)}, {"a": normal(1, 1, 3), "b": normal(2, 1, 3)})
    c.add("scalar_everything", "g (float x) => (float y, float z, int64[A] s) {"
          " y = Exp(x) z = ReduceSum(x) s = Shape(x) }", {"x": np.array(0.5, np.float32)})
    c.add("odd_names", 'g (float[2, 3] x) => (float[2, 3] y) { "a b" = Neg(x) "1:/é" = Exp("a b") y = Abs("1:/é") }'
          .replace('"a b"', "ab").replace('"1:/é"', "one"), {"x": x},
          change=lambda m: [rename(m, "ab", "a b\n"), rename(m, "one", "1:/é中")])
    c.add("dropped_outputs", "g (float[2, 4] x) => (float[2, 1] v, int64[2, 1] j) {"
          " v, i = TopK(x, k) u, j = TopK<largest = 0>(x, k) }", {"x": normal(4, 2, 4)}, weights={"k": ints(1)})


def transforms(c):
    """Fourier transforms of a length that only the run tells, and sizes that are at most one."""
    c.add("dft_any_length", """g (float[B, N, 1] x) => (float[B, N, 2] y, float[B, N, 2] z) {
        y = DFT(x, , axis) z = DFT<inverse = 1>(y, , axis) }""",
          {"x": normal(1, 2, 12, 1)}, {"x": normal(2, 3, 7, 1)}, opset=20, weights={"axis": np.array(1)})
    c.add("dft_any_length_half", """g (float[B, N, 1] x) => (float[B, M, 2] y) { y = DFT<onesided = 1>(x, , axis) }""",
          {"x": normal(1, 2, 12, 1)}, {"x": normal(2, 1, 9, 1)}, opset=20, weights={"axis": np.array(1)})
    c.add("dft_given_length", """g (float[B, N, 1] x, int64 n) => (float[B, M, 2] y) { y = DFT(x, n, axis) }""",
          {"x": normal(1, 2, 12, 1), "n": np.array(8)}, {"x": normal(2, 1, 5, 1), "n": np.array(6)}, opset=20,
          weights={"axis": np.array(1)})
    c.add("einsum_weights", """g (float[I, B, 8] x) => (float[I, B, 3, 5] y, float[B, 5, I, 3] z) {
        y = Einsum<equation = "ibh,hnd->ibnd">(x, w) z = Einsum<equation = "ibh,hnd->bdin">(x, w) }""",
          {"x": normal(1, 4, 2, 8)}, {"x": normal(2, 1, 3, 8)}, weights={"w": normal(3, 8, 3, 5)})
    c.add("slice_of_one", """g (float[B, N] x) => (float[B, N] y) {
        last = Slice(x, start, end, axis) s = Add(x, last) y = Mul(last, s) }""",
          {"x": normal(1, 2, 6)}, {"x": normal(2, 3, 1)},
          weights={"start": ints(-1), "end": ints(2**62), "axis": ints(1)})


def rename(model, old, new):
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def empty(c):
    """Batches of nothing, and dims of size 0."""
    w = {"w": normal(1, 3, 4), "b": normal(2, 4)}
    none, some = np.zeros((0, 3), np.float32), normal(0, 2, 3)
    c.add("empty_batch_gemm", "g (float[N, 3] x) => (float[N, 4] y) { y = Gemm(x, w, b) }", {"x": none}, {"x": some},
          weights=w)
    c.add("empty_batch_matmul_softmax", "g (float[N, 3] x) => (float[N, 4] y) { a = MatMul(x, w) y = Softmax(a) }",
          {"x": none}, {"x": some}, weights=w)
    c.add("empty_batch_conv", "g (float[N, 2, H, W] x) => (float[N, 3, H, W] y, float[N, 3, A, B] z) {"
          " y = Conv<pads = [1, 1, 1, 1]>(x, w) z = MaxPool<kernel_shape = [2, 2]>(y) }",
          {"x": normal(1, 1, 2, 4, 4)}, {"x": np.zeros((0, 2, 4, 4), np.float32)}, weights={"w": normal(3, 3, 2, 3, 3)})
    c.add("empty_inner", "g (float[2, K] x, float[K, 3] y) => (float[2, 3] z) { z = MatMul(x, y) }",
          {"x": np.zeros((2, 0), np.float32), "y": none}, {"x": normal(1, 2, 2), "y": normal(2, 2, 3)})
    c.add("empty_reduce", "g (float[N, 3] x) => (float[3] s, float[3] p) {"
          " s = ReduceSum<keepdims = 0>(x, a) p = ReduceProd<keepdims = 0, axes = [0]>(x) }",
          {"x": none}, {"x": some}, weights={"a": ints(0)})
    c.add("empty_axes_noop", "g (float[2, 3] x, int64[A] a) => (float[2, 3] y) {"
          " y = ReduceSum<noop_with_empty_axes = 1>(x, a) }", {"x": some, "a": np.zeros(0, np.int64)},
          change=lambda m: constant_input(m, "a", np.zeros(0, np.int64)))
    c.add("empty_axes_all", "g (float[2, 3] x) => (float[1, 1] y) { y = ReduceSum(x, a) }", {"x": some},
          weights={"a": np.zeros(0, np.int64)})
    c.add("empty_concat", "g (float[N, 3] x, float[M, 3] y) => (float[S, 3] z) { z = Concat<axis = 0>(x, y, x) }",
          {"x": none, "y": some}, {"x": some, "y": none}, {"x": none, "y": none})
    c.add("empty_gather", "g (float[2, 3] x, int64[K] i) => (float[K, 3] y) { y = Gather(x, i) }",
          {"x": some, "i": np.zeros(0, np.int64)}, {"x": some, "i": ints(1, -1, 0)})
    c.add("empty_scatter", "g (float[2, 3] x, int64[K, 1] i, float[K, 3] u) => (float[2, 3] y) {"
          " y = ScatterND(x, i, u) }", {"x": some, "i": np.zeros((0, 1), np.int64), "u": none},
          {"x": some, "i": np.array([[1]]), "u": normal(4, 1, 3)})
    c.add("empty_slice", "g (float[N, 3] x) => (float[M, 3] y) { y = Slice(x, s, e) }", {"x": some}, {"x": none},
          weights={"s": ints(5), "e": ints(9)})
    c.add("empty_transpose_reshape", "g (float[N, 3] x) => (float[3, N] y, float[M] z) {"
          " y = Transpose(x) z = Reshape(x, s) }", {"x": none}, {"x": some}, weights={"s": ints(-1)})
    c.add("reshape_zero_copies", "g (float[A, B, 2] x) => (float[A, C] y) { y = Reshape(x, s) }",
          {"x": normal(1, 3, 4, 2)}, {"x": normal(1, 1, 1, 2)}, weights={"s": ints(0, -1)})
    c.add("reshape_zero_allowed", "g (float[0, 3] x) => (float[3, 0] y) { y = Reshape<allowzero = 1>(x, s) }",
          {"x": none}, weights={"s": ints(3, 0)})
    c.add("empty_nonzero", "g (float[N] x) => (int64[1, M] y) { y = NonZero(x) }",
          {"x": np.zeros(3, np.float32)}, {"x": np.zeros(0, np.float32)}, {"x": np.array([0, 2, 0, 3], np.float32)})
    c.add("empty_softmax_axis", "g (float[2, K] x) => (float[2, K] y) { y = Softmax(x) }",
          {"x": np.zeros((2, 0), np.float32)}, {"x": normal(1, 2, 3)})
    c.add("empty_layer_norm", "g (float[N, 3] x) => (float[N, 3] y) { y = LayerNormalization(x, s) }",
          {"x": none}, {"x": some}, weights={"s": normal(5, 3)})
    c.add("empty_expand", "g (float[1, 3] x, int64[2] s) => (float[A, B] y) { y = Expand(x, s) }",
          {"x": normal(1, 1, 3), "s": ints(0, 3)}, {"x": normal(1, 1, 3), "s": ints(2, 1)})
    c.add("empty_resize", "g (float[N, 1, 2, 2] x) => (float[N, 1, 4, 4] y) {"
          ' y = Resize<mode = "linear">(x, , s) }', {"x": normal(1, 2, 1, 2, 2)},
          weights={"s": np.array([1, 1, 2, 2], np.float32)})
    c.add("empty_topk", "g (float[N] x, int64[1] k) => (float[K] v, int64[K] i) { v, i = TopK(x, k) }",
          {"x": normal(1, 3), "k": ints(0)}, {"x": normal(1, 3), "k": ints(2)})
    c.add("empty_cumsum", "g (float[N] x) => (float[N] y) { y = CumSum(x, a) }",
          {"x": np.zeros(0, np.float32)}, {"x": normal(1, 5)}, weights={"a": np.array(0, np.int64)})
    c.add("empty_lstm_batch", "g (float[T, B, 3] x) => (float[T, 1, B, 4] y) {"
          " y = LSTM<hidden_size = 4>(x, w, r) }", {"x": normal(1, 2, 2, 3)}, {"x": normal(1, 1, 3, 3)},
          weights={"w": normal(2, 1, 16, 3), "r": normal(3, 1, 16, 4)})


def constant_input(model, name, value):
    """An input that becomes an initialiser listed among the inputs."""
    model.graph.initializer.append(numpy_helper.from_array(value, name))


def control(c):
    """Branches and loops."""
    x, yes, no = normal(0, 2, 3), np.array(True), np.array(False)
    c.add("if_captures", """g (float[N, 3] x, bool p) => (float[M, 3] y) {
        k = Exp(x)
        y = If (p) <then_branch = t () => (float[A, 3] a) { a = Add(x, k) },
                    else_branch = e () => (float[B, 3] b) { b = Concat<axis = 0>(x, k) }>
    }""", {"x": x, "p": yes}, {"x": x, "p": no})
    c.add("if_gives_outer_values", """g (float[2, 3] x, float[2, 3] z, bool p) => (float[2, 3] y) {
        y = If (p) <then_branch = t () => (float[2, 3] a) { a = Identity(x) },
                    else_branch = e () => (float[2, 3] b) { b = Identity(z) }>
    }""", {"x": x, "z": -x, "p": yes}, {"x": x, "z": -x, "p": no})
    c.add("if_condition_of_one_element", """g (float[2, 3] x, bool[1] p) => (float[2, 3] y) {
        y = If (p) <then_branch = t () => (float[2, 3] a) { a = Neg(x) },
                    else_branch = e () => (float[2, 3] b) { b = Abs(x) }>
    }""", {"x": x, "p": np.array([True])}, {"x": x, "p": np.array([False])})
    c.add("if_nested", """g (float[N] x, bool p, bool q) => (float[N] y) {
        z = Neg(x)
        y = If (p) <then_branch = t () => (float[N] a) {
                        a = If (q) <then_branch = tt () => (float[N] aa) { aa = Mul(z, x) },
                                    else_branch = te () => (float[N] ab) { ab = Add(z, x) }>
                    },
                    else_branch = e () => (float[N] b) { b = Exp(z) }>
    }""", {"x": x[0], "p": yes, "q": no}, {"x": x[1], "p": yes, "q": yes}, {"x": x[1], "p": no, "q": yes})
    c.add("if_several_results", """g (float[N] x, bool p) => (float[N] y, int64[1] n) {
        y, n = If (p) <then_branch = t () => (float[N] a, int64[1] k) { a = Neg(x) k = Shape(x) },
                       else_branch = e () => (float[N] b, int64[1] m) { b = Abs(x) m = Constant<value_ints = [7]>() }>
    }""", {"x": x[0], "p": yes}, {"x": x[0], "p": no})
    loop = """g (int64 n, float[K] x) => (float[K] y, float[T, K] all) {
        go = Constant<value = bool {1}>()
        y, all = Loop (n, go, x) <body = b (int64 i, bool c, float[K] v) => (bool d, float[K] w, float[K] s) {
            d = Identity(c)
            f = Cast<to = 1>(i)
            w = Add(v, f)
            s = Mul(w, x)
        }>
    }"""
    c.add("loop", loop, {"n": np.array(3), "x": x[0]}, {"n": np.array(1), "x": x[1]})
    c.add("loop_without_limit", """g (float x) => (float y, int64 n) {
        go = Constant<value = bool {1}>() zero = Constant<value = int64 {0}>()
        y, n = Loop ( , go, x, zero) <body = b (int64 i, bool c, float v, int64 k)
                => (bool d, float w, int64 m) {
            two = Constant<value = float {2.0}>() end = Constant<value = float {100.0}>()
            w = Mul(v, two)
            d = Less(w, end)
            one = Constant<value = int64 {1}>()
            m = Add(k, one)
        }>
    }""", {"x": np.array(1, np.float32)}, {"x": np.array(60, np.float32)})
    c.add("loop_false_at_start", """g (int64 n, bool go, float[K] x) => (float[K] y) {
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[K] v) => (bool d, float[K] w) {
            d = Identity(c) w = Add(v, v) }>
    }""", {"n": np.array(3), "go": no, "x": x[0]}, {"n": np.array(3), "go": yes, "x": x[0]})
    c.add("loop_growing", """g (int64 n, float[K] x) => (float[M] y) {
        go = Constant<value = bool {1}>()
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[L] v) => (bool d, float[P] w) {
            d = Identity(c) w = Concat<axis = 0>(v, x) }>
    }""", {"n": np.array(3), "x": x[0]}, {"n": np.array(0), "x": x[0]})
    c.add("loop_in_loop", """g (int64 n, float[K] x) => (float[K] y) {
        go = Constant<value = bool {1}>()
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[K] v) => (bool d, float[K] w) {
            d = Identity(c)
            w = Loop (i, c, v) <body = bb (int64 j, bool cc, float[K] vv) => (bool dd, float[K] ww) {
                dd = Identity(cc) f = Cast<to = 1>(i) u = Add(vv, f) ww = Add(u, x) }>
        }>
    }""", {"n": np.array(4), "x": x[0]})
    c.add("loop_if_inside", """g (int64 n, float[K] x) => (float[K] y) {
        go = Constant<value = bool {1}>() one = Constant<value = int64 {1}>() two = Constant<value = int64 {2}>()
        y = Loop (n, go, x) <body = b (int64 i, bool c, float[K] v) => (bool d, float[K] w) {
            d = Identity(c)
            r = Mod(i, two)
            p = Equal(r, one)
            w = If (p) <then_branch = t () => (float[K] a) { a = Mul(v, x) },
                        else_branch = e () => (float[K] b2) { b2 = Sub(v, x) }>
        }>
    }""", {"n": np.array(4), "x": x[0]})
    c.add("loop_carried_swap", """g (int64 n, float[2] x, float[2] z) => (float[2] y, float[2] u) {
        go = Constant<value = bool {1}>()
        y, u = Loop (n, go, x, z) <body = b (int64 i, bool c, float[2] v, float[2] w)
                => (bool d, float[2] w2, float[2] v2) { d = Identity(c) w2 = Identity(w) v2 = Neg(v) }>
    }""", {"n": np.array(3), "x": normal(1, 2), "z": normal(2, 2)})
    c.add("loop_body_gives_parameters", """g (int64 n, float[2] x) => (float[2] y, int64[T] all, float[T, 2] same) {
        go = Constant<value = bool {1}>()
        y, all, same = Loop (n, go, x) <body = b (int64 i, bool c, float[2] v)
                => (bool c, float[2] v, int64 i2, float[2] o) { i2 = Identity(i) o = Identity(x) }>
    }""", {"n": np.array(3), "x": normal(1, 2)})
    c.add("scan_states", """g (float[2] s, float[3] t, float[N, 2] x, float[3, M] z)
            => (float[2] a, float[3] b, float[N, 2] p, float[3, Q] q) {
        a, b, p, q = Scan <num_scan_inputs = 2, scan_input_axes = [0, -1], scan_input_directions = [1, 0],
                scan_output_axes = [0, -1], scan_output_directions = [0, 1],
                body = f (float[2] u, float[3] v, float[2] e, float[3] g2)
                    => (float[2] u2, float[3] v2, float[2] o1, float[3] o2) {
            u2 = Add(u, e) v2 = Sub(g2, v) o1 = Mul(u2, e) o2 = Exp(v2) }> (s, t, x, z)
    }""", {"s": normal(1, 2), "t": normal(2, 3), "x": normal(3, 4, 2), "z": normal(4, 3, 4)},
          {"s": normal(1, 2), "t": normal(2, 3), "x": normal(3, 1, 2), "z": normal(4, 3, 1)})
    c.add("scan_captures", """g (float[2] s, float[N, 2] x, float[2] k) => (float[2] a, float[N, 2] p) {
        a, p = Scan <num_scan_inputs = 1, body = f (float[2] u, float[2] e) => (float[2] u2, float[2] o) {
            w = Mul(e, k) u2 = Add(u, w) o = Identity(u2) }> (s, x)
    }""", {"s": normal(1, 2), "x": normal(3, 4, 2), "k": normal(4, 2)})
    c.add("scan_8", """g (float[3, 2] s, float[3, N, 2] x) => (float[3, 2] a, float[3, N, 2] p) {
        a, p = Scan <num_scan_inputs = 1, body = f (float[2] u, float[2] e) => (float[2] u2, float[2] o) {
            u2 = Add(u, e) o = Neg(u2) }> ( , s, x)
    }""", {"s": normal(1, 3, 2), "x": normal(3, 3, 4, 2)}, opset=8)
    c.add("sequence_in_loop", """g (int64 n, float[K] x) => (seq(float[K]) y, float[M] z) {
        go = Constant<value = bool {1}>()
        empty = SequenceEmpty()
        y = Loop (n, go, empty) <body = b (int64 i, bool c, seq(float[K]) v) => (bool d, seq(float[K]) w) {
            d = Identity(c) f = Cast<to = 1>(i) u = Add(x, f) w = SequenceInsert(v, u) }>
        z = ConcatFromSequence<axis = 0>(y)
    }""", {"n": np.array(3), "x": x[0]})


def types(c):
    """Element types, and how data is stored."""
    c.add("strings", "g (string[N] x) => (string[N] y, bool[N] e) { y = Identity(x) e = Equal(x, w) }", {"x": strings("b", "a", "", "b", "é中")},
          {"x": strings("z")}, opset=19, weights={"w": strings("b")}, reference=True)
    c.add("string_gather", "g (string[N] x, int64[K] i) => (string[K] y) { y = Gather(x, i) }",
          {"x": strings("b", "a", ""), "i": ints(2, 0, -2, 0)})
    c.add("string_concat", "g (string[N] x, string[M] z) => (string[K] y) { y = Concat<axis = 0>(x, z) }",
          {"x": strings("b", "a", ""), "z": strings("ab")})
    words = np.array([["a", "b", "c"], ["", "é", "中"]], object)
    c.add("string_shapes", "g (string[N, 3] x) => (string[A] a, string[3, N] b, string[N, 1, 3] c, string[N, 2] d) {"
          " a = Reshape(x, s) b = Transpose(x) c = Unsqueeze(x, one) d = Slice(x, one, end, one) }",
          {"x": words}, {"x": words[:1]}, weights={"s": ints(-1), "one": ints(1), "end": ints(3)})
    c.add("string_where", "g (bool[2, 1] p, string[2, 3] x) => (string[2, 3] y) { y = Where(p, x, w) }",
          {"p": np.array([[True], [False]]), "x": words}, weights={"w": strings("none")})
    for kind, name in (("float16", "half"), ("double", "double")):
        dtype = np.float16 if kind == "float16" else np.float64
        x = normal(1, 3, 4).astype(dtype)
        c.add(f"type_{name}", f"g ({kind}[N, 4] x) => ({kind}[N, 4] y, {kind}[N] s) {{"
              f" e = Exp(x) y = Softmax(e) s = ReduceMean<axes = [1], keepdims = 0>(x) }}", {"x": x})
    b = normal(1, 3, 4).astype(ml_dtypes.bfloat16)
    c.add("type_bfloat16", "g (bfloat16[N, 4] x) => (bfloat16[N, 4] y, float[N, 4] z) {"
          " y = Add(x, w) z = Cast<to = 1>(y) }", {"x": b}, weights={"w": normal(2, 4).astype(ml_dtypes.bfloat16)},
          reference=True)
    for name in ("float8_e4m3fn", "float8_e5m2"):
        dtype = getattr(ml_dtypes, name)
        kind = {"float8_e4m3fn": "float8e4m3fn", "float8_e5m2": "float8e5m2"}[name]
        number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        c.add(f"type_{name}", f"g (float[N] x) => (float[N] y, float[4] z) {{"
              f" e = Cast<to = {number}>(x) y = Cast<to = 1>(e) z = Cast<to = 1>(w) }}",
              {"x": np.array([0.3, -500, 1e-9, 17.3, np.inf], np.float32)}, opset=19, ir=9,
              weights={"w": np.array([1, 2.5, -0.1, 300], np.float32).astype(dtype)})
    for kind, dtype in (("int8", np.int8), ("uint8", np.uint8), ("int16", np.int16), ("uint16", np.uint16),
                        ("int32", np.int32), ("uint32", np.uint32), ("uint64", np.uint64)):
        info = np.iinfo(dtype)
        x = np.array([info.min, info.max, 7, 100], dtype)
        c.add(f"type_{kind}", f"g ({kind}[N] x) => ({kind}[N] y, float[N] f, {kind}[N] m) {{"
              f" y = Add(x, w) f = Cast<to = 1>(x) m = Max(x, w) }}", {"x": x}, weights={"w": np.array([3], dtype)},
              reference=True)
    c.add("int_division", "g (int64[N] x, int64[N] y) => (int64[N] q, int64[N] r, int64[N] f) {"
          " q = Div(x, y) r = Mod(x, y) f = Mod<fmod = 1>(x, y) }", {"x": ints(7, -7, 7, -7), "y": ints(2, 2, -2, -2)})
    c.add("cast_edges", "g (float[N] x) => (int32[N] i, uint8[N] u, bool[N] b, int64[N] l) {"
          " i = Cast<to = 6>(x) u = Cast<to = 2>(x) b = Cast<to = 9>(x) l = Cast<to = 7>(x) }",
          {"x": np.array([1.9, -1.9, 0, 254.5, -0.0, 1e5], np.float32)[[0, 2, 3, 4]]})

    def fields(model):
        """Data in the typed fields of a tensor, not raw."""
        for name, kind, field, values in (
            ("f", TensorProto.FLOAT, "float_data", [1.5, -2.0, 3.25]),
            ("h", TensorProto.FLOAT16, "int32_data", [0x3E00, 0xC000, 0x4280]),
            ("i", TensorProto.INT8, "int32_data", [-1, 5, -128]),
            ("d", TensorProto.DOUBLE, "double_data", [1.0, 2.0, 3.0]),
            ("u", TensorProto.UINT64, "uint64_data", [1, 2, 2**63]),
            ("b", TensorProto.BOOL, "int32_data", [1, 0, 1]),
        ):
            tensor = TensorProto(name=name, data_type=kind, dims=[3])
            getattr(tensor, field).extend(values)
            model.graph.initializer.append(tensor)

    c.add("typed_fields", "g () => (float[3] y, float[3] a, float[3] p, float[3] q, uint64[3] v, float[3] r) {"
          " y = Neg(f) a = Cast<to = 1>(h) p = Cast<to = 1>(i) q = Cast<to = 1>(d) v = Identity(u)"
          " r = Cast<to = 1>(b) }", change=fields)
    c.add("constant_forms", "g () => (float a, float[2] b, int64 i, int64[2] j, float[2, 1] t) {"
          " a = Constant<value_float = 1.5>() b = Constant<value_floats = [1.0, 2.0]>()"
          " i = Constant<value_int = 3>() j = Constant<value_ints = [4, 5]>()"
          " t = Constant<value = float[2, 1] {7, 8}>() }")

    def sparse(model):
        values = numpy_helper.from_array(np.array([1.5, -2], np.float32), "w")
        model.graph.sparse_initializer.append(
            helper.make_sparse_tensor(values, numpy_helper.from_array(ints(1, 5), "at"), [2, 3]))

    c.add("sparse_initialiser", "g (float[2, 3] x) => (float[2, 3] y) { y = Add(x, w) }", {"x": normal(1, 2, 3)},
          change=sparse)
    c.add("nan_and_infinity", "g (float[N] x, float[N] z) => (float[N] a, float[N] b, float[N] c, float[N] r,"
          " bool[N] n) { a = Max(x, z) b = Min(x, z) c = Clip(x, lo, hi) r = Relu(x) n = IsNaN(x) }",
          {"x": np.array([np.nan, np.inf, -np.inf, -0.0, 1], np.float32),
           "z": np.array([1, np.nan, 2, 0, np.nan], np.float32)},
          weights={"lo": np.array(-1, np.float32), "hi": np.array(1, np.float32)})


def versions(c):
    """Operators as earlier operator sets had them."""
    x, image = normal(0, 2, 3), normal(1, 1, 2, 6, 6)
    c.add("opset_7_batch_norm", "g (float[1, 2, 6, 6] x) => (float[1, 2, 6, 6] y) {"
          " y = BatchNormalization(x, s, b, m, v) }", {"x": image}, opset=7,
          weights={"s": normal(1, 2), "b": normal(2, 2), "m": normal(3, 2), "v": np.abs(normal(4, 2))})
    c.add("opset_7_upsample", 'g (float[1, 2, 6, 6] x) => (float[1, 2, 12, 18] y) {'
          ' y = Upsample<mode = "nearest", scales = [1.0, 1.0, 2.0, 3.0]>(x) }', {"x": image}, opset=7)
    c.add("opset_7_pad_slice", "g (float[2, 3] x) => (float[A, B] y, float[C, D] z) {"
          " y = Pad<pads = [1, 0, 0, 2], value = 0.5>(x)"
          " z = Slice<axes = [1], starts = [-2], ends = [9]>(x) }", {"x": x}, opset=7)
    c.add("opset_7_squeeze", "g (float[1, 2, 3] x) => (float[2, 3] y, float[1, 2, 1, 3] z) {"
          " y = Squeeze<axes = [0]>(x) z = Unsqueeze<axes = [2]>(x) }", {"x": x[None]}, opset=7)
    c.add("opset_7_dropout", "g (float[2, 3] x) => (float[2, 3] y) { y = Dropout<ratio = 0.5>(x) }", {"x": x}, opset=7)
    c.add("opset_9_softmax_flattens", "g (float[2, 3, 4] x) => (float[2, 3, 4] y, float[2, 3, 4] z) {"
          " y = Softmax<axis = 1>(x) z = LogSoftmax<axis = 0>(x) }", {"x": normal(1, 2, 3, 4)}, opset=9)
    c.add("opset_9_topk", "g (float[2, 5] x, int64[1] k) => (float[2, K] v, int64[2, K] i) {"
          " v, i = TopK<axis = 1>(x, k) }", {"x": normal(1, 2, 5), "k": ints(2)}, opset=10)
    c.add("opset_10_resize", 'g (float[1, 2, 6, 6] x) => (float[1, 2, 9, 12] y) {'
          ' y = Resize<mode = "linear">(x, s) }', {"x": image}, opset=10,
          weights={"s": np.array([1, 1, 1.5, 2], np.float32)})
    c.add("opset_11_clip", "g (float[2, 3] x) => (float[2, 3] y) { y = Clip( x, , hi) }", {"x": x}, opset=11,
          weights={"hi": np.array(0.2, np.float32)})
    c.add("opset_11_resize_sizes", 'g (float[1, 2, 6, 6] x) => (float[1, 2, 9, 4] y) {'
          ' y = Resize<mode = "cubic", coordinate_transformation_mode = "align_corners">(x, roi, sc, s) }',
          {"x": image}, opset=11, weights={"roi": np.zeros(0, np.float32), "sc": np.zeros(0, np.float32),
                                           "s": ints(1, 2, 9, 4)})
    c.add("opset_12_argmax", "g (float[2, 5] x) => (int64[2] i, int64[1, 5] j) {"
          " i = ArgMax<axis = -1, keepdims = 0, select_last_index = 1>(x) j = ArgMin<axis = 0>(x) }",
          {"x": np.round(normal(1, 2, 5))}, opset=12)
    c.add("opset_13_split", "g (float[2, 5] x) => (float[2, 2] a, float[2, 3] b) { a, b = Split<axis = -1>(x, s) }",
          {"x": normal(1, 2, 5)}, opset=13, weights={"s": ints(2, 3)})
    c.add("opset_18_split_uneven", "g (float[7, 2] x) => (float[A, 2] a, float[B, 2] b, float[C, 2] c) {"
          " a, b, c = Split<num_outputs = 3>(x) }", {"x": normal(1, 7, 2)}, opset=18)
    c.add("opset_18_pad_axes", 'g (float[2, 3, 4] x) => (float[A, B, C] y, float[D, E, F] z) {'
          ' y = Pad<mode = "reflect">(x, p, , a) z = Pad(x, n) }', {"x": normal(1, 2, 3, 4)}, opset=18,
          weights={"p": ints(1, 2, 1, 0), "a": ints(-2, 2), "n": ints(0, -1, 0, 1, 0, -2)})
    c.add("opset_19_pad_wrap", 'g (float[2, 5] x) => (float[A, B] y) { y = Pad<mode = "wrap">(x, p) }',
          {"x": normal(1, 2, 5)}, opset=19, weights={"p": ints(1, 3, 0, 4)})
    c.add("opset_21_group_norm", "g (float[1, 4, 3, 3] x) => (float[1, 4, 3, 3] y) {"
          " y = GroupNormalization<num_groups = 2>(x, s, b) }", {"x": normal(1, 1, 4, 3, 3)}, opset=21, ir=10,
          weights={"s": normal(2, 4), "b": normal(3, 4)})
    c.add("resize_scale_rounding", 'g (float[1, 1, 10, N] x) => (float[1, 1, A, B] y) {'
          ' y = Resize<mode = "nearest">(x, , s) }', {"x": normal(1, 1, 1, 10, 10)}, {"x": normal(1, 1, 1, 10, 20)},
          weights={"s": np.array([1, 1, 0.7, 0.7], np.float32)})
    c.add("pool_ceil", "g (float[N, 2, H, W] x) => (float[N, 2, A, B] y, float[N, 2, C, D] z) {"
          " y = MaxPool<kernel_shape = [2, 2], strides = [3, 3], ceil_mode = 1, pads = [1, 1, 1, 1]>(x)"
          " z = AveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, count_include_pad = 1>(x) }",
          *({"x": normal(s, 1, 2, s, s + 1)} for s in (4, 5, 6, 7, 8)), opset=19)
    c.add("pool_ceil_dilated", "g (float[N, 2, H] x) => (float[N, 2, A] y) {"
          " y = MaxPool<kernel_shape = [3], strides = [2], dilations = [2], ceil_mode = 1, pads = [1, 2]>(x) }",
          *({"x": normal(s, 1, 2, s)} for s in (4, 5, 6, 7, 8)))
    deep = "MaxPool<kernel_shape = [2], strides = [2], ceil_mode = 1, pads = [1, 1]>"
    steps = " ".join(f"x{i + 1} = {deep}(x{i})" for i in range(24))
    c.add("pool_ceil_deep", f"g (float[N, 1, H] x0) => (float[N, 1, A] x24, float[N, B] y) {{ {steps}"
          " y = Flatten(x20) }", *({"x0": normal(s, 1, 1, s)} for s in (5, 300)))
    same = 'AveragePool<kernel_shape = [3], strides = [2], auto_pad = "SAME_UPPER">'
    steps = " ".join(f"x{i + 1} = {same}(x{i})" for i in range(10))
    c.add("pool_same_deep", f"g (float[N, 1, H] x0) => (float[N, 1, A] x10, float[N, 1, B] y) {{ {steps}"
          " z = Conv<pads = [1, 1]>(x3, w) y = Add(z, x3) }", *({"x0": normal(s, 1, 1, s)} for s in (9, 3000)),
          weights={"w": normal(1, 1, 1, 3)})
    c.add("transposed_conv_output_shape", "g (float[1, 2, 5, 5] x) => (float[1, 3, 10, 11] y) {"
          " y = ConvTranspose<strides = [2, 2], output_shape = [10, 11]>(x, w) }", {"x": normal(1, 1, 2, 5, 5)},
          weights={"w": normal(2, 2, 3, 3, 3)})
    c.add("conv_same_dynamic", 'g (float[N, 2, H, W] x) => (float[N, 3, A, B] y, float[N, 3, C, D] z) {'
          ' y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)'
          ' z = Conv<auto_pad = "SAME_LOWER", strides = [2, 3]>(x, w) }',
          *({"x": normal(s, 2, 2, s, s + 3)} for s in (4, 5, 6)), weights={"w": normal(2, 3, 2, 3, 3)})
    c.add("conv_of_one_column", "g (float[N, H, 1, 24] x) => (float[N, A, 1, 40] y, float[N, B, 1, 24] d) {"
          " t = Transpose<perm = [0, 3, 1, 2]>(x) c = Conv<strides = [2, 1], pads = [1, 0, 3, 0]>(t, w)"
          " r = Relu(c) y = Transpose<perm = [0, 2, 3, 1]>(r)"
          " e = Conv<group = 24, dilations = [2, 1]>(t, u) d = Transpose<perm = [0, 2, 3, 1]>(e) }",
          *({"x": normal(s, 2, s, 1, 24)} for s in (9, 57, 200)),
          weights={"w": normal(2, 40, 24, 5, 1), "u": normal(3, 24, 1, 3, 1)})
    c.add("einsum_broadcast", 'g (float[N, K, 3] a, float[K, 3, 4] b) => (float[N, K, 4] y) {'
          ' y = Einsum<equation = "...ij,ijk->...ik">(a, b) }', {"a": normal(1, 2, 5, 3), "b": normal(2, 5, 3, 4)})
    c.add("gemm_forms", "g (float[3, N] a, float[4, 3] b, float[1] c) => (float[N, 4] y) {"
          " y = Gemm<transA = 1, transB = 1, alpha = 0.5, beta = 2.0>(a, b, c) }",
          {"a": normal(1, 3, 2), "b": normal(2, 4, 3), "c": normal(3, 1)})
    c.add("matmul_ranks", "g (float[3] v, float[N, 2, 3, 4] m, float[4] w) => (float[N, 2, 4] y, float[N, 2, 3] z) {"
          " y = MatMul(v, m) z = MatMul(m, w) }",
          {"v": normal(1, 3), "m": normal(2, 5, 2, 3, 4), "w": normal(3, 4)})
    c.add("broadcast_ranks", "g (float[N, 1, 3] x, float[2, 1] z) => (float[N, 2, 3] y, bool[N, 2, 3] p,"
          " float[N, 2, 3] w) { y = Pow(x, z) p = Less(x, z) w = Where(p, x, z) }",
          {"x": np.abs(normal(1, 4, 1, 3)), "z": normal(2, 2, 1)})
    c.add("sum_of_many", "g (float[N, 3] a, float[3] b, float[N, 1] d) => (float[N, 3] s, float[N, 3] m, float[N, 3] x)"
          " { s = Sum(a, b, d) m = Mean(a, b, d) x = Max(a, b, d) }",
          {"a": normal(1, 2, 3), "b": normal(2, 3), "d": normal(3, 2, 1)})
    c.add("gather_elements_negative", "g (float[2, 3] x, int64[2, 2] i) => (float[2, 2] y, float[2, 3] z) {"
          " y = GatherElements<axis = 1>(x, i) z = ScatterElements<axis = 1>(x, i, y) }",
          {"x": x, "i": np.array([[-1, 0], [1, -3]])})
    c.add("slice_steps", "g (float[N, 6] x) => (float[A, 3] a, float[B, 6] b, float[C, 2] c) {"
          " a = Slice(x, s0, e0, ax1, st2) b = Slice(x, big, low, ax0, back) c = Slice(x, four, zero, ax1, back2) }",
          {"x": normal(1, 4, 6)}, {"x": normal(1, 1, 6)},
          weights={"s0": ints(1), "e0": ints(np.iinfo(np.int64).max), "ax1": ints(-1), "st2": ints(2),
                   "big": ints(np.iinfo(np.int64).max), "low": ints(np.iinfo(np.int64).min), "ax0": ints(0),
                   "back": ints(-1), "four": ints(4), "zero": ints(0), "back2": ints(-2)})
    c.add("dynamic_slice", "g (float[N, 6] x, int64[1] s, int64[1] e) => (float[A, 6] y) { y = Slice(x, s, e) }",
          {"x": normal(1, 4, 6), "s": ints(1), "e": ints(3)}, {"x": normal(1, 4, 6), "s": ints(-9), "e": ints(-1)},
          {"x": normal(1, 4, 6), "s": ints(3), "e": ints(1)})
    c.add("shape_arithmetic", """g (float[B, T, 6] x) => (float[B, 2, T, 3] y, float[M] z) {
        s = Shape(x) b = Gather(s, zero) t = Gather(s, one) two = Constant<value_int = 2>()
        minus = Constant<value_ints = [-1]>() b1 = Unsqueeze(b, first) t1 = Unsqueeze(t, first)
        two1 = Unsqueeze(two, first) parts = Concat<axis = 0>(b1, t1, two1, minus)
        r = Reshape(x, parts) y = Transpose<perm = [0, 2, 1, 3]>(r)
        n = Mul(b, t) c = Unsqueeze(n, first) z = ConstantOfShape<value = float[1] {2.5}>(c)
    }""", {"x": normal(1, 2, 5, 6)}, {"x": normal(1, 1, 1, 6)},
          weights={"zero": np.array(0), "one": np.array(1), "first": ints(0)})
    c.add("range_dynamic", "g (int64 n, float a) => (int64[K] y, float[M] z) {"
          " y = Range(zero, n, two) z = Range(a, f, h) }",
          {"n": np.array(7), "a": np.array(0.5, np.float32)}, {"n": np.array(-3), "a": np.array(3, np.float32)},
          weights={"zero": np.array(0), "two": np.array(2), "f": np.array(2, np.float32),
                   "h": np.array(0.4, np.float32)})
    c.add("functions", """g (float[N] x) => (float[N] y, float[N] z) { y = own.twice<by = 3.0>(x) z = own.twice(y) }
        <domain: "own", opset_import: ["" : 17]>
        twice <by: float = 2.0> (v) => (w) {
            k = Constant<value_float: float = @by>() w = Mul(v, k) }
    """, {"x": normal(1, 4)}, extra=', "own" : 1')


def write(folder):
    cases = Cases(folder)
    for part in (graphs, transforms, empty, control, types, versions):
        part(cases)
    return cases.names


def main():
    import onnxruntime

    stamp = f"{VERSION} onnx {onnx.__version__} onnxruntime {onnxruntime.__version__} numpy {np.__version__}"
    onnxdata.write_suite(__doc__.splitlines()[0], "onnx-usage", stamp, write)


if __name__ == "__main__":
    main()
