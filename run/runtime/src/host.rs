//! Values and operations that live on the host.

pub use tongtu_graph::eval::HostValue;
pub(crate) use tongtu_graph::eval::host::call;
