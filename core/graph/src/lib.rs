//! Tongtu: the tensor graph
