//! Tests of the error bounds: implementations that use up what the contracts allow must stay inside them.

use std::cell::RefCell;

use tongtu_tensor::scalar::{Approx, eval_binary, eval_unary, ulp};
use tongtu_tensor::{Binary, CastMode, Compare, DType, Num, NumericClass, Overflow, Tensor, Unary};

use crate::eval::Sampler;
use crate::eval::bindings::Bindings;
use crate::eval::elem::{Bits, Elem, Sum};
use crate::eval::element::{Operands, by_element, element};
use crate::eval::prepare::{count, prepare};
use crate::eval::run::bind_inputs;
use crate::eval::whole::whole;
use crate::graph::Module;
use crate::inline::inline_composites;
use crate::testing::{Family, Options, Rng, random_module};

thread_local! {
    static RNG: RefCell<Rng> = const { RefCell::new(Rng(1)) };
}

fn with_rng<T>(f: impl FnOnce(&mut Rng) -> T) -> T {
    RNG.with(|r| f(&mut r.borrow_mut()))
}

/// An element of an implementation that errs as far as operations with a bound in ulps may.
#[derive(Clone, Copy)]
struct Noisy(u64);

impl Noisy {
    /// The value of an operation in `f64`, moved by up to the ulps of its class, rounded.
    fn moved(dtype: DType, class: NumericClass, exact: f64, rounded: u64) -> Noisy {
        let NumericClass::Ulp(n) = class else { return Noisy(rounded) };
        if !dtype.is_float() || !exact.is_finite() {
            return Noisy(rounded);
        }
        let share = with_rng(|r| r.pick(&[-1.0, 1.0, r.clone().unit() * 2.0 - 1.0]));
        let x = exact + share * (f64::from(n) - 0.5) * ulp(dtype, exact);
        Noisy(dtype.encode(Num::Float(x), Overflow::Format))
    }
}

impl Elem for Noisy {
    fn of_code(_: DType, code: u64) -> Self {
        Noisy(code)
    }
    fn of_approx(dtype: DType, a: Approx) -> Self {
        Noisy(dtype.encode(a.value, Overflow::Format))
    }
    fn approx(&self, dtype: DType) -> Approx {
        Approx::exact(dtype.decode(self.0))
    }
    fn unary(&self, op: Unary, dtype: DType) -> Self {
        let x = dtype.decode(self.0);
        let rounded = Bits(self.0).unary(op, dtype).0;
        let exact = if dtype.is_float() { eval_unary(op, DType::F64, x).to_f64() } else { 0.0 };
        Noisy::moved(dtype, op.class(), exact, rounded)
    }
    fn binary(&self, op: Binary, dtype: DType, other: &Self) -> Self {
        let (x, y) = (dtype.decode(self.0), dtype.decode(other.0));
        let rounded = Bits(self.0).binary(op, dtype, &Bits(other.0)).0;
        let exact = if dtype.is_float() { eval_binary(op, DType::F64, x, y).to_f64() } else { 0.0 };
        Noisy::moved(dtype, op.class(), exact, rounded)
    }
    fn compare(&self, op: Compare, dtype: DType, other: &Self) -> Self {
        Noisy(Bits(self.0).compare(op, dtype, &Bits(other.0)).0)
    }
    fn fma(&self, dtype: DType, b: &Self, c: &Self) -> Self {
        Noisy(Bits(self.0).fma(dtype, &Bits(b.0), &Bits(c.0)).0)
    }
    fn cast(&self, from: DType, to: DType, mode: CastMode) -> Self {
        Noisy(Bits(self.0).cast(from, to, mode).0)
    }
    fn bitcast(&self, _: DType, _: DType) -> Self {
        *self
    }
}

struct Read<'v>(Vec<&'v [Noisy]>);

impl Operands<Noisy> for Read<'_> {
    fn get(&mut self, operand: usize, linear: usize) -> Result<Noisy, crate::GraphError> {
        Ok(self.0[operand][linear])
    }
}

