"""Writes tests of the operators of `com.microsoft`, with results computed by ONNX Runtime.

    python conformance/onnx/microsoft.py [--force]

Result, under ~/.cache/tongtu/onnx-microsoft: one folder a test in ONNX's layout, as `dump.py` writes them, and
`index.txt`. Every test is one node on random numbers from a fixed seed.
"""

import json
import pathlib
import sys

import numpy as np
import onnx
from onnx import helper, numpy_helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import onnxdata

VERSION = 2
"""Raised when the tests change; part of the stamp."""

DOMAIN = "com.microsoft"


class Cases:
    """Writes tests into a folder."""

    def __init__(self, folder, seed=0):
        self.folder = folder
        self.random = np.random.default_rng(seed)
        self.names = []

    def real(self, *shape):
        return self.random.standard_normal(shape).astype(np.float32)

    def bytes(self, *shape):
        return self.random.integers(0, 255, shape).astype(np.uint8)

    def signed(self, *shape):
        return self.random.integers(-100, 100, shape).astype(np.int8)

    def add(self, name, op, operands, results=(0,), constants=(), domain=DOMAIN, atol=2e-4, **attributes):
        """One test: operands that are None are left out, those at `constants` are part of the model."""
        names = ["" if value is None else f"x{index}" for index, value in enumerate(operands)]
        given = {index: value for index, value in enumerate(operands) if value is not None}
        inputs = [index for index in given if index not in constants]
        outputs = [f"y{index}" if index in results else "" for index in range(max(results) + 1)]
        node = helper.make_node(op, names, outputs, domain=domain, **attributes)

        def model(kinds):
            graph = helper.make_graph(
                [node],
                name,
                [
                    helper.make_tensor_value_info(
                        names[index], helper.np_dtype_to_tensor_dtype(given[index].dtype), given[index].shape
                    )
                    for index in inputs
                ],
                kinds,
                [numpy_helper.from_array(given[index], names[index]) for index in given if index in constants],
            )
            sets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
            return helper.make_model(graph, opset_imports=sets, ir_version=8)

        folder = self.folder / name
        folder.mkdir(parents=True)
        wanted = [output for output in outputs if output]
        onnx.save(model([helper.make_empty_tensor_value_info(output) for output in wanted]), folder / "model.onnx")
        runner = onnxdata.session(folder / "model.onnx")
        got = runner.run(None, {names[index]: given[index] for index in inputs})
        got = [np.asarray(value) for value in got]
        kinds = [
            helper.make_tensor_value_info(output, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for output, value in zip(wanted, got, strict=True)
        ]
        onnx.save(model(kinds), folder / "model.onnx")
        onnxdata.write_data_set(
            folder / "test_data_set_0", [names[index] for index in inputs], [given[index] for index in inputs],
            wanted, got,
        )
        meta = {
            "rtol": 2e-3,
            "rtol_bfloat16": 2.0**-6,
            "atol": atol,
            "ops": [f"{domain}.{op}" if domain else op],
            "inputs": ["tensor"] * len(inputs),
            "outputs": ["tensor"] * len(wanted),
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
        self.names.append(name)


def scalar(value, kind=np.float32):
    return np.array(value, kind)


def attention(c):
    batch, length, hidden, heads = 2, 5, 16, 4
    x, w, bias = c.real(batch, length, hidden), c.real(hidden, 3 * hidden), c.real(3 * hidden)
    mask = np.ones((batch, length), np.int32)
    mask[1, 3:] = 0
    triangle = np.tril(np.ones((batch, length, length), np.int32))
    c.add("attention", "Attention", [x, w, bias], num_heads=heads)
    c.add("attention_mask", "Attention", [x, w, bias, mask], num_heads=heads)
    c.add("attention_lengths", "Attention", [x, w, bias, np.array([5, 3], np.int32)], num_heads=heads)
    c.add("attention_mask_3d", "Attention", [x, w, bias, triangle], num_heads=heads)
    c.add("attention_causal", "Attention", [x, w, bias], num_heads=heads, unidirectional=1)
    past = c.real(2, batch, heads, 3, 4)
    c.add("attention_past", "Attention", [x, w, bias, None, past], (0, 1), num_heads=heads, unidirectional=1)
    more = c.real(batch, heads, length, length)
    c.add("attention_bias", "Attention", [x, w, bias, None, None, more], num_heads=heads)
    c.add("attention_sizes", "Attention", [x, c.real(hidden, 40), c.real(40)], num_heads=heads,
          qkv_hidden_sizes=[16, 16, 8])

    q, k, v = c.real(batch, length, hidden), c.real(batch, 7, hidden), c.real(batch, 7, hidden)
    seen = np.ones((batch, 7), np.int32)
    seen[0, 5:] = 0
    op = "MultiHeadAttention"
    c.add("multi_head", op, [q, k, c.real(batch, 7, 8)], num_heads=heads)
    c.add("multi_head_bias", op, [q, k, v, c.real(48)], num_heads=heads)
    c.add("multi_head_mask", op, [q, k, v, None, seen], num_heads=heads)
    c.add("multi_head_scores", op, [q, k, v, None, None, c.real(1, heads, length, 7)], num_heads=heads, scale=0.3)
    c.add("multi_head_past", op,
          [q, c.real(*q.shape), c.real(*q.shape), None, None, None, c.real(batch, heads, 3, 4),
           c.real(batch, heads, 3, 4)], (0, 1, 2), num_heads=heads, unidirectional=1)
    c.add("multi_head_split", op, [q, c.real(batch, heads, 7, 4), c.real(batch, heads, 7, 4)], num_heads=heads)


def grouped(c):
    batch, length, size = 2, 5, 16
    op, heads = "GroupQueryAttention", {"num_heads": 4, "kv_num_heads": 2}
    q, k, v = c.real(batch, length, 4 * size), c.real(batch, length, 2 * size), c.real(batch, length, 2 * size)
    last, total = np.full(batch, length - 1, np.int32), np.array([length], np.int32)
    angle = np.arange(32)[:, None] * 0.1 * (np.arange(size // 2) + 1)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    prompt = [q, k, v, None, None, last, total]
    c.add("grouped_prompt", op, prompt, (0, 1, 2), **heads)
    c.add("grouped_window", op, prompt, local_window_size=2, **heads)
    c.add("grouped_softcap", op, prompt, softcap=2.0, **heads)
    packed = [c.real(batch, length, 8 * size), None, None, None, None, last, total, cos, sin]
    c.add("grouped_packed", op, packed, (0, 1, 2), do_rotary=1, rotary_interleaved=1, **heads)
    step = [c.real(batch, 1, 4 * size), c.real(batch, 1, 2 * size), c.real(batch, 1, 2 * size),
            c.real(batch, 2, 6, size), c.real(batch, 2, 6, size), np.full(batch, 6, np.int32),
            np.array([7], np.int32)]
    c.add("grouped_step", op, step, (0, 1, 2), **heads)
    c.add("grouped_rotary", op, [*step, cos, sin], (0, 1, 2), do_rotary=1, **heads)
    # Batch elements with different numbers of earlier keys, in a cache with room for more, several new keys at a time.
    room = [c.real(batch, 2, 12, size), c.real(batch, 2, 12, size)]
    ragged = [*step[:3], *room, np.array([6, 3], np.int32), np.array([7], np.int32)]
    c.add("grouped_ragged", op, [*ragged, cos, sin], (0, 1, 2), do_rotary=1, **heads)
    more = [q[:1], k[:1], v[:1], room[0][:1], room[1][:1], np.array([8], np.int32), np.array([9], np.int32)]
    c.add("grouped_append", op, [*more, cos, sin], (0, 1, 2), do_rotary=1, local_window_size=3, **heads)
    first = [q, k, v, *room, last, total]
    c.add("grouped_first", op, first, (0, 1, 2), **heads)
    padded = [q, k, v, None, None, np.array([4, 2], np.int32), total]
    c.add("grouped_padded", op, padded, (0, 1, 2), **heads)
    places = np.tile(np.arange(length), (batch, 1)).astype(np.int64)
    c.add("rotary", "RotaryEmbedding", [c.real(batch, 4, length, size), places, cos, sin])
    c.add("rotary_3d", "RotaryEmbedding", [c.real(batch, length, 4 * size), np.array([2], np.int64), cos, sin],
          interleaved=1)


def normalisation(c):
    batch, length, hidden = 2, 5, 16
    x, skip, scale, bias = c.real(batch, length, hidden), c.real(batch, length, hidden), c.real(hidden), c.real(hidden)
    op = "SkipLayerNormalization"
    c.add("skip_layer_norm", op, [x, skip, scale, bias, c.real(hidden)], (0, 3), epsilon=1e-5)
    c.add("skip_layer_norm_plain", op, [x, skip, scale])
    c.add("skip_rms_norm", "SkipSimplifiedLayerNormalization", [x, skip, scale], (0, 3), epsilon=1e-5)
    c.add("rms_norm", "SimplifiedLayerNormalization", [x, scale], domain="", epsilon=1e-5)
    ids = c.random.integers(0, 10, (batch, length)).astype(np.int32)
    mask = np.ones((batch, length), np.int32)
    mask[1, 3:] = 0
    c.add("embed_layer_norm", "EmbedLayerNormalization",
          [ids, np.zeros_like(ids), c.real(10, hidden), c.real(8, hidden), c.real(2, hidden), scale, bias, mask],
          (0, 1))


def fused(c):
    x, bias = c.real(2, 16), c.real(16)
    c.add("fast_gelu", "FastGelu", [x, bias])
    c.add("bias_gelu", "BiasGelu", [x, bias])
    c.add("gelu", "Gelu", [x])
    c.add("quick_gelu", "QuickGelu", [x])
    c.add("fused_mat_mul", "FusedMatMul", [c.real(2, 3, 4), c.real(2, 5, 4)], transB=1, alpha=0.5)
    c.add("fused_mat_mul_turned", "FusedMatMul", [c.real(4, 3), c.real(4, 5)], transA=1)
    c.add("fused_gemm", "FusedGemm", [c.real(3, 4), c.real(4, 5), c.real(5)], activation="Relu")
    c.add("fused_gemm_leaky", "FusedGemm", [c.real(3, 4), c.real(5, 4), c.real(5)], transB=1,
          activation="LeakyRelu", activation_alpha=0.2)
    image, kernel = c.real(1, 3, 6, 6), c.real(4, 3, 3, 3)
    c.add("fused_conv", "FusedConv", [image, kernel, c.real(4)], activation="Relu", pads=[1, 1, 1, 1])
    c.add("fused_conv_sum", "FusedConv", [image, kernel, c.real(4), c.real(1, 4, 4, 4)], activation="HardSigmoid",
          activation_params=[0.2, 0.5])


def quantised(c):
    def zero(value):
        return scalar(value, np.uint8)

    for name, bits, width in [("4", 4, 64), ("8", 8, 64), ("2", 2, 64), ("4_ragged", 4, 80)]:
        blocks = -(-width // 32)
        c.add(f"mat_mul_bits_{name}", "MatMulNBits",
              [c.real(3, width), c.bytes(8, blocks, 4 * bits), c.real(8 * blocks)], constants=(1, 2), K=width, N=8,
              bits=bits, block_size=32)
    c.add("mat_mul_bits_zeros", "MatMulNBits",
          [c.real(3, 96), c.bytes(8, 3, 16), c.real(24), c.bytes(16)], constants=(1, 2, 3), K=96, N=8, bits=4,
          block_size=32)
    c.add("mat_mul_integer_to_float", "MatMulIntegerToFloat",
          [c.bytes(3, 8), c.signed(8, 5), scalar(0.1), scalar(0.2), zero(120), scalar(3, np.int8), c.real(5)],
          constants=(1,))
    c.add("mat_mul_integer_to_float_columns", "MatMulIntegerToFloat",
          [c.bytes(3, 8), c.signed(8, 5), scalar(0.1), np.abs(c.real(5)), zero(120), c.signed(5)], constants=(1,))
    c.add("dynamic_mat_mul", "DynamicQuantizeMatMul",
          [c.real(3, 8), c.signed(8, 5), scalar([0.2]), scalar([1], np.int8), c.real(5)], constants=(1,))
    a, b = [c.bytes(3, 4), scalar(0.1), zero(120)], [c.bytes(4), scalar(0.2), zero(10)]
    c.add("qlinear_add", "QLinearAdd", [*a, *b, scalar(0.3), zero(30)])
    c.add("qlinear_mul", "QLinearMul", [*a, *b, scalar(3), zero(30)])
    c.add("qlinear_concat", "QLinearConcat",
          [scalar(0.2), zero(100), c.bytes(2, 3), scalar(0.1), zero(20), c.bytes(2, 4), scalar(0.3), zero(128)],
          axis=1)
    line, image = c.bytes(3, 40), c.bytes(1, 3, 5, 5)
    c.add("qlinear_leaky_relu", "QLinearLeakyRelu", [line, scalar(0.1), zero(120), scalar(0.2), zero(30)], alpha=0.3)
    c.add("qlinear_sigmoid", "QLinearSigmoid", [line, scalar(0.03), zero(120), scalar(1 / 256), zero(0)])
    scales = [scalar(0.1), zero(120), scalar(0.0713), zero(30)]
    c.add("qlinear_global_average_pool", "QLinearGlobalAveragePool", [image, *scales], channels_last=0)
    c.add("qlinear_average_pool", "QLinearAveragePool", [image, *scales], kernel_shape=[2, 2], pads=[1, 1, 0, 0])
    # Inputs and states are rounded to 8 bits there and not here.
    hidden = 6
    c.add("dynamic_lstm", "DynamicQuantizeLSTM",
          [c.real(4, 2, 5), c.signed(1, 5, 4 * hidden), c.signed(1, hidden, 4 * hidden), c.real(1, 8 * hidden), None,
           None, None, None, scalar([0.01]), scalar([0], np.int8), scalar([0.01]), scalar([0], np.int8)], (0, 1, 2),
          constants=(1, 2, 8, 9, 10, 11), atol=0.02, hidden_size=hidden)


def write(folder):
    cases = Cases(folder)
    for part in (attention, grouped, normalisation, fused, quantised):
        part(cases)
    return cases.names


def main():
    import onnxruntime

    stamp = f"{VERSION} onnxruntime {onnxruntime.__version__} numpy {np.__version__}"
    onnxdata.write_suite(__doc__.splitlines()[0], "onnx-microsoft", stamp, write)


if __name__ == "__main__":
    main()
