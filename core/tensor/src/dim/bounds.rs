//! What can be said of a dim's value: intervals and proofs.

use std::cell::Cell;

use super::{Atom, Dim, Symbols, Term, algebra};

/// A range of integers; bounds of ±[`INFINITE`] and beyond mean none.
#[derive(Clone, Copy)]
struct Interval {
    low: i128,
    high: i128,
}

const INFINITE: i128 = 1 << 100;

/// Nesting of case distinctions in a proof, and cases looked at in all.
const MAX_SPLITS: u32 = 6;
const MAX_CASES: u32 = 200;

const ANY: Interval = Interval { low: -INFINITE, high: INFINITE };

fn clamp(x: i128) -> i128 {
    x.clamp(-INFINITE, INFINITE)
}

/// Product, in which infinity times zero is zero.
fn product(a: i128, b: i128) -> i128 {
    clamp(a.saturating_mul(b))
}

impl Interval {
    fn constant(value: i64) -> Interval {
        Interval { low: value.into(), high: value.into() }
    }

    fn add(self, other: Interval) -> Interval {
        let bound = |a: i128, b: i128, infinite: i128| match a == infinite || b == infinite {
            true => infinite,
            false => clamp(a + b),
        };
        Interval { low: bound(self.low, other.low, -INFINITE), high: bound(self.high, other.high, INFINITE) }
    }

    fn mul(self, other: Interval) -> Interval {
        let corners = [
            product(self.low, other.low),
            product(self.low, other.high),
            product(self.high, other.low),
            product(self.high, other.high),
        ];
        Interval::hull(&corners)
    }

    fn hull(corners: &[i128]) -> Interval {
        let low = corners.iter().copied().min().unwrap_or(-INFINITE);
        Interval { low, high: corners.iter().copied().max().unwrap_or(INFINITE) }
    }

    fn power(self, n: u32) -> Interval {
        let whole = (0..n).fold(Interval::constant(1), |p, _| p.mul(self));
        if n.is_multiple_of(2) { Interval { low: whole.low.max(0), ..whole } } else { whole }
    }

    fn floordiv(self, by: Interval) -> Interval {
        if by.low < 0 || by.high < 1 {
            return ANY;
        }
        let (near, far) = (by.low.max(1), by.high);
        let quotient = |a: i128, b: i128| match a.abs() == INFINITE {
            true => a,
            false => a.div_euclid(b),
        };
        let mut corners = vec![quotient(self.low, near), quotient(self.high, near)];
        // An infinite dividend over an infinite divisor may be anything of its sign.
        corners.extend([self.low, self.high].map(|a| match a.abs() == INFINITE && far == INFINITE {
            true => 0,
            false => quotient(a, far),
        }));
        Interval::hull(&corners)
    }

    fn modulo(self, by: Interval) -> Interval {
        if by.low < 0 || by.high < 1 {
            return ANY;
        }
        if self.low >= 0 && self.high < by.low {
            return self;
        }
        let high = if by.high == INFINITE { INFINITE } else { by.high - 1 };
        Interval { low: 0, high: if self.low >= 0 { high.min(self.high) } else { high } }
    }
}

impl Atom {
    fn interval(&self, symbols: &Symbols) -> Interval {
        match self {
            Atom::Sym(sym) => match symbols.get(*sym) {
                Some(info) => {
                    Interval { low: info.lower.into(), high: info.upper.map_or(INFINITE, i128::from) }
                }
                None => ANY,
            },
            Atom::FloorDiv(a, b) => a.interval(symbols).floordiv(b.interval(symbols)),
            Atom::Mod(a, b) => a.interval(symbols).modulo(b.interval(symbols)),
            Atom::Min(items) | Atom::Max(items) => {
                let all: Vec<Interval> = items.iter().map(|d| d.interval(symbols)).collect();
                let (lows, highs) = (all.iter().map(|i| i.low), all.iter().map(|i| i.high));
                let bounds = match self {
                    Atom::Min(_) => (lows.min(), highs.min()),
                    _ => (lows.max(), highs.max()),
                };
                Interval { low: bounds.0.unwrap_or(-INFINITE), high: bounds.1.unwrap_or(INFINITE) }
            }
            Atom::Sum(a, b) => a.interval(symbols).add(b.interval(symbols)),
            Atom::Product(a, b) => a.interval(symbols).mul(b.interval(symbols)),
            Atom::TooComplex(_) => ANY,
        }
    }
}

