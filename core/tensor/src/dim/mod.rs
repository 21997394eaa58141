//! Symbolic dims: integer expressions over symbols in a canonical form.
//!
//! A [`Dim`] is a sum of products of integers, symbols and the operations floordiv, ceildiv, mod, min and max.
//! Sums and products are multiplied out and kept in one order, so that equal polynomials compare equal; the other
//! operations are simplified where that is always right. Division rounds down and `mod` has the divisor's sign:
//! `a == b * floordiv(a, b) + mod(a, b)`. A divisor is taken not to be zero when simplifying, and a product with
//! zero is zero: evaluation reports a zero divisor or an unbound symbol only if it is still in the expression.
//!
//! Nothing here panics or wraps. Coefficients that leave `i64` keep the operation unfolded, and evaluation works in
//! 128 bits and reports what does not fit. An expression past a fixed size turns into an opaque value that equals
//! only itself and whose evaluation is an error.

mod algebra;
mod bounds;
mod text;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Add, Mul, Neg, Sub};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use text::DimDisplay;

/// A symbol: the index of an entry in [`Symbols`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sym(pub u32);

/// What is known of a symbol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymbolInfo {
    /// Name in text forms; unique in its table.
    pub name: String,
    /// Least value.
    pub lower: i64,
    /// Greatest value, if there is one.
    pub upper: Option<i64>,
    /// A number of which every value is a multiple; at least 1.
    pub multiple_of: i64,
}

/// A table of symbols: their names and what is known of their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    infos: Vec<SymbolInfo>,
    by_name: HashMap<String, Sym>,
}

impl Symbols {
    /// An empty table.
    pub fn new() -> Symbols {
        Symbols::default()
    }

    /// A new symbol, at least 0. The name is made an identifier (letters, digits, `_` and `.`), and unique by a
    /// number at its end.
    pub fn fresh(&mut self, name: &str) -> Sym {
        let base = text::identifier(name);
        let mut unique = base.clone();
        let mut n = 0u32;
        while self.by_name.contains_key(&unique) {
            n += 1;
            unique = format!("{base}_{n}");
        }
        self.insert(unique)
    }

    /// The symbol of this name (made an identifier as in [`fresh`](Symbols::fresh)), added if there is none.
    pub fn intern(&mut self, name: &str) -> Sym {
        let name = text::identifier(name);
        match self.by_name.get(&name) {
            Some(&sym) => sym,
            None => self.insert(name),
        }
    }

    fn insert(&mut self, name: String) -> Sym {
        let sym = Sym(self.infos.len() as u32);
        self.by_name.insert(name.clone(), sym);
        self.infos.push(SymbolInfo { name, lower: 0, upper: None, multiple_of: 1 });
        sym
    }

    /// The symbol of this name.
    pub fn lookup(&self, name: &str) -> Option<Sym> {
        self.by_name.get(name).copied()
    }

    /// What is known of a symbol; `None` if it is not of this table.
    pub fn get(&self, sym: Sym) -> Option<&SymbolInfo> {
        self.infos.get(sym.0 as usize)
    }

    /// The name of a symbol; `None` if it is not of this table.
    pub fn name(&self, sym: Sym) -> Option<&str> {
        self.get(sym).map(|info| info.name.as_str())
    }

    /// Sets the range of a symbol. No effect if it is not of this table.
    pub fn set_bounds(&mut self, sym: Sym, lower: i64, upper: Option<i64>) {
        if let Some(info) = self.infos.get_mut(sym.0 as usize) {
            (info.lower, info.upper) = (lower, upper);
        }
    }

    /// States that every value of a symbol is a multiple of a number, which must be positive to have an effect.
    pub fn set_multiple_of(&mut self, sym: Sym, multiple_of: i64) {
        if let Some(info) = self.infos.get_mut(sym.0 as usize).filter(|_| multiple_of > 0) {
            info.multiple_of = multiple_of;
        }
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.infos.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.infos.is_empty()
    }

    /// Every symbol in order.
    pub fn iter(&self) -> impl Iterator<Item = (Sym, &SymbolInfo)> {
        self.infos.iter().enumerate().map(|(i, info)| (Sym(i as u32), info))
    }
}

