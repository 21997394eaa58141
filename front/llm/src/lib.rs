//! Decoders from the configuration of their checkpoint, `config.json`, as Hugging Face writes it: enough for every question
//! that shapes answer. Weights are absent.
//!
//! What architectures share is in [`mod@decoder`], and what tells them apart is a row of [`config::FAMILIES`]. Keys that are known to change
//! what a model computes, and are not taken, are errors; other keys are ignored.
#![forbid(unsafe_code)]

pub mod config;
pub mod decoder;

pub use config::{Config, LlmError};
pub use decoder::{Decoder, decoder};
