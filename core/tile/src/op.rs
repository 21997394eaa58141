//! The instruction table: every instruction, declared once.
//!
//! The scalar operations ([`Unary`], [`Binary`], [`Compare`]) come from the scalar table, act elementwise on
//! tiles of equal shape and print under their own names.

use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num};

use crate::value::{Value, read_value, text_value};

/// One factor of a tile dim in a block access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Factor {
    /// Number of positions.
    pub size: usize,
    /// The view dim it steps along; `None` repeats the same element.
    pub dim: Option<usize>,
    /// View positions a step moves.
    pub step: i64,
}

/// How a block access lays a tile over a view: for each tile dim its factors, outermost first, whose sizes multiply to the
/// tile dim. The element at tile coordinate `t` is at view index `index[d] + Σ coordinate × step` over the factors on `d`.
/// Several factors may step along one view dim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TileMap(pub Vec<Vec<Factor>>);

impl TileMap {
    /// Tile dim `i` steps along view dim `dims[i]` by 1.
    pub fn along(shape: &[usize], dims: &[usize]) -> TileMap {
        TileMap(
            shape.iter().zip(dims).map(|(&size, &d)| vec![Factor { size, dim: Some(d), step: 1 }]).collect(),
        )
    }
    /// Tile dims along the last view dims, step 1.
    pub fn trailing(shape: &[usize], rank: usize) -> TileMap {
        let dims: Vec<usize> = (rank.saturating_sub(shape.len())..rank).collect();
        TileMap::along(shape, &dims)
    }
    /// The tile's shape.
    pub fn shape(&self) -> Vec<usize> {
        self.0.iter().map(|fs| fs.iter().fold(1usize, |n, f| n.saturating_mul(f.size))).collect()
    }
}

/// Memory order of an atomic access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ordering {
    /// No order with other accesses.
    Relaxed,
    /// Later accesses stay after it.
    Acquire,
    /// Earlier accesses stay before it.
    Release,
    /// Both.
    AcqRel,
}

/// Among whom an atomic access is atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Program instances of one launch on one device.
    Device,
    /// Every device and the host.
    System,
}

