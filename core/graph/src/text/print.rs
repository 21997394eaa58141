//! Writing.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::{DType, Num, Overflow, Tensor};

use super::base64;
use crate::graph::{Graph, Module, Type, ValueId};
use crate::op::AttrValue;

/// Constants of more elements are written as bytes.
const MAX_LISTED: usize = 64;
/// Elements of all `splat` constants together, so that short text stays small when read.
pub(super) const MAX_SPLAT: usize = 1 << 24;

/// A module as text.
pub fn print(module: &Module) -> String {
    let mut out = String::new();
    for (_, s) in module.symbols.iter() {
        let _ = write!(out, "symbol {}", s.name);
        if s.lower != 0 || s.upper.is_some() {
            let _ = write!(out, " {}..", s.lower);
            if let Some(u) = s.upper {
                let _ = write!(out, "{u}");
            }
        }
        if s.multiple_of != 1 {
            let _ = write!(out, " multiple {}", s.multiple_of);
        }
        out.push('\n');
    }
    if !module.symbols.is_empty() {
        out.push('\n');
    }
    out.push_str(&print_graph(&module.graph, &module.symbols));
    out.push('\n');
    out
}

/// A graph as text.
pub fn print_graph(graph: &Graph, symbols: &Symbols) -> String {
    let mut p = Printer { symbols, out: String::new(), indent: 0, splats: 0 };
    p.graph(graph);
    p.out
}

struct Printer<'a> {
    symbols: &'a Symbols,
    out: String,
    indent: usize,
    /// Elements of splat constants so far.
    splats: usize,
}

/// Whether a name can be written after `%` by itself.
fn is_identifier(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 200
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
}

pub(super) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// How the values of one graph are written: after `%`, and with a name in quotes at the definition.
struct Names<'g> {
    graph: &'g Graph,
    numbers: HashMap<ValueId, usize>,
}

