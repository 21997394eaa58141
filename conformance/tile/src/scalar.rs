//! Elementwise instructions on every element type: values and shapes.

use std::collections::BTreeMap;

use tongtu_tensor::scalar::{
    Approx, Binary, Compare, NumericClass, Unary, approx_binary, approx_cast, approx_compare, approx_fma,
    approx_unary, ulp,
};
use tongtu_tensor::{CastMode, DType, Num, Overflow, Rounding};
use tongtu_tile::interp::BufferData;
use tongtu_tile::{Access, Extension, Factor, KernelBuilder, Op, TileError, TileMap, Val};

use crate::draft::untouched;
use crate::values::{cycled, edges, many};
use crate::{Check, Program, Want};

/// Scalar operations as mpmath, NumPy and Python compute them.
const SCALARS: &str = include_str!("../../../core/tensor/tests/golden/scalars.txt");
/// Conversions as ml_dtypes does them.
const CONVERSIONS: &str = include_str!("../../../core/tensor/tests/golden/dtypes.txt");

/// Elements that a turn of the loop over values takes.
const STEP: usize = 16;

/// Adds the instruction on tiles of its operands.
type Apply<'a> = &'a dyn Fn(&mut KernelBuilder, &[Val]) -> Result<Val, TileError>;

/// An instruction on rows of operands.
struct Rows<'a> {
    name: String,
    from: &'a [DType],
    to: DType,
    /// The operands of each row.
    rows: Vec<Vec<u64>>,
    /// What other programs computed of the rows that come after those.
    golden: Vec<(Vec<u64>, Want)>,
    /// Which tiles of odd shapes are tried too.
    shapes: Shapes,
}

/// Where the elements of a tile of one shape come from: for each operand the rows, and how it lies in memory.
struct Shape {
    what: &'static str,
    shape: Vec<usize>,
    /// For each operand the shape it is loaded in, before it is broadcast.
    loaded: Vec<Vec<usize>>,
    /// The first row.
    first: usize,
}

