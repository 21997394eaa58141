//! Tongtu: the ONNX front end
