//! The instruction table: every instruction, declared once.
//!
//! A row gives an instruction's number, name, operands, attributes, extension, numeric class, type rule, meaning and an example.
//! The enum [`Op`], the text form, the binary form, the pages of the specification and the conformance kit follow from it. The
//! scalar operations ([`Unary`], [`Binary`], [`Compare`]) come from the scalar table, act elementwise on tiles of equal shape and
//! print under their own names; `scalar.rs` gives them numbers.

use std::borrow::Cow;

use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num};

use crate::binary::{Reader, Writer};
use crate::error::TileError;
use crate::row::{AttributeRow, Class, Extension, OpRow, Version};
use crate::scalar;
use crate::value::{Attr, Value, read_value, text_value};

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
    ($($code:literal $variant:ident $name:literal ($($operand:literal),*) -> $result:literal { $($field:ident : $fty:ty = $fdoc:literal),* }
        $since:literal $extension:ident $class:ident rule $rule:literal; $doc:literal; $example:literal;)*) => {
        /// An instruction with its attributes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            /// A scalar operation of one operand.
            Unary(Unary),
            /// A scalar operation of two operands of equal type.
            Binary(Binary),
            /// A comparison of two operands of equal type; a bool tile.
            Compare(Compare),
            $(#[doc = $doc] $variant { $(#[doc = $fdoc] $field: $fty,)* },)*
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
            /// The number in the binary form.
            pub fn code(&self) -> u32 {
                match self {
                    Op::Unary(u) => scalar::unary_code(*u),
                    Op::Binary(b) => scalar::binary_code(*b),
                    Op::Compare(c) => scalar::compare_code(*c),
                    $(Op::$variant { .. } => $code,)*
                }
            }
            /// The version that brought it.
            pub fn since(&self) -> Version {
                match self {
                    Op::Unary(_) | Op::Binary(_) | Op::Compare(_) => scalar::SINCE,
                    $(Op::$variant { .. } => version($since),)*
                }
            }
            /// The extension it belongs to, whatever its element types.
            pub fn extension(&self) -> Extension {
                match self {
                    Op::Unary(_) | Op::Binary(_) | Op::Compare(_) => Extension::Base,
                    $(Op::$variant { .. } => Extension::$extension,)*
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
            /// The attributes in the binary form: each in table order.
            pub(crate) fn write_attributes(&self, w: &mut Writer) {
                match self {
                    Op::Unary(_) | Op::Binary(_) | Op::Compare(_) => {}
                    $(Op::$variant { $($field),* } => { let _ = &w; $($field.write(w);)* })*
                }
            }
            /// The instruction of a number, with its attributes; `None` for a number that is not given out.
            pub(crate) fn read(code: u32, r: &mut Reader) -> Result<Option<Op>, TileError> {
                let _ = &r;
                Ok(match code {
                    $($code => Some(Op::$variant { $($field: <$fty>::read(r)?),* }),)*
                    _ => scalar::from_code(code),
                })
            }
        }
        /// The rows of the instructions that are not in the scalar table.
        pub const TABLE: &[OpRow] = &[$(OpRow {
            code: $code,
            name: $name,
            operands: &[$($operand),*],
            result: $result,
            rule: $rule,
            attributes: &[$(AttributeRow { name: stringify!($field), kind: <$fty as Attr>::KIND, doc: $fdoc }),*],
            since: version($since),
            extension: Extension::$extension,
            class: Class::$class,
            doc: Cow::Borrowed($doc),
            example: Cow::Borrowed($example),
        }),*];
    };
}

/// A version of major number 0 from its minor number: the table has no others yet.
const fn version(minor: u32) -> Version {
    Version::new(0, minor)
}

/// Every row: the scalar instructions, then the others.
pub fn rows() -> Vec<OpRow> {
    scalar::rows().into_iter().chain(TABLE.iter().cloned()).collect()
}

/// The kernel that the rows' examples stand in, in place of `…`.
pub const EXAMPLE: &str = "tile 0.1
kernel @example(%x \"x\": readwrite buffer<f32>, %t \"t\": readwrite buffer<i32>, %n \"n\": i64) {
  %zero: i64 = full {dtype = i64, shape = [], value = 0}
  %one: i64 = full {dtype = i64, shape = [], value = 1}
  %go: bool = lt %zero, %n
  %i: i32[4] = iota {dtype = i32, shape = [4], dim = 0}
  %a: f32[4] = gather %x, %i {pad = 1.0}
  %b: f32[4] = add %a, %a
  %mask: bool[4] = lt %a, %b
  %m: f32[2, 2] = reshape %a {shape = [2, 2]}
  %v: view<f32, 1> = view %x, %zero, [%n], [%one]
  …
}
";

tile_table! {
    128 Full "full" () -> "tile" { dtype: DType = "Element type.", shape: Vec<usize> = "Dims.", value: Num = "The element." } 1 Base Exact
        rule "Any element type and shape.";
        "Every element is `value`, converted to the element type as `cast` does in its default mode.";
        "%r: f32[4] = full {dtype = f32, shape = [4], value = 1.5}";
    129 Iota "iota" () -> "tile" { dtype: DType = "Integer type.", shape: Vec<usize> = "Dims.", dim: usize = "The dim counted along." } 1 Base Exact
        rule "An integer type; `dim` below the rank.";
        "`result[i…] = i[dim]`, modulo 2 to the power of the type's width.";
        "%r: i32[2, 3] = iota {dtype = i32, shape = [2, 3], dim = 1}";
    130 ProgramId "program_id" () -> "i64" { axis: usize = "0, 1 or 2." } 1 Base Exact
        rule "`axis` is 0, 1 or 2.";
        "This instance's coordinate in the grid, from 0.";
        "%r: i64 = program_id {axis = 0}";
    131 NumPrograms "num_programs" () -> "i64" { axis: usize = "0, 1 or 2." } 1 Base Exact
        rule "`axis` is 0, 1 or 2.";
        "The grid's extent along an axis.";
        "%r: i64 = num_programs {axis = 2}";
    132 BufferLen "buffer_len" ("buffer") -> "i64" {  } 1 Base Exact
        rule "Any buffer.";
        "Number of elements of a buffer.";
        "%r: i64 = buffer_len %x";
    133 Select "select" ("condition", "on_true", "on_false") -> "as on_true" {  } 1 Base Exact
        rule "The choices have one tile type; the condition is bool, of their shape or a scalar.";
        "Where the condition is true the second operand's element, else the third's, bits unchanged. A scalar condition serves all elements.";
        "%r: f32[4] = select %mask, %a, %b";
    134 Fma "fma" ("a", "b", "c") -> "as a" {  } 1 Base Rounded
        rule "Three tiles of one floating-point type and shape.";
        "`a * b + c` of each element, the exact value rounded once to nearest even. An infinity times zero, and infinities of opposite sign, give NaN.";
        "%r: f32[4] = fma %a, %b, %a";
    135 Cast "cast" ("x") -> "tile" { to: DType = "Result element type.", mode: CastMode = "Overflow and rounding, `[format, nearest_even]` if left out." } 1 Base Rounded
        rule "Any two element types; the shape stays.";
        "Each element's value in another type. To a float type: the exact value rounded once as the mode says (`nearest_even`, `toward_zero`, `down`, `up`; to f8e8m0 ties go up, to hif8 away from zero); what is out of range becomes the greatest finite value of its sign if the mode says `saturate`, and if it says `format` an infinity, or NaN in a type that has none, or the greatest finite value in one that has neither. To an integer type: floats truncate whatever the rounding, NaN gives 0; what is out of range becomes the nearest value (`saturate`) or the value modulo 2 to the power of the width, 0 for infinities (`format`). To bool: whether the value is other than zero; NaN is true. NaN becomes the type's canonical NaN, or negative zero in a type without NaN.";
        "%r: i8[4] = cast %a {to = i8, mode = [saturate, nearest_even]}";
    136 Bitcast "bitcast" ("x") -> "tile" { to: DType = "Result element type." } 1 Base Exact
        rule "Element types of one width in bits; the shape stays.";
        "The same bits as another element type. To bool: whether the byte is other than zero.";
        "%r: i32[4] = bitcast %a {to = i32}";
    137 Broadcast "broadcast" ("x") -> "tile" { shape: Vec<usize> = "Result dims." } 1 Base Exact
        rule "The operand's dims, aligned at the last one, are 1 or equal the result's.";
        "Repeats the operand along dims that are 1 or missing in front.";
        "%r: f32[3, 4] = broadcast %a {shape = [3, 4]}";
    138 Reshape "reshape" ("x") -> "tile" { shape: Vec<usize> = "Result dims." } 1 Base Exact
        rule "The number of elements stays.";
        "The same elements in row-major order under other dims.";
        "%r: f32[2, 2] = reshape %a {shape = [2, 2]}";
    139 Permute "permute" ("x") -> "tile" { perm: Vec<usize> = "For each result dim the operand dim." } 1 Base Exact
        rule "`perm` holds each dim once.";
        "`result[i…] = x[j…]` with `j[perm[d]] = i[d]`: result dim `d` is operand dim `perm[d]`.";
        "%r: f32[2, 2] = permute %m {perm = [1, 0]}";
    140 Extract "extract" ("x") -> "tile" { offset: Vec<usize> = "First index in each dim.", shape: Vec<usize> = "Result dims." } 1 Base Exact
        rule "The part lies inside the operand.";
        "`result[i…] = x[i… + offset…]`.";
        "%r: f32[2] = extract %a {offset = [1], shape = [2]}";
    141 Concat "concat" ("x…") -> "tile" { dim: usize = "The dim joined along." } 1 Base Exact
        rule "One operand or more, of one element type, equal but for `dim`, whose sizes add up.";
        "The operands one after another along a dim.";
        "%r: f32[8] = concat %a, %b {dim = 0}";
    142 TakeAlong "take_along" ("x", "index") -> "tile" { dim: usize = "The dim indexed." } 1 Gather Exact
        rule "`index` is i32 or i64, of the operand's shape but for `dim`; the result has its shape.";
        "`result[i…] = x[i… with i[dim] := index[i…]]` inside a tile. An index outside gives the element whose bits are all zero.";
        "%r: f32[4] = take_along %a, %i {dim = 0}";
    143 Reduce "reduce" ("x…") -> "tiles" { combiner: Combiner = "How elements combine.", dims: Vec<usize> = "Dims reduced, ascending." } 1 Base Regrouped
        rule "One operand of a type that the combiner takes; for `argmax`, `argmin`, `argmax_last` and `argmin_last` two of one shape, the second an integer. `replace` does not reduce. The results lose the dims.";
        "Combines the elements along dims, in any order and grouping, without a start value; the dims disappear. `add` and `mul` of floats are re-associable, every other combiner is exact in any order. The arg-combiners take values and indices and give the winning pair: NaN wins over numbers; of equal values (zeros of either sign are equal) the lower index wins, or the higher for the `_last` forms.";
        "%r: f32 = reduce %a {combiner = add, dims = [0]}
  %best: f32, %at: i32 = reduce %a, %i {combiner = argmax, dims = [0]}";
    144 Scan "scan" ("x…") -> "tiles" { combiner: Combiner = "How elements combine.", dim: usize = "The dim scanned.", reverse: bool = "From the end." } 1 Base Regrouped
        rule "As `reduce`; the results have the operands' types.";
        "Running combination along a dim: element `k` combines elements 0 to `k` (`k` to the last if `reverse`), in any grouping. Exact and re-associable as for `reduce`.";
        "%r: f32[4] = scan %a {combiner = add, dim = 0, reverse = true}";
    145 Mma "mma" ("acc", "a", "b") -> "as acc" {  } 1 Mma Regrouped
        rule "`a` is [m, k], `b` is [k, n], `acc` is [m, n]; all floats or all integers, not necessarily of one type.";
        "`acc + a × b`. Each product is exact or rounded to the accumulator's type, sums are in the accumulator's type or a wider one, in any order; subnormal operands narrower than f32 and subnormal results may be flushed to zero. Integer sums wrap.";
        "%r: f32[2, 2] = mma %m, %m, %m";
    146 View "view" ("buffer", "offset", "dims…", "strides…") -> "view" { rank: usize = "Number of dims." } 1 Base Exact
        rule "A buffer, then i64 scalars: the offset, `rank` dims, `rank` strides.";
        "A window on a buffer: element `(i…)` is buffer element `offset + Σ i × stride`, for `i` from 0 up to the dim. Dims and strides may be anything, 0 and negative too; a dim below 1 makes the view empty. Making a view accesses nothing.";
        "%w: view<f32, 2> = view %x, %one, [%n, %n], [%n, %one]";
    147 Load "load" ("view", "index…", "mask?") -> "tile" { map: TileMap = "How the tile lies over the view.", inside: Vec<bool> = "For each view dim: proven inside, not checked.", pad: Num = "What is read outside.", masked: bool = "The last operand is a bool tile." } 1 Base Exact
        rule "An i64 scalar for each view dim; `inside` has an entry for each; the result's shape is the map's, the mask's too.";
        "Reads a block at an index. The element at tile coordinate `t` is at view index `index + Σ coordinate × step` over the factors of the map; where that is outside a view dim not declared `inside`, or the mask is false, it is `pad` and memory is not touched.";
        "%r: f32[4] = load %v[%zero] {map = [4@0], inside = [false], pad = 0.0}";
    148 Store "store" ("view", "value", "index…", "mask?") -> "" { map: TileMap = "How the tile lies over the view.", inside: Vec<bool> = "For each view dim: proven inside, not checked.", masked: bool = "The last operand is a bool tile." } 1 Base Exact
        rule "As `load`, with a value of the map's shape and the view's element type.";
        "Writes a block; elements outside a view dim not declared `inside`, or masked out, are dropped. Of elements that fall on one place the last in row-major order stays.";
        "store %v[%zero], %b {map = [4@0], inside = [false]}";
    149 Gather "gather" ("buffer", "index", "mask?") -> "tile" { pad: Num = "What is read outside.", masked: bool = "The last operand is a bool tile." } 1 Gather Exact
        rule "Indices are i32 or i64; the result and the mask have their shape.";
        "Reads the buffer's element at each index; outside the buffer, or masked out, `pad`.";
        "%r: f32[4] = gather %x, %i, mask %mask {pad = 0.0}";
    150 Scatter "scatter" ("buffer", "index", "value", "mask?") -> "" { masked: bool = "The last operand is a bool tile." } 1 Gather Exact
        rule "Indices are i32 or i64; the value and the mask have their shape.";
        "Writes each element at its index; outside or masked out is dropped. Of equal indices the last in row-major order stays.";
        "scatter %x, %i, %b";
    151 AtomicReduce "atomic_reduce" ("buffer", "index", "value", "mask?") -> "" { combiner: Combiner = "`add`, `max`, `min`, `and`, `or` or `xor`.", scope: Scope = "Among whom.", masked: bool = "The last operand is a bool tile." } 1 Atomics Unspecified
        rule "As `scatter`, with elements of a byte or more; the combiner takes the element type.";
        "Combines each element into memory at its index, atomically and relaxed, giving nothing back; outside or masked out is dropped. Elements act in any order. The order of float sums, and so their rounding, is unspecified; every other combiner gives one result.";
        "atomic_reduce %t, %i, %i {combiner = add, scope = device}";
    152 AtomicRmw "atomic_rmw" ("buffer", "index", "value", "mask?") -> "as value" { combiner: Combiner = "`add`, `max`, `min`, `and`, `or`, `xor`, or `replace`, which exchanges.", ordering: Ordering = "Memory order.", scope: Scope = "Among whom.", masked: bool = "The last operand is a bool tile." } 1 Atomics Unspecified
        rule "As `atomic_reduce`.";
        "Combines each element into memory at its index, atomically, and gives the old element. Outside or masked out nothing happens and the element whose bits are all zero is given.";
        "%r: i32[4] = atomic_rmw %t, %i, %i {combiner = add, ordering = relaxed, scope = device}";
    153 AtomicCas "atomic_cas" ("buffer", "index", "expected", "desired") -> "as expected" { ordering: Ordering = "Memory order.", scope: Scope = "Among whom." } 1 Atomics Unspecified
        rule "As `atomic_reduce`, with two values of one type.";
        "Where memory has the bits of `expected` writes `desired`, atomically; gives the old element. Outside the buffer nothing happens and the element whose bits are all zero is given.";
        "%r: i32[4] = atomic_cas %t, %i, %i, %i {ordering = acq_rel, scope = device}";
    154 Alloc "alloc" () -> "buffer" { dtype: DType = "Element type.", len: usize = "Number of elements." } 1 Base Exact
        rule "In the body itself, not in a region; 1 to 2^28 elements.";
        "Block-local memory, private to the instance and gone at its end. It holds unspecified values until written; reading them is an error of the program.";
        "%s: buffer<f32> = alloc {dtype = f32, len = 64}";
    155 For "for" ("lo", "hi", "step", "carried…") -> "carried" {  } 1 Base Exact
        rule "i64 bounds and step; one region that takes an i64 and the carried tiles and gives as many of the same types.";
        "For `i = lo; i < hi; i += step` runs the body with `i` and the carried values; it gives their next values, and the last are the results. Its end counts without wrapping: where the next `i` would be past the greatest i64, it was the last turn. A step below 1 is an error of the program.";
        "%r: f32[4] = for %zero, %n, %one, %a do (%k: i64, %c: f32[4]) {
    %d: f32[4] = add %c, %b
    yield %d
  }";
    156 While "while" ("condition", "carried…") -> "carried" {  } 1 Base Exact
        rule "A bool scalar and carried tiles; one region that takes these tiles and gives a bool scalar and as many of the same types.";
        "While the condition (the operand for the first turn) is true runs the body with the carried values; it gives the next condition and carried values.";
        "%r: i64 = while %go, %zero do (%c: i64) {
    %next: i64 = add %c, %one
    %more: bool = lt %next, %n
    yield %more, %next
  }";
    157 If "if" ("condition") -> "results" {  } 1 Base Exact
        rule "A bool scalar; two regions without parameters that give values of the result types.";
        "Runs the first region if the condition is true, else the second; what it gives are the results.";
        "%r: f32[4] = if %go do () {
    yield %a
  } do () {
    yield %b
  }";
    158 Prefetch "prefetch" ("view", "index…") -> "" {  } 1 Base Exact
        rule "An i64 index for each view dim.";
        "Says that the element at an index, and those near it, will be read soon. No result depends on it; the index may be outside the view.";
        "prefetch %v[%zero]";
    159 MmaScaled "mma_scaled" ("acc", "a", "a_scale", "b", "b_scale") -> "as acc" {  } 1 Mx Regrouped
        rule "`acc` is [m, n] of f32 or f64, `a` is [m, k], `b` is [k, n], `a_scale` is [m, g], `b_scale` is [h, n], all floats; g and h divide k.";
        "`acc + (a × a_scale) × (b × b_scale)`, where each scale serves k / g (of `b` k / h) neighbours along the summed dim. A scaled element is exact or rounded to the accumulator's type; from there on it is `mma` in that type.";
        "%s: f32[2, 1] = extract %m {offset = [0, 0], shape = [2, 1]}\n  %u: f32[1, 2] = extract %m {offset = [0, 0], shape = [1, 2]}\n  %r: f32[2, 2] = mma_scaled %m, %m, %s, %m, %u";
}
