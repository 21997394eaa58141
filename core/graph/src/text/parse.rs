//! Reading. Nothing in the text makes it panic, nest without limit or allocate more than the text's size allows.

use std::collections::HashMap;
use std::sync::Arc;

use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::{DType, Num, Overflow, Tensor};

use super::base64;
use super::print::MAX_SPLAT;
use crate::error::GraphError;
use crate::graph::{Graph, Loc, Module, Node, Type, ValueId};
use crate::op::{AttrValue, Op};

/// Nesting of lists, types and graphs.
const MAX_DEPTH: usize = 64;
/// Text of more bytes is refused.
const MAX_TEXT: usize = 1 << 32;

/// Reads a module.
///
/// # Errors
/// [`GraphError::Parse`] with the place of what is wrong. What reads is well formed, not yet verified.
pub fn parse(text: &str) -> Result<Module, GraphError> {
    let mut p = Parser { text, at: 0, depth: 0, symbols: Symbols::new(), splats: 0 };
    if text.len() > MAX_TEXT {
        return Err(p.error("the text is too long"));
    }
    p.space();
    while p.keyword("symbol") {
        p.symbol()?;
    }
    p.expect_word("graph")?;
    let graph = p.graph()?;
    if p.at < text.len() {
        return Err(p.error("text after the end of the module"));
    }
    Ok(Module { symbols: p.symbols, graph })
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    symbols: Symbols,
    /// Elements of splat constants so far.
    splats: usize,
}

type Result<T, E = GraphError> = std::result::Result<T, E>;

/// The values of a graph that is being read.
#[derive(Default)]
struct Scope {
    names: HashMap<String, ValueId>,
}

