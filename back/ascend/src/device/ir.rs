//! A reader of MLIR's generic form, as far as planned device programs go.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::exec::V;
use super::scalar::Fun;

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// Floats by their total bits.
    F32,
    /// Half precision.
    F16,
    /// The upper half of `f32`.
    BF16,
    /// 8-bit float, 4 bits of exponent.
    F8E4M3,
    /// 8-bit float, 5 bits of exponent.
    F8E5M2,
    /// An integer of so many bits.
    Int(u8),
    /// An index: 64 bits.
    Index,
}

impl Elem {
    /// Bits in memory.
    pub fn bits(self) -> i64 {
        match self {
            Elem::F32 => 32,
            Elem::F16 | Elem::BF16 => 16,
            Elem::F8E4M3 | Elem::F8E5M2 => 8,
            Elem::Int(n) => n.into(),
            Elem::Index => 64,
        }
    }
    /// Whether it is a float.
    pub fn is_float(self) -> bool {
        !matches!(self, Elem::Int(_) | Elem::Index)
    }
    fn parse(s: &str) -> Option<Elem> {
        Some(match s {
            "f32" => Elem::F32,
            "f16" => Elem::F16,
            "bf16" => Elem::BF16,
            "f8E4M3FN" => Elem::F8E4M3,
            "f8E5M2" => Elem::F8E5M2,
            "index" => Elem::Index,
            _ => Elem::Int(s.strip_prefix(['i', 'u']).or(s.strip_prefix("ui"))?.parse().ok()?),
        })
    }
}

/// A storage space of the chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Device memory.
    Gm,
    /// The vector core's scratchpad.
    Ub,
    /// The matrix core's operand buffer.
    L1,
    /// The matrix core's accumulators.
    L0c,
    /// A core's scalar stack.
    Stack,
}

/// A type.
#[derive(Clone, Debug, PartialEq)]
pub enum Ty {
    /// A scalar.
    Scalar(Elem),
    /// Memory; dims and strides that are not known are `None`.
    MemRef { elem: Elem, dims: Vec<Option<i64>>, strides: Option<Vec<Option<i64>>>, space: Space },
    /// A vector.
    Vector { elem: Elem, dims: Vec<i64> },
    /// Anything else.
    Other,
}

impl Ty {
    /// The element type.
    pub fn elem(&self) -> Option<Elem> {
        match self {
            Ty::Scalar(e) | Ty::MemRef { elem: e, .. } | Ty::Vector { elem: e, .. } => Some(*e),
            Ty::Other => None,
        }
    }

    /// A type from its text.
    pub fn parse(s: &str) -> Ty {
        let s = s.trim();
        if let Some(e) = Elem::parse(s) {
            return Ty::Scalar(e);
        }
        let inner = |head: &str| s.strip_prefix(head)?.strip_suffix('>');
        if let Some(body) = inner("vector<") {
            let (dims, rest) = shape(body);
            let dims = dims.into_iter().map(|d| d.unwrap_or(1)).collect();
            return Elem::parse(rest).map_or(Ty::Other, |elem| Ty::Vector { elem, dims });
        }
        if let Some(body) = inner("memref<") {
            let parts = split(body, ',');
            let (dims, rest) = shape(parts[0].trim());
            let Some(elem) = Elem::parse(rest) else { return Ty::Other };
            let (mut strides, mut space) = (None, Space::Stack);
            for p in &parts[1..] {
                let p = p.trim();
                if let Some(l) = p.strip_prefix("strided<[") {
                    let list = l.split(']').next().unwrap_or("");
                    let list = list.split(',').map(str::trim).filter(|w| !w.is_empty());
                    strides = Some(list.map(|w| w.parse().ok()).collect());
                } else if let Some(n) = p.strip_prefix("#hivm.address_space<") {
                    space = match n.trim_end_matches('>') {
                        "gm" => Space::Gm,
                        "ub" => Space::Ub,
                        "cbuf" => Space::L1,
                        "cc" => Space::L0c,
                        _ => Space::Stack,
                    };
                }
            }
            return Ty::MemRef { elem, dims, strides, space };
        }
        Ty::Other
    }
}

