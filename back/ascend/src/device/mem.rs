//! The storage of one group of cores, and memory references into it.

use std::collections::BTreeMap;

use tongtu_tensor::{DType, Num, Overflow};

use super::ir::{Elem, Space};

/// A strided reference. Addresses are in bits, for truth values are packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Mem {
    /// Where.
    pub space: Space,
    /// Address of element 0: device memory has the device's addresses, scratchpads begin at 0.
    pub bits: i64,
    /// Address of the memory that this is a view of, from which offsets count.
    pub base: i64,
    /// Element type.
    pub elem: Elem,
    /// Dims.
    pub dims: Vec<i64>,
    /// Elements from one index to the next along each dim.
    pub strides: Vec<i64>,
}

impl Mem {
    /// Number of elements.
    pub fn len(&self) -> i64 {
        self.dims.iter().product()
    }
    /// Offsets, in elements, of all elements in row-major order of `dims`, to which this is broadcast.
    pub fn offsets(&self, dims: &[i64]) -> Result<Vec<i64>, String> {
        let own: Vec<i64> = if self.dims.len() == dims.len() {
            let pairs = self.dims.iter().zip(dims).zip(&self.strides);
            let step = |((&n, &d), &s): ((&i64, &i64), &i64)| match n {
                n if n == d => Ok(s),
                1 => Ok(0),
                _ => Err(()),
            };
            pairs.map(step).collect::<Result<Vec<i64>, ()>>()
        } else if self.len() == dims.iter().product::<i64>() && self.is_dense() {
            let mut s = 1;
            let mut out: Vec<i64> = dims
                .iter()
                .rev()
                .map(|&d| {
                    s *= d;
                    s / d.max(1)
                })
                .collect();
            out.reverse();
            Ok(out)
        } else {
            Err(())
        }
        .map_err(|()| format!("memory of dims {:?} where {dims:?} are wanted", self.dims))?;
        let total: i64 = dims.iter().product();
        let mut out = Vec::with_capacity(total.max(0) as usize);
        if total <= 0 {
            return Ok(out);
        }
        let rank = dims.len();
        let (inner, step) = if rank > 0 { (dims[rank - 1], own[rank - 1]) } else { (1, 0) };
        let mut at = vec![0i64; rank.saturating_sub(1)];
        let mut base = 0i64;
        loop {
            out.extend((0..inner).map(|i| base + i * step));
            let mut d = at.len();
            loop {
                if d == 0 {
                    return Ok(out);
                }
                d -= 1;
                at[d] += 1;
                base += own[d];
                if at[d] < dims[d] {
                    break;
                }
                base -= own[d] * dims[d];
                at[d] = 0;
            }
        }
    }
    fn is_dense(&self) -> bool {
        let mut want = 1;
        self.dims.iter().zip(&self.strides).rev().all(|(&n, &s)| {
            let ok = n == 1 || s == want;
            want *= n;
            ok
        })
    }
    /// First byte and the one after the last, if there are elements.
    pub fn span(&self) -> Option<(i64, i64)> {
        if self.len() <= 0 {
            return None;
        }
        let (mut low, mut high) = (0, 0);
        for (&n, &s) in self.dims.iter().zip(&self.strides) {
            let far = (n - 1) * s;
            if far < 0 { low += far } else { high += far }
        }
        let e = self.elem.bits();
        Some(((self.bits + low * e) >> 3, (self.bits + (high + 1) * e + 7) >> 3))
    }
}

/// Elements: floats exactly, integers with their sign extended.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Floats.
    F(Vec<f64>),
    /// Integers.
    I(Vec<i64>),
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F(v) => v.len(),
            Data::I(v) => v.len(),
        }
    }
    /// All of one value.
    pub fn splat(&self, k: usize, n: usize) -> Data {
        match self {
            Data::F(v) => Data::F(vec![v[k]; n]),
            Data::I(v) => Data::I(vec![v[k]; n]),
        }
    }
    /// The elements at positions.
    pub fn pick(&self, at: impl Iterator<Item = usize>) -> Data {
        match self {
            Data::F(v) => Data::F(at.map(|i| v[i]).collect()),
            Data::I(v) => Data::I(at.map(|i| v[i]).collect()),
        }
    }
}

