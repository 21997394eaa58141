//! The verifier: what it accepts, the interpreter runs and a back end may take.

use std::collections::HashMap;

use tongtu_tensor::DType;

use crate::error::TileError;
use crate::infer::infer;
use crate::kernel::{Access, Block, Inst, Kernel, ParamKind, Val};
use crate::limits;
use crate::op::Op;
use crate::types::Ty;

/// Most errors reported for one kernel.
const MAX_ERRORS: usize = 100;

/// Checks a kernel and gives every error found (at most 100).
///
/// - Every value is defined once and used only where its definition is visible: later in the same block or inside
///   regions nested there.
/// - Types follow each instruction's rule; regions take and give what their instruction says, tiles only.
/// - `alloc` stands in the kernel's body itself, not in a region.
/// - A buffer parameter is read and written only as it declares.
pub fn verify(kernel: &Kernel) -> Result<(), Vec<TileError>> {
    let mut v = Verifier {
        kernel,
        state: vec![State::Undefined; kernel.types.len()],
        roots: HashMap::new(),
        errors: vec![],
    };
    v.params();
    v.block(&kernel.body, 0);
    if !kernel.body.params.is_empty() || !kernel.body.results.is_empty() {
        v.structure("the body has parameters or results".into());
    }
    if v.errors.is_empty() { Ok(()) } else { Err(v.errors) }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Undefined,
    Visible,
    /// Defined in a region that has ended.
    Gone,
}

struct Verifier<'a> {
    kernel: &'a Kernel,
    state: Vec<State>,
    /// For buffers and views of parameters, the parameter's position.
    roots: HashMap<Val, usize>,
    errors: Vec<TileError>,
}

impl Verifier<'_> {
    fn structure(&mut self, detail: String) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(TileError::Structure { kernel: self.kernel.name.clone(), detail });
        }
    }

    fn rule(&mut self, inst: &Inst, detail: String) {
        let detail = match &inst.loc {
            Some(loc) => format!("{detail} (from {loc})"),
            None => detail,
        };
        if self.errors.len() < MAX_ERRORS {
            let (kernel, op) = (self.kernel.name.clone(), inst.op.name().to_string());
            self.errors.push(TileError::Rule { kernel, op, detail });
        }
    }

    fn define(&mut self, v: Val) {
        match self.state.get(v.index()) {
            None => self.structure(format!("value {} has no type", v.0)),
            Some(State::Undefined) => self.state[v.index()] = State::Visible,
            Some(_) => self.structure(format!("value {} is defined twice", v.0)),
        }
    }

    fn visible(&mut self, v: Val, user: &str) -> bool {
        let ok = self.state.get(v.index()) == Some(&State::Visible);
        if !ok {
            let why = match self.state.get(v.index()) {
                Some(State::Gone) => "is out of scope",
                _ => "is not defined",
            };
            self.structure(format!("value {} used by {user} {why} there", v.0));
        }
        ok
    }

    fn params(&mut self) {
        for (i, p) in self.kernel.params.iter().enumerate() {
            self.define(p.value);
            let want = match p.kind {
                ParamKind::Buffer(dtype, _) => Ty::Buffer { dtype },
                ParamKind::Scalar(dtype) => Ty::scalar(dtype),
            };
            if self.kernel.types.get(p.value.index()).is_some_and(|t| *t != want) {
                self.structure(format!("parameter '{}' is not of type {want}", p.name));
            }
            if matches!(p.kind, ParamKind::Buffer(..)) {
                self.roots.insert(p.value, i);
            }
        }
    }

    fn block(&mut self, block: &Block, depth: usize) {
        if depth > limits::DEPTH {
            return self.structure(format!("regions nest deeper than {}", limits::DEPTH));
        }
        let mut here = Vec::new();
        for &p in &block.params {
            self.define(p);
            here.push(p);
        }
        for inst in &block.insts {
            self.inst(inst, depth);
            for &r in &inst.results {
                self.define(r);
                here.push(r);
            }
        }
        for &r in &block.results {
            self.visible(r, "a region's end");
        }
        if depth > 0 {
            for v in here {
                if let Some(s) = self.state.get_mut(v.index()) {
                    *s = State::Gone;
                }
            }
        }
    }

    fn inst(&mut self, inst: &Inst, depth: usize) {
        let mut known = true;
        for &o in &inst.operands {
            known &= self.visible(o, inst.op.name());
        }
        let typed = |vals: &[Val]| vals.iter().all(|v| v.index() < self.kernel.types.len());
        let results_typed = typed(&inst.results);
        let regions_typed = inst.blocks.iter().all(|b| typed(&b.params) && typed(&b.results));
        for b in &inst.blocks {
            self.block(b, depth + 1);
        }
        if !known || !results_typed || !regions_typed {
            return;
        }
        let kernel = self.kernel;
        let tys: Vec<&Ty> = inst.operands.iter().map(|&v| kernel.ty(v)).collect();
        let results: Vec<&Ty> = inst.results.iter().map(|&v| kernel.ty(v)).collect();
        let outcome = match inst.op {
            Op::For {} | Op::While {} | Op::If {} => region_rule(kernel, inst, &tys, &results),
            _ if !inst.blocks.is_empty() => Err("takes no region".into()),
            _ => infer(&inst.op, &tys).and_then(|want| match want.iter().eq(results.iter().copied()) {
                true => Ok(()),
                false => Err(format!(
                    "gives {}, the results are {}",
                    show(want.iter()),
                    show(results.iter().copied())
                )),
            }),
        };
        if let Err(e) = outcome {
            self.rule(inst, e);
            return;
        }
        if matches!(inst.op, Op::Alloc { .. }) && depth > 0 {
            self.rule(inst, "stands in a region; scratch is allocated in the body itself".into());
        }
        self.access(inst);
    }

    fn access(&mut self, inst: &Inst) {
        let Some(&root) = inst.operands.first().and_then(|v| self.roots.get(v)) else { return };
        if matches!(inst.op, Op::View { .. }) {
            self.roots.insert(inst.results[0], root);
        }
        let (reads, writes) = match inst.op {
            Op::Load { .. } | Op::Gather { .. } => (true, false),
            Op::Store { .. } | Op::Scatter { .. } => (false, true),
            Op::AtomicReduce { .. } | Op::AtomicRmw { .. } | Op::AtomicCas { .. } => (true, true),
            _ => return,
        };
        let p = &self.kernel.params[root];
        let ParamKind::Buffer(_, access) = p.kind else { return };
        if writes && access == Access::Read || reads && access == Access::Write {
            let (name, does) = (p.name.clone(), if writes { "writes" } else { "reads" });
            self.rule(inst, format!("{does} parameter '{name}', which is declared {access:?}"));
        }
    }
}

