//! Decoders from the configuration of their checkpoint, `config.json`, as Hugging Face writes it: enough for every question
//! that shapes answer. Weights are absent.
//!
//! What architectures share is in [`mod@decoder`], and what tells them apart is a row of [`config::FAMILIES`]. A key that changes what the
//! model computes and is not known is an error, never ignored.
#![forbid(unsafe_code)]

pub mod config;
pub mod decoder;

pub use config::{Config, LlmError};
pub use decoder::{Decoder, decoder};
