"""Makes goldens.npz: inputs and expected results of composites, by NumPy in float64 and ONNX's reference evaluator.

Run: python make_goldens.py (needs numpy and onnx). Keys are CASE/iN for inputs and CASE/oN for results.
"""

import math
import pathlib

import numpy as np
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

out = {}
rng = np.random.default_rng(20)


def f32(*shape, scale=2.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def case(name, inputs, results):
    for i, x in enumerate(inputs):
        out[f"{name}/i{i}"] = np.array(x, order="C")
    for i, y in enumerate(results):
        y = np.array(y, order="C")
        out[f"{name}/o{i}"] = y.astype(np.float32) if y.dtype == np.float64 else y


def onnx(op, inputs, n_out=1, **attributes):
    """Results of one ONNX operation by the reference evaluator."""
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    outs = [f"y{i}" for i in range(n_out)]
    node = helper.make_node(op, names, outs, **attributes)
    ins = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in zip(names, inputs)
        if x is not None
    ]
    graph = helper.make_graph([node], "g", ins, [helper.make_tensor_value_info(o, 0, None) for o in outs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    return ReferenceEvaluator(model).run(None, {n: x for n, x in zip(names, inputs) if x is not None})


x = np.concatenate([f32(40), np.float32([0.0, -0.0, 1e-4, -1e-4, 12.0, -12.0, 30.0, -30.0])])
d = x.astype(np.float64)
sig = 1 / (1 + np.exp(-d))
softplus = np.logaddexp(0, d)
erf = np.vectorize(math.erf)
for name, y in {
    "sigmoid": sig,
    "relu": np.maximum(d, 0),
    "hard_sigmoid": np.clip(0.2 * d + 0.5, 0, 1),
    "hard_swish": d * np.clip(d / 6 + 0.5, 0, 1),
    "silu": d * sig,
    "gelu": d / 2 * (1 + erf(d / math.sqrt(2))),
    "gelu_tanh": d / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (d + 0.044715 * d**3))),
    "softplus": softplus,
    "softsign": d / (1 + np.abs(d)),
    "elu": np.where(d > 0, d, 1.5 * np.expm1(d)),
    "selu": 1.05 * np.where(d > 0, d, 1.67 * np.expm1(d)),
    "leaky_relu": np.where(d >= 0, d, 0.1 * d),
    "thresholded_relu": np.where(d > 1, d, 0),
    "celu": np.maximum(0, d) + np.minimum(0, 0.7 * np.expm1(d / 0.7)),
    "mish": d * np.tanh(softplus),
    "shrink": np.where(d < -1, d + 0.5, np.where(d > 1, d - 0.5, 0)),
}.items():
    case(name, [x], [y])

x = f32(3, 5, 4)
d = x.astype(np.float64)
e = np.exp(d - d.max(1, keepdims=True))
case("softmax", [x], [e / e.sum(1, keepdims=True)])
case("log_softmax", [x], [np.log(e / e.sum(1, keepdims=True))])
case("log_sum_exp", [x], [np.log(np.exp(d).sum((0, 2)))])
case("mean", [x], [d.mean((0, 2), keepdims=True)])
case("variance", [x], [d.var((1, 2), ddof=1)])
case("reduce_l1", [x], [np.abs(d).sum(2)])
case("reduce_l2", [x], [np.sqrt((d**2).sum(0))])
case("reduce_sum_square", [x], [(d**2).sum((0, 1))])
case("prod", [x], [d.prod(2)])
scale, bias = f32(5, 4), f32(5, 4)
m, v = d.mean((1, 2), keepdims=True), d.var((1, 2), keepdims=True)
case("layer_norm", [x, scale, bias], [(d - m) / np.sqrt(v + 1e-5) * scale + bias])
s4 = f32(4)
case("rms_norm", [x, s4], [d / np.sqrt((d**2).mean(2, keepdims=True) + 1e-6) * s4])
case("lp_normalize1", [x], [d / np.abs(d).sum(1, keepdims=True)])
case("lp_normalize2", [x], [d / np.sqrt((d**2).sum(2, keepdims=True))])
x = f32(2, 6, 3, 4)
d = x.astype(np.float64)
scale, bias = f32(6), f32(6)
m, v = d.mean((2, 3), keepdims=True), d.var((2, 3), keepdims=True)
c = lambda t: t.reshape(1, 6, 1, 1).astype(np.float64)
case("instance_norm", [x, scale, bias], [(d - m) / np.sqrt(v + 1e-5) * c(scale) + c(bias)])
g = d.reshape(2, 3, 2, 3, 4)
m, v = g.mean((2, 3, 4), keepdims=True), g.var((2, 3, 4), keepdims=True)
case("group_norm", [x, scale, bias], [((g - m) / np.sqrt(v + 1e-5)).reshape(d.shape) * c(scale) + c(bias)])
mean, var = f32(6), np.abs(f32(6)) + 0.1
case("batch_norm", [x, scale, bias, mean, var], [(d - c(mean)) / np.sqrt(c(var) + 1e-5) * c(scale) + c(bias)])
sq = np.pad(d**2, [(0, 0), (1, 1), (0, 0), (0, 0)])
case("local_response_norm", [x], [d / (1.5 + 0.1 / 3 * (sq[:, :-2] + sq[:, 1:-1] + sq[:, 2:])) ** 0.6])
case("mean_variance_normalization", [x], [(d - d.mean((0, 2, 3), keepdims=True)) / d.std((0, 2, 3), keepdims=True)])

