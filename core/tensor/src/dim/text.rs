//! The text form of dims: `(batch*4 + 1)`, `ceildiv(n, 16)`, `max(a, b)`.

use std::fmt;

use super::{Atom, Dim, DimError, Sym, Symbols, Term};

/// Nesting that the parser accepts.
const MAX_NESTING: usize = 128;

const FUNCTIONS: &[&str] = &["floordiv", "ceildiv", "mod", "min", "max", "too_complex"];

fn is_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

/// A name as an identifier: other characters become `_`, and it does not begin with a digit or clash with a function.
pub(super) fn identifier(name: &str) -> String {
    let mut result: String = name.chars().map(|c| if is_part(c) { c } else { '_' }).collect();
    if !result.starts_with(is_start) {
        result.insert(0, '_');
    }
    if FUNCTIONS.contains(&result.as_str()) {
        result.push('_');
    }
    result
}

/// Prints a dim with the names of its symbols; a symbol that is not in the table prints as `s` and its number.
pub struct DimDisplay<'a> {
    dim: &'a Dim,
    symbols: &'a Symbols,
}

impl Dim {
    /// The text form, which [`Dim::parse`] reads back.
    pub fn display<'a>(&'a self, symbols: &'a Symbols) -> DimDisplay<'a> {
        DimDisplay { dim: self, symbols }
    }

    /// Reads the text form: integers, names, `+ - *`, parentheses, and the functions `floordiv(a, b)`, `ceildiv(a, b)`,
    /// `mod(a, b)`, `min(a, b, …)` and `max(a, b, …)`; `a // b` and `a % b` mean floordiv and mod. Names that are not in
    /// the table are added to it.
    ///
    /// # Errors
    /// [`DimError::Parse`].
    pub fn parse(text: &str, symbols: &mut Symbols) -> Result<Dim, DimError> {
        parse_with(text, &mut |name| Some(symbols.intern(name)))
    }
}

/// Reads the text form with symbols as `s0`, `s1`, ….
pub(super) fn parse_numbered(text: &str) -> Result<Dim, DimError> {
    parse_with(text, &mut |name| {
        let digits = name.strip_prefix('s')?;
        let plain = digits == "0" || !digits.starts_with('0');
        Some(Sym(digits.parse().ok()?)).filter(|_| plain && digits.chars().all(|c| c.is_ascii_digit()))
    })
}

fn parse_with(text: &str, symbol: &mut dyn FnMut(&str) -> Option<Sym>) -> Result<Dim, DimError> {
    let mut parser = Parser { text, at: 0, depth: 0, symbol };
    let dim = parser.sum()?;
    match parser.peek() {
        None => Ok(dim),
        Some(_) => Err(parser.error("unexpected text")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    symbol: &'a mut dyn FnMut(&str) -> Option<Sym>,
}

impl<'a> Parser<'a> {
    fn error(&self, message: &'static str) -> DimError {
        DimError::Parse { message, offset: self.at }
    }

    /// The next character that is not a space.
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at = self.text.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    fn eat(&mut self, token: &str) -> bool {
        self.peek();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str, message: &'static str) -> Result<(), DimError> {
        if self.eat(token) { Ok(()) } else { Err(self.error(message)) }
    }

    fn take(&mut self, part: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn sum(&mut self) -> Result<Dim, DimError> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err(self.error("too deeply nested"));
        }
        let mut total = self.product()?;
        loop {
            if self.eat("+") {
                total = total + self.product()?;
            } else if self.eat("-") {
                total = total - self.product()?;
            } else {
                self.depth -= 1;
                return Ok(total);
            }
        }
    }

    fn product(&mut self) -> Result<Dim, DimError> {
        let mut total = self.factor()?;
        loop {
            if self.eat("*") {
                total = total * self.factor()?;
            } else if self.eat("//") {
                total = total.floordiv(&self.factor()?);
            } else if self.eat("%") {
                total = total.modulo(&self.factor()?);
            } else {
                return Ok(total);
            }
        }
    }

    fn factor(&mut self) -> Result<Dim, DimError> {
        let mut negative = false;
        while self.eat("-") {
            negative = !negative;
        }
        if self.peek().is_some_and(|c| c.is_ascii_digit()) {
            let digits = self.take(|c| c.is_ascii_digit());
            let magnitude: i128 = digits.parse().map_err(|_| self.error("number too large"))?;
            let value = if negative { -magnitude } else { magnitude };
            return i64::try_from(value).map(Dim::from).map_err(|_| self.error("number too large"));
        }
        let value = self.operand()?;
        Ok(if negative { -value } else { value })
    }

    fn operand(&mut self) -> Result<Dim, DimError> {
        if self.eat("(") {
            let inner = self.sum()?;
            self.expect(")", "expected `)`")?;
            return Ok(inner);
        }
        if !self.peek().is_some_and(is_start) {
            return Err(self.error("expected a number, a name or `(`"));
        }
        let name = self.take(is_part);
        if !FUNCTIONS.contains(&name) {
            return match (self.symbol)(name) {
                Some(sym) => Ok(Dim::sym(sym)),
                None => Err(self.error("unknown symbol")),
            };
        }
        self.expect("(", "expected `(`")?;
        if name == "too_complex" {
            self.peek();
            let hash =
                self.take(|c| c.is_ascii_digit()).parse().map_err(|_| self.error("expected a number"))?;
            self.expect(")", "expected `)`")?;
            return Ok(Dim::atom(Atom::TooComplex(hash)));
        }
        let mut arguments = vec![self.sum()?];
        while self.eat(",") {
            arguments.push(self.sum()?);
        }
        self.expect(")", "expected `,` or `)`")?;
        match (name, arguments.as_slice()) {
            ("min", _) => Ok(Dim::min_of(arguments)),
            ("max", _) => Ok(Dim::max_of(arguments)),
            ("floordiv", [a, b]) => Ok(a.floordiv(b)),
            ("ceildiv", [a, b]) => Ok(a.ceildiv(b)),
            ("mod", [a, b]) => Ok(a.modulo(b)),
            _ => Err(self.error("wrong number of arguments")),
        }
    }
}

impl fmt::Display for DimDisplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = Bare(self);
        if self.dim.0.terms.len() > 1 { write!(f, "({bare})") } else { write!(f, "{bare}") }
    }
}