macro_rules! tile_table {
    ($($(#[doc = $doc:literal])* $variant:ident $name:literal ($($operand:literal),*) -> $result:literal { $($field:ident : $fty:ty = $fdoc:literal),* } $since:literal;)*) => {
        /// An instruction with its attributes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            /// A scalar operation of one operand.
            Unary(Unary),
            /// A scalar operation of two operands of equal type.
            Binary(Binary),
            /// A comparison of two operands of equal type; a bool tile.
            Compare(Compare),
            $($(#[doc = $doc])* $variant { $(#[doc = $fdoc] $field: $fty,)* },)*
        }
        impl Op {
            /// The name in text.
            pub fn name(&self) -> &'static str {
                match self {
                    Op::Unary(u) => u.name(),
                    Op::Binary(b) => b.name(),
                    Op::Compare(c) => c.name(),
                    $(Op::$variant { .. } => $name,)*
                }
            }
            /// The attributes with their names, in table order; those that have their default value are left out.
            pub fn attributes(&self) -> Vec<(&'static str, Value)> {
                match self {
                    Op::Unary(_) | Op::Binary(_) | Op::Compare(_) => Vec::new(),
                    $(Op::$variant { $($field),* } => {
                        let list: Vec<(&'static str, Option<Value>)> = vec![$((stringify!($field), text_value($field))),*];
                        list.into_iter().filter_map(|(n, v)| Some((n, v?))).collect()
                    })*
                }
            }
            /// The instruction with this name and these attributes; an error says which attribute is missing, unknown or wrong.
            pub fn from_attributes(name: &str, attributes: &[(String, Value)]) -> Result<Op, String> {
                let scalar = Unary::from_name(name).map(Op::Unary)
                    .or_else(|| Binary::from_name(name).map(Op::Binary))
                    .or_else(|| Compare::from_name(name).map(Op::Compare));
                let known: &[&str] = match name {
                    $($name => &[$(stringify!($field)),*],)*
                    _ if scalar.is_some() => &[],
                    _ => return Err(format!("no instruction is called '{name}'")),
                };
                for (i, (n, _)) in attributes.iter().enumerate() {
                    if !known.contains(&n.as_str()) {
                        return Err(format!("'{name}' has no attribute '{n}'"));
                    }
                    if attributes[..i].iter().any(|(m, _)| m == n) {
                        return Err(format!("attribute '{n}' is given twice"));
                    }
                }
                match name {
                    $($name => Ok(Op::$variant { $($field: read_value(attributes, stringify!($field))?),* }),)*
                    _ => scalar.ok_or_else(|| format!("no instruction is called '{name}'")),
                }
            }
        }
        /// The rows of the table, for the specification: scalar instructions are in the scalar table.
        pub const TABLE: &[OpRow] = &[$(OpRow {
            name: $name,
            operands: &[$($operand),*],
            result: $result,
            attributes: &[$((stringify!($field), $fdoc)),*],
            since: $since,
            doc: concat!($($doc, "\n"),*),
        }),*];
    };
}

/// One row of the instruction table.
#[derive(Clone, Copy, Debug)]
pub struct OpRow {
    /// Name in text.
    pub name: &'static str,
    /// Operands; a trailing `…` means any number.
    pub operands: &'static [&'static str],
    /// Result type, in words.
    pub result: &'static str,
    /// Attribute names and meanings.
    pub attributes: &'static [(&'static str, &'static str)],
    /// The version that brought it.
    pub since: &'static str,
    /// Meaning.
    pub doc: &'static str,
}

tile_table! {
    /// Every element is `value`.
    Full "full" () -> "tile" { dtype: DType = "Element type.", shape: Vec<usize> = "Dims.", value: Num = "The element." } "0.1";
    /// `result[i…] = i[dim]`.
    Iota "iota" () -> "tile" { dtype: DType = "Integer type.", shape: Vec<usize> = "Dims.", dim: usize = "The dim counted along." } "0.1";
    /// This instance's coordinate in the grid.
    ProgramId "program_id" () -> "i64" { axis: usize = "0, 1 or 2." } "0.1";
    /// The grid's extent.
    NumPrograms "num_programs" () -> "i64" { axis: usize = "0, 1 or 2." } "0.1";
    /// Number of elements of a buffer.
    BufferLen "buffer_len" ("buffer") -> "i64" {} "0.1";
    /// Where the condition (bool) is true the second operand's element, else the third's. Equal shapes; a scalar condition serves all.
    Select "select" ("condition", "on_true", "on_false") -> "as on_true" {} "0.1";
    /// `a * b + c` rounded once.
    Fma "fma" ("a", "b", "c") -> "as a" {} "0.1";
    /// Each element's value in another type.
    Cast "cast" ("x") -> "tile" { to: DType = "Result element type.", mode: CastMode = "Overflow and rounding." } "0.1";
    /// The same bits as another element type of equal width.
    Bitcast "bitcast" ("x") -> "tile" { to: DType = "Result element type." } "0.1";
    /// Repeats along dims that are 1 or missing in front (aligned at the last dim).
    Broadcast "broadcast" ("x") -> "tile" { shape: Vec<usize> = "Result dims." } "0.1";
    /// The same elements in row-major order under other dims.
    Reshape "reshape" ("x") -> "tile" { shape: Vec<usize> = "Result dims." } "0.1";
    /// `result.shape[i] = x.shape[perm[i]]`.
    Permute "permute" ("x") -> "tile" { perm: Vec<usize> = "For each result dim the operand dim." } "0.1";
    /// The part at a static offset.
    Extract "extract" ("x") -> "tile" { offset: Vec<usize> = "First index in each dim.", shape: Vec<usize> = "Result dims." } "0.1";
    /// The operands one after another along a dim.
    Concat "concat" ("x…") -> "tile" { dim: usize = "The dim joined along." } "0.1";
    /// `result[i…] = x[i… with i[dim] := index[i…]]` inside a tile; an index outside gives zero. `index` has the result's shape.
    TakeAlong "take_along" ("x", "index") -> "tile" { dim: usize = "The dim indexed." } "0.1";
    /// Combines the elements along dims, in any order and grouping; the dims disappear. Arg-combiners take (value, index) pairs.
    Reduce "reduce" ("x…") -> "tiles" { combiner: Combiner = "How elements combine.", dims: Vec<usize> = "Dims reduced, ascending." } "0.1";
    /// Running combination along a dim, in any grouping.
    Scan "scan" ("x…") -> "tiles" { combiner: Combiner = "How elements combine.", dim: usize = "The dim scanned.", reverse: bool = "From the end." } "0.1";
    /// `acc + a × b`: a is [m, k], b is [k, n], acc is [m, n]. Products are exact or in the accumulator's type, sums are in the accumulator's
    /// type, in any order; subnormals may be flushed for types narrower than f32. Integer sums wrap.
    Mma "mma" ("acc", "a", "b") -> "as acc" {} "0.1";
    /// A window on a buffer: element `(i…)` is buffer element `offset + Σ i × stride`. All are `i64` scalars.
    View "view" ("buffer", "offset", "dims…", "strides…") -> "view" { rank: usize = "Number of dims." } "0.1";
    /// Reads a block at an `i64` index of each view dim. Elements outside the view's dims, or masked out, are `pad`.
    Load "load" ("view", "index…", "mask?") -> "tile" { map: TileMap = "How the tile lies over the view.", inside: Vec<bool> = "For each view dim: proven inside, not checked.", pad: Num = "What is read outside.", masked: bool = "The last operand is a bool tile." } "0.1";
    /// Writes a block; elements outside the view's dims, or masked out, are dropped.
    Store "store" ("view", "value", "index…", "mask?") -> "" { map: TileMap = "How the tile lies over the view.", inside: Vec<bool> = "For each view dim: proven inside, not checked.", masked: bool = "The last operand is a bool tile." } "0.1";
    /// Reads the buffer's element at each index (`i32` or `i64`); outside the buffer, or masked out, `pad`.
    Gather "gather" ("buffer", "index", "mask?") -> "tile" { pad: Num = "What is read outside.", masked: bool = "The last operand is a bool tile." } "0.1";
    /// Writes each element at its index; outside or masked out is dropped. Of equal indices the last in row-major order stays.
    Scatter "scatter" ("buffer", "index", "value", "mask?") -> "" { masked: bool = "The last operand is a bool tile." } "0.1";
    /// Combines each element into memory at its index, atomically, giving nothing back.
    AtomicReduce "atomic_reduce" ("buffer", "index", "value", "mask?") -> "" { combiner: Combiner = "Any with one operand but `mul` and `replace`.", scope: Scope = "Among whom.", masked: bool = "The last operand is a bool tile." } "0.1";
    /// Combines each element into memory at its index, atomically, and gives the old element. `replace` exchanges.
    AtomicRmw "atomic_rmw" ("buffer", "index", "value", "mask?") -> "as value" { combiner: Combiner = "Any with one operand but `mul`.", ordering: Ordering = "Memory order.", scope: Scope = "Among whom.", masked: bool = "The last operand is a bool tile." } "0.1";
    /// Where memory equals `expected` writes `desired`, atomically; gives the old element.
    AtomicCas "atomic_cas" ("buffer", "index", "expected", "desired") -> "as expected" { ordering: Ordering = "Memory order.", scope: Scope = "Among whom." } "0.1";
    /// Block-local memory, uninitialised, private to the instance and gone at its end. At the top of the body only.
    Alloc "alloc" () -> "buffer" { dtype: DType = "Element type.", len: usize = "Number of elements." } "0.1";
    /// For `i = lo; i < hi; i += step` (`i64`, step above 0) runs the body with i and the carried values; it gives their next values.
    For "for" ("lo", "hi", "step", "carried…") -> "carried" {} "0.1";
    /// While the condition (bool scalar, first operand for the first turn) is true runs the body with the carried values; it gives the next condition and carried values.
    While "while" ("condition", "carried…") -> "carried" {} "0.1";
    /// Runs the first block if the condition (bool scalar) is true, else the second; each gives the results.
    If "if" ("condition") -> "results" {} "0.1";
}