fn show<'a>(tys: impl Iterator<Item = &'a Ty>) -> String {
    format!("({})", tys.map(Ty::to_string).collect::<Vec<_>>().join(", "))
}

fn region_rule(kernel: &Kernel, inst: &Inst, tys: &[&Ty], results: &[&Ty]) -> Result<(), String> {
    let of = |vals: &[Val]| vals.iter().map(|&v| kernel.ty(v)).collect::<Vec<_>>();
    let (bool_ty, i64_ty) = (Ty::scalar(DType::Bool), Ty::scalar(DType::I64));
    let same = |what: &str, have: &[&Ty], want: &[&Ty]| match have == want {
        true => Ok(()),
        false => Err(format!(
            "{what}: {} is wanted, {} found",
            show(want.iter().copied()),
            show(have.iter().copied())
        )),
    };
    let blocks = |n: usize| match inst.blocks.len() == n {
        true => Ok(()),
        false => Err(format!("takes {n} regions, has {}", inst.blocks.len())),
    };
    if let Some(t) = results.iter().find(|t| t.as_tile().is_none()) {
        return Err(format!("a {t} can't be carried"));
    }
    match inst.op {
        Op::For {} => {
            blocks(1)?;
            if tys.len() < 3 {
                return Err("takes at least 3 operands".into());
            }
            same("bounds", &tys[..3], &[&i64_ty; 3])?;
            same("carried values", &tys[3..], results)?;
            let want: Vec<&Ty> = std::iter::once(&i64_ty).chain(results.iter().copied()).collect();
            same("region parameters", &of(&inst.blocks[0].params), &want)?;
            same("region results", &of(&inst.blocks[0].results), results)
        }
        Op::While {} => {
            blocks(1)?;
            if tys.is_empty() {
                return Err("takes at least 1 operand".into());
            }
            same("condition", &tys[..1], &[&bool_ty])?;
            same("carried values", &tys[1..], results)?;
            same("region parameters", &of(&inst.blocks[0].params), results)?;
            let want: Vec<&Ty> = std::iter::once(&bool_ty).chain(results.iter().copied()).collect();
            same("region results", &of(&inst.blocks[0].results), &want)
        }
        _ => {
            blocks(2)?;
            same("condition", tys, &[&bool_ty])?;
            for b in &inst.blocks {
                same("region parameters", &of(&b.params), &[])?;
                same("region results", &of(&b.results), results)?;
            }
            Ok(())
        }
    }
}
