//! The op table: every operation of the tensor graph, declared once.
//!
//! A row gives the variant, its name in text, its operands, its attributes with their types, its numeric contract
//! and its meaning. The enum, its names, its documentation and its conversion from and to `(name, attributes)`,
//! on which the text form is built, follow from the table. The scalar operations
//! ([`Unary`], [`Binary`], [`Compare`]) come from the scalar table and print under their own names.

use std::sync::Arc;

use tongtu_tensor::dim::{Dim, Sym};
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Tensor};

use crate::graph::{Graph, Type};

/// How exactly an implementation must compute an operation, on top of what its scalar parts promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// Moves or selects elements, or computes on integers: the same bits everywhere.
    Exact,
    /// As its scalar operation's own class.
    Scalar,
    /// A sum or product over many elements that may be re-associated: the error bound is that of any order of
    /// adding the terms in the accumulator type.
    Reassociable,
    /// What its definition (a graph of primitives) allows.
    Definition,
}

/// An attribute in its generic form.
#[derive(Clone, Debug)]
pub enum AttrValue {
    /// An integer.
    Int(i64),
    /// A truth value.
    Bool(bool),
    /// A floating-point number.
    Float(f64),
    /// A string.
    Str(String),
    /// An element type.
    DType(DType),
    /// A dim expression.
    Dim(Dim),
    /// A dim symbol.
    Sym(Sym),
    /// Constant elements.
    Tensor(Tensor),
    /// A value type.
    Type(Type),
    /// A region or definition.
    Graph(Arc<Graph>),
    /// A list of any of these.
    List(Vec<AttrValue>),
}

/// Conversion of an attribute from and to its generic form.
pub trait Attr: Sized {
    /// The generic form.
    fn to_attr(&self) -> AttrValue;
    /// The attribute, or `None` where the generic form has another kind.
    fn from_attr(value: &AttrValue) -> Option<Self>;
}

macro_rules! attr_as {
    ($($ty:ty => $variant:ident),* $(,)?) => { $(impl Attr for $ty {
        fn to_attr(&self) -> AttrValue { AttrValue::$variant(self.clone()) }
        fn from_attr(value: &AttrValue) -> Option<Self> {
            if let AttrValue::$variant(v) = value { Some(v.clone()) } else { None }
        }
    })* };
}
attr_as!(bool => Bool, f64 => Float, String => Str, DType => DType, Sym => Sym, Tensor => Tensor, Type => Type, Arc<Graph> => Graph);

impl Attr for i64 {
    fn to_attr(&self) -> AttrValue {
        AttrValue::Int(*self)
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::Int(v) => Some(*v),
            AttrValue::Dim(d) => d.as_const(),
            _ => None,
        }
    }
}

impl Attr for usize {
    fn to_attr(&self) -> AttrValue {
        AttrValue::Int(*self as i64)
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        usize::try_from(i64::from_attr(value)?).ok()
    }
}

impl Attr for Dim {
    fn to_attr(&self) -> AttrValue {
        AttrValue::Dim(self.clone())
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::Int(v) => Some(Dim::from(*v)),
            AttrValue::Dim(d) => Some(d.clone()),
            _ => None,
        }
    }
}

impl<T: Attr> Attr for Vec<T> {
    fn to_attr(&self) -> AttrValue {
        AttrValue::List(self.iter().map(Attr::to_attr).collect())
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        if let AttrValue::List(items) = value { items.iter().map(T::from_attr).collect() } else { None }
    }
}

impl<A: Attr, B: Attr> Attr for (A, B) {
    fn to_attr(&self) -> AttrValue {
        AttrValue::List(vec![self.0.to_attr(), self.1.to_attr()])
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::List(items) if items.len() == 2 => {
                Some((A::from_attr(&items[0])?, B::from_attr(&items[1])?))
            }
            _ => None,
        }
    }
}

impl Attr for (String, AttrValue) {
    fn to_attr(&self) -> AttrValue {
        AttrValue::List(vec![self.0.to_attr(), self.1.clone()])
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::List(items) if items.len() == 2 => {
                Some((String::from_attr(&items[0])?, items[1].clone()))
            }
            _ => None,
        }
    }
}

impl Attr for Combiner {
    fn to_attr(&self) -> AttrValue {
        AttrValue::Str(self.name().to_string())
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        if let AttrValue::Str(s) = value { Combiner::from_name(s) } else { None }
    }
}