fn dtype(e: Elem) -> Option<DType> {
    Some(match e {
        Elem::F16 => DType::F16,
        Elem::BF16 => DType::BF16,
        Elem::F8E4M3 => DType::F8E4M3FN,
        Elem::F8E5M2 => DType::F8E5M2,
        _ => return None,
    })
}

/// The float of a code; NaN remembers its code as long as it is moved only.
fn value(d: DType, code: u64) -> f64 {
    let x = d.decode(code).to_f64();
    if x.is_nan() { f64::from_bits(NAN | tag(d) | code) } else { x }
}

/// The code of a float that is of the type already.
fn code_of(d: DType, x: f64) -> u64 {
    let bits = x.to_bits();
    if x.is_nan() && bits & NAN_TAG == tag(d) {
        return bits & 0xffff;
    }
    d.encode(Num::Float(x), Overflow::Format)
}

const NAN: u64 = 0x7ff8_0000_0000_0000;
const NAN_TAG: u64 = 0xf0_0000;

fn tag(d: DType) -> u64 {
    match d {
        DType::F16 => 0x10_0000,
        DType::BF16 => 0x20_0000,
        DType::F8E4M3FN => 0x30_0000,
        _ => 0x40_0000,
    }
}

/// A float rounded to an element type, to nearest even.
pub fn round_to(e: Elem, x: f64) -> f64 {
    match e {
        Elem::F32 => f64::from(x as f32),
        e => dtype(e).map_or(x, |d| d.decode(d.encode(Num::Float(x), Overflow::Format)).to_f64()),
    }
}

/// An integer wrapped to a width, its sign extended; a truth value is 0 or 1.
pub fn wrap(e: Elem, x: i64) -> i64 {
    match e {
        Elem::Int(1) => x & 1,
        Elem::Int(n) if n < 64 => (x << (64 - n)) >> (64 - n),
        _ => x,
    }
}

/// Device memory and the scratchpads of a matrix core and its vector cores.
pub struct Storage<'a> {
    /// Device memory by address.
    pub gm: &'a mut BTreeMap<u64, Vec<u8>>,
    /// Scratchpads of the vector cores.
    pub ub: Vec<Vec<u8>>,
    /// The matrix core's operand buffer.
    pub l1: Vec<u8>,
    /// The matrix core's accumulators.
    pub l0c: Vec<u8>,
    /// Scalar stacks by core.
    pub stack: Vec<Vec<u8>>,
}