/// `2x?x` and what follows.
fn shape(s: &str) -> (Vec<Option<i64>>, &str) {
    let (mut dims, mut rest) = (Vec::new(), s);
    while let Some((d, r)) = rest.split_once('x') {
        if d != "?" && (d.is_empty() || !d.bytes().all(|c| c.is_ascii_digit())) {
            break;
        }
        dims.push(d.parse().ok());
        rest = r;
    }
    (dims, rest)
}

/// A value of a function: its number.
pub type Slot = u32;

/// An operation.
#[derive(Clone, Debug)]
pub struct Op {
    /// Its name, such as `arith.addi`.
    pub name: String,
    /// Operands.
    pub operands: Vec<Slot>,
    /// Results.
    pub results: Vec<Slot>,
    /// Regions.
    pub regions: Vec<Region>,
    /// Attributes as text.
    pub attrs: HashMap<String, String>,
    /// The lists of integers among them.
    pub lists: HashMap<String, Vec<i64>>,
    /// What it does with elements, once that is known.
    pub fun: OnceLock<Fun>,
    /// Its value, where it is a constant that was met.
    pub value: OnceLock<V>,
    /// Operand types.
    pub from: Vec<Ty>,
    /// Result types.
    pub to: Vec<Ty>,
    /// The line, from 1.
    pub line: usize,
}

impl Op {
    /// An attribute's text.
    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attrs.get(name).map(String::as_str)
    }
    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attr(name)?.split(':').next()?.trim().parse().ok()
    }
    /// A list of integers: `array<i64: 1, 2>` or `[1, 2]`.
    pub fn ints(&self, name: &str) -> &[i64] {
        self.lists.get(name).map_or(&[], Vec::as_slice)
    }
    /// The word of an enumeration: `#hivm.pipe<PIPE_V>` is `PIPE_V`.
    pub fn word(&self, name: &str) -> Option<&str> {
        self.attr(name)?.split_once('<')?.1.strip_suffix('>')
    }
    /// The operands of a segment; those of all without segments.
    pub fn segment(&self, k: usize) -> &[Slot] {
        let sizes = self.ints("operandSegmentSizes");
        let start: i64 = sizes.iter().take(k).sum();
        let n = sizes.get(k).copied().unwrap_or(0);
        self.operands.get(start as usize..(start + n) as usize).unwrap_or(&[])
    }
}

/// The integers of a list's text.
fn integers(text: &str) -> Vec<i64> {
    let body = match text.strip_prefix("array<") {
        Some(b) => b.split_once(':').map_or("", |x| x.1),
        None => text,
    };
    let words = body.split(|c: char| !c.is_ascii_digit() && c != '-').filter(|w| !w.is_empty());
    words.filter_map(|w| w.parse().ok()).collect()
}

/// A region of one block.
#[derive(Clone, Debug, Default)]
pub struct Region {
    /// Parameters.
    pub params: Vec<Slot>,
    /// Types of the parameters.
    pub types: Vec<Ty>,
    /// Operations.
    pub ops: Vec<Op>,
}

/// A function.
#[derive(Clone, Debug)]
pub struct Func {
    /// Its name.
    pub name: String,
    /// Its attributes as text.
    pub attrs: HashMap<String, String>,
    /// Its body; without operations if it is only declared.
    pub body: Region,
    /// Number of values.
    pub slots: usize,
}

/// A program.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Functions in order.
    pub funcs: Vec<Func>,
    /// Affine maps by name.
    pub maps: HashMap<String, Map>,
}

/// An affine map.
#[derive(Clone, Debug, Default)]
pub struct Map {
    /// Number of dims; symbols follow.
    pub dims: usize,
    /// Results.
    pub results: Vec<Expr>,
}

/// An affine expression over dims and symbols.
#[derive(Clone, Debug)]
pub enum Expr {
    /// A dim.
    Dim(usize),
    /// A symbol.
    Sym(usize),
    /// A constant.
    Const(i64),
    /// Two expressions combined.
    Bin(char, Box<Expr>, Box<Expr>),
}