q, k, v = f32(2, 4, 3, 8, scale=1), f32(2, 2, 5, 8, scale=1), f32(2, 2, 5, 6, scale=1)
mask = rng.random((3, 5)) > 0.3
mask[1] = False


def attention(q, k, v, bias, scale, cap=None):
    q, k, v = (t.astype(np.float64) for t in (q, k, v))
    k, v = (np.repeat(t, q.shape[1] // t.shape[1], 1) for t in (k, v))
    s = q @ k.transpose(0, 1, 3, 2) * scale
    s = s if cap is None else cap * np.tanh(s / cap)
    s = s + bias
    m = s.max(-1, keepdims=True)
    e = np.where(np.isneginf(m), 0, np.exp(s - np.where(np.isneginf(m), 0, m)))
    t = e.sum(-1, keepdims=True)
    return e / np.where(t == 0, 1, t) @ v


case("attention", [q, k, v], [attention(q, k, v, 0.0, 0.25)])
case("attention_mask", [q, k, v, mask], [attention(q, k, v, np.where(mask, 0.0, -np.inf), 0.25)])
bias = f32(2, 1, 3, 5)
case("attention_bias", [q, k, v, bias], [attention(q, k, v, bias.astype(np.float64), 0.25, cap=3.0)])
causal = np.arange(5)[None] <= np.arange(3)[:, None] + 1
near = np.arange(5)[None] >= np.arange(3)[:, None] + 1 - 1
case("attention_causal", [q, k, v], [attention(q, k, v, np.where(causal, 0.0, -np.inf), 0.25)])
case("attention_window", [q, k, v], [attention(q, k, v, np.where(causal & near, 0.0, -np.inf), 0.25)])

x, angle = f32(2, 3, 5, 8), f32(5, 3)
cos, sin = np.cos(angle.astype(np.float64)).astype(np.float32), np.sin(angle.astype(np.float64)).astype(np.float32)
a, b, rest = (t.astype(np.float64) for t in (x[..., :3], x[..., 3:6], x[..., 6:]))
case("rotary", [x, cos, sin], [np.concatenate([a * cos - b * sin, a * sin + b * cos, rest], -1)])
a, b = x[..., 0:6:2].astype(np.float64), x[..., 1:6:2].astype(np.float64)
y = np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(2, 3, 5, 6)
case("rotary_interleaved", [x, cos, sin], [np.concatenate([y, rest], -1)])

x = (rng.random((3, 4)) > 0.5).astype(np.int32) * 7
case("nonzero", [x], [np.argwhere(x).astype(np.int64)])
x = rng.integers(0, 6, (3, 7)).astype(np.float32)
order = np.argsort(-x, 1, kind="stable")
case("top_k", [x], [np.take_along_axis(x, order, 1)[:, :4], order[:, :4].astype(np.int64)])
order = np.argsort(x, 0, kind="stable")
case("top_k_least", [x], [np.take_along_axis(x, order, 0)[:2], order[:2].astype(np.int64)])
case("arg_max", [x], [x.argmax(1)])
case("arg_max_last", [x], [x.shape[1] - 1 - x[:, ::-1].argmax(1)])
case("arg_min", [x], [x.argmin(0)])
case("cum_sum", [x], [np.cumsum(x, 1)])
r = np.cumsum(x[::-1], 0)[::-1]
case("cum_sum_reverse_exclusive", [x], [r - x])
i = np.int64([1, -1, 5, 0])
case("one_hot", [i], [np.float32([[0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]])])
x = f32(2, 4, 4)
case("triangle", [x], [np.triu(x, 1)])
case("triangle_lower", [x], [np.tril(x, -1)])
x = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
case("reverse_sequence", [x, np.int64([2, 4, 1])], onnx("ReverseSequence", [x, np.int64([2, 4, 1])], batch_axis=1, time_axis=0))
x = f32(2, 3, 2)
case("compress", [x, np.array([True, False, True])], [np.compress([True, False, True], x, 1)])

x = f32(1, 2, 7, 8)
case("max_pool", [x], onnx("MaxPool", [x], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]))
case("max_pool_dilated", [x], onnx("MaxPool", [x], kernel_shape=[2, 3], dilations=[3, 2]))
case("avg_pool", [x], onnx("AveragePool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
case("avg_pool_padding", [x], onnx("AveragePool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1))
y = np.stack([np.stack([np.abs(x[:, :, i : i + 2, j : j + 2].astype(np.float64)) for j in range(7)], -1) for i in range(6)], -1)
case("lp_pool", [x], [((y**3).sum((2, 3)) ** (1 / 3)).transpose(0, 1, 3, 2)])
x = f32(2, 8, 2, 3)
case("depth_to_space", [x], onnx("DepthToSpace", [x], blocksize=2, mode="DCR"))
case("depth_to_space_crd", [x], onnx("DepthToSpace", [x], blocksize=2, mode="CRD"))
x = f32(2, 3, 4, 6)
case("space_to_depth", [x], onnx("SpaceToDepth", [x], blocksize=2))
x, w = f32(2, 4, 6, 5, scale=1), f32(6, 2, 3, 2, scale=1)
case("conv", [x, w], onnx("Conv", [x.astype(np.float64), w.astype(np.float64)], group=2, strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2]))
w = f32(4, 3, 3, 2, scale=1)
case("conv_transpose", [x, w], onnx("ConvTranspose", [x.astype(np.float64), w.astype(np.float64)], strides=[2, 3], pads=[1, 0, 0, 1]))

x = f32(3, 4)
s3, z3 = np.abs(f32(3)) / 20 + np.float32(0.01), rng.integers(0, 200, 3).astype(np.uint8)
q8 = onnx("QuantizeLinear", [x, s3, z3], axis=0)
case("quantize", [x, s3, z3], q8)
case("dequantize", [q8[0], s3, z3], onnx("DequantizeLinear", [q8[0], s3, z3], axis=0))
sb = np.abs(f32(3, 2)) / 20 + np.float32(0.01)
qb = onnx("QuantizeLinear", [x, sb], axis=1, block_size=2, output_dtype=TensorProto.INT8)
case("quantize_block", [x, sb], qb)
case("dequantize_block", [qb[0], sb], onnx("DequantizeLinear", [qb[0], sb], axis=1, block_size=2))
case("dynamic_quantize", [x], onnx("DynamicQuantizeLinear", [x], n_out=3))

x = f32(1, 1, 4, 5)
for name, size, attributes in [
    ("resize_nearest", [8, 10], dict(mode="nearest")),
    ("resize_nearest_ceil", [7, 3], dict(mode="nearest", nearest_mode="ceil", coordinate_transformation_mode="align_corners")),
    ("resize_linear", [8, 10], dict(mode="linear")),
    ("resize_linear_corners", [7, 9], dict(mode="linear", coordinate_transformation_mode="align_corners")),
    ("resize_linear_asymmetric", [9, 3], dict(mode="linear", coordinate_transformation_mode="asymmetric")),
    ("resize_linear_pytorch", [1, 8], dict(mode="linear", coordinate_transformation_mode="pytorch_half_pixel")),
    ("resize_cubic", [8, 7], dict(mode="cubic")),
    ("resize_cubic_outside", [8, 7], dict(mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)),
    ("resize_linear_antialias", [2, 3], dict(mode="linear", antialias=1)),
    ("resize_cubic_antialias", [2, 3], dict(mode="cubic", antialias=1)),
]:
    case(name, [x], onnx("Resize", [x, None, None, np.int64([1, 1] + size)], **attributes))
roi = np.float32([0, 0, 0.4, 0.6, 1, 1, 0.6, 1.3])
case(
    "resize_crop",
    [x],
    onnx("Resize", [x, roi, None, np.int64([1, 1, 3, 4])], mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=10.0),
)

s, b, n, h = 4, 3, 2, 3


def weights(gates):
    return f32(1, gates * h, n, scale=0.5), f32(1, gates * h, h, scale=0.5), f32(1, 2 * gates * h, scale=0.5)


x, h0, c0 = f32(s, b, n, scale=1), f32(1, b, h, scale=0.5), f32(1, b, h, scale=0.5)
w, r, bias = weights(4)
p = f32(1, 3 * h, scale=0.5)
case("lstm", [x, w[0], r[0], bias[0], h0[0], c0[0], p[0]], [t.reshape(t.shape[0], b, h) if t.ndim == 4 else t[0] for t in onnx("LSTM", [x, w, r, bias, None, h0, c0, p], n_out=3, hidden_size=h)])
w, r, bias = weights(3)
for lbr in (0, 1):
    y = onnx("GRU", [x, w, r, bias, None, h0], n_out=2, hidden_size=h, linear_before_reset=lbr)
    case(f"gru{lbr}", [x, w[0], r[0], bias[0], h0[0]], [y[0].reshape(s, b, h), y[1][0]])
w, r, bias = weights(1)
y = onnx("RNN", [x, w, r, bias, None, h0], n_out=2, hidden_size=h)
case("rnn", [x, w[0], r[0], bias[0], h0[0]], [y[0].reshape(s, b, h), y[1][0]])
# The other direction and sequences of several lengths, by hand.
lengths = np.int32([4, 2, 3])
ys, last = np.zeros((s, b, h)), np.zeros((b, h))
for j in range(b):
    state = h0[0, j].astype(np.float64)
    for t in reversed(range(lengths[j])):
        state = np.tanh(w[0] @ x[t, j] + r[0] @ state + bias[0, :h] + bias[0, h:])
        ys[t, j] = state
    last[j] = state
case("rnn_reverse", [x, w[0], r[0], bias[0], lengths, h0[0]], [ys, last])

path = pathlib.Path(__file__).parent / "goldens.npz"
np.savez_compressed(path, **out)
print(len(out), "arrays,", path.stat().st_size, "bytes")