impl Dim {
    fn interval(&self, symbols: &Symbols) -> Interval {
        self.0.terms.iter().fold(Interval::constant(0), |sum, term| {
            let coef = Interval::constant(term.coef);
            let factors = term.factors.iter();
            sum.add(factors.fold(coef, |p, (atom, n)| p.mul(atom.interval(symbols).power(*n))))
        })
    }

    /// Bounds that every value obeys for which the symbols are within theirs and no divisor is zero; `None` where there
    /// is no bound, or none that was found.
    pub fn bounds(&self, symbols: &Symbols) -> (Option<i64>, Option<i64>) {
        let interval = self.interval(symbols);
        (i64::try_from(interval.low).ok(), i64::try_from(interval.high).ok())
    }

    /// Whether both are always equal. False may also mean that no proof was found.
    pub fn provably_eq(&self, other: &Dim, symbols: &Symbols) -> bool {
        let difference = algebra::sub(self, other).without_mod();
        difference == 0 || difference.non_negative(symbols) && (-difference).non_negative(symbols)
    }

    /// Whether this is never above the other. False may also mean that no proof was found.
    pub fn provably_le(&self, other: &Dim, symbols: &Symbols) -> bool {
        let difference = algebra::sub(other, self);
        difference.non_negative(symbols) || difference.without_mod().non_negative(symbols)
    }

    /// Whether this is always a multiple of the other. False may also mean that no proof was found.
    pub fn provably_divisible_by(&self, divisor: &Dim, symbols: &Symbols) -> bool {
        if self.without_mod().modulo(divisor) == 0 {
            return true;
        }
        let Some(divisor) = divisor.as_const().filter(|&d| d != 0) else { return false };
        // Every term a multiple is enough.
        self.0.terms.iter().all(|term| {
            let known = term.factors.iter().fold(i128::from(term.coef), |known, (atom, power)| {
                (0..*power).fold(known, |n, _| match n % i128::from(divisor) {
                    0 => 0,
                    rest => rest * i128::from(atom.known_factor(symbols)),
                })
            });
            known % i128::from(divisor) == 0
        })
    }

    /// mod(a, b) written as a - b·floordiv(a, b).
    fn without_mod(&self) -> Dim {
        let expand = |term: &Term| {
            let factor = |(atom, n): &(Atom, u32)| {
                let value = match atom {
                    Atom::Mod(a, b) => a - b * a.floordiv(b),
                    other => Dim::atom(other.clone()),
                };
                (0..*n).map(|_| value.clone()).product::<Dim>()
            };
            term.factors.iter().map(factor).product::<Dim>() * term.coef
        };
        self.0.terms.iter().map(expand).sum()
    }

    /// Whether the value is proved not to be negative.
    fn non_negative(&self, symbols: &Symbols) -> bool {
        self.search(symbols, MAX_SPLITS, &Cell::new(MAX_CASES))
    }

    /// [`non_negative`](Dim::non_negative) with so many more splits and cases.
    fn search(&self, symbols: &Symbols, splits: u32, cases: &Cell<u32>) -> bool {
        if self.interval(symbols).low >= 0 {
            return true;
        }
        let (Some(splits), Some(left)) = (splits.checked_sub(1), cases.get().checked_sub(1)) else {
            return false;
        };
        cases.set(left);
        self.0.terms.iter().any(|term| {
            let ([(atom, 1)], 1..) = (term.factors.as_slice(), cases.get()) else { return false };
            let rest = self - Dim::build(vec![term.clone()]);
            let with = |value: &Dim| (&rest + value * term.coef).search(symbols, splits, cases);
            match atom {
                // A min is at most each of its operands, and equal to one of them.
                Atom::Min(items) if term.coef < 0 => items.iter().any(with),
                Atom::Max(items) if term.coef > 0 => items.iter().any(with),
                Atom::Min(items) | Atom::Max(items) => items.iter().all(with),
                // a - c + 1 <= c·floordiv(a, c) <= a.
                Atom::FloorDiv(a, c) => {
                    let Some(c) = c.as_const().filter(|&c| c > 0) else { return false };
                    let scaled = if term.coef < 0 { a.clone() } else { a - (c - 1) };
                    (rest * c + scaled * term.coef).search(symbols, splits, cases)
                }
                _ => false,
            }
        })
    }
}

impl Atom {
    /// A number of which every value is a multiple.
    fn known_factor(&self, symbols: &Symbols) -> i64 {
        match self {
            Atom::Sym(sym) => symbols.get(*sym).map_or(1, |info| info.multiple_of),
            _ => 1,
        }
    }
}