/// The role of one dim of an operand of a convolution. In text `n`, `c` and `s0`, `s1`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConvRole {
    /// Batch of the input and output; output channels of the kernel.
    N,
    /// Channels of the input and output; input channels of one group of the kernel.
    C,
    /// The i-th spatial dim.
    S(usize),
}

impl Attr for ConvRole {
    fn to_attr(&self) -> AttrValue {
        AttrValue::Str(match self {
            ConvRole::N => "n".into(),
            ConvRole::C => "c".into(),
            ConvRole::S(i) => format!("s{i}"),
        })
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        let AttrValue::Str(s) = value else { return None };
        match s.as_str() {
            "n" => Some(ConvRole::N),
            "c" => Some(ConvRole::C),
            _ => s.strip_prefix('s')?.parse().ok().map(ConvRole::S),
        }
    }
}

/// Geometry of a convolution; spatial lists are indexed by spatial dim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// Roles of the input's dims, in its order.
    pub input: Vec<ConvRole>,
    /// Roles of the kernel's dims: `N` is output channels (all groups), `C` input channels of one group.
    pub kernel: Vec<ConvRole>,
    /// Roles of the output's dims.
    pub output: Vec<ConvRole>,
    /// Steps between windows.
    pub strides: Vec<i64>,
    /// Zeros added before and after each spatial dim (may be negative: crops).
    pub pads: Vec<(Dim, Dim)>,
    /// Steps between taps of the kernel.
    pub dilation: Vec<i64>,
    /// Steps between input elements: zeros are put between them (a transposed convolution's stride).
    pub input_dilation: Vec<i64>,
    /// Number of groups; input and output channels are divisible by it.
    pub groups: i64,
}

impl ConvSpec {
    /// A convolution with dims in the order batch, channels, spatial (kernel: out, in, spatial), no padding.
    pub fn nchw(rank: usize) -> ConvSpec {
        let roles: Vec<ConvRole> =
            [ConvRole::N, ConvRole::C].into_iter().chain((0..rank).map(ConvRole::S)).collect();
        ConvSpec {
            input: roles.clone(),
            kernel: roles.clone(),
            output: roles,
            strides: vec![1; rank],
            pads: vec![(Dim::from(0), Dim::from(0)); rank],
            dilation: vec![1; rank],
            input_dilation: vec![1; rank],
            groups: 1,
        }
    }
    /// Number of spatial dims.
    pub fn rank(&self) -> usize {
        self.strides.len()
    }
}

impl Attr for ConvSpec {
    fn to_attr(&self) -> AttrValue {
        AttrValue::List(vec![
            self.input.to_attr(),
            self.kernel.to_attr(),
            self.output.to_attr(),
            self.strides.to_attr(),
            self.pads.to_attr(),
            self.dilation.to_attr(),
            self.input_dilation.to_attr(),
            self.groups.to_attr(),
        ])
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        let AttrValue::List(v) = value else { return None };
        let [input, kernel, output, strides, pads, dilation, input_dilation, groups] = v.as_slice() else {
            return None;
        };
        Some(ConvSpec {
            input: Attr::from_attr(input)?,
            kernel: Attr::from_attr(kernel)?,
            output: Attr::from_attr(output)?,
            strides: Attr::from_attr(strides)?,
            pads: Attr::from_attr(pads)?,
            dilation: Attr::from_attr(dilation)?,
            input_dilation: Attr::from_attr(input_dilation)?,
            groups: Attr::from_attr(groups)?,
        })
    }
}

/// Geometry of a window reduction: one entry for every dim of the operand (1, 1, (0, 0), 1 where nothing slides).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowSpec {
    /// Window lengths.
    pub window: Vec<i64>,
    /// Steps between windows.
    pub strides: Vec<i64>,
    /// Elements of the combiner's identity added before and after (may be negative: crops).
    pub pads: Vec<(Dim, Dim)>,
    /// Steps between elements of a window.
    pub dilation: Vec<i64>,
}

impl Attr for WindowSpec {
    fn to_attr(&self) -> AttrValue {
        AttrValue::List(vec![
            self.window.to_attr(),
            self.strides.to_attr(),
            self.pads.to_attr(),
            self.dilation.to_attr(),
        ])
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        let AttrValue::List(v) = value else { return None };
        let [window, strides, pads, dilation] = v.as_slice() else { return None };
        Some(WindowSpec {
            window: Attr::from_attr(window)?,
            strides: Attr::from_attr(strides)?,
            pads: Attr::from_attr(pads)?,
            dilation: Attr::from_attr(dilation)?,
        })
    }
}

