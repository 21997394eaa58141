//! How large a program may be. Readers refuse what exceeds these, so that hostile input costs no more than its own size times a
//! constant.

/// Greatest size of a text or binary in bytes.
pub const BYTES: usize = 1 << 28;
/// Greatest nesting of regions, and of lists in attributes.
pub const DEPTH: usize = 64;
/// Most dims of a tile, a view or a map, and factors of a dim.
pub const RANK: usize = 32;
/// Most elements of a tile.
pub const TILE: usize = 1 << 24;
/// Most elements of one scratch buffer.
pub const SCRATCH: usize = 1 << 28;
/// Most instructions in a module, and most values.
pub const INSTRUCTIONS: usize = 1 << 21;
