//! The text form: printing and reading, with an exact round trip.
//!
//! ```text
//! tile 0.1
//! kernel @scale(%0 "x": read buffer<f32>, %1 "y": write buffer<f32>, %2 "n": i64) {
//!   %3: i64 = program_id {axis = 0}
//!   %4: i64 = full {dtype = i64, shape = [], value = 64}
//!   %5: view<f32, 1> = view %0, %3, [%2], [%4]
//!   %6: f32[64] = load %5[%3] {map = [64@0], inside = [false], pad = 0.0}
//!   %7: f32[64] = for %3, %2, %4, %6 do (%8: i64, %9: f32[64]) {
//!     %10: f32[64] = add.reassoc %9, %6
//!     yield %10
//!   }
//! }
//! ```
//!
//! Values print numbered in the order of their definitions; reading takes any name after `%`. A factor of a map is
//! `size@dim`, `size@dim*step` or `size@_` (no step); several factors of one tile dim stand in brackets. Flags follow
//! the instruction's name. `@ "text"` at the end says where an instruction came from. `//` starts a comment.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::Arc;

use tongtu_tensor::{DType, Num};

use crate::binary::version_needed;
use crate::error::TileError;
use crate::kernel::{Access, Block, Flags, Inst, Kernel, Module, Param, ParamKind, Val};
use crate::limits;
use crate::op::{Factor, Op};
use crate::row::Version;
use crate::types::Ty;
use crate::value::Value;

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tile {}", version_needed(self))?;
        for k in &self.kernels {
            write!(f, "{k}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut p = Printer { kernel: self, names: HashMap::new(), out: String::new() };
        p.kernel();
        f.write_str(&p.out)
    }
}

impl Kernel {
    /// The same kernel with values numbered in the order of their definitions and no others: what reading its text gives.
    pub fn compact(&self) -> Kernel {
        let mut map = HashMap::new();
        let mut types = Vec::new();
        let mut define = |v: Val| {
            let n = Val(types.len() as u32);
            types.push(self.types.get(v.index()).cloned().unwrap_or_else(|| Ty::scalar(DType::Bool)));
            map.insert(v, n);
        };
        self.params.iter().for_each(|p| define(p.value));
        in_order(&self.body, &mut define);
        let mut out = self.clone();
        out.types = types;
        let rename = |v: &mut Val| *v = map.get(v).copied().unwrap_or(Val(u32::MAX));
        out.params.iter_mut().for_each(|p| rename(&mut p.value));
        rename_block(&mut out.body, &rename);
        out
    }
}

fn in_order(block: &Block, define: &mut impl FnMut(Val)) {
    block.params.iter().for_each(|&v| define(v));
    for inst in &block.insts {
        inst.results.iter().for_each(|&v| define(v));
        inst.blocks.iter().for_each(|b| in_order(b, define));
    }
}

fn rename_block(block: &mut Block, rename: &impl Fn(&mut Val)) {
    block.params.iter_mut().chain(&mut block.results).for_each(rename);
    for inst in &mut block.insts {
        inst.operands.iter_mut().chain(&mut inst.results).for_each(rename);
        inst.blocks.iter_mut().for_each(|b| rename_block(b, rename));
    }
}

struct Printer<'a> {
    kernel: &'a Kernel,
    names: HashMap<Val, usize>,
    out: String,
}

