//! NumPy array files.