impl Expr {
    /// Its value.
    pub fn eval(&self, dims: &[i64], syms: &[i64]) -> Option<i64> {
        Some(match self {
            Expr::Dim(i) => *dims.get(*i)?,
            Expr::Sym(i) => *syms.get(*i)?,
            Expr::Const(c) => *c,
            Expr::Bin(op, a, b) => {
                let (a, b) = (a.eval(dims, syms)?, b.eval(dims, syms)?);
                match op {
                    '+' => a.checked_add(b)?,
                    '-' => a.checked_sub(b)?,
                    '*' => a.checked_mul(b)?,
                    'f' => a.checked_div_euclid(b)?,
                    'c' => -(a.checked_neg()?.checked_div_euclid(b)?),
                    _ => a.checked_rem_euclid(b)?,
                }
            }
        })
    }
}

/// Reads a program.
///
/// # Errors
/// The line that is not understood.
pub fn parse(text: &str) -> Result<Program, String> {
    let mut p = Parser { s: text.as_bytes(), text, at: 0, names: HashMap::new(), slots: 0, counted: (0, 1) };
    let mut program = Program::default();
    loop {
        p.space();
        if p.at >= p.s.len() {
            return Err("the program ends before its module".to_string());
        }
        if p.s[p.at] != b'#' {
            break;
        }
        let line = p.line_text();
        let (name, body) = line.split_once('=').ok_or_else(|| p.fail("an alias"))?;
        if let Some(m) = body.trim().strip_prefix("affine_map<") {
            let m = map(m).ok_or_else(|| p.fail("an affine map"))?;
            program.maps.insert(name.trim().to_string(), m);
        }
        p.at += line.len();
    }
    let module = p.op()?;
    if module.name != "builtin.module" {
        return Err(p.fail("a module"));
    }
    let Some(body) = module.regions.into_iter().next() else { return Ok(program) };
    program.funcs = p.functions(body);
    Ok(program)
}

/// `(d0, d1)[s0] -> (d0 + s0)>`.
fn map(s: &str) -> Option<Map> {
    let (head, body) = s.split_once("->")?;
    let dims = head.split(')').next()?.matches('d').count();
    let body = body.trim().strip_prefix('(')?;
    let body = &body[..body.rfind(')')?];
    let results = split(body, ',');
    let results = results.iter().filter(|r| !r.trim().is_empty());
    Some(Map { dims, results: results.map(|r| expr(r)).collect::<Option<_>>()? })
}

fn expr(s: &str) -> Option<Expr> {
    let mut tokens: Vec<String> = Vec::new();
    let mut word = String::new();
    for c in s.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            tokens.push(std::mem::take(&mut word));
        }
        if !c.is_whitespace() {
            tokens.push(c.to_string());
        }
    }
    let mut at = 0;
    let e = sum(&tokens, &mut at)?;
    (at == tokens.len()).then_some(e)
}

fn sum(t: &[String], at: &mut usize) -> Option<Expr> {
    let mut e = term(t, at)?;
    while let Some(op @ ("+" | "-")) = t.get(*at).map(String::as_str) {
        let c = if op == "+" { '+' } else { '-' };
        *at += 1;
        e = Expr::Bin(c, Box::new(e), Box::new(term(t, at)?));
    }
    Some(e)
}

fn term(t: &[String], at: &mut usize) -> Option<Expr> {
    let mut e = factor(t, at)?;
    while let Some(op @ ("*" | "floordiv" | "ceildiv" | "mod")) = t.get(*at).map(String::as_str) {
        let c = op.chars().next()?;
        *at += 1;
        e = Expr::Bin(c, Box::new(e), Box::new(factor(t, at)?));
    }
    Some(e)
}