impl Serialize for Symbols {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.infos.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Symbols {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Symbols, D::Error> {
        let infos = Vec::<SymbolInfo>::deserialize(deserializer)?;
        let mut symbols = Symbols::new();
        for info in infos {
            let fits = text::identifier(&info.name) == info.name && info.multiple_of > 0;
            if !fits || symbols.by_name.contains_key(&info.name) {
                return Err(serde::de::Error::custom(format!("D001: bad symbol {:?}", info.name)));
            }
            let sym = symbols.insert(info.name.clone());
            symbols.infos[sym.0 as usize] = info;
        }
        Ok(symbols)
    }
}

/// What can go wrong with dims; each has a stable code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DimError {
    /// A value, or an intermediate one, does not fit.
    #[error("D002: the value of the dim does not fit 64 bits")]
    Overflow,
    /// A symbol without a value.
    #[error("D003: symbol {} has no value", .0.0)]
    Unbound(Sym),
    /// Division or modulo by zero.
    #[error("D004: the dim divides by zero")]
    ZeroDivisor,
    /// The expression grew past its size limit and was dropped.
    #[error("D005: the dim expression is too complex")]
    TooComplex,
    /// Text that is no dim.
    #[error("D006: {message} at offset {offset} of a dim")]
    Parse {
        /// What is wrong.
        message: &'static str,
        /// Byte offset in the text.
        offset: usize,
    },
}

/// An integer expression over symbols, see the [module](self).
///
/// Dims are not ordered: `<` and [`Ord::min`] would compare expressions, not values. See
/// [`provably_le`](Dim::provably_le) and [`Dim::min`].
#[derive(Clone, PartialEq, Eq)]
pub struct Dim(Arc<Node>);

/// Terms in canonical order, none with coefficient 0, no two with the same factors.
#[derive(PartialEq, Eq)]
struct Node {
    /// Of the terms; the first field, so that unequal nodes are mostly told apart by it.
    hash: u64,
    terms: Vec<Term>,
    /// Symbols, operations and terms in the whole tree.
    size: u32,
    /// Nesting of operations.
    depth: u32,
}

/// A coefficient times a product of powers.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Term {
    /// In order of the atoms, powers at least 1.
    factors: Vec<(Atom, u32)>,
    coef: i64,
}

/// What is not a sum or product, or a sum or product that cannot be folded.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Atom {
    Sym(Sym),
    FloorDiv(Dim, Dim),
    Mod(Dim, Dim),
    /// At least two, in order.
    Min(Vec<Dim>),
    /// At least two, in order.
    Max(Vec<Dim>),
    /// A sum whose coefficients would overflow.
    Sum(Dim, Dim),
    /// A product whose coefficients would overflow or that has too many terms.
    Product(Dim, Dim),
    /// Stands for an expression past the size limit, known by its hash.
    TooComplex(u64),
}

/// The outermost operation of a [`Dim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DimView {
    /// An integer.
    Const(i64),
    /// A symbol.
    Sym(Sym),
    /// The sum of at least two dims.
    Add(Vec<Dim>),
    /// The product of at least two dims, an integer last.
    Mul(Vec<Dim>),
    /// Quotient rounded down.
    FloorDiv(Dim, Dim),
    /// Remainder with the divisor's sign.
    Mod(Dim, Dim),
    /// Least of at least two.
    Min(Vec<Dim>),
    /// Greatest of at least two.
    Max(Vec<Dim>),
    /// An expression past the size limit, dropped.
    TooComplex,
}

impl Dim {
    /// A symbol.
    pub fn sym(sym: Sym) -> Dim {
        Dim::atom(Atom::Sym(sym))
    }

    /// The value if it is an integer.
    pub fn as_const(&self) -> Option<i64> {
        match self.0.terms.as_slice() {
            [] => Some(0),
            [Term { factors, coef }] if factors.is_empty() => Some(*coef),
            _ => None,
        }
    }

    /// The symbol if it is just that.
    pub fn as_sym(&self) -> Option<Sym> {
        match self.as_atom() {
            Some(Atom::Sym(sym)) => Some(*sym),
            _ => None,
        }
    }

    fn as_atom(&self) -> Option<&Atom> {
        match self.0.terms.as_slice() {
            [Term { factors, coef: 1 }] => match factors.as_slice() {
                [(atom, 1)] => Some(atom),
                _ => None,
            },
            _ => None,
        }
    }

    /// The outermost operation, to walk the expression. Building it up again with the operators and methods of the
    /// same names gives an equal dim.
    pub fn view(&self) -> DimView {
        if let Some(value) = self.as_const() {
            return DimView::Const(value);
        }
        match (self.as_atom(), self.0.terms.as_slice()) {
            (Some(atom), _) => match atom {
                Atom::Sym(sym) => DimView::Sym(*sym),
                Atom::FloorDiv(a, b) => DimView::FloorDiv(a.clone(), b.clone()),
                Atom::Mod(a, b) => DimView::Mod(a.clone(), b.clone()),
                Atom::Min(items) => DimView::Min(items.clone()),
                Atom::Max(items) => DimView::Max(items.clone()),
                Atom::Sum(a, b) => DimView::Add(vec![a.clone(), b.clone()]),
                Atom::Product(a, b) => DimView::Mul(vec![a.clone(), b.clone()]),
                Atom::TooComplex(_) => DimView::TooComplex,
            },
            (None, [Term { factors, coef }]) => {
                let power = |(atom, n): &(Atom, u32)| vec![Dim::atom(atom.clone()); *n as usize];
                let mut parts: Vec<Dim> = factors.iter().flat_map(power).collect();
                parts.extend(Some(*coef).filter(|&c| c != 1).map(Dim::from));
                DimView::Mul(parts)
            }
            (None, terms) => DimView::Add(terms.iter().map(|t| Dim::build(vec![t.clone()])).collect()),
        }
    }

