//! Kernels of the portable instruction set inside a graph.

use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::{DType, Num, Tensor};
use tongtu_tile::interp::{BufferData, Options, run};
use tongtu_tile::{Access, Kernel, ParamKind, parse_kernel, verify};

use crate::eval::Bindings;
use crate::eval::prepare::check_size;
use crate::graph::Type;
use crate::infer::may_equal;
use crate::op::Op;

/// Most element operations of a kernel in the reference interpreter.
const MAX_STEPS: u64 = 1 << 36;

/// What a buffer parameter of a kernel stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// An operand, which the kernel only reads.
    Operand(usize),
    /// A result, which begins with the contents of an operand.
    InPlace {
        /// The result.
        result: usize,
        /// The operand.
        operand: usize,
    },
    /// A result of which the kernel writes every element.
    Result(usize),
}

/// Whether two types have the same elements in as many places.
fn may_share(a: &Type, b: &Type) -> bool {
    match (a.as_tensor(), b.as_tensor()) {
        (Some((d, x)), Some((e, y))) => {
            d == e && x.len() == y.len() && x.iter().zip(y).all(|(m, n)| may_equal(m, n))
        }
        _ => false,
    }
}

/// The kernel of an [`Op::Kernel`], verified, and what its buffer parameters stand for, in order.
///
/// # Errors
/// In words: the text is no kernel, or it does not fit the operands and results.
pub fn kernel_of(op: &Op, operands: &[Type]) -> Result<(Kernel, Vec<Buffer>), String> {
    let Op::Kernel { code, grid, scalars, in_place, results } = op else {
        return Err("is no kernel".into());
    };
    let kernel = parse_kernel(code).map_err(|e| e.to_string())?;
    verify(&kernel).map_err(|e| e.first().map(ToString::to_string).unwrap_or_default())?;
    if grid.is_empty() || grid.len() > 3 {
        return Err(format!("a grid of {} extents; one to three wanted", grid.len()));
    }
    let mut buffers: Vec<Buffer> = (0..operands.len()).map(Buffer::Operand).collect();
    for &(operand, result) in in_place {
        match (buffers.get_mut(operand), results.get(result)) {
            (Some(b @ Buffer::Operand(_)), Some(ty)) if may_share(&operands[operand], ty) => {
                *b = Buffer::InPlace { result, operand };
            }
            _ => return Err(format!("operand {operand} and result {result} can't share a buffer")),
        }
    }
    let shared = |r: usize| in_place.iter().filter(|p| p.1 == r).count();
    if (0..results.len()).any(|r| shared(r) > 1) {
        return Err("two operands share a result's buffer".into());
    }
    buffers.extend((0..results.len()).filter(|&r| shared(r) == 0).map(Buffer::Result));
    let (mut at, mut numbers) = (0, 0);
    for p in &kernel.params {
        let (d, access) = match p.kind {
            ParamKind::Buffer(d, access) => (d, access),
            ParamKind::Scalar(DType::I64) => {
                numbers += 1;
                continue;
            }
            ParamKind::Scalar(d) => {
                return Err(format!("parameter '{}' is a scalar of type {d}, not i64", p.name));
            }
        };
        let Some(buffer) = buffers.get(at) else {
            return Err(format!("takes more than {} buffers", buffers.len()));
        };
        at += 1;
        let (ty, fits) = match *buffer {
            Buffer::Operand(i) => (&operands[i], access == Access::Read),
            Buffer::InPlace { result, .. } => (&results[result], access == Access::ReadWrite),
            Buffer::Result(r) => (&results[r], access == Access::Write),
        };
        if !fits {
            return Err(format!(
                "parameter '{}' is {buffer:?}, but the kernel has {access:?} access",
                p.name
            ));
        }
        if ty.as_tensor().is_none_or(|(e, _)| e != d) {
            return Err(format!("parameter '{}' has elements of type {d}, {ty:?} is given", p.name));
        }
    }
    if at != buffers.len() || numbers != scalars.len() {
        return Err(format!(
            "takes {at} buffers and {numbers} scalars; {} and {} are given",
            buffers.len(),
            scalars.len()
        ));
    }
    Ok((kernel, buffers))
}

/// Runs a kernel op in the reference interpreter of the instruction set.
///
/// # Errors
/// As [`kernel_of`], and what the kernel does wrong.
pub(crate) fn evaluate(
    op: &Op,
    operands: &[Tensor],
    bindings: &Bindings,
    symbols: &Symbols,
) -> Result<Vec<Tensor>, String> {
    let types: Vec<Type> = operands
        .iter()
        .map(|t| Type::tensor(t.dtype(), t.shape().iter().map(|&n| (n as i64).into()).collect::<Vec<_>>()))
        .collect();
    let mut op = op.clone();
    let Op::Kernel { grid, scalars, results, .. } = &mut op else { return Err("is no kernel".into()) };
    let eval = |dims: &[Dim]| dims.iter().map(|d| bindings.eval(d, symbols)).collect::<Result<Vec<i64>, _>>();
    let (grid, scalars) = (eval(grid)?, eval(scalars)?);
    let mut shapes = Vec::new();
    for ty in results {
        let (d, dims) = ty.as_tensor().ok_or("a result is not a tensor of numbers")?;
        let shape = bindings.shape(dims, symbols)?;
        check_size(&shape)?;
        shapes.push((d, shape.clone()));
        *ty = Type::tensor(d, shape.iter().map(|&n| (n as i64).into()).collect::<Vec<_>>());
    }
    let (kernel, buffers) = kernel_of(&op, &types)?;
    let mut data: Vec<BufferData> = buffers
        .iter()
        .map(|b| match *b {
            Buffer::Operand(operand) | Buffer::InPlace { operand, .. } => {
                BufferData::from_tensor(&operands[operand])
            }
            Buffer::Result(r) => {
                let (d, shape) = &shapes[r];
                BufferData::full(*d, shape.iter().product(), Num::Int(0))
            }
        })
        .collect();
    let extent = |i: usize| grid.get(i).copied().unwrap_or(1);
    let scalars: Vec<Num> = scalars.iter().map(|&n| n.into()).collect();
    let options = Options { max_steps: MAX_STEPS, ..Options::default() };
    run(&kernel, [extent(0), extent(1), extent(2)], &mut data, &scalars, &options)
        .map_err(|e| e.to_string())?;
    let mut out = vec![None; shapes.len()];
    for (b, data) in buffers.iter().zip(&data) {
        if let Buffer::InPlace { result, .. } | Buffer::Result(result) = *b {
            out[result] = Some(data.to_tensor(&shapes[result].1).map_err(|e| e.to_string())?);
        }
    }
    out.into_iter().map(|t| t.ok_or_else(|| "a result is never made".to_string())).collect()
}