impl<'g> Names<'g> {
    fn new(graph: &'g Graph) -> Names<'g> {
        let mut seen = HashSet::new();
        let mut numbers = HashMap::new();
        let defined = graph.inputs.iter().chain(graph.nodes.iter().flat_map(|n| &n.outputs));
        for &v in defined {
            let name = graph.values.get(v.index()).and_then(|v| v.name.as_deref());
            let own = name.is_some_and(|n| is_identifier(n) && seen.insert(n));
            if !own {
                let n = numbers.len();
                numbers.entry(v).or_insert(n);
            }
        }
        Names { graph, numbers }
    }
    fn use_of(&self, v: ValueId) -> String {
        match (self.numbers.get(&v), self.graph.values.get(v.index()).and_then(|v| v.name.as_deref())) {
            (Some(n), _) => format!("%{n}"),
            (None, Some(name)) if is_identifier(name) => format!("%{name}"),
            // Not defined in this graph: text that does not read back.
            _ => format!("%?{}", v.0),
        }
    }
    fn definition(&self, v: ValueId) -> String {
        let name = self.graph.values.get(v.index()).and_then(|v| v.name.as_deref());
        match (self.numbers.get(&v), name) {
            (Some(n), Some(name)) => format!("%{n} {}", quote(name)),
            _ => self.use_of(v),
        }
    }
    fn uses(&self, values: &[ValueId]) -> String {
        values.iter().map(|&v| self.use_of(v)).collect::<Vec<_>>().join(", ")
    }
}

impl Printer<'_> {
    fn line(&mut self) {
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n("  ", self.indent));
    }
    fn ty(&mut self, graph: &Graph, v: ValueId) {
        match graph.values.get(v.index()) {
            Some(value) => self.type_text(&value.ty),
            None => self.out.push_str("any"),
        }
    }

    fn graph(&mut self, graph: &Graph) {
        let names = Names::new(graph);
        let _ = write!(self.out, "graph {} (", quote(&graph.name));
        for (i, &v) in graph.inputs.iter().enumerate() {
            let _ = write!(self.out, "{}{}: ", if i == 0 { "" } else { ", " }, names.definition(v));
            self.ty(graph, v);
        }
        let _ = write!(self.out, ") -> ({})", names.uses(&graph.outputs));
        for (i, (a, b)) in graph.state.iter().enumerate() {
            let _ = write!(self.out, "{} ({a}, {b})", if i == 0 { " state" } else { "," });
        }
        self.out.push_str(" {");
        self.indent += 1;
        for node in &graph.nodes {
            self.line();
            if !node.outputs.is_empty() {
                let outputs =
                    node.outputs.iter().map(|&v| names.definition(v)).collect::<Vec<_>>().join(", ");
                let _ = write!(self.out, "{outputs} = ");
            }
            self.out.push_str(node.op.name());
            if !node.inputs.is_empty() {
                let _ = write!(self.out, " {}", names.uses(&node.inputs));
            }
            let attributes = node.op.attrs();
            if !attributes.is_empty() {
                self.out.push_str(" {");
                for (i, (name, value)) in attributes.iter().enumerate() {
                    let _ = write!(self.out, "{}{name} = ", if i == 0 { "" } else { ", " });
                    self.attribute(value);
                }
                self.out.push('}');
            }
            for (i, &v) in node.outputs.iter().enumerate() {
                self.out.push_str(if i == 0 { " : " } else { ", " });
                self.ty(graph, v);
            }
            if let Some(loc) = &node.loc.0 {
                let _ = write!(self.out, "  @ {}", quote(loc));
            }
        }
        self.indent -= 1;
        self.line();
        self.out.push('}');
    }

    fn dims(&mut self, dims: &[Dim]) {
        for (i, d) in dims.iter().enumerate() {
            let _ = write!(self.out, "{}{}", if i == 0 { "" } else { ", " }, d.display(self.symbols));
        }
    }

    fn type_text(&mut self, ty: &Type) {
        match ty {
            Type::Tensor { dtype, dims } => {
                let _ = write!(self.out, "{dtype}[");
                self.dims(dims);
                self.out.push(']');
            }
            Type::Strings { dims } => {
                self.out.push_str("strings[");
                self.dims(dims);
                self.out.push(']');
            }
            Type::Sequence(inner) => {
                self.out.push_str("seq<");
                self.type_text(inner);
                self.out.push('>');
            }
            Type::Optional(inner) => {
                self.out.push_str("opt<");
                self.type_text(inner);
                self.out.push('>');
            }
            Type::Any => self.out.push_str("any"),
        }
    }

    fn attribute(&mut self, value: &AttrValue) {
        match value {
            AttrValue::Int(n) => _ = write!(self.out, "{n}"),
            AttrValue::Bool(b) => _ = write!(self.out, "{b}"),
            AttrValue::Float(x) => self.out.push_str(&float(*x)),
            AttrValue::Str(s) => self.out.push_str(&quote(s)),
            AttrValue::DType(d) => _ = write!(self.out, "{d}"),
            AttrValue::Dim(d) => match d.as_const() {
                Some(n) => _ = write!(self.out, "{n}"),
                None => _ = write!(self.out, "<{}>", d.display(self.symbols)),
            },
            AttrValue::Sym(s) => match self.symbols.name(*s) {
                Some(name) => _ = write!(self.out, "${name}"),
                None => _ = write!(self.out, "$?{}", s.0),
            },
            AttrValue::Tensor(t) => self.tensor(t),
            AttrValue::Type(t) => self.type_text(t),
            AttrValue::Graph(g) => self.graph(g),
            AttrValue::List(items) => {
                self.out.push('[');
                for (i, v) in items.iter().enumerate() {
                    self.out.push_str(if i == 0 { "" } else { ", " });
                    self.attribute(v);
                }
                self.out.push(']');
            }
        }
    }

    fn tensor(&mut self, t: &Tensor) {
        let dims: Vec<Dim> = t.shape().iter().map(|&n| Dim::from(n as i64)).collect();
        let dtype = t.dtype();
        let _ = write!(self.out, "tensor<{dtype}[");
        self.dims(&dims);
        self.out.push_str("]>");
        let n = t.len();
        if n <= MAX_LISTED {
            let elements: Vec<String> = t.codes().map(|c| element(dtype, c)).collect();
            let _ = write!(self.out, "[{}]", elements.join(", "));
            return;
        }
        let first = t.code(0);
        if self.splats.saturating_add(n) <= MAX_SPLAT && t.codes().all(|c| c == first) {
            self.splats += n;
            let _ = write!(self.out, " splat {}", element(dtype, first));
            return;
        }
        let bytes = match t.to_contiguous() {
            Ok(t) => base64::encode(&t.bytes()),
            Err(_) => String::new(),
        };
        let _ = write!(self.out, "\"{bytes}\"");
    }
}

/// A number with a point or exponent, so that it does not read as an integer.
fn float(x: f64) -> String {
    if x.is_nan() && x.to_bits() != f64::NAN.to_bits() {
        return format!("f64 0x{:x}", x.to_bits());
    }
    if x.is_nan() { "nan".into() } else { format!("{x:?}") }
}

/// An element of a constant.
fn element(dtype: DType, code: u64) -> String {
    let value = dtype.decode(code);
    if dtype.encode(value, Overflow::Format) != code {
        return format!("0x{code:x}");
    }
    match value {
        Num::Int(n) if dtype.is_bool() => (n != 0).to_string(),
        Num::Int(n) => n.to_string(),
        Num::Float(x) if x.is_nan() => "nan".into(),
        Num::Float(x) if dtype == DType::F32 => format!("{:?}", x as f32),
        Num::Float(x) => format!("{x:?}"),
    }
}
