"""Builds the ONNX graph of a BERT encoder from its safetensors weights, without a deep-learning framework.

The result has dynamic batch and sequence dims, takes `input_ids`, `attention_mask` and `token_type_ids` (int64
[batch, sequence]) and gives `last_hidden_state` (float32 [batch, sequence, hidden]). Pooling is left to the caller.
"""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

OPSET = 17


class _Graph:
    """Collects nodes and initialisers; `op` gives the name of the new node's only output."""

    def __init__(self):
        self.nodes = []
        self.initializers = []
        self.count = 0

    def constant(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind, *inputs, **attributes):
        self.count += 1
        output = attributes.pop("output", f"{kind.lower()}_{self.count}")
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}_{self.count}", **attributes))
        return output


def build(folder):
    """The ModelProto of the encoder in `folder`, which holds `config.json` and `model.safetensors`."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name.removeprefix("bert."): value for name, value in load_file(folder / "model.safetensors").items()}
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"]
    size = hidden // heads
    epsilon = config["layer_norm_eps"]
    if config["hidden_act"] != "gelu" or config["position_embedding_type"] != "absolute":
        raise ValueError("only BERT with exact GELU and absolute positions is built")

    g = _Graph()
    used = set()

    def weight(name, transpose=False):
        used.add(name)
        value = weights[name].astype(np.float32)
        return g.constant(name, value.T if transpose else value)

    def linear(x, name):
        return g.op("Add", g.op("MatMul", x, weight(f"{name}.weight", transpose=True)), weight(f"{name}.bias"))

    def norm(x, name, **attributes):
        return g.op("LayerNormalization", x, weight(f"{name}.weight"), weight(f"{name}.bias"),
                    axis=-1, epsilon=epsilon, **attributes)

    one = g.constant("one", np.array(1.0, np.float32))
    half = g.constant("half", np.array(0.5, np.float32))
    root_two = g.constant("root_two", np.array(np.sqrt(2.0), np.float32))
    lowest = g.constant("lowest", np.array(np.finfo(np.float32).min, np.float32))
    scale = g.constant("scale", np.array(np.sqrt(size), np.float32))
    split = g.constant("split_heads", np.array([0, 0, heads, size], np.int64))
    merge = g.constant("merge_heads", np.array([0, 0, hidden], np.int64))
    zero_index = g.constant("zero_index", np.array([0], np.int64))
    one_index = g.constant("one_index", np.array([1], np.int64))

    two_index = g.constant("two_index", np.array([2], np.int64))

    length = g.op("Slice", g.op("Shape", "input_ids"), one_index, two_index)
    positions = g.op("Slice", g.constant("position_ids", np.arange(config["max_position_embeddings"], dtype=np.int64)),
                     zero_index, length)
    embedded = g.op("Gather", weight("embeddings.word_embeddings.weight"), "input_ids")
    kinds = g.op("Gather", weight("embeddings.token_type_embeddings.weight"), "token_type_ids")
    places = g.op("Gather", weight("embeddings.position_embeddings.weight"), positions)
    x = norm(g.op("Add", g.op("Add", embedded, kinds), places), "embeddings.LayerNorm")

    wide = g.op("Unsqueeze", g.op("Unsqueeze", "attention_mask", one_index), two_index)
    mask = g.op("Cast", wide, to=TensorProto.FLOAT)
    bias = g.op("Mul", g.op("Sub", one, mask), lowest)

    layers = config["num_hidden_layers"]
    for layer in range(layers):
        p = f"encoder.layer.{layer}"

        def heads_of(part, order):
            y = g.op("Reshape", linear(x, f"{p}.attention.self.{part}"), split)
            return g.op("Transpose", y, perm=order)

        query = heads_of("query", [0, 2, 1, 3])
        key = heads_of("key", [0, 2, 3, 1])
        value = heads_of("value", [0, 2, 1, 3])
        scores = g.op("Add", g.op("Div", g.op("MatMul", query, key), scale), bias)
        context = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
        context = g.op("Reshape", g.op("Transpose", context, perm=[0, 2, 1, 3]), merge)
        x = norm(g.op("Add", linear(context, f"{p}.attention.output.dense"), x), f"{p}.attention.output.LayerNorm")
        y = linear(x, f"{p}.intermediate.dense")
        gelu = g.op("Mul", g.op("Mul", y, half), g.op("Add", g.op("Erf", g.op("Div", y, root_two)), one))
        last = {"output": "last_hidden_state"} if layer == layers - 1 else {}
        x = norm(g.op("Add", linear(gelu, f"{p}.output.dense"), x), f"{p}.output.LayerNorm", **last)

    unused = {n for n in weights if n not in used and not n.startswith("pooler.") and n != "embeddings.position_ids"}
    if unused:
        raise ValueError(f"weights that the graph does not use: {sorted(unused)}")

    ids = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"])
           for n in ("input_ids", "attention_mask", "token_type_ids")]
    result = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", hidden])
    graph = helper.make_graph(g.nodes, "bert", ids, [result], g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8,
                              producer_name="tongtu")
    onnx.checker.check_model(model)
    return model
