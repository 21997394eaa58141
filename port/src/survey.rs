//! A back end that compiles nothing: it asks another one what it supports and keeps the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tongtu_chip::{Chip, LevelKind};
use tongtu_plan::backend::Support as Answer;
use tongtu_plan::backend::{Artifact, CompileError, Compiler, Entry};
use tongtu_tensor::DType;
use tongtu_tile::{Block, Inst, Kernel, Module, Op, ParamKind, Ty, Val};

use crate::report::{ScratchUse, Support};

/// How what is made of other instructions gets to a chip.
pub(crate) const COMPOSED: &str = "made of simpler instructions by the shared rules";
/// How elements of a type that the chip does not compute in get there, after the type's name.
pub(crate) const HELD: &str = "is held in another type and converted around it";

/// Wraps a back end. Artifacts hold a [`Survey`] in place of code.
pub struct Surveyor<'a> {
    inner: &'a dyn Compiler,
}

/// What is known of one kernel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Survey {
    /// Instructions that are not native, each once.
    pub special: Vec<Special>,
    /// Element types of its matrix products: left, right, sums.
    pub products: Vec<[String; 3]>,
    /// The type that most of its arithmetic is in.
    pub dtype: String,
    /// Its use of a scratchpad.
    pub scratch: Option<ScratchUse>,
}

/// An instruction that the chip does not have as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Special {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// How it gets to the chip.
    pub support: Support,
    /// How, or why not.
    pub how: String,
}

impl Survey {
    /// What an artifact of a [`Surveyor`] holds.
    pub fn of(artifact: &Artifact) -> Option<Survey> {
        serde_json::from_slice(&artifact.bytes).ok()
    }
}

impl<'a> Surveyor<'a> {
    /// Asks this back end.
    pub fn new(inner: &'a dyn Compiler) -> Surveyor<'a> {
        Surveyor { inner }
    }

    fn survey(&self, kernel: &Kernel, chip: &Chip) -> Survey {
        let mut special = BTreeSet::new();
        let mut products = BTreeSet::new();
        let mut types: BTreeMap<DType, usize> = BTreeMap::new();
        each(&kernel.body, &mut |inst| {
            let (operands, results) = types_of(kernel, inst);
            if let (Op::Mma {}, [acc, lhs, rhs]) = (&inst.op, &operands[..]) {
                let name = |t: &Ty| t.dtype().name().to_string();
                products.insert([name(lhs), name(rhs), name(acc)]);
            }
            if matches!(inst.op, Op::Unary(_) | Op::Binary(_) | Op::Fma {})
                && let Some(Ty::Tile { dtype, shape }) = operands.first()
                && !shape.is_empty()
            {
                *types.entry(*dtype).or_default() += 1;
            }
            special.extend(self.special(&inst.op, &operands, &results, chip));
        });
        special.extend(self.left_over(kernel, &special, chip));
        let dtype = types.into_iter().max_by_key(|(d, n)| (*n, d.bits())).map_or(DType::F32, |(d, _)| d);
        Survey {
            special: special.into_iter().collect(),
            products: products.into_iter().collect(),
            dtype: dtype.name().to_string(),
            scratch: scratch(kernel, chip),
        }
    }

    fn special(&self, op: &Op, operands: &[Ty], results: &[Ty], chip: &Chip) -> Option<Special> {
        let types = || operands.iter().chain(results);
        let dtype = operands.first().or(results.first()).map_or(DType::Bool, Ty::dtype);
        let foreign = types().map(Ty::dtype).find(|d| !chip.is_native(d.name()));
        let (support, how) = match self.inner.supports(op, operands, results, chip) {
            Answer::Native => return None,
            Answer::Emulated(_) => match foreign {
                Some(d) => (Support::Emulated, format!("{d} {HELD}")),
                None => (Support::Composed, COMPOSED.to_string()),
            },
            Answer::No(why) => (Support::Unsupported, why),
        };
        let dtype = foreign.filter(|_| support == Support::Emulated).unwrap_or(dtype);
        Some(Special { name: op.name().to_string(), dtype: dtype.name().to_string(), support, how })
    }

    /// What the shared rules leave of a kernel that the chip still does not have.
    fn left_over(&self, kernel: &Kernel, special: &BTreeSet<Special>, chip: &Chip) -> Vec<Special> {
        if special.is_empty() || special.iter().any(|s| s.support == Support::Unsupported) {
            return Vec::new();
        }
        let mut kernel = kernel.clone();
        tongtu_compile::expand::expand(&mut kernel, &|op, operands| {
            matches!(self.inner.supports(op, operands, &[], chip), Answer::Native)
        });
        let mut left = BTreeSet::new();
        each(&kernel.body, &mut |inst| {
            let (operands, results) = types_of(&kernel, inst);
            let why = match self.inner.supports(&inst.op, &operands, &[], chip) {
                Answer::Native => return,
                Answer::Emulated(_) => "there is no shared rule that makes it of others".to_string(),
                Answer::No(why) => why,
            };
            let dtype = operands.first().or(results.first()).map_or(DType::Bool, Ty::dtype);
            left.insert(Special {
                name: inst.op.name().to_string(),
                dtype: dtype.name().to_string(),
                support: Support::Unsupported,
                how: why,
            });
        });
        left.into_iter().collect()
    }
}

impl Compiler for Surveyor<'_> {
    fn name(&self) -> &str {
        self.inner.name()
    }
    /// Everything is native, so that kernels come as the schedules wrote them.
    fn supports(&self, _: &Op, _: &[Ty], _: &[Ty], _: &Chip) -> Answer {
        Answer::Native
    }
    fn compile(&self, module: &Module, chip: &Chip) -> Result<Artifact, CompileError> {
        let Some(kernel) = module.kernels.first() else {
            let detail = "the module has no kernel".to_string();
            return Err(CompileError::Internal { kernel: String::new(), detail });
        };
        let survey = self.survey(kernel, chip);
        if let Some(s) = survey.scratch.as_ref().filter(|s| s.need > s.limit) {
            let (level, need, limit) = (s.level.clone(), s.need, s.limit);
            return Err(CompileError::TooLarge { kernel: kernel.name.clone(), level, need, limit });
        }
        let buffers = kernel.params.iter().filter(|p| matches!(p.kind, ParamKind::Buffer(..))).count();
        let scalars = kernel.params.len() - buffers;
        let entries = vec![Entry { name: kernel.name.clone(), scratch: 0, buffers, scalars }];
        let bytes = serde_json::to_vec(&survey)
            .map_err(|e| CompileError::Internal { kernel: kernel.name.clone(), detail: e.to_string() })?;
        Ok(Artifact { backend: self.inner.name().to_string(), entries, bytes: Arc::from(bytes) })
    }
}

