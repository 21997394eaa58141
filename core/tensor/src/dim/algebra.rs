//! The canonical form: how sums, products and the other operations are built.

use std::cmp::{Ordering, Reverse};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::{Atom, Dim, Node, Term, Terms};

/// Limits on one expression.
const MAX_SIZE: u32 = 1000;
const MAX_DEPTH: u32 = 50;
/// Products of more terms than this stay products.
const MAX_EXPANSION: usize = 64;
/// Operands of min and max up to which they are compared with one another.
const MAX_COMPARED: usize = 64;
/// Highest power of one factor.
const MAX_POWER: u32 = 64;

/// Quotient rounded down; `None` by zero or on overflow.
pub(super) fn floor_div(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
}

/// Remainder with the divisor's sign, for a divisor other than zero.
pub(super) fn floor_mod(a: i64, b: i64) -> i64 {
    let remainder = a.wrapping_rem(b);
    if remainder != 0 && (remainder < 0) != (b < 0) { remainder + b } else { remainder }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Term {
    fn degree(&self) -> u64 {
        self.factors.iter().map(|f| u64::from(f.1)).sum()
    }

    /// A monomial order: by degree, then by the powers of the atoms, the least atom first.
    fn order(&self, other: &Term) -> Ordering {
        self.degree().cmp(&other.degree()).then_with(|| {
            fn keys(t: &Term) -> impl Iterator<Item = (Reverse<&Atom>, u32)> {
                t.factors.iter().map(|(a, n)| (Reverse(a), *n))
            }
            keys(self).cmp(keys(other))
        })
    }
}

/// The product of two monomials; `None` if a power gets too high.
fn times(a: &[(Atom, u32)], b: &[(Atom, u32)]) -> Option<Vec<(Atom, u32)>> {
    let mut product = a.to_vec();
    for (atom, power) in b {
        match product.binary_search_by(|f| f.0.cmp(atom)) {
            Ok(i) => product[i].1 = product[i].1.checked_add(*power).filter(|&p| p <= MAX_POWER)?,
            Err(i) => product.insert(i, (atom.clone(), *power)),
        }
    }
    Some(product)
}

/// The quotient of two monomials; `None` if it is not one.
fn over(a: &[(Atom, u32)], b: &[(Atom, u32)]) -> Option<Vec<(Atom, u32)>> {
    let mut quotient = a.to_vec();
    for (atom, power) in b {
        let i = quotient.binary_search_by(|f| f.0.cmp(atom)).ok()?;
        match quotient[i].1.checked_sub(*power)? {
            0 => _ = quotient.remove(i),
            left => quotient[i].1 = left,
        }
    }
    Some(quotient)
}

/// Adds a term to a sum; `None` on overflow.
fn accumulate(sum: &mut Terms, factors: Vec<(Atom, u32)>, coef: i64) -> Option<()> {
    let entry = sum.entry(factors).or_insert(0);
    *entry = entry.checked_add(coef)?;
    Some(())
}

fn from_sum(sum: Terms) -> Dim {
    let terms = sum.into_iter().filter(|t| t.1 != 0);
    Dim::build(terms.map(|(factors, coef)| Term { factors, coef }).collect())
}

/// An order of expressions, for the canonical form; not one of values.
pub(super) fn order(a: &Dim, b: &Dim) -> Ordering {
    if a == b { Ordering::Equal } else { a.0.terms.cmp(&b.0.terms) }
}

/// a + b.
pub(super) fn add(a: &Dim, b: &Dim) -> Dim {
    let mut sum = Terms::new();
    for term in a.0.terms.iter().chain(&b.0.terms) {
        if accumulate(&mut sum, term.factors.clone(), term.coef).is_none() {
            let (a, b) = if order(a, b).is_le() { (a, b) } else { (b, a) };
            return Dim::atom(Atom::Sum(a.clone(), b.clone()));
        }
    }
    from_sum(sum)
}

/// a - b.
pub(super) fn sub(a: &Dim, b: &Dim) -> Dim {
    add(a, &mul(b, &Dim::from(-1)))
}

/// a × b.
pub(super) fn mul(a: &Dim, b: &Dim) -> Dim {
    multiply_out(a, b).unwrap_or_else(|| {
        let (a, b) = if order(a, b).is_le() { (a, b) } else { (b, a) };
        Dim::atom(Atom::Product(a.clone(), b.clone()))
    })
}

fn multiply_out(a: &Dim, b: &Dim) -> Option<Dim> {
    let (left, right) = (&a.0.terms, &b.0.terms);
    if left.len().saturating_mul(right.len()) > MAX_EXPANSION && left.len() > 1 && right.len() > 1 {
        return None;
    }
    let mut sum = Terms::new();
    for s in left {
        for t in right {
            accumulate(&mut sum, times(&s.factors, &t.factors)?, s.coef.checked_mul(t.coef)?)?;
        }
    }
    Some(from_sum(sum))
}

/// A division by c·M, c positive, split: dividend = quotient × divisor + remainder, the terms of the remainder that M
/// divides with coefficients from 0 to c - 1.
fn split(dividend: &Dim, divisor: &Term) -> Option<(Dim, Dim)> {
    let (mut quotient, mut remainder) = (Terms::new(), Terms::new());
    for term in &dividend.0.terms {
        match over(&term.factors, &divisor.factors) {
            Some(rest) => {
                accumulate(&mut quotient, rest, term.coef.div_euclid(divisor.coef))?;
                accumulate(&mut remainder, term.factors.clone(), term.coef.rem_euclid(divisor.coef))?;
            }
            None => accumulate(&mut remainder, term.factors.clone(), term.coef)?,
        }
    }
    Some((from_sum(quotient), from_sum(remainder)))
}

/// The polynomial quotient if the division leaves nothing, for a divisor of several terms.
fn exact_quotient(dividend: &Dim, divisor: &Dim) -> Option<Dim> {
    let lead = divisor.0.terms.first()?;
    let (mut rest, mut quotient) = (dividend.clone(), Dim::from(0));
    // Each step removes the leading term.
    for _ in 0..MAX_EXPANSION {
        let Some(top) = rest.0.terms.first() else { return Some(quotient) };
        let factors = over(&top.factors, &lead.factors)?;
        if top.coef.checked_rem(lead.coef)? != 0 {
            return None;
        }
        let step = Dim::build(vec![Term { factors, coef: top.coef.checked_div(lead.coef)? }]);
        rest = sub(&rest, &multiply_out(&step, divisor)?);
        quotient = add(&quotient, &step);
    }
    None
}

/// Takes out of terms what all of them and the divisor have in common: (terms, divisor, common factor).
fn reduce_by_gcd(dividend: &Dim, divisor: i64) -> (Dim, i64, i64) {
    let coefs = dividend.0.terms.iter().filter(|t| !t.factors.is_empty()).map(|t| t.coef.unsigned_abs());
    let common = coefs.fold(divisor.unsigned_abs(), gcd) as i64;
    if common <= 1 || dividend.as_const().is_some() {
        return (dividend.clone(), divisor, 1);
    }
    let reduced = |t: &Term| Term { factors: t.factors.clone(), coef: t.coef.div_euclid(common) };
    let terms = dividend.0.terms.iter().map(reduced).filter(|t| t.coef != 0).collect();
    (Dim::build(terms), divisor / common, common)
}

impl Dim {
    /// From terms with distinct factors and coefficients other than 0, in any order.
    pub(super) fn build(mut terms: Vec<Term>) -> Dim {
        terms.sort_by(|a, b| b.order(a));
        let (mut size, mut depth) = (0u32, 0u32);
        for term in &terms {
            size = size.saturating_add(1);
            for (atom, _) in &term.factors {
                size = atom.parts().fold(size.saturating_add(1), |n, d| n.saturating_add(d.0.size));
                depth = atom.parts().fold(depth, |n, d| n.max(d.0.depth + 1));
            }
        }
        let mut hasher = DefaultHasher::new();
        terms.hash(&mut hasher);
        let hash = hasher.finish();
        // What is too complex makes everything it is combined with so, that expressions do not keep growing.
        let absorbs = |t: &Term| {
            let alone = terms.len() == 1 && t.factors.len() == 1;
            let opaque = |(a, _): &(Atom, u32)| matches!(a, Atom::TooComplex(_)) && !alone;
            t.factors.iter().any(|f| opaque(f) || f.0.parts().any(Dim::is_too_complex))
        };
        if size > MAX_SIZE || depth > MAX_DEPTH || terms.iter().any(absorbs) {
            return Dim::atom(Atom::TooComplex(hash));
        }
        Dim(Arc::new(Node { hash, terms, size, depth }))
    }

    /// Whether the expression was dropped; a multiple or power of such a one is still kept.
    fn is_too_complex(&self) -> bool {
        let opaque = |t: &Term| t.factors.iter().any(|f| matches!(f.0, Atom::TooComplex(_)));
        self.0.terms.iter().any(opaque)
    }

    pub(super) fn atom(atom: Atom) -> Dim {
        Dim::build(vec![Term { factors: vec![(atom, 1)], coef: 1 }])
    }

    /// The quotient rounded down.
    pub fn floordiv(&self, divisor: &Dim) -> Dim {
        let kept = || Dim::atom(Atom::FloorDiv(self.clone(), divisor.clone()));
        if let (Some(a), Some(b)) = (self.as_const(), divisor.as_const()) {
            return floor_div(a, b).map_or_else(kept, Dim::from);
        }
        if self == divisor {
            return Dim::from(1);
        }
        match divisor.0.terms.as_slice() {
            [] => kept(),
            [term] if term.coef == i64::MIN => kept(),
            [term] if term.coef < 0 => (-self).floordiv(&-divisor),
            [term] => {
                let Some((quotient, remainder)) = split(self, term) else { return kept() };
                if remainder == 0 {
                    return quotient;
                }
                let rest = match divisor.as_const() {
                    Some(c) => remainder.floordiv_const(c),
                    None => Dim::atom(Atom::FloorDiv(remainder, divisor.clone())),
                };
                quotient + rest
            }
            _ => exact_quotient(self, divisor).unwrap_or_else(kept),
        }
    }

    /// floordiv of what [`split`] left of a division by a positive integer.
    fn floordiv_const(&self, divisor: i64) -> Dim {
        if let Some(value) = self.as_const() {
            return Dim::from(value.div_euclid(divisor));
        }
        let (dividend, divisor, _) = reduce_by_gcd(self, divisor);
        if let [Term { factors, coef: 1 }, rest @ ..] = dividend.0.terms.as_slice()
            && let [(Atom::FloorDiv(inner, by), 1)] = factors.as_slice()
            && let Some(by) = by.as_const().filter(|&b| b > 0)
            && let Some(product) = by.checked_mul(divisor)
            && rest.iter().all(|t| t.factors.is_empty())
        {
            let offset = rest.first().map_or(0, |t| t.coef);
            if let Some(offset) = offset.checked_mul(by) {
                return (inner + offset).floordiv(&Dim::from(product));
            }
        }
        Dim::atom(Atom::FloorDiv(dividend, Dim::from(divisor)))
    }

    /// The quotient rounded up.
    pub fn ceildiv(&self, divisor: &Dim) -> Dim {
        match divisor.as_const() {
            Some(c @ 1..) => (self + (c - 1)).floordiv(divisor),
            _ => -(-self).floordiv(divisor),
        }
    }

    /// The remainder with the divisor's sign.
    pub fn modulo(&self, divisor: &Dim) -> Dim {
        let kept = || Dim::atom(Atom::Mod(self.clone(), divisor.clone()));
        if let (Some(a), Some(b)) = (self.as_const(), divisor.as_const()) {
            return if b == 0 { kept() } else { Dim::from(floor_mod(a, b)) };
        }
        if self == divisor {
            return Dim::from(0);
        }
        match divisor.0.terms.as_slice() {
            [] => kept(),
            [term] if term.coef == i64::MIN => kept(),
            [term] if term.coef < 0 => -(-self).modulo(&-divisor),
            [term] => match split(self, term) {
                Some((_, remainder)) if remainder == 0 => remainder,
                Some((_, remainder)) => match divisor.as_const() {
                    Some(c) => remainder.modulo_const(c),
                    None => Dim::atom(Atom::Mod(remainder, divisor.clone())),
                },
                None => kept(),
            },
            _ => match exact_quotient(self, divisor) {
                Some(_) => Dim::from(0),
                None => kept(),
            },
        }
    }

    /// mod of what [`split`] left of a division by a positive integer.
    fn modulo_const(&self, divisor: i64) -> Dim {
        if let Some(value) = self.as_const() {
            return Dim::from(value.rem_euclid(divisor));
        }
        let constant = self.0.terms.iter().find(|t| t.factors.is_empty()).map_or(0, |t| t.coef);
        let (dividend, divisor, common) = reduce_by_gcd(self, divisor);
        if common > 1 {
            // mod(g·x + k, g·c) = g·mod(x + floor(k / g), c) + k mod g.
            return dividend.modulo_const(divisor) * common + constant.rem_euclid(common);
        }
        if let [Term { factors, coef: 1 }, rest @ ..] = dividend.0.terms.as_slice()
            && let [(Atom::Mod(inner, by), 1)] = factors.as_slice()
            && by.as_const().is_some_and(|b| b > 0 && b % divisor == 0)
            && rest.iter().all(|t| t.factors.is_empty())
        {
            return (inner + constant).modulo(&Dim::from(divisor));
        }
        Dim::atom(Atom::Mod(dividend, Dim::from(divisor)))
    }

    /// The lesser of two.
    pub fn min(&self, other: &Dim) -> Dim {
        Dim::min_of(vec![self.clone(), other.clone()])
    }

    /// The greater of two.
    pub fn max(&self, other: &Dim) -> Dim {
        Dim::max_of(vec![self.clone(), other.clone()])
    }

    /// The least of some dims; 0 if there are none.
    pub fn min_of(items: Vec<Dim>) -> Dim {
        let flat = items.into_iter().flat_map(|d| match d.as_atom() {
            Some(Atom::Min(inner)) => inner.clone(),
            _ => vec![d],
        });
        extreme(flat.collect(), |difference| difference >= 0, Atom::Min)
    }

    /// The greatest of some dims; 0 if there are none.
    pub fn max_of(items: Vec<Dim>) -> Dim {
        let flat = items.into_iter().flat_map(|d| match d.as_atom() {
            Some(Atom::Max(inner)) => inner.clone(),
            _ => vec![d],
        });
        extreme(flat.collect(), |difference| difference <= 0, Atom::Max)
    }
}

/// Min or max of dims: drops each that differs from another by an integer on the losing side.
fn extreme(items: Vec<Dim>, loses: impl Fn(i64) -> bool, make: impl Fn(Vec<Dim>) -> Atom) -> Dim {
    let mut kept: Vec<Dim> = Vec::new();
    for item in items {
        let beaten = |by: &Dim, other: &Dim| sub(other, by).as_const().is_some_and(&loses);
        if kept.len() <= MAX_COMPARED {
            if kept.iter().any(|k| beaten(k, &item)) {
                continue;
            }
            kept.retain(|k| !beaten(&item, k));
        }
        kept.push(item);
    }
    kept.sort_by(order);
    match kept.len() {
        0 => Dim::from(0),
        1 => kept.remove(0),
        _ => Dim::atom(make(kept)),
    }
}