    /// The value for given symbols.
    ///
    /// # Errors
    /// [`DimError::Overflow`], [`DimError::Unbound`], [`DimError::ZeroDivisor`] or [`DimError::TooComplex`].
    pub fn eval(&self, bind: &impl Fn(Sym) -> Option<i64>) -> Result<i64, DimError> {
        let mut sum = 0i128;
        for term in &self.0.terms {
            let mut product = i128::from(term.coef);
            for (atom, power) in &term.factors {
                let value = i128::from(atom.eval(bind)?);
                for _ in 0..*power {
                    product = product.checked_mul(value).ok_or(DimError::Overflow)?;
                }
            }
            sum = sum.checked_add(product).ok_or(DimError::Overflow)?;
        }
        i64::try_from(sum).map_err(|_| DimError::Overflow)
    }

    /// The dim with symbols replaced; those for which `replace` gives `None` stay.
    pub fn substitute(&self, replace: &impl Fn(Sym) -> Option<Dim>) -> Dim {
        let mut sum = Dim::from(0);
        for term in &self.0.terms {
            let mut product = Dim::from(term.coef);
            for (atom, power) in &term.factors {
                let value = atom.substitute(replace);
                for _ in 0..*power {
                    product = &product * &value;
                }
            }
            sum = &sum + &product;
        }
        sum
    }

    /// How long it is: its terms and operations. Very long expressions are not kept ([`DimView::TooComplex`]).
    pub fn size(&self) -> u32 {
        self.0.size
    }

    /// Every symbol in the expression.
    pub fn symbols(&self) -> BTreeSet<Sym> {
        let mut found = BTreeSet::new();
        self.collect_symbols(&mut found);
        found
    }

    fn collect_symbols(&self, found: &mut BTreeSet<Sym>) {
        for (atom, _) in self.0.terms.iter().flat_map(|t| &t.factors) {
            if let Atom::Sym(sym) = atom {
                found.insert(*sym);
            }
            atom.parts().for_each(|d| d.collect_symbols(found));
        }
    }
}

impl Hash for Dim {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl PartialOrd for Atom {
    fn partial_cmp(&self, other: &Atom) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Atom {
    /// An order of expressions, for the canonical form; not one of values.
    fn cmp(&self, other: &Atom) -> Ordering {
        let kind = |atom: &Atom| match atom {
            Atom::Sym(sym) => (0, sym.0.into()),
            Atom::FloorDiv(..) => (1, 0),
            Atom::Mod(..) => (2, 0),
            Atom::Min(_) => (3, 0),
            Atom::Max(_) => (4, 0),
            Atom::Sum(..) => (5, 0),
            Atom::Product(..) => (6, 0),
            Atom::TooComplex(hash) => (7, *hash),
        };
        kind(self).cmp(&kind(other)).then_with(|| {
            let pairs = self.parts().zip(other.parts()).map(|(a, b)| algebra::order(a, b));
            let unequal = pairs.into_iter().find(|o| o.is_ne());
            unequal.unwrap_or_else(|| self.parts().count().cmp(&other.parts().count()))
        })
    }
}

impl Atom {
    /// The operands.
    fn parts(&self) -> impl Iterator<Item = &Dim> {
        let (pair, list): ([Option<&Dim>; 2], &[Dim]) = match self {
            Atom::Sym(_) | Atom::TooComplex(_) => ([None; 2], &[]),
            Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Sum(a, b) | Atom::Product(a, b) => {
                ([Some(a), Some(b)], &[])
            }
            Atom::Min(items) | Atom::Max(items) => ([None; 2], items),
        };
        pair.into_iter().flatten().chain(list)
    }

