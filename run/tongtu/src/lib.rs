//! Tongtu: load, compile, run and verify AI models on the chip at hand