impl Rows<'_> {
    fn program(self, f: Apply<'_>, eval: &dyn Fn(&[u64]) -> Want) -> Option<Program> {
        let build = || -> Result<Program, TileError> {
            let all: Vec<&Vec<u64>> = self.rows.iter().chain(self.golden.iter().map(|g| &g.0)).collect();
            let n = all.len();
            let mut b = KernelBuilder::new(&self.name);
            let mut buffers = Vec::new();
            let mut inputs = Vec::new();
            for (i, &d) in self.from.iter().enumerate() {
                inputs.push(b.buffer(&format!("x{i}"), d, Access::Read));
                buffers.push(BufferData { dtype: d, codes: all.iter().map(|row| row[i]).collect() });
            }
            let y = b.buffer("values", self.to, Access::Write);
            let nothing = b.buffer("nothing", self.to, Access::Write);
            let count = b.scalar("count", DType::I64);
            let none = b.scalar("none", DType::I64);
            let (zero, one, step) = (b.int(0), b.int(1), b.int(STEP as i64));
            let case = |what: &str| format!("{}/{what}", self.name);
            let mut views = Vec::new();
            for &x in &inputs {
                views.push(b.view(x, zero, &[count], &[one])?);
            }
            let to = b.view(y, zero, &[count], &[one])?;
            let nowhere = b.view(nothing, zero, &[none], &[one])?;
            b.for_loop(zero, count, step, &[], |b, at, _| {
                let mut tiles = Vec::new();
                for (&v, d) in views.iter().zip(self.from) {
                    tiles.push(b.load(v, &[at], TileMap::along(&[STEP], &[0]), &[false], d.decode(0))?);
                }
                let r = f(b, &tiles)?;
                b.store(nowhere, r, &[at], TileMap::along(&[STEP], &[0]), &[false])?;
                b.store(to, r, &[at], TileMap::along(&[STEP], &[0]), &[false])?;
                Ok(vec![])
            })?;
            let base = inputs.len();
            buffers.extend([untouched(self.to, n), untouched(self.to, 3)]);
            let values: Vec<Want> = self.rows.iter().map(|row| eval(row)).collect();
            let mut checks = vec![
                Check { case: case("values"), buffer: base, first: 0, want: values },
                Check {
                    case: case("empty"),
                    buffer: base + 1,
                    first: 0,
                    want: untouched(self.to, 3).codes.into_iter().map(Want::exact).collect(),
                },
            ];
            if !self.golden.is_empty() {
                let want = self.golden.iter().map(|g| g.1).collect();
                checks.push(Check { case: case("golden"), buffer: base, first: self.rows.len(), want });
            }
            let operands = self.from.len();
            let flat = |what, n: usize, first| Shape {
                what,
                shape: vec![n],
                loaded: vec![vec![n]; operands],
                first,
            };
            let mut shapes = Vec::new();
            if self.shapes != Shapes::None {
                shapes.push(flat("seven", 7, 1));
            }
            if self.shapes == Shapes::All {
                let scalar =
                    Shape { what: "scalar", shape: vec![], loaded: vec![vec![]; operands], first: 2 };
                let mut loaded = vec![vec![3, 5]; operands];
                loaded[0] = vec![1, 5];
                let spread = Shape { what: "broadcast", shape: vec![3, 5], loaded, first: 3 };
                shapes.extend([scalar, flat("one", 1, 4), flat("nineteen", 19, 5), spread]);
            }
            for s in shapes {
                let size: usize = s.shape.iter().product();
                if s.first + size > n {
                    continue;
                }
                let first = b.int(s.first as i64);
                let mut tiles = Vec::new();
                for ((&v, d), loaded) in views.iter().zip(self.from).zip(&s.loaded) {
                    let mut stride = loaded.iter().product::<usize>() as i64;
                    let factor = |&size: &usize| {
                        stride /= size as i64;
                        vec![Factor { size, dim: Some(0), step: stride }]
                    };
                    let map = TileMap(loaded.iter().map(factor).collect());
                    let t = b.load(v, &[first], map, &[true], d.decode(0))?;
                    tiles.push(b.broadcast(t, &s.shape)?);
                }
                let r = f(&mut b, &tiles)?;
                let out = b.buffer(s.what, self.to, Access::Write);
                let dims: Vec<Val> = s.shape.iter().map(|n| b.int(*n as i64)).collect();
                let strides: Vec<Val> = match dims[..] {
                    [_, inner] => vec![inner, one],
                    _ => vec![one; dims.len()],
                };
                let to = b.view(out, zero, &dims, &strides)?;
                let map = TileMap::trailing(&s.shape, s.shape.len());
                b.store(to, r, &vec![zero; dims.len()], map, &vec![true; dims.len()])?;
                let row = |i: usize| -> Vec<u64> {
                    let at = |o: usize| s.first + i % s.loaded[o].iter().product::<usize>();
                    (0..operands).map(|o| all[at(o)][o]).collect()
                };
                let want = (0..size).map(|i| eval(&row(i))).collect();
                checks.push(Check { case: case(s.what), buffer: buffers.len(), first: 0, want });
                buffers.push(untouched(self.to, size));
            }
            let scalars = vec![(DType::I64, Num::Int(n as i128)), (DType::I64, Num::Int(0))];
            Ok(Program { kernel: b.finish(), grid: [1, 1, 1], buffers, scalars, checks })
        };
        // An instruction that does not take the type is no case.
        build().ok()
    }
}

fn want(d: DType, a: Approx) -> Want {
    Want { code: d.encode(a.value, Overflow::Format), err: a.err }
}

fn exact(d: DType, code: u64) -> Approx {
    Approx::exact(d.decode(code))
}

/// The lines of one kind and operation.
fn golden(kind: &str) -> BTreeMap<&'static str, Vec<Vec<&'static str>>> {
    let mut out: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in SCALARS.lines() {
        let mut words = line.split(' ');
        if words.next() == Some(kind)
            && let Some(op) = words.next()
        {
            out.entry(op).or_default().push(words.collect());
        }
    }
    out
}

fn float(hex: &str) -> f64 {
    f64::from_bits(u64::from_str_radix(hex, 16).unwrap_or(0))
}

/// Rows for a float type from numbers in `f64`, those that the type holds, with what the class allows about the result. Special results
/// are exact.
fn float_golden(d: DType, class: NumericClass, lines: Option<&Vec<Vec<&str>>>) -> Vec<(Vec<u64>, Want)> {
    let round = |x: f64| d.encode(Num::Float(x), Overflow::Format);
    let holds = |x: f64| {
        x.is_nan() && d.decode(round(x)).is_nan() || d.decode(round(x)).to_f64().to_bits() == x.to_bits()
    };
    let mut out = Vec::new();
    if !matches!(d, DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
        return out;
    }
    for line in lines.into_iter().flatten() {
        let numbers: Vec<f64> = line.iter().map(|h| float(h)).collect();
        let Some((&result, operands)) = numbers.split_last() else { continue };
        if !operands.iter().all(|x| holds(*x)) {
            continue;
        }
        let code = round(result);
        let err = match class {
            // The result here is rounded to f64 and then to the type: half a unit more.
            NumericClass::Ulp(n) if result.is_finite() && result != 0.0 => {
                (f64::from(n) + 0.5) * ulp(d, result)
            }
            _ if d == DType::F64 || result == 0.0 || !result.is_finite() => 0.0,
            // Rounding twice may be off by one unit of exactly the tie.
            _ => ulp(d, result),
        };
        out.push((operands.iter().map(|x| round(*x)).collect(), Want { code, err }));
    }
    out
}