impl Printer<'_> {
    fn kernel(&mut self) {
        let k = self.kernel;
        let mut names = HashMap::new();
        let mut define = |v: Val| {
            let n = names.len();
            names.entry(v).or_insert(n);
        };
        k.params.iter().for_each(|p| define(p.value));
        in_order(&k.body, &mut define);
        self.names = names;
        self.out.push_str("kernel @");
        self.out.push_str(&if is_word(&k.name) { k.name.clone() } else { quoted(&k.name) });
        self.out.push('(');
        for (i, p) in k.params.iter().enumerate() {
            let (name, comma) = (self.name(p.value), if i == 0 { "" } else { ", " });
            let kind = match p.kind {
                ParamKind::Buffer(d, access) => format!("{} buffer<{d}>", access_name(access)),
                ParamKind::Scalar(d) => d.to_string(),
            };
            let _ = write!(self.out, "{comma}{name} {}: {kind}", quoted(&p.name));
        }
        self.out.push_str(") {\n");
        self.insts(&k.body, 1);
        self.out.push_str("}\n");
    }

    fn name(&self, v: Val) -> String {
        match self.names.get(&v) {
            Some(n) => format!("%{n}"),
            None => format!("%undefined{}", v.0),
        }
    }

    fn list(&self, vals: &[Val]) -> String {
        vals.iter().map(|&v| self.name(v)).collect::<Vec<_>>().join(", ")
    }

    fn typed(&self, vals: &[Val]) -> String {
        let one = |&v: &Val| match self.kernel.types.get(v.index()) {
            Some(t) => format!("{}: {t}", self.name(v)),
            None => self.name(v),
        };
        vals.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    fn insts(&mut self, block: &Block, depth: usize) {
        for inst in &block.insts {
            self.inst(inst, depth);
        }
        if !block.results.is_empty() {
            let results = self.list(&block.results);
            let _ = writeln!(self.out, "{}yield {results}", "  ".repeat(depth));
        }
    }

    fn inst(&mut self, inst: &Inst, depth: usize) {
        let indent = "  ".repeat(depth);
        self.out.push_str(&indent);
        if !inst.results.is_empty() {
            let results = self.typed(&inst.results);
            let _ = write!(self.out, "{results} = ");
        }
        self.out.push_str(inst.op.name());
        let flags = [
            (inst.flags.contract, ".contract"),
            (inst.flags.reassoc, ".reassoc"),
            (inst.flags.approx, ".approx"),
        ];
        flags.iter().filter(|f| f.0).for_each(|f| self.out.push_str(f.1));
        let operands = self.operands(inst);
        if !operands.is_empty() {
            let _ = write!(self.out, " {operands}");
        }
        let shown: Vec<String> = inst
            .op
            .attributes()
            .iter()
            .filter(|(n, _)| !implied(n))
            .map(|(n, v)| format!("{n} = {v}"))
            .collect();
        if !shown.is_empty() {
            let _ = write!(self.out, " {{{}}}", shown.join(", "));
        }
        for block in &inst.blocks {
            let params = self.typed(&block.params);
            let _ = writeln!(self.out, " do ({params}) {{");
            self.insts(block, depth + 1);
            let _ = write!(self.out, "{indent}}}");
        }
        if let Some(loc) = &inst.loc {
            let _ = write!(self.out, " @ {}", quoted(loc));
        }
        self.out.push('\n');
    }

    fn operands(&self, inst: &Inst) -> String {
        let ops = &inst.operands;
        let split = match &inst.op {
            Op::View { rank } if ops.len() == 2 + 2 * rank => {
                let (dims, strides) = ops[2..].split_at(*rank);
                return format!("{}, [{}], [{}]", self.list(&ops[..2]), self.list(dims), self.list(strides));
            }
            Op::Load { masked, .. } => Some((1, *masked)),
            Op::Prefetch {} => Some((1, false)),
            Op::Store { masked, .. } => Some((2, *masked)),
            Op::Gather { masked, .. }
            | Op::Scatter { masked }
            | Op::AtomicReduce { masked, .. }
            | Op::AtomicRmw { masked, .. } => Some((0, *masked)),
            _ => None,
        };
        let (Some((first, masked)), Some((last, rest))) = (split, ops.split_last()) else {
            return self.list(ops);
        };
        let (body, mask) = match masked {
            true => (rest, format!(", mask {}", self.name(*last))),
            false => (&ops[..], String::new()),
        };
        match first {
            1 if !body.is_empty() => format!("{}[{}]{mask}", self.name(body[0]), self.list(&body[1..])),
            2 if body.len() > 1 => {
                format!("{}[{}], {}{mask}", self.name(body[0]), self.list(&body[2..]), self.name(body[1]))
            }
            _ => format!("{}{mask}", self.list(body)),
        }
    }
}