impl Attr for CastMode {
    fn to_attr(&self) -> AttrValue {
        AttrValue::List(vec![
            AttrValue::Str(self.overflow.name().to_string()),
            AttrValue::Str(self.rounding.name().to_string()),
        ])
    }
    fn from_attr(value: &AttrValue) -> Option<Self> {
        match value {
            AttrValue::List(v) => match v.as_slice() {
                [AttrValue::Str(o), AttrValue::Str(r)] => CastMode::from_names(o, r),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Op {
    /// Whether every result element depends on the operands' elements at its own place alone.
    pub fn is_elementwise(&self) -> bool {
        use Op::*;
        matches!(self, Unary(_) | Binary(_) | Compare(_) | Select {} | Fma {} | Cast { .. } | Bitcast { .. })
    }
}

macro_rules! op_table {
    ($($(#[doc = $doc:literal])* $variant:ident $name:literal ($($operand:literal),*) { $($field:ident : $fty:ty = $fdoc:literal),* } $contract:ident;)*) => {
        /// An operation with its attributes.
        #[derive(Clone, Debug)]
        pub enum Op {
            /// A scalar operation of one operand, applied to each element.
            Unary(Unary),
            /// A scalar operation of two operands of equal shape, applied to each pair of elements.
            Binary(Binary),
            /// A comparison of two operands of equal shape; bool result.
            Compare(Compare),
            $($(#[doc = $doc])* $variant { $(#[doc = $fdoc] $field: $fty,)* },)*
        }
        impl Op {
            /// The name in text: the table's, or the scalar operation's own.
            pub fn name(&self) -> &'static str {
                match self {
                    Op::Unary(u) => u.name(),
                    Op::Binary(b) => b.name(),
                    Op::Compare(c) => c.name(),
                    $(Op::$variant { .. } => $name,)*
                }
            }
            /// The numeric contract.
            pub fn contract(&self) -> Contract {
                match self {
                    Op::Unary(_) | Op::Binary(_) | Op::Compare(_) => Contract::Scalar,
                    $(Op::$variant { .. } => Contract::$contract,)*
                }
            }
            /// The attributes in table order, in generic form.
            pub fn attrs(&self) -> Vec<(&'static str, AttrValue)> {
                match self {
                    Op::Unary(_) | Op::Binary(_) | Op::Compare(_) => Vec::new(),
                    $(Op::$variant { $($field),* } => vec![$((stringify!($field), Attr::to_attr($field))),*],)*
                }
            }
            /// The operation with this name and these attributes; `Err` names what is unknown, missing or of the wrong kind.
            pub fn from_parts(name: &str, attrs: &[(String, AttrValue)]) -> Result<Op, String> {
                #[allow(unused)]
                fn field<T: Attr>(attrs: &[(String, AttrValue)], name: &str) -> Result<T, String> {
                    let (_, v) = attrs.iter().find(|(n, _)| n == name).ok_or_else(|| format!("attribute '{name}' is missing"))?;
                    T::from_attr(v).ok_or_else(|| format!("attribute '{name}' has the wrong kind"))
                }
                let known: &[&str] = match name { $($name => &[$(stringify!($field)),*],)* _ => &[] };
                if let Some((n, _)) = attrs.iter().find(|(n, _)| !known.contains(&n.as_str())) {
                    return Err(format!("'{name}' has no attribute '{n}'"));
                }
                match name {
                    $($name => Ok(Op::$variant { $($field: field(attrs, stringify!($field))?),* }),)*
                    _ => Unary::from_name(name).map(Op::Unary)
                        .or_else(|| Binary::from_name(name).map(Op::Binary))
                        .or_else(|| Compare::from_name(name).map(Op::Compare))
                        .ok_or_else(|| format!("unknown operation '{name}'")),
                }
            }
        }
        /// The rows of the table, for documentation: scalar operations are in the scalar table.
        pub const TABLE: &[OpRow] = &[$(OpRow {
            name: $name,
            operands: &[$($operand),*],
            attributes: &[$((stringify!($field), $fdoc)),*],
            contract: Contract::$contract,
            doc: concat!($($doc, "\n"),*),
        }),*];
    };
}

/// One row of the op table, for documentation.
#[derive(Clone, Copy, Debug)]
pub struct OpRow {
    /// Name in text.
    pub name: &'static str,
    /// Operand names; a trailing `…` means any number.
    pub operands: &'static [&'static str],
    /// Attribute names and meanings.
    pub attributes: &'static [(&'static str, &'static str)],
    /// Numeric contract.
    pub contract: Contract,
    /// Meaning.
    pub doc: &'static str,
}

op_table! {
    /// Constant elements.
    Constant "constant" () { value: Tensor = "The elements." } Exact;
    /// `result[i…] = i[axis]`, in the given integer or floating-point type.
    Iota "iota" () { dtype: DType = "Element type.", dims: Vec<Dim> = "Result dims.", axis: usize = "The dim counted along." } Exact;
    /// A dim expression as an `i64` scalar.
    DimValue "dim" () { dim: Dim = "The expression." } Exact;
    /// Binds a fresh symbol to the value of an `i64` scalar at run time; later operations may use the symbol in
    /// their dims. A value outside the symbol's declared bounds is a run-time error. No result.
    Bind "bind" ("scalar") { sym: Sym = "The symbol bound." } Exact;
    /// Where the condition is true the second operand's element, else the third's. Equal shapes.
    Select "select" ("condition", "on_true", "on_false") {} Exact;
    /// `a * b + c` with one rounding. Equal shapes and floating-point types.
    Fma "fma" ("a", "b", "c") {} Scalar;
    /// Conversion of each element's value to another type.
    Cast "cast" ("x") { to: DType = "Result type.", mode: CastMode = "Overflow and rounding." } Exact;
    /// The same bits read as another type of equal width.
    Bitcast "bitcast" ("x") { to: DType = "Result type." } Exact;
    /// The same elements in row-major order under other dims (equal number of elements).
    Reshape "reshape" ("x") { dims: Vec<Dim> = "Result dims." } Exact;
    /// `result.dims[i] = x.dims[perm[i]]`.
    Permute "permute" ("x") { perm: Vec<usize> = "For each result dim the operand dim." } Exact;
    /// Repeats elements along new dims, or along operand dims of length 1. Operand dim `i` becomes result dim `axes[i]`
    /// (ascending), where it equals the result's dim or is 1.
    Broadcast "broadcast" ("x") { dims: Vec<Dim> = "Result dims.", axes: Vec<usize> = "For each operand dim the result dim." } Exact;
    /// `result[i…] = x[start + i * step…]` with `len` elements a dim; steps are nonzero and may be negative. All indices must be inside.
    Slice "slice" ("x") { start: Vec<Dim> = "First index in each dim.", len: Vec<Dim> = "Result dims.", step: Vec<i64> = "Steps." } Exact;
    /// Adds elements equal to the scalar `value` around the operand; negative amounts crop.
    Pad "pad" ("x", "value") { low: Vec<Dim> = "Elements added before, for each dim.", high: Vec<Dim> = "Elements added after." } Exact;
    /// The operands one after another along a dim; the other dims are equal.
    Concat "concat" ("x…") { axis: usize = "The dim joined along." } Exact;
    /// `result = data.dims[..axis] ++ indices.dims ++ data.dims[axis+1..]`: slices of `data` at each index. An index
    /// outside `0..n` reads zero (NaN in a type without it).
    Take "take" ("data", "indices") { axis: usize = "The dim indexed." } Exact;
    /// `result[i…] = data[i… with i[axis] replaced by indices[i…]]`; equal ranks, the result has the dims of `indices`, whose dims other
    /// than `axis` are not above those of `data`. An index outside reads zero.
    TakeAlong "take_along" ("data", "indices") { axis: usize = "The dim indexed." } Exact;
    /// The first `batch` dims are shared; `indices.dims = batch ++ outer ++ [k]`; each row of k indices selects, within its batch,
    /// a slice of `data.dims[batch+k..]`. Result: batch ++ outer ++ that. A row with an index outside reads zeros.
    GatherNd "gather_nd" ("data", "indices") { batch: usize = "Number of shared leading dims." } Exact;
    /// A copy of `data` in which `data[i… with i[axis] := indices[i…]]` is combined with `updates[i…]` for every i in row-major order;
    /// an index outside drops its update. Floats narrower than f32 are rounded at every step.
    ScatterAlong "scatter_along" ("data", "indices", "updates") { axis: usize = "The dim indexed.", combiner: Combiner = "How updates combine; `old ∘ new`." } Reassociable;
    /// `indices.dims = outer ++ [k]`, `updates.dims = outer ++ data.dims[k..]`: a copy of `data` in which the slice at each row of k indices is
    /// combined with its update, in row-major order; a row with an index outside is dropped. Floats narrower than f32 are rounded at every step.
    ScatterNd "scatter_nd" ("data", "indices", "updates") { combiner: Combiner = "How updates combine." } Reassociable;
    /// Combines all elements along the axes, which the result lacks. An empty set gives the combiner's identity (for arg-combiners the
    /// worst value and index 0). Low-precision floats accumulate in f32.
    Reduce "reduce" ("x…") { combiner: Combiner = "How elements combine.", axes: Vec<usize> = "Dims reduced, ascending." } Reassociable;
    /// Running combination along a dim.
    Scan "scan" ("x…") { combiner: Combiner = "How elements combine.", axis: usize = "The dim scanned.", exclusive: bool = "Start from the identity, leave out the element itself.", reverse: bool = "From the end." } Reassociable;
    /// Stable sort along a dim by the first operand; the others move with it. NaN counts as greatest.
    Sort "sort" ("key", "x…") { axis: usize = "The dim sorted.", descending: bool = "Greatest first (still stable)." } Exact;
    /// Sum of products over pairs of dims. Result dims: batch, then the free dims of `lhs`, then those of `rhs`.
    /// Operands may have different types; products and sums are in `acc`, which is the result type. Subnormal elements of operands may be
    /// taken as zero.
    Contract "contract" ("lhs", "rhs") { batch: Vec<(usize, usize)> = "Pairs of batch dims.", over: Vec<(usize, usize)> = "Pairs of dims summed over.", acc: DType = "Accumulator and result type." } Reassociable;
    /// Convolution (correlation: the kernel is not flipped). Products and sums in `acc`, which is the result type.
    /// Subnormal elements of operands may be taken as zero. What is padded counts as zero; whether it times an infinity or NaN of the kernel
    /// is NaN or nothing is not specified.
    Conv "conv" ("input", "kernel") { spec: ConvSpec = "Geometry and the role of every dim.", acc: DType = "Accumulator and result type." } Reassociable;
    /// Combines the elements of each position of a sliding window. Elements in the padding are the combiner's identity.
    WindowReduce "window_reduce" ("x…") { combiner: Combiner = "How elements combine.", spec: WindowSpec = "Geometry." } Reassociable;
    /// `u32` random bits, a pure function: Philox 4x32-10 of the `u64` scalar key, with the row-major element number plus the
    /// `u64` scalar `counter` as counter (word 0 of each block).
    RandomBits "random_bits" ("key", "counter") { dims: Vec<Dim> = "Result dims." } Exact;
    /// Runs one of two regions on the captured operands. Result dims that are symbols not bound before are bound by the results.
    If "if" ("condition", "captured…") { then_branch: Arc<Graph> = "Taken when true.", else_branch: Arc<Graph> = "Taken when false.", results: Vec<Type> = "Result types." } Definition;
    /// Repeats the body while the condition (`bool` scalar, first operand for the first turn) is true. The body takes the carried values, then the
    /// captured ones, and gives the next condition and the next carried values, whose dims may differ: symbols that first occur in the body's
    /// input types are bound anew each turn. Results are the last carried values; symbols that first occur in the result types are bound by them.
    While "while" ("condition", "carried…", "captured…") { body: Arc<Graph> = "One turn.", results: Vec<Type> = "Types of the carried values at the end." } Definition;
    /// A named operation that carries its meaning: the body takes the operands. An empty name is a fusion group.
    Composite "composite" ("x…") { name: String = "Its name.", attributes: Vec<(String, AttrValue)> = "Parameters a schedule may read.", body: Arc<Graph> = "Its definition." } Definition;
    /// Runs a kernel of the tile instruction set over a grid. Its buffer parameters are, in order, the operands and then the results; an operand
    /// and a result that share a buffer take the operand's place, and the result begins with the operand's contents (the operand itself
    /// keeps its own). Of the other results the kernel must write every element; what it leaves out is unspecified.
    Kernel "kernel" ("x…") { code: String = "The kernel as text.", grid: Vec<Dim> = "One to three extents.", scalars: Vec<Dim> = "Its scalar parameters, all `i64`.", in_place: Vec<(usize, usize)> = "Pairs of an operand and a result in one buffer.", results: Vec<Type> = "Result types." } Definition;
    /// An operation on values that are not numbers (strings, sequences, optionals), which live on the host.
    Host "host" ("x…") { name: String = "Its name in the host library.", attributes: Vec<(String, AttrValue)> = "Its parameters.", results: Vec<Type> = "Result types." } Exact;
}