impl<'t> Parser<'t> {
    fn error(&self, detail: impl Into<String>) -> GraphError {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        GraphError::Parse { line, column, detail: detail.into() }
    }
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or("")
    }
    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }
    /// Skips white space and comments.
    fn space(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }
    fn eat(&mut self, mark: &str) -> bool {
        let found = self.rest().starts_with(mark);
        if found {
            self.at += mark.len();
            self.space();
        }
        found
    }
    fn expect(&mut self, mark: &str) -> Result<()> {
        if self.eat(mark) { Ok(()) } else { Err(self.error(format!("expected '{mark}'"))) }
    }
    fn word_ahead(&self) -> &'t str {
        let rest = self.rest();
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(rest.len());
        &rest[..end]
    }
    fn word(&mut self) -> Result<&'t str> {
        let word = self.word_ahead();
        if word.is_empty() {
            return Err(self.error("expected a name"));
        }
        self.at += word.len();
        self.space();
        Ok(word)
    }
    fn keyword(&mut self, word: &str) -> bool {
        let found = self.word_ahead() == word;
        if found {
            self.at += word.len();
            self.space();
        }
        found
    }
    fn expect_word(&mut self, word: &str) -> Result<()> {
        if self.keyword(word) { Ok(()) } else { Err(self.error(format!("expected '{word}'"))) }
    }
    /// The text of a number: sign, digits, letters and points.
    fn number_text(&mut self) -> Result<&'t str> {
        let rest = self.rest();
        let mut end = 0;
        let mut before = ' ';
        for c in rest.chars() {
            let sign = matches!(c, '-' | '+') && (end == 0 || matches!(before, 'e' | 'E'));
            if !(sign || c.is_ascii_alphanumeric() || c == '.' && !rest[end..].starts_with("..")) {
                break;
            }
            end += c.len_utf8();
            before = c;
        }
        if end == 0 {
            return Err(self.error("expected a number"));
        }
        self.at += end;
        self.space();
        Ok(&rest[..end])
    }
    fn integer(&mut self) -> Result<i64> {
        let start = self.at;
        let text = self.number_text()?;
        text.parse().map_err(|_| {
            self.at = start;
            self.error(format!("{:?} is no 64-bit integer", shorten(text)))
        })
    }
    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(format!("nested more than {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        let out = read(self);
        self.depth -= 1;
        out
    }

    fn symbol(&mut self) -> Result<()> {
        let name = self.word()?;
        let before = self.symbols.len();
        let sym = self.symbols.intern(name);
        if self.symbols.len() == before || self.symbols.name(sym) != Some(name) {
            return Err(self.error(format!("'{}' is declared twice or no symbol name", shorten(name))));
        }
        if self.peek().is_some_and(|c| c == '-' || c.is_ascii_digit()) {
            let lower = self.integer()?;
            self.expect("..")?;
            let bounded = self.peek().is_some_and(|c| c == '-' || c.is_ascii_digit());
            let upper = if bounded { Some(self.integer()?) } else { None };
            self.symbols.set_bounds(sym, lower, upper);
        }
        if self.keyword("multiple") {
            let m = self.integer()?;
            if m < 1 {
                return Err(self.error("a multiple of less than 1"));
            }
            self.symbols.set_multiple_of(sym, m);
        }
        Ok(())
    }

    fn string(&mut self) -> Result<String> {
        if !self.rest().starts_with('"') {
            return Err(self.error("expected a string"));
        }
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    self.space();
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some(c @ ('"' | '\\')) => out.push(c),
                    Some('u') => {
                        let digits: String =
                            chars.by_ref().map(|(_, c)| c).take(8).take_while(|&c| c != '}').collect();
                        let code = digits.strip_prefix('{').and_then(|d| u32::from_str_radix(d, 16).ok());
                        match code.and_then(char::from_u32) {
                            Some(c) => out.push(c),
                            None => return Err(self.error("no such character")),
                        }
                    }
                    _ => return Err(self.error("no such escape")),
                },
                c => out.push(c),
            }
        }
        Err(self.error("a string without end"))
    }

    /// Dim text up to a closing mark or comma outside parentheses, not taken.
    fn dim(&mut self, close: char) -> Result<Dim> {
        let rest = self.rest();
        let mut depth = 0usize;
        let mut end = None;
        for (i, c) in rest.char_indices() {
            match c {
                '(' => depth += 1,
                ')' if depth > 0 => depth -= 1,
                _ if depth == 0 && (c == ',' || c == close) => {
                    end = Some(i);
                    break;
                }
                '\n' | '"' | '{' | '}' => break,
                _ => {}
            }
        }
        let Some(end) = end else { return Err(self.error(format!("expected a dim and '{close}'"))) };
        let before = self.symbols.len();
        let dim = Dim::parse(rest[..end].trim(), &mut self.symbols).map_err(|e| self.error(e.to_string()))?;
        if self.symbols.len() != before {
            return Err(self.error("a symbol that is not declared"));
        }
        self.at += end;
        Ok(dim)
    }
    fn dims(&mut self) -> Result<Vec<Dim>> {
        self.expect("[")?;
        let mut out = Vec::new();
        while !self.eat("]") {
            if !out.is_empty() {
                self.expect(",")?;
            }
            out.push(self.dim(']')?);
        }
        Ok(out)
    }
    fn ty(&mut self) -> Result<Type> {
        let start = self.at;
        match self.word()? {
            "strings" => Ok(Type::Strings { dims: self.dims()? }),
            "any" => Ok(Type::Any),
            kind @ ("seq" | "opt") => {
                self.expect("<")?;
                let inner = Box::new(self.nested(Self::ty)?);
                self.expect(">")?;
                Ok(if kind == "seq" { Type::Sequence(inner) } else { Type::Optional(inner) })
            }
            name => match name.parse::<DType>() {
                Ok(dtype) => Ok(Type::Tensor { dtype, dims: self.dims()? }),
                Err(_) => {
                    self.at = start;
                    Err(self.error("expected a type"))
                }
            },
        }
    }

    /// `%NAME` or `%NUMBER`.
    fn value_text(&mut self) -> Result<&'t str> {
        if !self.rest().starts_with('%') {
            return Err(self.error("expected a value"));
        }
        self.at += 1;
        self.word()
    }
    fn use_of(&mut self, scope: &Scope) -> Result<ValueId> {
        let start = self.at;
        let text = self.value_text()?;
        scope.names.get(text).copied().ok_or_else(|| {
            self.at = start;
            self.error(format!("%{} is not defined before", shorten(text)))
        })
    }
    fn uses(&mut self, scope: &Scope) -> Result<Vec<ValueId>> {
        let mut out = Vec::new();
        while self.rest().starts_with('%') {
            out.push(self.use_of(scope)?);
            if !self.eat(",") {
                break;
            }
        }
        Ok(out)
    }
    /// A value at its definition: its text and name.
    fn definition(&mut self) -> Result<(&'t str, Option<Arc<str>>)> {
        let text = self.value_text()?;
        let numbered = text.bytes().all(|b| b.is_ascii_digit());
        let name = if numbered {
            if self.rest().starts_with('"') { Some(self.string()?.into()) } else { None }
        } else {
            Some(Arc::from(text))
        };
        Ok((text, name))
    }
    fn define(&mut self, scope: &mut Scope, text: &str, v: ValueId) -> Result<()> {
        match scope.names.insert(text.to_string(), v) {
            None => Ok(()),
            Some(_) => Err(self.error(format!("%{} is defined twice", shorten(text)))),
        }
    }

    fn graph(&mut self) -> Result<Graph> {
        self.nested(Self::graph_inside)
    }
    fn graph_inside(&mut self) -> Result<Graph> {
        let mut graph = Graph { name: self.string()?, ..Graph::default() };
        let mut scope = Scope::default();
        self.expect("(")?;
        while !self.eat(")") {
            if !graph.inputs.is_empty() {
                self.expect(",")?;
            }
            let (text, name) = self.definition()?;
            self.expect(":")?;
            let ty = self.ty()?;
            let v = graph.add_input(ty, name);
            self.define(&mut scope, text, v)?;
        }
        self.expect("->")?;
        self.expect("(")?;
        // Results come before the definitions they name.
        let mut results = Vec::new();
        while !self.eat(")") {
            if !results.is_empty() {
                self.expect(",")?;
            }
            let at = self.at;
            results.push((at, self.value_text()?));
        }
        if self.keyword("state") {
            loop {
                self.expect("(")?;
                let a = self.integer()?;
                self.expect(",")?;
                let b = self.integer()?;
                self.expect(")")?;
                match (usize::try_from(a), usize::try_from(b)) {
                    (Ok(a), Ok(b)) => graph.state.push((a, b)),
                    _ => return Err(self.error("a negative position")),
                }
                if !self.eat(",") {
                    break;
                }
            }
        }
        self.expect("{")?;
        while !self.eat("}") {
            self.node(&mut graph, &mut scope)?;
        }
        for (at, text) in results {
            match scope.names.get(text) {
                Some(&v) => graph.outputs.push(v),
                None => {
                    self.at = at;
                    return Err(self.error(format!("result %{} is not defined", shorten(text))));
                }
            }
        }
        Ok(graph)
    }

    fn node(&mut self, graph: &mut Graph, scope: &mut Scope) -> Result<()> {
        let start = self.at;
        let mut defined = Vec::new();
        if self.rest().starts_with('%') {
            loop {
                defined.push(self.definition()?);
                if !self.eat(",") {
                    break;
                }
            }
            self.expect("=")?;
        }
        let name = self.word()?;
        let inputs = self.uses(scope)?;
        let mut attributes: Vec<(String, AttrValue)> = Vec::new();
        if self.eat("{") {
            while !self.eat("}") {
                if !attributes.is_empty() {
                    self.expect(",")?;
                }
                let name = self.word()?;
                self.expect("=")?;
                attributes.push((name.to_string(), self.nested(Self::attribute)?));
            }
        }
        let op = Op::from_parts(name, &attributes).map_err(|e| {
            self.at = start;
            self.error(e)
        })?;
        let mut outputs = Vec::new();
        for (i, (text, name)) in defined.into_iter().enumerate() {
            self.expect(if i == 0 { ":" } else { "," })?;
            let ty = self.ty()?;
            let v = graph.add_value(ty, name);
            self.define(scope, text, v)?;
            outputs.push(v);
        }
        let loc = if self.eat("@") { Loc::new(self.string()?) } else { Loc::default() };
        graph.nodes.push(Node { op, inputs, outputs, loc });
        Ok(())
    }

    fn attribute(&mut self) -> Result<AttrValue> {
        let Some(c) = self.peek() else { return Err(self.error("expected an attribute")) };
        match c {
            '"' => return Ok(AttrValue::Str(self.string()?)),
            '[' => {
                self.expect("[")?;
                let mut items = Vec::new();
                while !self.eat("]") {
                    if !items.is_empty() {
                        self.expect(",")?;
                    }
                    items.push(self.nested(Self::attribute)?);
                }
                return Ok(AttrValue::List(items));
            }
            '<' => {
                self.expect("<")?;
                let d = self.dim('>')?;
                self.expect(">")?;
                return Ok(AttrValue::Dim(d));
            }
            '$' => {
                self.at += 1;
                let name = self.word()?;
                let sym = self.symbols.lookup(name);
                return sym
                    .map(AttrValue::Sym)
                    .ok_or_else(|| self.error(format!("no symbol '{}'", shorten(name))));
            }
            '-' | '+' | '0'..='9' => return self.number(),
            _ => {}
        }
        match self.word_ahead() {
            "true" | "false" => Ok(AttrValue::Bool(self.word()? == "true")),
            "inf" | "nan" => self.number(),
            "graph" => {
                self.expect_word("graph")?;
                Ok(AttrValue::Graph(Arc::new(self.graph()?)))
            }
            "tensor" => {
                self.expect_word("tensor")?;
                Ok(AttrValue::Tensor(self.tensor()?))
            }
            "strings" | "seq" | "opt" | "any" => Ok(AttrValue::Type(self.ty()?)),
            word => {
                let Ok(dtype) = word.parse::<DType>() else {
                    return Err(self.error("expected an attribute"));
                };
                if self.rest()[word.len()..].starts_with('[') {
                    return Ok(AttrValue::Type(self.ty()?));
                }
                self.word()?;
                if self.rest().starts_with("0x") {
                    let bits = self.number_text()?;
                    return match u64::from_str_radix(&bits[2..], 16) {
                        Ok(bits) => Ok(AttrValue::Float(f64::from_bits(bits))),
                        Err(_) => Err(self.error("no 64 bits")),
                    };
                }
                Ok(AttrValue::DType(dtype))
            }
        }
    }
    fn number(&mut self) -> Result<AttrValue> {
        let text = self.number_text()?;
        let whole = !text.contains(['.', 'e', 'E', 'n', 'i']);
        let value = if whole {
            text.parse().ok().map(AttrValue::Int)
        } else {
            text.parse().ok().map(AttrValue::Float)
        };
        value.ok_or_else(|| self.error(format!("{:?} is no number", shorten(text))))
    }

    fn tensor(&mut self) -> Result<Tensor> {
        self.expect("<")?;
        let ty = self.ty()?;
        self.expect(">")?;
        let Some((dtype, dims)) = ty.as_tensor() else {
            return Err(self.error("a constant is a tensor of numbers"));
        };
        let shape: Option<Vec<usize>> =
            dims.iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok())).collect();
        let Some(shape) = shape else { return Err(self.error("a constant has constant dims")) };
        let count = if shape.contains(&0) {
            Some(0)
        } else {
            shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
        };
        let Some(count) = count else { return Err(self.error("the constant is too large")) };
        if self.keyword("splat") {
            let code = self.element(dtype)?;
            self.splats = self.splats.saturating_add(count);
            if self.splats > MAX_SPLAT {
                return Err(self.error(format!("splats of more than {MAX_SPLAT} elements in all")));
            }
            let mut t = Tensor::zeros(dtype, &shape).map_err(|e| self.error(e.to_string()))?;
            (0..count).for_each(|i| t.set_code(i, code));
            return Ok(t);
        }
        if self.rest().starts_with('"') {
            let bytes =
                base64::decode(&self.string()?).ok_or_else(|| self.error("the bytes are not base64"))?;
            return Tensor::from_bytes(dtype, &shape, bytes).map_err(|e| self.error(e.to_string()));
        }
        self.expect("[")?;
        let mut codes = Vec::new();
        while !self.eat("]") {
            if !codes.is_empty() {
                self.expect(",")?;
            }
            codes.push(self.element(dtype)?);
        }
        if codes.len() != count {
            return Err(self.error(format!("{} elements where the type has {count}", codes.len())));
        }
        let mut t = Tensor::zeros(dtype, &shape).map_err(|e| self.error(e.to_string()))?;
        codes.iter().enumerate().for_each(|(i, &c)| t.set_code(i, c));
        Ok(t)
    }
    /// The bits of one element, which must be one of the type exactly.
    fn element(&mut self, dtype: DType) -> Result<u64> {
        let start = self.at;
        let text = self.number_text()?;
        let code = if let Some(bits) = text.strip_prefix("0x") {
            let unused = 64 - dtype.bits();
            u64::from_str_radix(bits, 16).ok().filter(|c| c << unused >> unused == *c)
        } else if dtype.is_bool() {
            text.parse::<bool>().ok().map(u64::from)
        } else if dtype.is_float() {
            let value = match dtype {
                DType::F32 => text.parse::<f32>().ok().map(f64::from),
                _ => text.parse::<f64>().ok(),
            };
            value.map(|x| (x, dtype.encode(Num::Float(x), Overflow::Format))).and_then(|(x, code)| {
                let back = dtype.decode(code).to_f64();
                let same = back == x && back.is_sign_negative() == x.is_sign_negative();
                (same || x.is_nan() && back.is_nan()).then_some(code)
            })
        } else {
            text.parse::<i128>().ok().and_then(|n| {
                let code = dtype.encode(Num::Int(n), Overflow::Format);
                (dtype.decode(code) == Num::Int(n)).then_some(code)
            })
        };
        code.ok_or_else(|| {
            self.at = start;
            self.error(format!("{:?} is no element of {dtype}", shorten(text)))
        })
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}