/// Attributes that the operands' form says already.
fn implied(name: &str) -> bool {
    matches!(name, "masked" | "rank")
}

fn access_name(a: Access) -> &'static str {
    match a {
        Access::Read => "read",
        Access::Write => "write",
        Access::ReadWrite => "readwrite",
    }
}

fn is_word(s: &str) -> bool {
    let mut bytes = s.bytes();
    !matches!(s, "inf" | "nan")
        && bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Reads a module. Errors name the line and column; the result is well-formed but not verified.
pub fn parse_module(text: &str) -> Result<Module, TileError> {
    let mut p = Parser::new(text)?;
    p.header()?;
    let mut module = Module::default();
    while p.peek() != Token::End {
        module.kernels.push(p.kernel()?);
    }
    Ok(module)
}

/// Reads one kernel, without or with the version line.
pub fn parse_kernel(text: &str) -> Result<Kernel, TileError> {
    let mut p = Parser::new(text)?;
    if p.peek() == Token::Word("tile".into()) {
        p.header()?;
    }
    let kernel = p.kernel()?;
    match p.peek() {
        Token::End => Ok(kernel),
        other => p.expected("the end", &other),
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    End,
    /// A letter or `_`, then letters, digits, `_`.
    Word(String),
    /// `%` and a name.
    Value(String),
    Text(String),
    Number(Num),
    Symbol(char),
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// The token at `at` and where it ends.
    next: (Token, usize),
    kernel: Kernel,
    /// Visible values by name; each scope's additions are undone at its end.
    scope: HashMap<String, Val>,
    /// Names in `scope` in the order they came.
    order: Vec<String>,
    defined: std::collections::HashSet<String>,
    depth: usize,
    /// Of the text; the current one where it says none.
    version: Version,
    /// Instructions that may still come.
    left: usize,
}

type Parsed<T> = Result<T, TileError>;
/// Operands in table order, and the attributes that their form implies.
type Operands = (Vec<Val>, Vec<(String, Value)>);

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Parsed<Parser<'a>> {
        let mut p = Parser {
            text,
            at: 0,
            next: (Token::End, 0),
            kernel: Kernel::default(),
            scope: HashMap::new(),
            order: Vec::new(),
            defined: Default::default(),
            depth: 0,
            version: Version::CURRENT,
            left: limits::INSTRUCTIONS,
        };
        if text.len() > limits::BYTES {
            return p.fail(format!("the text is longer than {} bytes", limits::BYTES));
        }
        p.scan()?;
        Ok(p)
    }

    fn fail<T>(&self, detail: String) -> Parsed<T> {
        let before = &self.text[..self.at.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Err(TileError::Parse { line, column, detail })
    }

    fn expected<T>(&self, what: &str, found: &Token) -> Parsed<T> {
        let found = match found {
            Token::End => "the end".to_string(),
            Token::Word(w) => format!("'{w}'"),
            Token::Value(v) => format!("'%{v}'"),
            Token::Text(_) => "a string".to_string(),
            Token::Number(n) => format!("'{n}'"),
            Token::Symbol(c) => format!("'{c}'"),
        };
        self.fail(format!("{what} is wanted, {found} found"))
    }

    fn peek(&self) -> Token {
        self.next.0.clone()
    }

    fn at_symbol(&self, c: char) -> bool {
        self.next.0 == Token::Symbol(c)
    }

    fn take(&mut self) -> Parsed<Token> {
        let (token, end) = std::mem::replace(&mut self.next, (Token::End, 0));
        self.at = end;
        self.scan()?;
        Ok(token)
    }

    /// Reads the token at or after `at`, leaving `at` at its start.
    fn scan(&mut self) -> Parsed<()> {
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.at) {
                Some(b) if b.is_ascii_whitespace() => self.at += 1,
                Some(b'/') if bytes.get(self.at + 1) == Some(&b'/') => {
                    self.at +=
                        bytes[self.at..].iter().position(|&b| b == b'\n').unwrap_or(bytes.len() - self.at);
                }
                _ => break,
            }
        }
        let start = self.at;
        let run = |from: usize, ok: fn(u8) -> bool| {
            from + bytes[from..].iter().position(|&b| !ok(b)).unwrap_or(bytes.len() - from)
        };
        let name: fn(u8) -> bool = |b| b.is_ascii_alphanumeric() || b == b'_';
        self.next = match bytes.get(start) {
            None => (Token::End, start),
            Some(b'%') => {
                let end = run(start + 1, name);
                if end == start + 1 {
                    return self.fail("a name is wanted after '%'".into());
                }
                (Token::Value(self.text[start + 1..end].to_string()), end)
            }
            Some(b'"') => self.string(start)?,
            Some(b) if b.is_ascii_alphabetic() || *b == b'_' => {
                let end = run(start, name);
                let token = match &self.text[start..end] {
                    "inf" => Token::Number(Num::Float(f64::INFINITY)),
                    "nan" => Token::Number(Num::Float(f64::NAN)),
                    word => Token::Word(word.to_string()),
                };
                (token, end)
            }
            Some(b) if b.is_ascii_digit() || *b == b'-' => self.number(start)?,
            Some(_) => match self.text[start..].chars().next() {
                Some(c) if c.is_ascii_punctuation() => (Token::Symbol(c), start + 1),
                other => return self.fail(format!("character {other:?}")),
            },
        };
        Ok(())
    }

    fn number(&self, start: usize) -> Parsed<(Token, usize)> {
        let bytes = self.text.as_bytes();
        let sign = usize::from(bytes[start] == b'-');
        let rest = &self.text[start + sign..];
        if let Some(word) = ["inf", "nan"].iter().find(|w| rest.starts_with(**w)) {
            let x = if *word == "inf" { f64::NEG_INFINITY } else { f64::NAN };
            return Ok((Token::Number(Num::Float(x)), start + sign + 3));
        }
        let mut end = start + sign;
        let mut float = false;
        while let Some(&b) = bytes.get(end) {
            let after_exponent = float && matches!(bytes[end - 1], b'e' | b'E');
            match b {
                b'0'..=b'9' => {}
                b'.' | b'e' | b'E' => float = true,
                b'+' | b'-' if end > start + sign && after_exponent => {}
                _ => break,
            }
            end += 1;
        }
        let text = &self.text[start..end];
        let number = match float {
            true => text.parse().ok().map(Num::Float),
            false => text.parse().ok().map(Num::Int),
        };
        match number {
            Some(n) => Ok((Token::Number(n), end)),
            None => self.fail(format!("'{}' is no number", text.chars().take(40).collect::<String>())),
        }
    }

    fn string(&self, start: usize) -> Parsed<(Token, usize)> {
        let mut out = String::new();
        let mut chars = self.text[start + 1..].char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => return Ok((Token::Text(out), start + 1 + i + 1)),
                '\n' => break,
                '\\' => match chars.next() {
                    Some((_, c @ ('"' | '\\'))) => out.push(c),
                    Some((_, 'n')) => out.push('\n'),
                    Some((_, 'u')) => {
                        let mut code = String::new();
                        let open = chars.next().is_some_and(|(_, c)| c == '{');
                        let closed = open
                            && loop {
                                match chars.next() {
                                    Some((_, '}')) => break true,
                                    Some((_, c)) if c.is_ascii_hexdigit() && code.len() < 6 => code.push(c),
                                    _ => break false,
                                }
                            };
                        let c = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                        match c.filter(|_| closed) {
                            Some(c) => out.push(c),
                            None => return self.fail("bad '\\u{…}' in a string".into()),
                        }
                    }
                    _ => return self.fail("unknown escape in a string".into()),
                },
                c => out.push(c),
            }
        }
        self.fail("the string does not end on its line".into())
    }

    fn symbol(&mut self, c: char) -> Parsed<()> {
        if self.at_symbol(c) {
            self.take().map(|_| ())
        } else {
            self.expected(&format!("'{c}'"), &self.peek())
        }
    }

    fn eat(&mut self, c: char) -> Parsed<bool> {
        let here = self.at_symbol(c);
        if here {
            self.take()?;
        }
        Ok(here)
    }

    fn word(&mut self, what: &str) -> Parsed<String> {
        match self.peek() {
            Token::Word(w) => self.take().map(|_| w),
            other => self.expected(what, &other),
        }
    }

    fn keyword(&mut self, word: &str) -> Parsed<()> {
        match self.peek() {
            Token::Word(w) if w == word => self.take().map(|_| ()),
            other => self.expected(&format!("'{word}'"), &other),
        }
    }

    fn text(&mut self) -> Parsed<String> {
        match self.peek() {
            Token::Text(s) => self.take().map(|_| s),
            other => self.expected("a string", &other),
        }
    }

    fn size(&mut self) -> Parsed<usize> {
        match self.peek() {
            Token::Number(Num::Int(n)) if usize::try_from(n).is_ok() => self.take().map(|_| n as usize),
            other => self.expected("a size", &other),
        }
    }

    fn header(&mut self) -> Parsed<()> {
        self.keyword("tile")?;
        let written = &self.text[self.at..self.next.1];
        match (self.peek(), written.parse::<Version>()) {
            (Token::Number(_), Ok(version)) if version.is_read() => {
                self.version = version;
                self.take().map(|_| ())
            }
            (Token::Number(_), Ok(version)) => Err(TileError::version(version)),
            (other, _) => self.expected("a version, as in 'tile 0.1',", &other),
        }
    }

    fn kernel(&mut self) -> Parsed<Kernel> {
        self.kernel = Kernel::default();
        self.scope.clear();
        self.order.clear();
        self.defined.clear();
        self.keyword("kernel")?;
        self.symbol('@')?;
        self.kernel.name = match self.peek() {
            Token::Word(w) => self.take().map(|_| w)?,
            Token::Text(_) => self.text()?,
            other => return self.expected("a kernel's name", &other),
        };
        self.symbol('(')?;
        if !self.at_symbol(')') {
            self.param()?;
            while self.eat(',')? {
                self.param()?;
            }
        }
        self.symbol(')')?;
        self.symbol('{')?;
        self.kernel.body = self.insts()?;
        self.symbol('}')?;
        Ok(std::mem::take(&mut self.kernel))
    }

    fn param(&mut self) -> Parsed<()> {
        let value = self.new_name()?;
        let name = self.text()?;
        self.symbol(':')?;
        let word = self.word("a type")?;
        let access = match word.as_str() {
            "read" => Some(Access::Read),
            "write" => Some(Access::Write),
            "readwrite" => Some(Access::ReadWrite),
            _ => None,
        };
        let (kind, ty) = match access {
            Some(access) => {
                self.keyword("buffer")?;
                self.symbol('<')?;
                let d = self.dtype()?;
                self.symbol('>')?;
                (ParamKind::Buffer(d, access), Ty::Buffer { dtype: d })
            }
            None => match word.parse::<DType>() {
                Ok(d) => (ParamKind::Scalar(d), Ty::scalar(d)),
                Err(e) => return self.fail(e.to_string()),
            },
        };
        let value_id = self.kernel.new_value(ty);
        self.define(value, value_id);
        self.kernel.params.push(Param { name, kind, value: value_id });
        Ok(())
    }

    fn dtype(&mut self) -> Parsed<DType> {
        match self.peek() {
            Token::Word(w) => match w.parse() {
                Ok(d) => self.take().map(|_| d),
                Err(_) => self.fail(format!("no element type is called '{w}'")),
            },
            other => self.expected("an element type", &other),
        }
    }

    fn ty(&mut self) -> Parsed<Ty> {
        match self.peek() {
            Token::Word(w) if w == "buffer" || w == "view" => {
                self.take()?;
                self.symbol('<')?;
                let dtype = self.dtype()?;
                let ty = if w == "buffer" {
                    Ty::Buffer { dtype }
                } else {
                    self.symbol(',')?;
                    Ty::View { dtype, rank: self.size()? }
                };
                self.symbol('>')?;
                Ok(ty)
            }
            _ => {
                let dtype = self.dtype()?;
                let mut shape = Vec::new();
                if self.eat('[')? {
                    loop {
                        shape.push(self.size()?);
                        if !self.eat(',')? {
                            break;
                        }
                    }
                    self.symbol(']')?;
                }
                Ok(Ty::Tile { dtype, shape })
            }
        }
    }

    /// The name of a value defined here; names are never reused in a kernel.
    fn new_name(&mut self) -> Parsed<String> {
        match self.peek() {
            Token::Value(v) => {
                if !self.defined.insert(v.clone()) {
                    return self.fail(format!("'%{v}' is defined twice"));
                }
                self.take().map(|_| v)
            }
            other => self.expected("a value's name", &other),
        }
    }

    fn typed(&mut self) -> Parsed<(String, Val)> {
        let name = self.new_name()?;
        self.symbol(':')?;
        let ty = self.ty()?;
        Ok((name, self.kernel.new_value(ty)))
    }

    fn define(&mut self, name: String, v: Val) {
        self.order.push(name.clone());
        self.scope.insert(name, v);
    }

    fn value(&mut self) -> Parsed<Val> {
        match self.peek() {
            Token::Value(v) => match self.scope.get(&v).copied() {
                Some(val) => self.take().map(|_| val),
                None => self.fail(format!("'%{v}' is not defined here")),
            },
            other => self.expected("a value", &other),
        }
    }

    fn values(&mut self) -> Parsed<Vec<Val>> {
        let mut out = Vec::new();
        if matches!(self.next.0, Token::Value(_)) {
            out.push(self.value()?);
            while self.eat(',')? {
                out.push(self.value()?);
            }
        }
        Ok(out)
    }

    /// Instructions up to `}`, and what is yielded.
    fn insts(&mut self) -> Parsed<Block> {
        let mut block = Block::default();
        while !self.at_symbol('}') {
            if self.next.0 == Token::Word("yield".into()) {
                self.take()?;
                block.results = self.values()?;
                break;
            }
            block.insts.push(self.inst()?);
        }
        Ok(block)
    }

    fn inst(&mut self) -> Parsed<Inst> {
        self.left = match self.left.checked_sub(1) {
            Some(left) => left,
            None => return self.fail(format!("more than {} instructions", limits::INSTRUCTIONS)),
        };
        let mut results = Vec::new();
        if matches!(self.next.0, Token::Value(_)) {
            results.push(self.typed()?);
            while self.eat(',')? {
                results.push(self.typed()?);
            }
            self.symbol('=')?;
        }
        let name_at = self.at;
        let name = self.word("an instruction")?;
        let mut flags = Flags::default();
        while self.eat('.')? {
            match self.word("a flag")?.as_str() {
                "contract" => flags.contract = true,
                "reassoc" => flags.reassoc = true,
                "approx" => flags.approx = true,
                other => return self.fail(format!("no flag is called '{other}'")),
            }
        }
        let (operands, mut implied) = self.operands(&name)?;
        let mut attributes = Vec::new();
        if self.eat('{')? {
            let mut more = !self.at_symbol('}');
            while more {
                let key = self.word("an attribute")?;
                self.symbol('=')?;
                attributes.push((key, self.attribute()?));
                more = self.eat(',')?;
            }
            self.symbol('}')?;
        }
        attributes.append(&mut implied);
        let op = match Op::from_attributes(&name, &attributes) {
            Ok(op) if op.since() <= self.version => op,
            Ok(op) => {
                self.at = name_at;
                let (since, version) = (op.since(), self.version);
                return self.fail(format!("'{name}' came with version {since}, the text is of {version}"));
            }
            Err(e) => {
                self.at = name_at;
                return self.fail(e);
            }
        };
        let mut blocks = Vec::new();
        while self.next.0 == Token::Word("do".into()) {
            blocks.push(self.region()?);
        }
        let loc = if self.eat('@')? { Some(Arc::from(self.text()?)) } else { None };
        let ids = results.iter().map(|(_, v)| *v).collect();
        results.into_iter().for_each(|(name, v)| self.define(name, v));
        Ok(Inst { op, operands, results: ids, blocks, flags, loc })
    }

    fn region(&mut self) -> Parsed<Block> {
        self.keyword("do")?;
        self.depth += 1;
        if self.depth > limits::DEPTH {
            return self.fail(format!("regions nest deeper than {}", limits::DEPTH));
        }
        let outer = self.order.len();
        self.symbol('(')?;
        let mut params = Vec::new();
        let mut more = matches!(self.next.0, Token::Value(_));
        while more {
            let (name, v) = self.typed()?;
            self.define(name, v);
            params.push(v);
            more = self.eat(',')?;
        }
        self.symbol(')')?;
        self.symbol('{')?;
        let mut block = self.insts()?;
        self.symbol('}')?;
        block.params = params;
        for name in self.order.drain(outer..) {
            self.scope.remove(&name);
        }
        self.depth -= 1;
        Ok(block)
    }

    /// Operands in table order, and the attributes that their form implies.
    fn operands(&mut self, name: &str) -> Parsed<Operands> {
        let (mut plain, mut lists, mut mask) = (Vec::new(), Vec::new(), None);
        let mut first_list = None;
        let mut more = false;
        loop {
            match &self.next.0 {
                Token::Value(_) => plain.push(self.value()?),
                Token::Symbol('[') => {
                    self.take()?;
                    first_list.get_or_insert(plain.len());
                    lists.push(self.values()?);
                    self.symbol(']')?;
                }
                Token::Word(w) if w == "mask" => {
                    self.take()?;
                    if mask.replace(self.value()?).is_some() {
                        return self.fail("there is a mask already".into());
                    }
                }
                other if more => return self.expected("an operand", &other.clone()),
                _ => break,
            }
            more = self.eat(',')?;
            if !more && !self.at_symbol('[') {
                break;
            }
        }
        let mut implied = Vec::new();
        if mask.is_some() {
            implied.push(("masked".to_string(), Value::Word("true".into())));
        }
        if name == "view" {
            let rank = lists.first().map_or(0, Vec::len);
            implied.push(("rank".to_string(), Value::Num(Num::Int(rank as i128))));
        }
        // Brackets stand where they are written, but for a store, whose value comes before its indices.
        let at = if name == "store" { plain.len() } else { first_list.unwrap_or(plain.len()) };
        let tail = plain.split_off(at);
        plain.extend(lists.into_iter().flatten());
        plain.extend(tail);
        plain.extend(mask);
        Ok((plain, implied))
    }

    fn attribute(&mut self) -> Parsed<Value> {
        match self.peek() {
            Token::Word(w) => self.take().map(|_| Value::Word(w)),
            Token::Number(n) => {
                self.take()?;
                if !self.eat('@')? {
                    return Ok(Value::Num(n));
                }
                let Some(size) = Some(n).filter(|n| matches!(n, Num::Int(_))).map(Num::to_i128) else {
                    return self.fail("a factor's size is an integer".into());
                };
                let Ok(size) = usize::try_from(size) else {
                    return self.fail(format!("a factor of size {size}"));
                };
                let dim = match self.peek() {
                    Token::Word(w) if w == "_" => self.take().map(|_| None)?,
                    _ => Some(self.size()?),
                };
                let mut step = 1;
                if self.eat('*')? {
                    step = match self.peek() {
                        Token::Number(Num::Int(n)) if i64::try_from(n).is_ok() => {
                            self.take().map(|_| n as i64)?
                        }
                        other => return self.expected("a step", &other),
                    };
                }
                Ok(Value::Factor(Factor { size, dim, step }))
            }
            Token::Symbol('[') => {
                self.take()?;
                self.depth += 1;
                if self.depth > limits::DEPTH {
                    return self.fail(format!("lists nest deeper than {}", limits::DEPTH));
                }
                let mut items = Vec::new();
                let mut more = !self.at_symbol(']');
                while more {
                    items.push(self.attribute()?);
                    more = self.eat(',')?;
                }
                self.symbol(']')?;
                self.depth -= 1;
                Ok(Value::List(items))
            }
            other => self.expected("an attribute's value", &other),
        }
    }
}