/// Which tiles of odd shapes are tried.
#[derive(Clone, Copy, PartialEq)]
enum Shapes {
    None,
    /// One of seven elements.
    One,
    All,
}

/// How shapes are laid out depends on the type's width and kind, not on the operation: all of them for the types of the base set (of
/// long functions for one), one for the others.
fn shapes(d: DType, class: NumericClass) -> Shapes {
    let long = matches!(class, NumericClass::Ulp(_));
    match Extension::of(d) {
        Extension::Base if !long || d == DType::F32 => Shapes::All,
        Extension::Base | Extension::F64 => Shapes::One,
        _ if long => Shapes::None,
        _ => Shapes::One,
    }
}

/// Every pair of edges.
fn pairs(d: DType) -> Vec<Vec<u64>> {
    let e = edges(d);
    e.iter().flat_map(|&a| e.iter().map(move |&b| vec![a, b])).collect()
}

fn int_golden(op: &str, d: DType, lines: &BTreeMap<&str, Vec<Vec<&str>>>) -> Vec<(Vec<u64>, Want)> {
    let code = |s: &str| s.parse().map_or(0, |n| d.encode(Num::Int(n), Overflow::Format));
    let rows = lines.get(op).into_iter().flatten().filter(|l| l.len() == 4 && l[0] == d.name());
    rows.map(|l| (vec![code(l[1]), code(l[2])], Want::exact(code(l[3])))).collect()
}

/// The programs of all elementwise instructions.
pub fn programs() -> Vec<Program> {
    let mut out = Vec::new();
    let (unaries, binaries, ints) = (golden("unary"), golden("binary"), golden("int"));
    for &d in DType::ALL {
        for &op in Unary::ALL {
            let rows = Rows {
                name: format!("{op}/{d}"),
                from: &[d],
                to: op.result(d),
                rows: many(d, 1).into_iter().map(|c| vec![c]).collect(),
                golden: float_golden(d, op.class(), unaries.get(op.name())),
                shapes: shapes(d, op.class()),
            };
            out.extend(rows.program(&|b, x| b.unary(op, x[0]), &|x| {
                want(op.result(d), approx_unary(op, d, exact(d, x[0])))
            }));
        }
        for &op in Binary::ALL {
            let golden = match d.is_float() {
                true => float_golden(d, op.class(), binaries.get(op.name())),
                false => int_golden(op.name(), d, &ints),
            };
            let rows = Rows {
                name: format!("{op}/{d}"),
                from: &[d, d],
                to: d,
                rows: pairs(d),
                golden,
                shapes: shapes(d, op.class()),
            };
            let f = |b: &mut KernelBuilder, x: &[Val]| Ok(b.add_inst(Op::Binary(op), x)?[0]);
            out.extend(rows.program(&f, &|x| want(d, approx_binary(op, d, exact(d, x[0]), exact(d, x[1])))));
        }
        for &op in Compare::ALL {
            let (name, from) = (format!("{op}/{d}"), [d, d]);
            let rows = Rows {
                name,
                from: &from,
                to: DType::Bool,
                rows: pairs(d),
                golden: vec![],
                shapes: shapes(d, op.class()),
            };
            let eval = |x: &[u64]| want(DType::Bool, approx_compare(op, d, exact(d, x[0]), exact(d, x[1])));
            out.extend(rows.program(&|b, x| b.compare(op, x[0], x[1]), &eval));
        }
        let choices: Vec<Vec<u64>> =
            pairs(d).into_iter().enumerate().map(|(i, p)| vec![i as u64 & 1, p[0], p[1]]).collect();
        let from = [DType::Bool, d, d];
        let rows = Rows {
            name: format!("select/{d}"),
            from: &from,
            to: d,
            rows: choices,
            golden: vec![],
            shapes: shapes(d, NumericClass::Exact),
        };
        let choose = |x: &[u64]| Want::exact(if x[0] != 0 { x[1] } else { x[2] });
        out.extend(rows.program(&|b, x| b.select(x[0], x[1], x[2]), &choose));
        let triples: Vec<Vec<u64>> =
            pairs(d).into_iter().zip(cycled(d, 4096, 7)).map(|(p, c)| vec![p[0], p[1], c]).collect();
        let kind = if d == DType::F32 { "f32fma" } else { "fma" };
        let lines: Vec<Vec<&str>> = SCALARS
            .lines()
            .filter_map(|l| l.strip_prefix(kind))
            .map(|l| l.trim().split(' ').collect())
            .collect();
        let golden = match d {
            DType::F32 | DType::F64 => float_golden(d, NumericClass::CorrectlyRounded, Some(&lines)),
            _ => vec![],
        };
        // The f32 lines hold results rounded once to f32.
        let golden = golden.into_iter().map(|(x, w)| (x, Want::exact(w.code))).collect();
        let from = [d, d, d];
        let rows = Rows {
            name: format!("fma/{d}"),
            from: &from,
            to: d,
            rows: triples,
            golden,
            shapes: shapes(d, NumericClass::Exact),
        };
        let eval = |x: &[u64]| want(d, approx_fma(d, exact(d, x[0]), exact(d, x[1]), exact(d, x[2])));
        out.extend(rows.program(&|b, x| b.fma(x[0], x[1], x[2]), &eval));
        out.extend(DType::ALL.iter().flat_map(|&to| conversions(d, to)));
    }
    out
}

