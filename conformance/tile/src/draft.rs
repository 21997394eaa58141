//! Writing programs.

use tongtu_tensor::scalar::ulp;
use tongtu_tensor::{DType, Num};
use tongtu_tile::check::{self, check};
use tongtu_tile::interp::BufferData;
use tongtu_tile::{Access, KernelBuilder, TileError, TileMap, Val, verify};

use crate::{Check, Program, Want};

/// The pattern that outputs hold before a launch.
pub(crate) fn untouched(d: DType, n: usize) -> BufferData {
    BufferData { dtype: d, codes: vec![crate::values::code(d, 1.0); n] }
}

/// What the elements of an output may be off.
enum Bound {
    /// Each its own; nothing beyond the end.
    Each(Vec<f64>),
    /// So many units in the last place.
    Ulps(f64),
}

/// A program being written: a builder with data for its buffers.
pub(crate) struct Draft {
    pub b: KernelBuilder,
    name: String,
    buffers: Vec<BufferData>,
    outputs: Vec<(usize, String, Bound)>,
    pub scalars: Vec<(DType, Num)>,
}

impl Draft {
    pub fn new(name: &str) -> Draft {
        let b = KernelBuilder::new(name);
        Draft { b, name: name.to_string(), buffers: vec![], outputs: vec![], scalars: vec![] }
    }

    pub fn input(&mut self, d: DType, codes: Vec<u64>) -> Val {
        let name = format!("x{}", self.buffers.len());
        self.buffers.push(BufferData { dtype: d, codes });
        self.b.buffer(&name, d, Access::Read)
    }

    /// A buffer that is checked; `what` ends the case's name.
    pub fn output(&mut self, what: &str, d: DType, n: usize) -> Val {
        self.outputs.push((self.buffers.len(), format!("{}/{what}", self.name), Bound::Each(Vec::new())));
        let name = format!("y{}", self.buffers.len());
        self.buffers.push(untouched(d, n));
        self.b.buffer(&name, d, Access::ReadWrite)
    }

    pub fn scalar(&mut self, n: i64) -> Val {
        self.scalars.push((DType::I64, Num::Int(n.into())));
        self.b.scalar(&format!("n{}", self.scalars.len()), DType::I64)
    }

    /// What the elements of the newest output may be off.
    pub fn within(&mut self, err: Vec<f64>) {
        if let Some(o) = self.outputs.last_mut() {
            o.2 = Bound::Each(err);
        }
    }

    /// That they may be off so many units in the last place.
    pub fn within_ulps(&mut self, ulps: f64) {
        if let Some(o) = self.outputs.last_mut() {
            o.2 = Bound::Ulps(ulps);
        }
    }

    /// A row-major view of dims.
    pub fn view(&mut self, buffer: Val, dims: &[i64]) -> Result<Val, TileError> {
        let mut strides = vec![1; dims.len()];
        for i in (1..dims.len()).rev() {
            strides[i - 1] = strides[i] * dims[i];
        }
        let zero = self.b.int(0);
        let dims: Vec<Val> = dims.iter().map(|n| self.b.int(*n)).collect();
        let strides: Vec<Val> = strides.iter().map(|n| self.b.int(*n)).collect();
        self.b.view(buffer, zero, &dims, &strides)
    }

    /// The first elements of a buffer as a tile.
    pub fn load(&mut self, buffer: Val, shape: &[usize]) -> Result<Val, TileError> {
        let dims: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
        let (d, v, zero) = (self.b.dtype(buffer), self.view(buffer, &dims)?, self.b.int(0));
        let map = TileMap::trailing(shape, shape.len());
        self.b.load(v, &vec![zero; shape.len()], map, &vec![true; shape.len()], d.decode(0))
    }

    /// A tile as a case of its own.
    pub fn store(&mut self, what: &str, tile: Val) -> Result<(), TileError> {
        let (d, shape) = (self.b.dtype(tile), self.b.shape(tile));
        let out = self.output(what, d, shape.iter().product());
        let dims: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
        let (v, zero) = (self.view(out, &dims)?, self.b.int(0));
        let map = TileMap::trailing(&shape, shape.len());
        self.b.store(v, tile, &vec![zero; shape.len()], map, &vec![true; shape.len()])
    }

    /// The program; what its outputs must hold says the interpreter, which must find nothing wrong with it.
    pub fn finish(self, grid: [i64; 3]) -> Program {
        let mut after = self.buffers.clone();
        let kernel = self.b.finish();
        let scalars: Vec<Num> = self.scalars.iter().map(|s| s.1).collect();
        let sound = verify(&kernel).map_err(|e| e[0].to_string());
        let found = sound.and_then(|()| {
            check(&kernel, grid, &mut after, &scalars, &check::Options::default()).map_err(|e| e.to_string())
        });
        let wrong = match found {
            Ok(found) => found.first().map(ToString::to_string),
            Err(e) => Some(e),
        };
        assert!(wrong.is_none(), "{}: {}\n{kernel}", self.name, wrong.unwrap_or_default());
        let checks = self
            .outputs
            .into_iter()
            .map(|(buffer, case, bound)| {
                let d = after[buffer].dtype;
                let err = |i: usize, code: u64| match &bound {
                    Bound::Each(err) => err.get(i).copied().unwrap_or(0.0),
                    Bound::Ulps(n) => match d.decode(code).to_f64() {
                        x if x.is_finite() => n * ulp(d, x),
                        _ => 0.0,
                    },
                };
                let codes = after[buffer].codes.iter().enumerate();
                let want = codes.map(|(i, &code)| Want { code, err: err(i, code) }).collect();
                Check { case, buffer, first: 0, want }
            })
            .collect();
        Program { kernel, grid, buffers: self.buffers, scalars: self.scalars, checks }
    }
}