/// A sum without parentheses around it.
struct Bare<'a>(&'a DimDisplay<'a>);

impl fmt::Display for Bare<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DimDisplay { dim, symbols } = self.0;
        if dim.0.terms.is_empty() {
            return f.write_str("0");
        }
        for (i, term) in dim.0.terms.iter().enumerate() {
            write_term(f, term, i == 0, symbols)?;
        }
        Ok(())
    }
}

fn write_term(f: &mut fmt::Formatter<'_>, term: &Term, first: bool, symbols: &Symbols) -> fmt::Result {
    // -floordiv(-x, y) reads better as ceildiv(x, y).
    let ceil = match term.factors.as_slice() {
        [(Atom::FloorDiv(a, b), 1)] if b.as_const().is_none() && term.coef < 0 => {
            let all_negative = a.0.terms.iter().all(|t| t.coef < 0 && t.coef != i64::MIN);
            Some((-a, b)).filter(|_| all_negative && term.coef != i64::MIN)
        }
        _ => None,
    };
    let coef = i128::from(term.coef) * if ceil.is_some() { -1 } else { 1 };
    f.write_str(match (first, coef < 0) {
        (true, true) => "-",
        (true, false) => "",
        (false, true) => " - ",
        (false, false) => " + ",
    })?;
    if term.factors.is_empty() {
        return write!(f, "{}", coef.unsigned_abs());
    }
    let mut separator = "";
    for (atom, power) in &term.factors {
        for _ in 0..*power {
            f.write_str(separator)?;
            separator = "*";
            match &ceil {
                Some((a, b)) => write_call(f, "ceildiv", &[a, b], symbols)?,
                None => write_atom(f, atom, symbols)?,
            }
        }
    }
    match coef.unsigned_abs() {
        1 => Ok(()),
        size => write!(f, "*{size}"),
    }
}

fn write_call(f: &mut fmt::Formatter<'_>, name: &str, arguments: &[&Dim], symbols: &Symbols) -> fmt::Result {
    write!(f, "{name}(")?;
    for (i, argument) in arguments.iter().enumerate() {
        write!(f, "{}{}", if i == 0 { "" } else { ", " }, Bare(&argument.display(symbols)))?;
    }
    f.write_str(")")
}

fn write_atom(f: &mut fmt::Formatter<'_>, atom: &Atom, symbols: &Symbols) -> fmt::Result {
    match atom {
        Atom::Sym(sym) => match symbols.name(*sym) {
            Some(name) => f.write_str(name),
            None => write!(f, "s{}", sym.0),
        },
        Atom::FloorDiv(a, b) => {
            // floordiv(x + c - 1, c) reads better as ceildiv(x, c).
            if let (Some(c @ 2..), [_, .., last]) = (b.as_const(), a.0.terms.as_slice())
                && last.factors.is_empty()
                && last.coef == c - 1
            {
                return write_call(f, "ceildiv", &[&(a - (c - 1)), b], symbols);
            }
            write_call(f, "floordiv", &[a, b], symbols)
        }
        Atom::Mod(a, b) => write_call(f, "mod", &[a, b], symbols),
        Atom::Min(items) => write_call(f, "min", &items.iter().collect::<Vec<_>>(), symbols),
        Atom::Max(items) => write_call(f, "max", &items.iter().collect::<Vec<_>>(), symbols),
        // In parentheses, so that reading it back multiplies and adds in the same order.
        Atom::Sum(a, b) => write!(f, "(({}) + ({}))", Bare(&a.display(symbols)), Bare(&b.display(symbols))),
        Atom::Product(a, b) => write!(f, "(({})*({}))", Bare(&a.display(symbols)), Bare(&b.display(symbols))),
        Atom::TooComplex(hash) => write!(f, "too_complex({hash})"),
    }
}
