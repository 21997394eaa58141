//! Tongtu: the compiler from tensor graphs to plans of tile kernels