impl Storage<'_> {
    /// Bytes of a space as core `core` sees it. Vector core `k` is core `k`.
    fn bytes(&mut self, space: Space, core: usize, from: i64, to: i64) -> Result<&mut [u8], String> {
        let outside = || format!("bytes {from} to {to} of {space:?} are outside of it");
        if from < 0 || to < from {
            return Err(outside());
        }
        let (from, to) = (from as u64, to as u64);
        let (base, all): (u64, &mut Vec<u8>) = match space {
            Space::Gm => {
                let found = self.gm.range_mut(..=from).next_back();
                let (at, v) = found.ok_or_else(outside)?;
                (*at, v)
            }
            Space::Ub => {
                let last = self.ub.len() - 1;
                (0, &mut self.ub[core.min(last)])
            }
            Space::L1 => (0, &mut self.l1),
            Space::L0c => (0, &mut self.l0c),
            Space::Stack => (0, &mut self.stack[core]),
        };
        all.get_mut((from - base) as usize..(to - base) as usize).ok_or_else(outside)
    }

    /// The elements of a reference broadcast to dims.
    pub fn read(&mut self, core: usize, m: &Mem, dims: &[i64]) -> Result<Data, String> {
        let offsets = m.offsets(dims)?;
        let float = m.elem.is_float();
        let Some((from, to)) = m.span().filter(|_| !offsets.is_empty()) else {
            return Ok(if float { Data::F(Vec::new()) } else { Data::I(Vec::new()) });
        };
        let (e, base) = (m.elem.bits(), m.bits - from * 8);
        let b = self.bytes(m.space, core, from, to)?;
        let at = |o: i64| (base + o * e) as usize;
        fn get<const N: usize>(b: &[u8], bit: usize) -> [u8; N] {
            let mut out = [0; N];
            out.copy_from_slice(&b[bit / 8..bit / 8 + N]);
            out
        }
        let it = offsets.into_iter().map(at);
        Ok(match (m.elem, e) {
            (Elem::F32, _) => Data::F(it.map(|i| f64::from(f32::from_le_bytes(get(b, i)))).collect()),
            (f, 16) if float => {
                let d = dtype(f).unwrap_or(DType::F16);
                Data::F(it.map(|i| value(d, u16::from_le_bytes(get(b, i)).into())).collect())
            }
            (f, 8) if float => {
                let d = dtype(f).unwrap_or(DType::F8E4M3FN);
                Data::F(it.map(|i| value(d, b[i / 8].into())).collect())
            }
            (_, 64) => Data::I(it.map(|i| i64::from_le_bytes(get(b, i))).collect()),
            (_, 32) => Data::I(it.map(|i| i32::from_le_bytes(get(b, i)).into()).collect()),
            (_, 16) => Data::I(it.map(|i| i16::from_le_bytes(get(b, i)).into()).collect()),
            (_, 8) => Data::I(it.map(|i| (b[i / 8] as i8).into()).collect()),
            (_, 1) => Data::I(it.map(|i| (b[i / 8] >> (i % 8) & 1).into()).collect()),
            (e, _) => return Err(format!("elements of type {e:?} in memory")),
        })
    }

    /// Writes elements in row-major order of the reference.
    pub fn write(&mut self, core: usize, m: &Mem, data: &Data) -> Result<(), String> {
        let offsets = m.offsets(&m.dims)?;
        if offsets.len() != data.len() {
            return Err(format!("{} elements for memory of dims {:?}", data.len(), m.dims));
        }
        let Some((from, to)) = m.span() else { return Ok(()) };
        let (e, base) = (m.elem.bits(), m.bits - from * 8);
        let b = self.bytes(m.space, core, from, to)?;
        let at = offsets.into_iter().map(|o| (base + o * e) as usize);
        match (data, m.elem) {
            (Data::F(v), Elem::F32) => {
                for (i, &x) in at.zip(v) {
                    b[i / 8..i / 8 + 4].copy_from_slice(&(x as f32).to_le_bytes());
                }
            }
            (Data::F(v), f) if f.is_float() => {
                let d = dtype(f).unwrap_or(DType::F16);
                let n = (e / 8) as usize;
                for (i, &x) in at.zip(v) {
                    let code = code_of(d, x);
                    b[i / 8..i / 8 + n].copy_from_slice(&code.to_le_bytes()[..n]);
                }
            }
            (Data::I(v), Elem::Int(1)) => {
                for (i, &x) in at.zip(v) {
                    let bit = 1u8 << (i % 8);
                    b[i / 8] = b[i / 8] & !bit | if x & 1 != 0 { bit } else { 0 };
                }
            }
            (Data::I(v), t) if !t.is_float() && e % 8 == 0 => {
                let n = (e / 8) as usize;
                for (i, &x) in at.zip(v) {
                    b[i / 8..i / 8 + n].copy_from_slice(&x.to_le_bytes()[..n]);
                }
            }
            (d, e) => {
                let kind = if matches!(d, Data::F(_)) { "floats" } else { "integers" };
                return Err(format!("{kind} written as {e:?}"));
            }
        }
        Ok(())
    }
}

/// The float that a code stands for.
pub fn decode(e: Elem, code: u64) -> f64 {
    match e {
        Elem::F32 => f64::from(f32::from_bits(code as u32)),
        e => dtype(e).map_or(f64::NAN, |d| value(d, code)),
    }
}

/// The code of a float.
pub fn code(e: Elem, x: f64) -> u64 {
    match e {
        Elem::F32 => (x as f32).to_bits().into(),
        e => dtype(e).map_or(0, |d| code_of(d, x)),
    }
}