/// Results of a module by the noisy implementation.
fn noisy(m: &Module, inputs: &[Tensor]) -> Vec<(DType, Vec<Noisy>)> {
    let graph = inline_composites(&m.graph);
    let mut bindings = Bindings::new();
    let given: Vec<_> = inputs.iter().cloned().map(Into::into).collect();
    bind_inputs(&graph, &given, &mut bindings, &m.symbols).unwrap();
    let mut values: Vec<Vec<Noisy>> = vec![Vec::new(); graph.values.len()];
    for (&v, t) in graph.inputs.iter().zip(inputs) {
        values[v.index()] = t.codes().map(Noisy).collect();
    }
    for node in &graph.nodes {
        let shape = |v| bindings.shape(graph.dims(v), &m.symbols).unwrap();
        let ins = node.inputs.iter().map(|&v| (graph.dtype(v), shape(v))).collect();
        let p = prepare(&graph, node, ins, &bindings, &m.symbols).unwrap();
        let x: Vec<&[Noisy]> = node.inputs.iter().map(|v| values[v.index()].as_slice()).collect();
        let results: Vec<Vec<Noisy>> = if by_element(&p.op) {
            let mut x = Read(x);
            let one = |o: usize, x: &mut Read<'_>| {
                (0..count(&p.outs[o].1)).map(|i| element(&p, x, o, i).unwrap()).collect()
            };
            (0..p.outs.len()).map(|o| one(o, &mut x)).collect()
        } else {
            whole(&p, &x.iter().map(|v| v.to_vec()).collect::<Vec<_>>()).unwrap()
        };
        for (&v, r) in node.outputs.iter().zip(results) {
            values[v.index()] = r;
        }
    }
    graph.outputs.iter().map(|&v| (graph.dtype(v), values[v.index()].clone())).collect()
}

#[test]
fn what_the_contracts_allow_is_inside_the_bounds() {
    let options = Options {
        nodes: 10,
        dtypes: vec![
            DType::F32,
            DType::F32,
            DType::F16,
            DType::BF16,
            DType::F64,
            DType::I32,
            DType::F8E4M3FN,
        ],
        families: Family::ALL
            .iter()
            .copied()
            .filter(|f| !matches!(f, Family::Control | Family::Dynamic))
            .chain([Family::Elementwise, Family::Elementwise, Family::Composite])
            .collect(),
        ..Options::default()
    };
    let (mut bounded, mut moved) = (0, 0);
    for seed in 0..600 {
        let (m, inputs) = random_module(seed, &options);
        let reference = Sampler::new(&m.symbols, &m.graph, inputs.clone()).all().unwrap();
        for _ in 0..2 {
            for ((dtype, got), want) in noisy(&m, &inputs).iter().zip(&reference) {
                for (i, (g, w)) in got.iter().zip(want).enumerate() {
                    let g = dtype.decode(g.0);
                    assert!(w.admits(g), "seed {seed}, element {i}: {g} is outside {w:?}\n{m}");
                    bounded += usize::from(w.err > 0.0 && w.err.is_finite());
                    moved += usize::from(g != w.value && w.err.is_finite());
                }
            }
        }
    }
    // The test would prove nothing if all were exact, or nothing excluded.
    assert!(bounded > 1000 && moved > 500, "{bounded} bounded, {moved} moved");
}

/// Products added by an `f32` (or `f64`) machine in a random order, now and then fused.
#[test]
fn sums_in_any_order_are_inside_the_bound() {
    let mut rng = Rng(7);
    for round in 0..2000 {
        let n = 1 + rng.below(60);
        let wild = round % 3 == 0;
        let value = |rng: &mut Rng| {
            let x = (rng.unit() * 2.0 - 1.0) as f32;
            let e = if wild { rng.below(60) as i32 - 30 } else { 0 };
            let x = x * libm::exp2f(e as f32);
            if round % 5 == 0 { (x * 4.0).round() } else { x }
        };
        let pairs: Vec<(f32, f32)> = (0..n).map(|_| (value(&mut rng), value(&mut rng))).collect();
        let mut products = Sum::new(DType::F32);
        let mut terms = Sum::new(DType::F32);
        let exact = |x: f32| Approx::exact(Num::Float(x.into()));
        for &(a, b) in &pairs {
            products.add_product(exact(a), exact(b));
            terms.add(exact(a));
        }
        let (products, terms) = (products.finish(), terms.finish());
        for _ in 0..4 {
            let mut order = pairs.clone();
            for i in 1..n {
                order.swap(i, rng.below(i + 1));
            }
            let fused = rng.once_in(2);
            let start = if rng.once_in(2) { 0.0 } else { -0.0f32 };
            let p =
                order.iter().fold(start, |s, &(a, b)| if fused { libm::fmaf(a, b, s) } else { s + a * b });
            assert!(products.admits(Num::Float(p.into())), "{p} is outside {products:?} of {pairs:?}");
            // Two halves, then their sum: a tree.
            let half = |o: &[(f32, f32)]| o.iter().fold(start, |s, p| s + p.0);
            let (left, right) = order.split_at(n / 2);
            let t = half(left) + half(right);
            assert!(terms.admits(Num::Float(t.into())), "{t} is outside {terms:?} of {pairs:?}");
        }
    }
}
