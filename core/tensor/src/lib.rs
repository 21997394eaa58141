//! Tongtu: element types, scalar operations, host tensors, symbolic dims
