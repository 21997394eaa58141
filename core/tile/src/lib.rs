//! The portable instruction set for kernels, version 0.1 (draft). Its specification is `docs/isa/`.
//!
//! A [`Kernel`] is a function over a grid of program instances. Its values are *tiles*: n-dimensional arrays of one
//! element type with static dims, scalars of rank 0. It reads and writes *buffers* (memory of one element type and a
//! length known at launch) through *views* (a base offset, dims and strides, all run-time `i64`) in blocks, or by gather and
//! scatter with index tiles. Control flow is structured and carries values. There are no threads, vector widths
//! or caches: those are the chip's business.
//!
//! - **Order.** Within one instance, accesses to a buffer take effect in program order. Different buffer parameters do not
//!   overlap. Instances run in any order, even one after another; only atomics order across them.
//! - **Numbers.** Every instruction is total. Integers carry their sign in their type, as in the tensor graph (a bitcast
//!   between `i32` and `u32` costs nothing). Each instruction rounds once; what may differ is allowed by [`Flags`] only.
//! - **Bounds.** A block access checks each view dim unless the access says the dim is proven inside: outside, reads give the
//!   access's padding and writes are dropped.
//!
//! This crate knows no graph and no chip. It promises: one table declares every instruction ([`op`]); [`mod@verify`] accepts
//! exactly what a back end may take; [`interp`] defines the results; [`text`] and [`binary`] say the same and round-trip.
#![forbid(unsafe_code)]

pub mod binary;
pub mod build;
pub mod check;
pub mod error;
pub mod infer;
pub mod interp;
pub mod kernel;
pub mod limits;
pub mod op;
pub mod row;
mod scalar;
pub mod text;
pub mod types;
mod value;
pub mod verify;

pub use binary::{from_bytes, to_bytes};
pub use build::KernelBuilder;
pub use error::TileError;
pub use kernel::{Access, Block, Flags, Inst, Kernel, Module, Param, ParamKind, Val};
pub use op::{Factor, Op, Ordering, Scope, TileMap};
pub use row::{Class, Extension, OpRow, Profile, State, Version};
pub use text::{parse_kernel, parse_module};
pub use types::Ty;
pub use value::Value;
pub use verify::verify;
