"""What optimisers and quantisers make of a model, by ONNX Runtime's own tools.

Each function reads the model at `source` and writes another at `target`.
"""

import onnx
from onnx import numpy_helper


def fused(source, target):
    """Attention, normalisations and activations as operators of the com.microsoft domain."""
    from onnxruntime.transformers import fusion_options, optimizer

    options = fusion_options.FusionOptions("bert")
    result = optimizer.optimize_model(str(source), model_type="bert", num_heads=12, hidden_size=384, opt_level=0,
                                      optimization_options=options)
    result.save_model_to_file(str(target))


def half(source, target):
    """Weights and arithmetic in float16, inputs and outputs in float32."""
    from onnxruntime.transformers import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def dynamic_int8(source, target):
    """Weights in 8 bit, activations quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Seven bits of weight range, so that no processor's 16-bit intermediate sums saturate.
    quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


def static_int8(source, target):
    """Convolutions between quantise and dequantise pairs, calibrated on the model's first data sets."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            files = [source.parent / f"test_data_set_{number}" / "input_0.pb" for number in (0, 1)]
            tensors = [onnx.TensorProto.FromString(path.read_bytes()) for path in files]
            self.feeds = iter([{"x": numpy_helper.to_array(tensor)} for tensor in tensors])

        def get_next(self):
            return next(self.feeds, None)

    quantize_static(source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)


def four_bit(source, target):
    """Matrix products over blocks of 4-bit weights (MatMulNBits)."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(str(source), block_size=32, is_symmetric=False)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))