    fn eval(&self, bind: &impl Fn(Sym) -> Option<i64>) -> Result<i64, DimError> {
        let pair = |a: &Dim, b: &Dim| Ok((a.eval(bind)?, b.eval(bind)?));
        match self {
            Atom::Sym(sym) => bind(*sym).ok_or(DimError::Unbound(*sym)),
            Atom::FloorDiv(a, b) => match pair(a, b)? {
                (_, 0) => Err(DimError::ZeroDivisor),
                (a, b) => algebra::floor_div(a, b).ok_or(DimError::Overflow),
            },
            Atom::Mod(a, b) => match pair(a, b)? {
                (_, 0) => Err(DimError::ZeroDivisor),
                (a, b) => Ok(algebra::floor_mod(a, b)),
            },
            Atom::Min(items) | Atom::Max(items) => {
                let mut best = None;
                for item in items {
                    let value = item.eval(bind)?;
                    best = Some(match (best, self) {
                        (Some(b), Atom::Min(_)) => value.min(b),
                        (Some(b), _) => value.max(b),
                        (None, _) => value,
                    });
                }
                best.ok_or(DimError::TooComplex)
            }
            Atom::Sum(a, b) => {
                let (a, b) = pair(a, b)?;
                a.checked_add(b).ok_or(DimError::Overflow)
            }
            Atom::Product(a, b) => {
                let (a, b) = pair(a, b)?;
                a.checked_mul(b).ok_or(DimError::Overflow)
            }
            Atom::TooComplex(_) => Err(DimError::TooComplex),
        }
    }

    fn substitute(&self, replace: &impl Fn(Sym) -> Option<Dim>) -> Dim {
        let all = |items: &[Dim]| items.iter().map(|d| d.substitute(replace)).collect::<Vec<_>>();
        match self {
            Atom::Sym(sym) => replace(*sym).unwrap_or_else(|| Dim::sym(*sym)),
            Atom::FloorDiv(a, b) => a.substitute(replace).floordiv(&b.substitute(replace)),
            Atom::Mod(a, b) => a.substitute(replace).modulo(&b.substitute(replace)),
            Atom::Min(items) => Dim::min_of(all(items)),
            Atom::Max(items) => Dim::max_of(all(items)),
            Atom::Sum(a, b) => a.substitute(replace) + b.substitute(replace),
            Atom::Product(a, b) => a.substitute(replace) * b.substitute(replace),
            Atom::TooComplex(_) => Dim::atom(self.clone()),
        }
    }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Dim {
        Dim::build(match value {
            0 => vec![],
            coef => vec![Term { factors: vec![], coef }],
        })
    }
}

impl From<Sym> for Dim {
    fn from(sym: Sym) -> Dim {
        Dim::sym(sym)
    }
}

impl Default for Dim {
    fn default() -> Dim {
        Dim::from(0)
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $function:path;)*) => { $(
        impl $trait<&Dim> for &Dim { type Output = Dim; fn $method(self, other: &Dim) -> Dim { $function(self, other) } }
        impl $trait<Dim> for &Dim { type Output = Dim; fn $method(self, other: Dim) -> Dim { $function(self, &other) } }
        impl $trait<&Dim> for Dim { type Output = Dim; fn $method(self, other: &Dim) -> Dim { $function(&self, other) } }
        impl $trait<Dim> for Dim { type Output = Dim; fn $method(self, other: Dim) -> Dim { $function(&self, &other) } }
        impl $trait<i64> for &Dim { type Output = Dim; fn $method(self, other: i64) -> Dim { $function(self, &Dim::from(other)) } }
        impl $trait<i64> for Dim { type Output = Dim; fn $method(self, other: i64) -> Dim { $function(&self, &Dim::from(other)) } }
        impl $trait<&Dim> for i64 { type Output = Dim; fn $method(self, other: &Dim) -> Dim { $function(&Dim::from(self), other) } }
        impl $trait<Dim> for i64 { type Output = Dim; fn $method(self, other: Dim) -> Dim { $function(&Dim::from(self), &other) } }
    )* };
}

operators! {
    Add add algebra::add;
    Sub sub algebra::sub;
    Mul mul algebra::mul;
}

impl Neg for &Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        self * -1
    }
}

impl Neg for Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        &self * -1
    }
}

impl std::iter::Sum for Dim {
    fn sum<I: Iterator<Item = Dim>>(dims: I) -> Dim {
        dims.fold(Dim::from(0), |a, b| a + b)
    }
}

impl std::iter::Product for Dim {
    fn product<I: Iterator<Item = Dim>>(dims: I) -> Dim {
        dims.fold(Dim::from(1), |a, b| a * b)
    }
}

impl PartialEq<i64> for Dim {
    fn eq(&self, other: &i64) -> bool {
        self.as_const() == Some(*other)
    }
}

impl fmt::Debug for Dim {
    /// As [`display`](Dim::display), symbols as `s0`, `s1`, ….
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.display(&Symbols::default()), f)
    }
}

impl Serialize for Dim {
    /// An integer, or the text form with symbols as `s0`, `s1`, ….
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.display(&Symbols::default()))
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Dim, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text::parse_numbered(&text).map_err(serde::de::Error::custom)
    }
}

/// Terms being summed: coefficients by factors.
type Terms = BTreeMap<Vec<(Atom, u32)>, i64>;