/// Every instruction, those of inner blocks included.
fn each(block: &Block, f: &mut dyn FnMut(&Inst)) {
    for inst in &block.insts {
        f(inst);
        inst.blocks.iter().for_each(|b| each(b, f));
    }
}

fn types_of(kernel: &Kernel, inst: &Inst) -> (Vec<Ty>, Vec<Ty>) {
    let of = |vals: &[Val]| vals.iter().map(|&v| kernel.ty(v).clone()).collect();
    (of(&inst.operands), of(&inst.results))
}

/// Use of the scratchpad that vector operations work in: the first of the chip's. Operands of matrix products lie elsewhere.
fn scratch(kernel: &Kernel, chip: &Chip) -> Option<ScratchUse> {
    let level = chip.levels.iter().find(|l| l.kind == LevelKind::Scratchpad)?;
    let limit = level.capacity.as_ref()?.value;
    let mut product = BTreeSet::new();
    each(&kernel.body, &mut |inst| {
        if matches!(inst.op, Op::Mma {}) {
            product.extend(inst.operands.iter().chain(&inst.results).copied());
        }
    });
    let size = |v: Val| match kernel.ty(v) {
        Ty::Tile { dtype, shape } if !shape.is_empty() && !product.contains(&v) => {
            let bytes = dtype.bytes_for(shape.iter().product()).unwrap_or(usize::MAX) as u64;
            bytes.next_multiple_of(u64::from(level.align.max(1)))
        }
        _ => 0,
    };
    Some(ScratchUse { level: level.name.clone(), need: peak(&kernel.body, &size), limit })
}

/// The most bytes of values that are live at once.
fn peak(block: &Block, size: &dyn Fn(Val) -> u64) -> u64 {
    let mut last: BTreeMap<Val, usize> = BTreeMap::new();
    for (i, inst) in block.insts.iter().enumerate() {
        let mut mark = |inst: &Inst| {
            for &v in inst.operands.iter().chain(inst.blocks.iter().flat_map(|b| &b.results)) {
                last.insert(v, i);
            }
        };
        mark(inst);
        inst.blocks.iter().for_each(|b| each(b, &mut mark));
    }
    let end = block.insts.len();
    block.results.iter().for_each(|&v| _ = last.insert(v, end));
    let mut live: BTreeMap<Val, u64> = block.params.iter().map(|&v| (v, size(v))).collect();
    let mut now: u64 = live.values().sum();
    let mut most = now;
    for (i, inst) in block.insts.iter().enumerate() {
        let inner = inst.blocks.iter().map(|b| peak(b, size)).max().unwrap_or(0);
        most = most.max(now + inner);
        for &v in &inst.results {
            let bytes = size(v);
            live.insert(v, bytes);
            now += bytes;
        }
        most = most.max(now);
        live.retain(|v, bytes| {
            let keep = last.get(v).is_some_and(|&at| at > i);
            if !keep {
                now -= *bytes;
            }
            keep
        });
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_count_while_they_are_live() {
        let inst = |operands: &[u32], results: &[u32]| Inst {
            op: Op::Fma {},
            operands: operands.iter().map(|&v| Val(v)).collect(),
            results: results.iter().map(|&v| Val(v)).collect(),
            blocks: Vec::new(),
            flags: Default::default(),
            loc: None,
        };
        // a chain: two values of a chain are live at once
        let chain = Block {
            params: vec![],
            insts: vec![inst(&[], &[0]), inst(&[0], &[1]), inst(&[1], &[2])],
            results: vec![Val(2)],
        };
        assert_eq!(peak(&chain, &|_| 10), 20);
        // the first is needed at the end: three
        let held = Block {
            params: vec![],
            insts: vec![inst(&[], &[0]), inst(&[], &[1]), inst(&[1], &[2]), inst(&[0, 2], &[3])],
            results: vec![],
        };
        assert_eq!(peak(&held, &|_| 10), 30);
    }
}