/// Conversions as other programs did them, in the default mode: from f64 bits to codes, from codes to f32 bits.
fn converted(from: DType, to: DType) -> Vec<(Vec<u64>, Want)> {
    let hex = |s: &str| u64::from_str_radix(s, 16).unwrap_or(0);
    let mut out = Vec::new();
    for line in CONVERSIONS.lines() {
        let mut words = line.split(' ');
        let (kind, name) = (words.next(), words.next());
        if kind == Some("encode") && from == DType::F64 && name == Some(to.name()) {
            let pair = |w: &str| w.split_once(':').map(|(x, c)| (vec![hex(x)], Want::exact(hex(c))));
            out.extend(words.filter_map(pair));
        } else if kind == Some("decode") && to == DType::F32 && name == Some(from.name()) {
            out.extend(words.enumerate().map(|(i, w)| (vec![i as u64], Want::exact(hex(w)))));
        }
    }
    out
}

fn conversions(from: DType, to: DType) -> Vec<Program> {
    let class = NumericClass::Exact;
    let mut out = Vec::new();
    for mode in CastMode::all() {
        let CastMode { overflow, rounding } = mode;
        // Directed rounding concerns floats from what they may not hold.
        if rounding != Rounding::NearestEven && (!to.is_float() || from.bits() <= 8) {
            continue;
        }
        let plain = mode == CastMode::default();
        let way = if plain { String::new() } else { format!("-{}-{}", overflow.name(), rounding.name()) };
        let rows = Rows {
            name: format!("cast{way}/{from}-{to}"),
            from: &[from],
            to,
            rows: many(from, 2).into_iter().map(|c| vec![c]).collect(),
            golden: if plain { converted(from, to) } else { vec![] },
            shapes: if plain && shapes(to, class) == Shapes::All {
                shapes(from, class)
            } else {
                Shapes::None
            },
        };
        let f = |b: &mut KernelBuilder, x: &[Val]| Ok(b.add_inst(Op::Cast { to, mode }, x)?[0]);
        // Straight from the value, which may have more bits than f64 holds.
        let eval = |x: &[u64]| match from == to && plain {
            true => want(to, approx_cast(exact(from, x[0]), from, to, mode)),
            false => Want::exact(to.encode_rounded(from.decode(x[0]), mode)),
        };
        out.extend(rows.program(&f, &eval));
    }
    if from.bits() == to.bits() {
        let rows = Rows {
            name: format!("bitcast/{from}-{to}"),
            from: &[from],
            to,
            rows: many(from, 3).into_iter().map(|c| vec![c]).collect(),
            golden: vec![],
            shapes: Shapes::None,
        };
        let f = |b: &mut KernelBuilder, x: &[Val]| Ok(b.add_inst(Op::Bitcast { to }, x)?[0]);
        out.extend(
            rows.program(&f, &|x| Want::exact(if to.is_bool() { u64::from(x[0] & 0xff != 0) } else { x[0] })),
        );
    }
    out
}
