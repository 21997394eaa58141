//! Size expressions of a plan, each once, in a form that evaluates fast.

use std::collections::HashMap;

use tongtu_tensor::dim::{Dim, DimError, DimView, Sym};

/// An expression of [`Dims`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DimId(u32);

impl DimId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// One step of a stack machine.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Code {
    Const(i64),
    Sym(u32),
    Add,
    Mul,
    FloorDiv,
    Mod,
    Min,
    Max,
    /// Cannot be evaluated.
    Opaque,
}

/// A table of expressions.
#[derive(Debug, Default)]
pub(crate) struct Dims {
    exprs: Vec<Dim>,
    known: HashMap<Dim, DimId>,
    code: Vec<Box<[Code]>>,
    /// Whether the inputs' dims alone decide its value.
    fixed: Vec<bool>,
}

fn compile(dim: &Dim, out: &mut Vec<Code>) {
    let mut fold = |items: Vec<Dim>, op: Code| {
        for (i, d) in items.iter().enumerate() {
            compile(d, out);
            if i > 0 {
                out.push(op);
            }
        }
    };
    match dim.view() {
        DimView::Const(c) => out.push(Code::Const(c)),
        DimView::Sym(s) => out.push(Code::Sym(s.0)),
        DimView::Add(items) => fold(items, Code::Add),
        DimView::Mul(items) => fold(items, Code::Mul),
        DimView::FloorDiv(a, b) => fold(vec![a, b], Code::FloorDiv),
        DimView::Mod(a, b) => fold(vec![a, b], Code::Mod),
        DimView::Min(items) => fold(items, Code::Min),
        DimView::Max(items) => fold(items, Code::Max),
        DimView::TooComplex => out.push(Code::Opaque),
    }
}

/// Depth of stack that is evaluated fast; deeper expressions take the slow road.
const STACK: usize = 16;

/// The value, or `None` where the exact road must decide (overflow, unbound symbol, zero divisor, depth).
fn fast(code: &[Code], syms: &[Option<i64>]) -> Option<i64> {
    let mut stack = [0i64; STACK];
    let mut top = 0;
    for c in code {
        let value = match *c {
            Code::Const(v) => v,
            Code::Sym(s) => (*syms.get(s as usize)?)?,
            Code::Opaque => return None,
            op => {
                top -= 2;
                let (a, b) = (stack[top], stack[top + 1]);
                match op {
                    Code::Add => a.checked_add(b)?,
                    Code::Mul => a.checked_mul(b)?,
                    Code::FloorDiv => {
                        let q = a.checked_div(b)?;
                        if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { q - 1 } else { q }
                    }
                    Code::Mod => {
                        let r = a.checked_rem(b)?;
                        if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
                    }
                    Code::Min => a.min(b),
                    _ => a.max(b),
                }
            }
        };
        *stack.get_mut(top)? = value;
        top += 1;
    }
    Some(stack[0])
}

impl Dims {
    /// The number of an expression; `fixed` tells symbols that the inputs bind.
    pub(crate) fn intern(&mut self, dim: &Dim, fixed: &impl Fn(Sym) -> bool) -> DimId {
        if let Some(&id) = self.known.get(dim) {
            return id;
        }
        let id = DimId(self.exprs.len() as u32);
        let mut code = Vec::new();
        compile(dim, &mut code);
        self.exprs.push(dim.clone());
        self.code.push(code.into());
        self.fixed.push(dim.symbols().into_iter().all(fixed));
        self.known.insert(dim.clone(), id);
        id
    }

    pub(crate) fn expr(&self, id: DimId) -> &Dim {
        &self.exprs[id.index()]
    }

    /// Whether the inputs' dims alone decide the value.
    pub(crate) fn is_fixed(&self, id: DimId) -> bool {
        self.fixed[id.index()]
    }

    /// The value for given symbols.
    pub(crate) fn eval(&self, id: DimId, syms: &[Option<i64>]) -> Result<i64, DimError> {
        match fast(&self.code[id.index()], syms) {
            Some(v) => Ok(v),
            None => self.exprs[id.index()].eval(&|s| syms.get(s.0 as usize).copied().flatten()),
        }
    }

    /// The values of all fixed expressions; `None` for the others and for those without a value.
    pub(crate) fn fixed_values(&self, syms: &[Option<i64>]) -> Vec<Option<i64>> {
        let value = |i: usize| if self.fixed[i] { self.eval(DimId(i as u32), syms).ok() } else { None };
        (0..self.exprs.len()).map(value).collect()
    }
}

/// The value of `sym` that gives `dim` the value `want`, where the dim is affine in it and all its other symbols have
/// values.
pub(crate) fn solve(dim: &Dim, sym: Sym, want: i64, syms: &[Option<i64>]) -> Option<i64> {
    let at = |v: i64| {
        let bind = |s: Sym| if s == sym { Some(v) } else { syms.get(s.0 as usize).copied().flatten() };
        dim.eval(&bind).ok()
    };
    let (zero, one) = (at(0)?, at(1)?);
    let slope = one.checked_sub(zero)?;
    let rest = want.checked_sub(zero)?;
    if slope == 0 || rest % slope != 0 {
        return None;
    }
    let v = rest / slope;
    (at(v) == Some(want)).then_some(v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tongtu_tensor::dim::Symbols;

    fn dims() -> impl Strategy<Value = Dim> {
        let leaf = prop_oneof![(-9i64..9).prop_map(Dim::from), (0u32..3).prop_map(|s| Dim::sym(Sym(s)))];
        leaf.prop_recursive(4, 24, 2, |inner| {
            (inner.clone(), inner, 0..7).prop_map(|(a, b, op)| match op {
                0 => a + b,
                1 => a - b,
                2 => a * b,
                3 => a.floordiv(&b),
                4 => a.modulo(&b),
                5 => a.min(&b),
                _ => a.max(&b),
            })
        })
    }

    proptest! {
        #[test]
        fn fast_form_agrees_with_the_tree(dim in dims(), x in -20i64..20, y in 0i64..9, z in any::<i64>()) {
            let syms = [Some(x), Some(y), Some(z)];
            let mut table = Dims::default();
            let id = table.intern(&dim, &|_| true);
            let tree = dim.eval(&|s| syms[s.0 as usize]);
            prop_assert_eq!(&table.eval(id, &syms), &tree);
            if let Some(v) = fast(&table.code[0], &syms) {
                prop_assert_eq!(Ok(v), tree);
            }
        }
    }

    #[test]
    fn affine_dims_are_solved() {
        let mut symbols = Symbols::new();
        let (n, m) = (symbols.fresh("n"), symbols.fresh("m"));
        let dim = Dim::from(n) * 3 + Dim::from(m) - 2;
        assert_eq!(solve(&dim, n, 20, &[None, Some(7)]), Some(5));
        assert_eq!(solve(&dim, n, 21, &[None, Some(7)]), None);
        let halves = Dim::from(n).floordiv(&2.into());
        assert_eq!(solve(&halves, n, 4, &[None, None]), None);
    }
}