fn factor(t: &[String], at: &mut usize) -> Option<Expr> {
    let w = t.get(*at)?;
    *at += 1;
    match w.as_str() {
        "(" => {
            let e = sum(t, at)?;
            *at += 1;
            Some(e)
        }
        "-" => Some(Expr::Bin('-', Box::new(Expr::Const(0)), Box::new(factor(t, at)?))),
        w => match w.as_bytes()[0] {
            b'd' => Some(Expr::Dim(w[1..].parse().ok()?)),
            b's' => Some(Expr::Sym(w[1..].parse().ok()?)),
            _ => Some(Expr::Const(w.parse().ok()?)),
        },
    }
}

/// Parts between separators that stand outside of brackets and strings.
pub fn split(s: &str, by: char) -> Vec<&str> {
    let b = s.as_bytes();
    let (mut depth, mut from, mut quoted, mut out) = (0i32, 0, false, Vec::new());
    for i in 0..b.len() {
        match b[i] {
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'<' | b'(' | b'[' | b'{' => depth += 1,
            b'>' if i > 0 && b[i - 1] == b'-' => {}
            b'>' | b')' | b']' | b'}' => depth -= 1,
            c if c == by as u8 && depth == 0 => {
                out.push(&s[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    out.push(&s[from..]);
    out
}

/// `{a = 1, b}` without its braces.
fn attributes(s: &str, out: &mut HashMap<String, String>) {
    for part in split(s, ',') {
        let part = part.trim();
        if part.is_empty() {
            continue;
        }
        let (name, value) = part.split_once('=').map_or((part, ""), |(n, v)| (n.trim(), v.trim()));
        out.insert(name.trim_matches('"').to_string(), value.to_string());
    }
}

struct Parser<'a> {
    s: &'a [u8],
    text: &'a str,
    at: usize,
    names: HashMap<&'a str, Slot>,
    slots: u32,
    /// A place, and the line that it is in.
    counted: (usize, usize),
}

impl<'a> Parser<'a> {
    fn fail(&self, want: &str) -> String {
        let line = self.text[..self.at.min(self.text.len())].matches('\n').count() + 1;
        let rest: String = self.text[self.at.min(self.text.len())..].chars().take(60).collect();
        format!("line {line}: {want} is wanted at '{rest}'")
    }
    fn space(&mut self) {
        while self.s.get(self.at).is_some_and(|c| c.is_ascii_whitespace()) {
            self.at += 1;
        }
    }
    fn line_text(&self) -> &'a str {
        self.text[self.at..].split('\n').next().unwrap_or("")
    }
    fn eat(&mut self, w: &str) -> bool {
        self.space();
        let found = self.text[self.at..].starts_with(w);
        if found {
            self.at += w.len();
        }
        found
    }
    fn want(&mut self, w: &str) -> Result<(), String> {
        if self.eat(w) { Ok(()) } else { Err(self.fail(&format!("'{w}'"))) }
    }
    /// Text up to the bracket that closes the one just read.
    fn balanced(&mut self) -> Result<&'a str, String> {
        let from = self.at;
        let (mut depth, mut quoted) = (1, false);
        while let Some(&c) = self.s.get(self.at) {
            match c {
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'<' | b'(' | b'[' | b'{' => depth += 1,
                b'>' if self.s[self.at - 1] == b'-' => {}
                b'>' | b')' | b']' | b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Ok(&self.text[from..self.at - 1]);
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        Err(self.fail("a closing bracket"))
    }
    fn name(&mut self) -> &'a str {
        self.space();
        let from = self.at;
        while self.s.get(self.at).is_some_and(|c| c.is_ascii_alphanumeric() || b"%_-$.#".contains(c)) {
            self.at += 1;
        }
        &self.text[from..self.at]
    }
    fn slot(&mut self, name: &'a str) -> Slot {
        let slots = &mut self.slots;
        *self.names.entry(name).or_insert_with(|| {
            *slots += 1;
            *slots - 1
        })
    }
    /// The values of one name: `%3`, `%3:2`.
    fn define(&mut self, name: &'a str, count: usize) -> Vec<Slot> {
        let first = self.slots;
        self.slots += count as u32;
        self.names.insert(name, first);
        (first..first + count as u32).collect()
    }
    fn operand(&mut self, word: &'a str) -> Slot {
        match word.split_once('#') {
            Some((name, k)) => self.slot(name) + k.parse::<u32>().unwrap_or(0),
            None => self.slot(word),
        }
    }

    fn op(&mut self) -> Result<Op, String> {
        self.space();
        let mut defined: Vec<(&'a str, usize)> = Vec::new();
        if self.s.get(self.at) == Some(&b'%') {
            loop {
                let name = self.name();
                let mut n = 1;
                if self.eat(":") {
                    n = self.name().parse().map_err(|_| self.fail("a count"))?;
                }
                defined.push((name, n));
                if !self.eat(",") {
                    break;
                }
            }
            self.want("=")?;
        }
        self.want("\"")?;
        let line = self.counted.1 + self.text[self.counted.0..self.at].matches('\n').count();
        self.counted = (self.at, line);
        let from = self.at;
        while self.s.get(self.at).is_some_and(|&c| c != b'"') {
            self.at += 1;
        }
        let name = self.text[from..self.at].to_string();
        self.at += 1;
        let outer = (name == "func.func").then(|| (std::mem::take(&mut self.names), self.slots));
        if outer.is_some() {
            self.slots = 0;
        }
        self.want("(")?;
        let list = self.balanced()?;
        let words: Vec<&'a str> = list.split(',').map(str::trim).filter(|w| !w.is_empty()).collect();
        let operands = words.into_iter().map(|w| self.operand(w)).collect();
        let mut attrs = HashMap::new();
        if self.eat("<{") {
            attributes(self.balanced()?, &mut attrs);
            self.want(">")?;
        }
        let mut regions = Vec::new();
        if self.eat("({") {
            loop {
                regions.push(self.region()?);
                if self.eat(",") {
                    self.want("{")?;
                } else {
                    break;
                }
            }
            self.want(")")?;
        }
        if self.eat("{") {
            attributes(self.balanced()?, &mut attrs);
        }
        self.want(":")?;
        self.want("(")?;
        let from = self.balanced()?;
        self.want("->")?;
        let to = if self.eat("(") {
            self.balanced()?
        } else {
            self.space();
            let rest = self.line_text();
            self.at += rest.len();
            rest
        };
        let types = |s: &str| -> Vec<Ty> {
            split(s, ',').into_iter().filter(|t| !t.trim().is_empty()).map(Ty::parse).collect()
        };
        let results = defined.into_iter().flat_map(|(n, c)| self.define(n, c)).collect();
        let has_list = |x: &(&String, &String)| x.1.starts_with("array<") || x.1.starts_with('[');
        let lists = attrs.iter().filter(has_list).map(|(k, t)| (k.clone(), integers(t))).collect();
        let (from, to) = (types(from), types(to));
        let (fun, value) = (OnceLock::new(), OnceLock::new());
        let mut op = Op { name, operands, results, regions, attrs, lists, fun, value, from, to, line };
        if let Some((names, slots)) = outer {
            op.attrs.insert("slots".to_string(), self.slots.to_string());
            (self.names, self.slots) = (names, slots);
        }
        Ok(op)
    }

    fn region(&mut self) -> Result<Region, String> {
        let mut r = Region::default();
        self.space();
        if self.eat("^") {
            self.name();
            if self.eat("(") {
                for p in split(self.balanced()?, ',') {
                    let (name, ty) = p.split_once(':').ok_or_else(|| self.fail("a parameter"))?;
                    let slots = self.define(name.trim(), 1);
                    r.params.extend(slots);
                    r.types.push(Ty::parse(ty));
                }
            }
            self.want(":")?;
        }
        while !self.eat("}") {
            r.ops.push(self.op()?);
        }
        Ok(r)
    }

    fn functions(&self, body: Region) -> Vec<Func> {
        let of = |mut op: Op| {
            let name = op.attr("sym_name")?.trim_matches('"').to_string();
            let slots = op.attr("slots")?.parse().ok()?;
            let body = op.regions.pop().unwrap_or_default();
            Some(Func { name, attrs: op.attrs, body, slots })
        };
        body.ops.into_iter().filter(|o| o.name == "func.func").filter_map(of).collect()
    }
}
