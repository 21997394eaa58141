"""Makes models of what users of other stacks found missing one by one: `isin` as PyTorch's exporter writes it, a `Resize` to a size that is
computed, `Unique`, `NonZero`; in `gaps.onnx` also a block of quantised experts (MoE) and an operator that nobody has, in `doubles.onnx`
arithmetic in f64, in `both.onnx` the latter two.

    python conformance/port/make.py      (in the environment that scripts/setup makes)

The result is committed.
"""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
HIDDEN, EXPERTS, INNER = 16, 4, 32


def make(file, doubles, gap=False):
    rng = np.random.default_rng(1)
    nodes, weights = [], []

    def weight(name, array):
        weights.append(numpy_helper.from_array(array, name))
        return name

    def node(op, inputs, outputs, domain="", **attributes):
        nodes.append(helper.make_node(op, inputs, outputs, name=f"/{outputs[0]}", domain=domain, **attributes))

    # torch.isin(ids, stop)
    stop = weight("stop", np.array([2, 7, 50256], np.int64))
    node("Unsqueeze", ["ids", weight("last", np.array([-1], np.int64))], ["ids_column"])
    node("Equal", ["ids_column", stop], ["is_each"])
    node("Cast", ["is_each"], ["is_each_number"], to=TensorProto.INT64)
    node("ReduceMax", ["is_each_number", "last"], ["is_any"], keepdims=0)
    node("Cast", ["is_any"], ["isin"], to=TensorProto.BOOL)
    # Which ids stop, and what else there is.
    node("NonZero", ["isin"], ["where"])
    node("Unique", ["ids_flat"], ["different"], sorted=1)
    node("Reshape", ["ids", weight("flat", np.array([-1], np.int64))], ["ids_flat"])
    nodes[-2], nodes[-1] = nodes[-1], nodes[-2]
    # A picture twice as high and wide.
    node("Shape", ["picture"], ["shape"])
    node("Mul", ["shape", weight("twice", np.array([1, 1, 2, 2], np.int64))], ["sizes"])
    node("Resize", ["picture", "", "", "sizes"], ["larger"], mode="linear", coordinate_transformation_mode="half_pixel")
    if doubles:
        node("Cast", ["tokens"], ["exact"], to=TensorProto.DOUBLE)
        node("Exp", ["exact"], ["powers"])
        node("Transpose", ["powers"], ["turned"], perm=[1, 0])
        node("MatMul", ["powers", "turned"], ["decoded"])
    else:
        # Experts with weights of 4 bits.
        half = lambda *shape: rng.integers(0, 256, shape).astype(np.uint8)
        scale = lambda *shape: (0.01 * (1 + rng.random(shape))).astype(np.float32)
        node(
            "QMoE",
            [
                "tokens",
                "router",
                weight("fc1", half(EXPERTS, INNER, HIDDEN // 2)),
                weight("fc1_scale", scale(EXPERTS, INNER)),
                "",
                weight("fc2", half(EXPERTS, HIDDEN, INNER // 2)),
                weight("fc2_scale", scale(EXPERTS, HIDDEN)),
            ],
            ["experts"],
            domain="com.microsoft",
            k=2,
            expert_weight_bits=4,
            activation_type="gelu",
            normalize_routing_weights=1,
        )
        node("FlashDecode", ["experts"], ["decoded"], domain="example.vendor")

    value = helper.make_tensor_value_info
    declared = []
    if gap:
        node("FlashDecode", ["decoded"], ["outside"], domain="example.vendor")
        declared.append(value("outside", TensorProto.DOUBLE, ["count", "count"]))
        node("Sqrt", ["outside"], ["roots"])
    graph = helper.make_graph(
        nodes,
        file,
        [
            value("ids", TensorProto.INT64, ["batch", "sequence"]),
            value("picture", TensorProto.FLOAT, [1, 3, "height", "width"]),
            value("tokens", TensorProto.FLOAT, ["count", HIDDEN]),
            *([] if doubles else [value("router", TensorProto.FLOAT, ["count", EXPERTS])]),
        ],
        [
            value("where", TensorProto.INT64, [2, "found"]),
            value("different", TensorProto.INT64, ["kinds"]),
            value("larger", TensorProto.FLOAT, [1, 3, "higher", "wider"]),
            value("roots" if gap else "decoded", TensorProto.DOUBLE, ["count", "count"])
            if doubles
            else value("decoded", TensorProto.FLOAT, ["count", HIDDEN]),
        ],
        weights,
        value_info=declared,
    )
    opsets = [helper.make_opsetid(d, v) for d, v in (("", 18), ("com.microsoft", 1), ("example.vendor", 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="tongtu")
    onnx.save(model, HERE / f"{file}.onnx")


make("gaps", doubles=False)
make("doubles", doubles=True)
make("both", doubles=True, gap=True)
