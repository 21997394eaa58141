"""Makes the small models beside this file, with data sets from ONNX Runtime.

    python conformance/models/make.py      (in the environment that scripts/setup makes)

The result is committed: run this only to add or change a model. Each model is written in ONNX's text form, with
weights from a fixed seed, and shows one kind of thing that real models do. Files stay far below 1 MiB.
"""

import pathlib
import shutil
import sys

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "scripts"))
import onnxdata


class Weights:
    """Names and values of a model's initialisers."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.values = {}

    def normal(self, name, *shape, scale=None):
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        self.values[name] = self.rng.normal(0, scale or fan_in**-0.5, shape).astype(np.float32)

    def near_one(self, name, *shape):
        self.values[name] = (1 + 0.2 * self.rng.normal(0, 1, shape)).astype(np.float32)

    def constant(self, name, value, dtype=np.float32):
        self.values[name] = np.array(value, dtype)


def model_of(text, weights=None):
    """The checked model that a text describes, with the weights as initialisers."""
    model = parser.parse_model(text)
    for name, value in (weights.values if weights else {}).items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    onnx.checker.check_model(model, full_check=True)
    return model


def header(opset, extra="", ir=8):
    return f'<ir_version: {ir}, opset_import: ["" : {opset}{extra}], producer_name: "tongtu">'


def normal(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(0, 1, shape)).astype(np.float32)


def cnn():
    """Convolutions with batch norm, a depthwise and a strided one, pooling, a residual, a classifier."""
    w = Weights(1)
    w.normal("w1", 16, 3, 3, 3)
    w.normal("w2", 16, 1, 3, 3)
    w.normal("w3", 32, 16, 1, 1)
    w.normal("w4", 32, 16, 3, 3)
    w.normal("b4", 32)
    w.normal("wf", 32, 10)
    w.normal("bf", 10)
    for name, channels in (("n1", 16), ("n2", 16), ("n3", 32)):
        w.near_one(f"{name}_scale", channels)
        w.normal(f"{name}_bias", channels)
        w.normal(f"{name}_mean", channels)
        w.values[f"{name}_var"] = np.abs(w.rng.normal(1, 0.2, channels)).astype(np.float32)
    text = header(13) + """
    cnn (float[N, 3, H, W] image) => (float[N, 10] probability) {
        c1 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(image, w1)
        m1 = BatchNormalization<epsilon = 1e-5>(c1, n1_scale, n1_bias, n1_mean, n1_var)
        r1 = Relu(m1)
        c2 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 16>(r1, w2)
        m2 = BatchNormalization<epsilon = 1e-5>(c2, n2_scale, n2_bias, n2_mean, n2_var)
        s2 = Add(m2, r1)
        r2 = Relu(s2)
        p2 = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(r2)
        c3 = Conv<kernel_shape = [1, 1]>(p2, w3)
        m3 = BatchNormalization<epsilon = 1e-5>(c3, n3_scale, n3_bias, n3_mean, n3_var)
        c4 = Conv<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(r2, w4, b4)
        s3 = Add(m3, c4)
        q3 = HardSigmoid<alpha = 0.16666667, beta = 0.5>(s3)
        h3 = Mul(s3, q3)
        a3 = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(h3)
        g3 = GlobalAveragePool(a3)
        f3 = Flatten(g3)
        logits = Gemm<alpha = 1.0, beta = 1.0>(f3, wf, bf)
        probability = Softmax<axis = -1>(logits)
    }"""
    cases = [{"image": normal(11, 1, 3, 32, 32)}, {"image": normal(12, 3, 3, 20, 28)}, {"image": normal(13, 2, 3, 17, 9)}]
    return model_of(text, w), cases


def transformer():
    """Two encoder layers with dynamic batch and sequence and an attention mask."""
    hidden, heads, wide, vocabulary, places = 32, 4, 64, 120, 64
    size = hidden // heads
    w = Weights(2)
    w.normal("words", vocabulary, hidden, scale=0.5)
    w.normal("places", places, hidden, scale=0.2)
    w.constant("zero", [0], np.int64)
    w.constant("one", [1], np.int64)
    w.constant("two", [2], np.int64)
    w.constant("mask_axes", [1, 2], np.int64)
    w.constant("split", [0, 0, heads, size], np.int64)
    w.constant("merge", [0, 0, hidden], np.int64)
    w.constant("unit", 1.0)
    w.constant("half", 0.5)
    w.constant("root_two", 2**0.5)
    w.constant("lowest", -1e9)
    w.constant("scale", size**-0.5)
    lines = ["""
        shape = Shape(tokens)
        length = Slice(shape, one, two)
        at = Slice(places, zero, length)
        embedded = Gather(words, tokens)
        x_0 = Add(embedded, at)
        kept = Cast<to = 1>(mask)
        kept4 = Unsqueeze(kept, mask_axes)
        hidden_by = Sub(unit, kept4)
        bias = Mul(hidden_by, lowest)"""]
    for layer in range(2):
        p = f"l{layer}_"
        for part in ("q", "k", "v", "o"):
            w.normal(f"{p}w{part}", hidden, hidden)
            w.normal(f"{p}b{part}", hidden, scale=0.1)
        w.normal(f"{p}w1", hidden, wide)
        w.normal(f"{p}b1", wide, scale=0.1)
        w.normal(f"{p}w2", wide, hidden)
        w.normal(f"{p}b2", hidden, scale=0.1)
        for norm in ("n1", "n2"):
            w.near_one(f"{p}{norm}s", hidden)
            w.normal(f"{p}{norm}b", hidden, scale=0.1)
        for part, order in (("q", "0, 2, 1, 3"), ("k", "0, 2, 3, 1"), ("v", "0, 2, 1, 3")):
            lines.append(f"""
        {p}{part}0 = MatMul(x_{layer}, {p}w{part})
        {p}{part}1 = Add({p}{part}0, {p}b{part})
        {p}{part}2 = Reshape({p}{part}1, split)
        {p}{part} = Transpose<perm = [{order}]>({p}{part}2)""")
        lines.append(f"""
        {p}s0 = MatMul({p}q, {p}k)
        {p}s1 = Mul({p}s0, scale)
        {p}s2 = Add({p}s1, bias)
        {p}p = Softmax<axis = -1>({p}s2)
        {p}c0 = MatMul({p}p, {p}v)
        {p}c1 = Transpose<perm = [0, 2, 1, 3]>({p}c0)
        {p}c2 = Reshape({p}c1, merge)
        {p}o0 = MatMul({p}c2, {p}wo)
        {p}o1 = Add({p}o0, {p}bo)
        {p}r0 = Add({p}o1, x_{layer})
        {p}r = LayerNormalization<axis = -1, epsilon = 1e-5>({p}r0, {p}n1s, {p}n1b)
        {p}f0 = MatMul({p}r, {p}w1)
        {p}f1 = Add({p}f0, {p}b1)
        {p}f2 = Div({p}f1, root_two)
        {p}f3 = Erf({p}f2)
        {p}f4 = Add({p}f3, unit)
        {p}f5 = Mul({p}f1, {p}f4)
        {p}f6 = Mul({p}f5, half)
        {p}f7 = MatMul({p}f6, {p}w2)
        {p}f8 = Add({p}f7, {p}b2)
        {p}t = Add({p}f8, {p}r)
        x_{layer + 1} = LayerNormalization<axis = -1, epsilon = 1e-5>({p}t, {p}n2s, {p}n2b)""")
    text = header(17) + ("\n    transformer (int64[batch, sequence] tokens, int64[batch, sequence] mask)"
                         f" => (float[batch, sequence, {hidden}] x_2) {{" + "".join(lines) + "\n    }")
    cases = []
    for seed, (batch, length) in enumerate([(1, 1), (2, 16), (3, 37)]):
        rng = np.random.default_rng(20 + seed)
        mask = np.ones((batch, length), np.int64)
        for row in range(1, batch):
            mask[row, length - 3 * row:] = 0
        cases.append({"tokens": rng.integers(0, vocabulary, (batch, length)), "mask": mask})
    return model_of(text, w), cases


def recurrent():
    """A bidirectional GRU under a forward LSTM, with sequence lengths, initial state and all state outputs."""
    w = Weights(3)
    w.normal("gw", 2, 36, 8)
    w.normal("gr", 2, 36, 12)
    w.normal("gb", 2, 72, scale=0.1)
    w.normal("lw", 1, 40, 24)
    w.normal("lr", 1, 40, 10)
    w.normal("lb", 1, 80, scale=0.1)
    w.constant("flat", [0, 0, -1], np.int64)
    w.constant("direction", [1], np.int64)
    text = header(14) + """
    recurrent (float[T, N, 8] x, int32[N] lengths, float[1, N, 10] h0, float[1, N, 10] c0)
        => (float[T, N, 10] y, float[2, N, 12] g_last, float[1, N, 10] h_last, float[1, N, 10] c_last) {
        g, g_last = GRU<direction = "bidirectional", hidden_size = 12, linear_before_reset = 1>(x, gw, gr, gb, lengths)
        g_swapped = Transpose<perm = [0, 2, 1, 3]>(g)
        g_flat = Reshape(g_swapped, flat)
        l, h_last, c_last = LSTM<hidden_size = 10>(g_flat, lw, lr, lb, lengths, h0, c0)
        y = Squeeze(l, direction)
    }"""
    cases = []
    for seed, (steps, batch, lengths) in enumerate([(5, 1, [5]), (9, 3, [9, 4, 1]), (1, 2, [1, 1])]):
        cases.append({"x": normal(30 + seed, steps, batch, 8), "lengths": np.array(lengths, np.int32),
                      "h0": normal(40 + seed, 1, batch, 10, scale=0.5), "c0": normal(50 + seed, 1, batch, 10, scale=0.5)})
    return model_of(text, w), cases


def growing():
    """Shapes that depend on data: NonZero, Gather, Resize to a computed size, a Loop whose result grows each turn."""
    w = Weights(4)
    w.constant("zero_f", 0.0)
    w.constant("axis_0", [0], np.int64)
    w.constant("axis_1", [1], np.int64)
    w.constant("image_axes", [0, 1], np.int64)
    w.constant("times_two", [1.0, 1.0, 2.0, 1.5])
    w.constant("true", True, np.bool_)
    w.constant("limit", 40.0)
    text = header(13) + """
    growing (float[rows, columns] x, int64 turns) => (float[picked] chosen, float[1, 1, taller, wider] resized,
                                                     float[found, columns] grown, float sum) {
        positive = Greater(x, zero_f)
        where = NonZero(positive)
        where_pairs = Transpose<perm = [1, 0]>(where)
        chosen = GatherND(x, where_pairs)
        row_has = ReduceMax<axes = [1], keepdims = 0>(x)
        row_positive = Greater(row_has, zero_f)
        rows_2d = NonZero(row_positive)
        rows_kept = Squeeze(rows_2d, axis_0)
        kept = Gather<axis = 0>(x, rows_kept)
        image = Unsqueeze(kept, image_axes)
        resized = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(image, , times_two)
        start = ReduceSum<keepdims = 0>(x)
        grown, sum = Loop <
            body = step (int64 i, bool go, float[have, columns] so_far, float total)
                => (bool go_on, float[more, columns] longer, float new_total) {
                i_float = Cast<to = 1>(i)
                fresh = Add(x, i_float)
                longer = Concat<axis = 0>(so_far, fresh)
                fresh_sum = ReduceSum<keepdims = 0>(fresh)
                fresh_size = Abs(fresh_sum)
                new_total = Add(total, fresh_size)
                go_on = Less(new_total, limit)
            }
        > (turns, true, kept, start)
    }"""
    cases = [
        {"x": normal(60, 4, 5), "turns": np.array(3, np.int64)},
        {"x": normal(61, 7, 3), "turns": np.array(50, np.int64)},
        {"x": -np.abs(normal(62, 3, 4)) + np.float32(4) * np.eye(3, 4, dtype=np.float32), "turns": np.array(0, np.int64)},
    ]
    return model_of(text, w), cases


def decode():
    """One step of decoding: causal attention over a cache that grows by concatenation."""
    hidden, heads, size = 24, 3, 8
    w = Weights(5)
    for part in ("q", "k", "v", "o"):
        w.normal(f"w{part}", hidden, hidden)
    w.near_one("ns", hidden)
    w.normal("nb", hidden, scale=0.1)
    w.constant("split", [0, 0, heads, size], np.int64)
    w.constant("merge", [0, 0, hidden], np.int64)
    w.constant("scale", size**-0.5)
    w.constant("lowest", -1e9)
    w.constant("zero_f", 0.0)
    w.constant("zero", 0, np.int64)
    w.constant("one", 1, np.int64)
    w.constant("two", 2, np.int64)
    w.constant("axis_0", [0], np.int64)
    w.constant("axis_1", [1], np.int64)
    text = header(17) + f"""
    decode (float[batch, new, {hidden}] x, float[batch, {heads}, past, {size}] past_key,
            float[batch, {heads}, past, {size}] past_value)
        => (float[batch, new, {hidden}] y, float[batch, {heads}, total, {size}] key,
            float[batch, {heads}, total, {size}] value) {{
        n = LayerNormalization<axis = -1, epsilon = 1e-5>(x, ns, nb)
        q0 = MatMul(n, wq)
        q1 = Reshape(q0, split)
        q = Transpose<perm = [0, 2, 1, 3]>(q1)
        k0 = MatMul(n, wk)
        k1 = Reshape(k0, split)
        k = Transpose<perm = [0, 2, 1, 3]>(k1)
        v0 = MatMul(n, wv)
        v1 = Reshape(v0, split)
        v = Transpose<perm = [0, 2, 1, 3]>(v1)
        key = Concat<axis = 2>(past_key, k)
        value = Concat<axis = 2>(past_value, v)
        past_shape = Shape(past_key)
        past_length = Gather<axis = 0>(past_shape, two)
        x_shape = Shape(x)
        new_length = Gather<axis = 0>(x_shape, one)
        total_length = Add(past_length, new_length)
        key_at = Range(zero, total_length, one)
        query_at = Range(past_length, total_length, one)
        key_row = Unsqueeze(key_at, axis_0)
        query_column = Unsqueeze(query_at, axis_1)
        later = Greater(key_row, query_column)
        bias = Where(later, lowest, zero_f)
        kt = Transpose<perm = [0, 1, 3, 2]>(key)
        s0 = MatMul(q, kt)
        s1 = Mul(s0, scale)
        s2 = Add(s1, bias)
        p = Softmax<axis = -1>(s2)
        c0 = MatMul(p, value)
        c1 = Transpose<perm = [0, 2, 1, 3]>(c0)
        c2 = Reshape(c1, merge)
        o = MatMul(c2, wo)
        y = Add(x, o)
    }}"""
    cases = []
    for seed, (batch, past, new) in enumerate([(1, 0, 6), (2, 11, 1), (3, 40, 2)]):
        cases.append({"x": normal(70 + seed, batch, new, hidden), "past_key": normal(80 + seed, batch, heads, past, size),
                      "past_value": normal(90 + seed, batch, heads, past, size)})
    return model_of(text, w), cases


def decode_in_place():
    """One step of decoding that writes its row into a cache of fixed capacity (TensorScatter)."""
    hidden, heads, size = 24, 3, 8
    w = Weights(6)
    for part in ("q", "k", "v", "o"):
        w.normal(f"w{part}", hidden, hidden)
    w.constant("split", [0, 0, heads, size], np.int64)
    w.constant("merge", [0, 0, hidden], np.int64)
    w.constant("scale", size**-0.5)
    w.constant("lowest", -1e9)
    w.constant("zero_f", 0.0)
    w.constant("zero", 0, np.int64)
    w.constant("one", 1, np.int64)
    w.constant("two", 2, np.int64)
    w.constant("tail_axes", [1, 2, 3], np.int64)
    w.constant("head_axes", [0, 1, 2], np.int64)
    text = header(24, ir=11) + f"""
    decode_in_place (float[batch, 1, {hidden}] x, float[batch, {heads}, capacity, {size}] past_key,
            float[batch, {heads}, capacity, {size}] past_value, int64[batch] at)
        => (float[batch, 1, {hidden}] y, float[batch, {heads}, capacity, {size}] key,
            float[batch, {heads}, capacity, {size}] value) {{
        q0 = MatMul(x, wq)
        q1 = Reshape(q0, split)
        q = Transpose<perm = [0, 2, 1, 3]>(q1)
        k0 = MatMul(x, wk)
        k1 = Reshape(k0, split)
        k = Transpose<perm = [0, 2, 1, 3]>(k1)
        v0 = MatMul(x, wv)
        v1 = Reshape(v0, split)
        v = Transpose<perm = [0, 2, 1, 3]>(v1)
        key = TensorScatter<axis = -2>(past_key, k, at)
        value = TensorScatter<axis = -2>(past_value, v, at)
        shape = Shape(past_key)
        capacity = Gather<axis = 0>(shape, two)
        places = Range(zero, capacity, one)
        places4 = Unsqueeze(places, head_axes)
        at4 = Unsqueeze(at, tail_axes)
        later = Greater(places4, at4)
        bias = Where(later, lowest, zero_f)
        kt = Transpose<perm = [0, 1, 3, 2]>(key)
        s0 = MatMul(q, kt)
        s1 = Mul(s0, scale)
        s2 = Add(s1, bias)
        p = Softmax<axis = -1>(s2)
        c0 = MatMul(p, value)
        c1 = Transpose<perm = [0, 2, 1, 3]>(c0)
        c2 = Reshape(c1, merge)
        o = MatMul(c2, wo)
        y = Add(x, o)
    }}"""
    cases = []
    for seed, (batch, capacity, at) in enumerate([(1, 8, [0]), (3, 16, [15, 3, 7])]):
        cases.append({"x": normal(100 + seed, batch, 1, hidden),
                      "past_key": normal(110 + seed, batch, heads, capacity, size),
                      "past_value": normal(120 + seed, batch, heads, capacity, size),
                      "at": np.array(at, np.int64)})
    return model_of(text, w), cases


def llama_layer():
    """A decoder layer of the llama architecture: root mean square norms, rotary embedding, grouped queries, a cache, SwiGLU."""
    hidden, heads, groups, size, wide = 64, 4, 2, 16, 160
    w = Weights(9)
    for part, columns in (("q", heads * size), ("k", groups * size), ("v", groups * size)):
        w.normal(f"w{part}", hidden, columns)
    w.normal("wo", heads * size, hidden)
    w.normal("w_gate", hidden, wide)
    w.normal("w_up", hidden, wide)
    w.normal("w_down", wide, hidden)
    w.near_one("norm_1", hidden)
    w.near_one("norm_2", hidden)
    w.constant("frequencies", [[10000.0 ** (-2 * i / size) for i in range(size // 2)]])
    w.constant("epsilon", 1e-5)
    w.constant("square", 2.0)
    w.constant("unit", 1.0)
    w.constant("scale", size**-0.5)
    w.constant("lowest", -np.finfo(np.float32).max)
    w.constant("zero_f", 0.0)
    w.constant("split_q", [0, 0, heads, size], np.int64)
    w.constant("split_kv", [0, 0, groups, size], np.int64)
    w.constant("join_kv", [0, heads, -1, size], np.int64)
    w.constant("merge", [0, 0, hidden], np.int64)
    for name, value in (("zero", 0), ("one", 1), ("two", 2)):
        w.constant(name, value, np.int64)
    for name, value in (("from_0", [0]), ("half", [size // 2]), ("end", [size]), ("last", [3]), ("at_0", [0]), ("at_1", [1]),
                        ("at_2", [2]), ("repeat_1", [1, 1, heads // groups, 1, 1])):
        w.constant(name, value, np.int64)

    def norm(x, weight, out):
        return f"""
        {out}_0 = Pow({x}, square)
        {out}_1 = ReduceMean<axes = [-1], keepdims = 1>({out}_0)
        {out}_2 = Add({out}_1, epsilon)
        {out}_3 = Sqrt({out}_2)
        {out}_4 = Div(unit, {out}_3)
        {out}_5 = Mul({x}, {out}_4)
        {out} = Mul({weight}, {out}_5)"""

    def rotated(x, out):
        return f"""
        {out}_0 = Mul({x}, cos)
        {out}_1 = Slice({x}, from_0, half, last)
        {out}_2 = Slice({x}, half, end, last)
        {out}_3 = Neg({out}_2)
        {out}_4 = Concat<axis = -1>({out}_3, {out}_1)
        {out}_5 = Mul({out}_4, sin)
        {out} = Add({out}_0, {out}_5)"""

    text = header(17) + f"""
    llama_layer (float[batch, new, {hidden}] x, int64[batch, new] places,
            float[batch, {groups}, past, {size}] past_key, float[batch, {groups}, past, {size}] past_value)
        => (float[batch, new, {hidden}] y, float[batch, {groups}, total, {size}] key,
            float[batch, {groups}, total, {size}] value) {{
        places_f = Cast<to = 1>(places)
        places_3 = Unsqueeze(places_f, at_2)
        angles = Mul(places_3, frequencies)
        both = Concat<axis = -1>(angles, angles)
        both_4 = Unsqueeze(both, at_1)
        cos = Cos(both_4)
        sin = Sin(both_4)""" + norm("x", "norm_1", "n") + f"""
        q0 = MatMul(n, wq)
        q1 = Reshape(q0, split_q)
        q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
        k0 = MatMul(n, wk)
        k1 = Reshape(k0, split_kv)
        k2 = Transpose<perm = [0, 2, 1, 3]>(k1)
        v0 = MatMul(n, wv)
        v1 = Reshape(v0, split_kv)
        v2 = Transpose<perm = [0, 2, 1, 3]>(v1)""" + rotated("q2", "q") + rotated("k2", "k") + """
        key = Concat<axis = 2>(past_key, k)
        value = Concat<axis = 2>(past_value, v2)
        key_5 = Unsqueeze(key, at_2)
        value_5 = Unsqueeze(value, at_2)
        shape = Shape(key_5)
        spread = Mul(shape, repeat_1)
        key_r = Expand(key_5, spread)
        value_r = Expand(value_5, spread)
        keys = Reshape(key_r, join_kv)
        values = Reshape(value_r, join_kv)
        past_shape = Shape(past_key)
        past_length = Gather<axis = 0>(past_shape, two)
        x_shape = Shape(x)
        new_length = Gather<axis = 0>(x_shape, one)
        total_length = Add(past_length, new_length)
        key_at = Range(zero, total_length, one)
        query_at = Range(past_length, total_length, one)
        key_row = Unsqueeze(key_at, at_0)
        query_column = Unsqueeze(query_at, at_1)
        later = Greater(key_row, query_column)
        bias = Where(later, lowest, zero_f)
        kt = Transpose<perm = [0, 1, 3, 2]>(keys)
        s0 = MatMul(q, kt)
        s1 = Mul(s0, scale)
        s2 = Add(s1, bias)
        p = Softmax<axis = -1>(s2)
        c0 = MatMul(p, values)
        c1 = Transpose<perm = [0, 2, 1, 3]>(c0)
        c2 = Reshape(c1, merge)
        o = MatMul(c2, wo)
        r = Add(x, o)""" + norm("r", "norm_2", "m") + """
        gate = MatMul(m, w_gate)
        gate_s = Sigmoid(gate)
        gate_a = Mul(gate, gate_s)
        up = MatMul(m, w_up)
        both_f = Mul(gate_a, up)
        down = MatMul(both_f, w_down)
        y = Add(r, down)
    }"""
    cases = []
    for seed, (batch, past, new) in enumerate([(1, 0, 5), (1, 7, 1), (2, 19, 3)]):
        places = np.tile(np.arange(past, past + new, dtype=np.int64), (batch, 1))
        cases.append({"x": normal(300 + seed, batch, new, hidden), "places": places,
                      "past_key": normal(310 + seed, batch, groups, past, size),
                      "past_value": normal(320 + seed, batch, groups, past, size)})
    return model_of(text, w), cases


def quantised():
    """An int8 network in QDQ form: a per-channel convolution, a per-tensor matrix product, a residual."""
    w = Weights(7)

    def weight(name, shape, axis):
        value = w.rng.normal(0, int(np.prod(shape[1:])) ** -0.5, shape)
        other = tuple(i for i in range(len(shape)) if i != axis)
        scale = np.abs(value).max(other) / 127 if axis is not None else np.abs(value).max() / 127
        wide = scale.reshape([-1 if i == axis else 1 for i in range(len(shape))]) if axis is not None else scale
        w.values[f"{name}_q"] = np.clip(np.round(value / wide), -127, 127).astype(np.int8)
        w.values[f"{name}_s"] = np.asarray(scale, np.float32)
        w.values[f"{name}_z"] = np.zeros(np.shape(scale), np.int8)

    weight("w1", (8, 3, 3, 3), 0)
    weight("w2", (8, 8, 3, 3), 0)
    weight("w3", (8, 6), None)
    for name, scale, zero, dtype in (("x", 0.03, 128, np.uint8), ("a", 0.02, 0, np.uint8), ("b", 0.025, 121, np.uint8),
                                     ("g", 0.015, 5, np.uint8), ("y", 0.02, -3, np.int8)):
        w.constant(f"{name}_s", scale)
        w.constant(f"{name}_z", zero, dtype)
    bias = np.round(w.rng.normal(0, 0.1, 8) / (0.03 * w.values["w1_s"])).astype(np.int32)
    w.values["b1_q"] = bias
    w.values["b1_s"] = (np.float32(0.03) * w.values["w1_s"]).astype(np.float32)
    w.values["b1_z"] = np.zeros(8, np.int32)
    text = header(13) + """
    quantised (float[N, 3, H, W] x) => (float[N, 6] y) {
        x_q = QuantizeLinear(x, x_s, x_z)
        x_d = DequantizeLinear(x_q, x_s, x_z)
        w1 = DequantizeLinear<axis = 0>(w1_q, w1_s, w1_z)
        b1 = DequantizeLinear<axis = 0>(b1_q, b1_s, b1_z)
        c1 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x_d, w1, b1)
        r1 = Relu(c1)
        a_q = QuantizeLinear(r1, a_s, a_z)
        a_d = DequantizeLinear(a_q, a_s, a_z)
        w2 = DequantizeLinear<axis = 0>(w2_q, w2_s, w2_z)
        c2 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(a_d, w2)
        b_q = QuantizeLinear(c2, b_s, b_z)
        b_d = DequantizeLinear(b_q, b_s, b_z)
        s2 = Add(a_d, b_d)
        g0 = GlobalAveragePool(s2)
        g1 = Flatten(g0)
        g_q = QuantizeLinear(g1, g_s, g_z)
        g_d = DequantizeLinear(g_q, g_s, g_z)
        w3 = DequantizeLinear(w3_q, w3_s, w3_z)
        m3 = MatMul(g_d, w3)
        y_q = QuantizeLinear(m3, y_s, y_z)
        y = DequantizeLinear(y_q, y_s, y_z)
    }"""
    return model_of(text, w), [{"x": normal(130, 1, 3, 8, 8)}, {"x": normal(131, 4, 3, 11, 6)}]


def external():
    """Weights in files of their own, one of them a part of a shared file."""
    w = Weights(8)
    w.normal("w1", 48, 64)
    w.normal("w2", 64, 16)
    w.normal("b2", 16)
    text = header(17) + """
    external (float[N, 48] x) => (float[N, 16] y) {
        h = MatMul(x, w1)
        t = Tanh(h)
        m = MatMul(t, w2)
        y = Add(m, b2)
    }"""
    return model_of(text, w), [{"x": normal(140, 1, 48)}, {"x": normal(141, 5, 48)}]


def save_external(model, folder):
    """w1 in a folder of its own; w2 at an offset of a second file; b2 inside the model."""
    (folder / "weights").mkdir()
    for tensor in model.graph.initializer:
        if tensor.name == "b2":
            continue
        location, offset = ("weights/first.bin", 0) if tensor.name == "w1" else ("second.bin", 4096)
        content = tensor.raw_data
        (folder / location).write_bytes(b"\0" * offset + content)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(len(content)))):
            tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def control():
    """If with branches of unlike shapes, a Loop with a scan output and an early end, a Scan over two axes."""
    w = Weights(9)
    w.normal("w", 4, 4)
    w.constant("zero_f", 0.0)
    w.constant("true", True, np.bool_)
    w.constant("limit", 6.0)
    w.constant("axis_0", [0], np.int64)
    w.constant("axis_1", [1], np.int64)
    w.constant("six", 6, np.int64)
    text = header(16) + """
    control (float[rows, 4] x) => (float[picked, 4] branch, float[4] last, float[turns, 4] history,
                                   float[4] carry, float[rows, 4] running) {
        sum = ReduceSum<keepdims = 0>(x)
        above = Greater(sum, zero_f)
        branch = If <
            then_branch = upper () => (float[rows, 4] y_then) {
                m = MatMul(x, w)
                y_then = Relu(m)
            },
            else_branch = lower () => (float[one, 4] y_else) {
                total = ReduceSum<keepdims = 1>(x, axis_0)
                y_else = Neg(total)
            }
        > (above)
        begin = ReduceMean<axes = [0], keepdims = 0>(x)
        last, history = Loop <
            body = turn (int64 i, bool go, float[4] v) => (bool on, float[4] v_next, float[4] v_seen) {
                row = MatMul(v, w)
                fed = Add(row, begin)
                v_next = Tanh(fed)
                v_seen = Identity(v_next)
                i_f = Cast<to = 1>(i)
                size_0 = Abs(sum)
                size = Add(i_f, size_0)
                on = Less(size, limit)
            }
        > (six, true, begin)
        carry, running = Scan <
            num_scan_inputs = 1,
            body = fold (float[4] state, float[4] row_in) => (float[4] state_next, float[4] row_out) {
                state_next = Add(state, row_in)
                row_out = Tanh(state_next)
            }
        > (begin, x)
    }"""
    up = np.abs(normal(150, 3, 4, scale=0.3))
    return model_of(text, w), [{"x": up}, {"x": -np.abs(normal(151, 2, 4))}, {"x": normal(152, 6, 4)}]


def functions():
    """Model-local functions: one with attributes and a default, one calling another, one used twice."""
    w = Weights(10)
    w.normal("w", 12, 12)
    w.normal("b", 12)
    text = """<ir_version: 9, opset_import: ["" : 18, "local" : 1], producer_name: "tongtu">
    functions (float[N, 12] x) => (float[N, 12] y, float[N, 12] z) {
        h = local.dense_act<slope = 0.25>(x, w, b)
        y = local.dense_act(h, w, b)
        z = local.twice<steps = 2>(y)
    }
    <opset_import: ["" : 18], domain: "local">
    leaky <slope: float = 0.1> (v) => (out) {
        out = LeakyRelu<alpha: float = @slope>(v)
    }
    <opset_import: ["" : 18, "local" : 1], domain: "local">
    dense_act <slope: float = 0.1> (v, weight, bias) => (out) {
        m = MatMul(v, weight)
        a = Add(m, bias)
        out = local.leaky<slope: float = @slope>(a)
    }
    <opset_import: ["" : 18], domain: "local">
    twice <steps> (v) => (out) {
        exponent = Constant<value_int: int = @steps>()
        as_float = CastLike(exponent, v)
        out = Mul(v, as_float)
    }"""
    return model_of(text, w), [{"x": normal(160, 1, 12)}, {"x": normal(161, 7, 12)}]


def of_nodes(name, nodes, inputs, outputs, constants, opset=17):
    """A model of single nodes, with integer constants, of which only the kinds of inputs and outputs are declared."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, name, [value(n, onnx.TensorProto.FLOAT, s) for n, s in inputs],
                              [value(n, t, None) for n, t in outputs],
                              [numpy_helper.from_array(np.array(v), n) for n, v in constants.items()])
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8,
                             producer_name="tongtu")


FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def slices():
    """Slices of a dim that varies: from both ends, past both ends, backwards, with steps."""
    far = 2**62
    bounds = [(1, far, 1), (-2, far, 1), (0, 5, 1), (2, -1, 1), (-100, 3, 1), (3, 100, 1), (-3, -1, 1), (-1, -far, -1),
              (-1, -far, -2), (0, far, 2)]
    constants = {"axis": np.array([1])}
    nodes, outputs = [], []
    for i, bound in enumerate(bounds):
        for part, number in zip(("start", "end", "step"), bound):
            constants[f"{part}{i}"] = np.array([number])
        nodes.append(helper.make_node("Slice", ["x", f"start{i}", f"end{i}", "axis", f"step{i}"], [f"y{i}"]))
        outputs.append((f"y{i}", FLOAT))
    return (of_nodes("slices", nodes, [("x", ["b", "n"])], outputs, constants),
            [{"x": normal(200 + n, 2, n)} for n in (1, 2, 3, 6, 9)])


def windows():
    """Pooling and convolutions of a picture whose size varies: padding to keep the size, partial windows at the end."""
    constants = {"w": normal(210, 4, 3, 3, 3), "wt": normal(211, 3, 2, 3, 3)}
    kinds = [
        ("MaxPool", ["x"], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", ["x"], {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("MaxPool", ["x"], {"kernel_shape": [3, 3], "strides": [3, 2], "pads": [1, 0, 1, 0], "dilations": [1, 2]}),
        ("AveragePool", ["x"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
        ("AveragePool", ["x"], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        ("Conv", ["x", "w"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("Conv", ["x", "w"], {"pads": [1, 1, 1, 1], "strides": [2, 1], "dilations": [1, 2]}),
        ("ConvTranspose", ["x", "wt"], {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        ("ConvTranspose", ["x", "wt"], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ]
    nodes = [helper.make_node(op, inputs, [f"y{i}"], **attributes) for i, (op, inputs, attributes) in enumerate(kinds)]
    outputs = [(f"y{i}", FLOAT) for i in range(len(kinds))]
    return (of_nodes("windows", nodes, [("x", ["b", 3, "h", "w_"])], outputs, constants),
            [{"x": normal(220 + h, 1, 3, h, w)} for h, w in ((7, 7), (8, 9), (5, 12))])


def pads():
    """Every mode of padding of a dim that varies."""
    modes = ("constant", "edge", "reflect", "wrap")
    nodes = [helper.make_node("Pad", ["x", "amounts"], [mode], mode=mode) for mode in modes]
    return (of_nodes("pads", nodes, [("x", ["b", "n"])], [(mode, FLOAT) for mode in modes],
                     {"amounts": np.array([0, 2, 1, 3])}, opset=19),
            [{"x": normal(230 + n, b, n)} for b, n in ((2, 4), (3, 7))])


def shapes():
    """Sizes computed from shapes, as exporters write it: masks, reshapes, ranges, tiles, a k that depends on a size."""
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"]), node("Gather", ["s", "i1"], ["n"]), node("Gather", ["s", "i0"], ["b"]),
        node("Unsqueeze", ["n", "a0"], ["n1"]), node("Unsqueeze", ["b", "a0"], ["b1"]),
        node("Range", ["i0", "n", "i1"], ["r"]), node("Unsqueeze", ["r", "a0"], ["rq"]),
        node("Unsqueeze", ["r", "a1"], ["rk"]), node("LessOrEqual", ["rq", "rk"], ["causal"]),
        node("Concat", ["b1", "n1", "n1"], ["bnn"], axis=0), node("Expand", ["causal", "bnn"], ["mask"]),
        node("Cast", ["mask"], ["maskf"], to=FLOAT), node("MatMul", ["maskf", "x"], ["y"]),
        node("Split", ["x"], ["sa", "sb"], axis=2), node("Concat", ["sb", "sa"], ["turned"], axis=2),
        node("Concat", ["b1", "m1", "two"], ["shape"], axis=0), node("Reshape", ["x", "shape"], ["pairs"]),
        node("Mul", ["n1", "two"], ["k2"]), node("Div", ["k2", "three"], ["k3"]),
        node("ReduceMax", ["x"], ["top"], axes=[2], keepdims=0), node("TopK", ["top", "k3"], ["best", "where"], axis=1),
        node("ConstantOfShape", ["bnn"], ["ones"], value=helper.make_tensor("v", FLOAT, [1], [1.0])),
        node("Trilu", ["ones"], ["triangle"], upper=0), node("Concat", ["a1", "n1", "a1"], ["times"], axis=0),
        node("Tile", ["x", "times"], ["tiled"]), node("Gather", ["x", "last"], ["final"], axis=1),
        node("CumSum", ["x", "i1"], ["sums"]), node("Equal", ["n1", "m1"], ["open"]),
        node("Where", ["open", "a1", "n1"], ["known"]), node("Concat", ["b1", "known"], ["sizes"], axis=0),
        node("NonZero", ["mask"], ["places"]), node("Sub", ["n1", "a1"], ["before"]),
        node("Slice", ["x", "before", "n1", "a1"], ["tail"]),
    ]
    outputs = [(n, FLOAT) for n in ("y", "turned", "pairs", "best", "triangle", "tiled", "final", "sums", "tail")]
    outputs += [(n, INT64) for n in ("where", "sizes", "places")]
    constants = {"i0": np.array(0), "i1": np.array(1), "a0": np.array([0]), "a1": np.array([1]), "m1": np.array([-1]),
                 "two": np.array([2]), "three": np.array([3]), "last": np.array(-1)}
    return (of_nodes("shapes", nodes, [("x", ["batch", "sequence", 4])], outputs, constants),
            [{"x": normal(240 + n, b, n, 4)} for b, n in ((2, 3), (1, 5), (3, 2))])


MODELS = {
    "slices": slices,
    "windows": windows,
    "pads": pads,
    "shapes": shapes,
    "cnn": cnn,
    "transformer": transformer,
    "recurrent": recurrent,
    "growing": growing,
    "decode": decode,
    "decode-in-place": decode_in_place,
    "llama-layer": llama_layer,
    "quantised": quantised,
    "external": external,
    "control": control,
    "functions": functions,
}


def main():
    for name, build in MODELS.items():
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        model, cases = build()
        if name == "external":
            save_external(model, folder)
        else:
            (folder / "model.onnx").write_bytes(model.SerializeToString())
        onnxdata.add_data_sets(folder, cases)
        onnxdata.write_meta(folder, description=build.__doc__, source="conformance/models/make.py",
                            licence="Apache-2.0", rtol=1e-3, atol=1e-5)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{name}: {size} bytes")


if __name__ == "__main__":
    main()
