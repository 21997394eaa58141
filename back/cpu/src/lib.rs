//! Tongtu: the CPU back end
