//! Consistency of plans.

use std::collections::BTreeSet;

use tongtu_graph::Type;
use tongtu_tensor::DType;
use tongtu_tensor::dim::{Dim, Sym};

use crate::plan::{Arg, Block, Plan, StepKind, Storage, ValueRef};

/// A plan that contradicts itself: a defect of whoever made it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("[P001] {place}: {detail}")]
pub struct PlanError {
    /// Which part of the plan.
    pub place: String,
    /// What is wrong.
    pub detail: String,
}

/// Devices a plan may name; more is a damaged plan.
const MAX_DEVICES: usize = 1024;

/// Length of a chain of aliases that is accepted.
const MAX_ALIASES: usize = 1024;

/// Nesting of blocks that is accepted.
const MAX_NESTING: usize = 64;

struct Check<'a> {
    plan: &'a Plan,
    place: String,
}

impl Check<'_> {
    fn bad<T>(&self, detail: impl Into<String>) -> Result<T, PlanError> {
        Err(PlanError { place: self.place.clone(), detail: detail.into() })
    }
    fn value(&self, v: ValueRef) -> Result<(), PlanError> {
        if v.index() < self.plan.values.len() {
            Ok(())
        } else {
            self.bad(format!("there is no value {}", v.0))
        }
    }
    fn sym(&self, s: Sym) -> Result<(), PlanError> {
        if self.plan.symbols.get(s).is_some() {
            Ok(())
        } else {
            self.bad(format!("there is no symbol {}", s.0))
        }
    }
    fn dim(&self, d: &Dim) -> Result<(), PlanError> {
        d.symbols().into_iter().try_for_each(|s| self.sym(s))
    }
    fn device(&self, d: usize) -> Result<(), PlanError> {
        if d < MAX_DEVICES { Ok(()) } else { self.bad(format!("device {d} is past any real machine")) }
    }
    fn scalar(&self, v: ValueRef, dtype: DType) -> Result<(), PlanError> {
        self.value(v)?;
        match &self.plan.values[v.index()].ty {
            Type::Tensor { dtype: d, dims } if *d == dtype && dims.is_empty() => Ok(()),
            ty => self.bad(format!("value {} is {ty:?}, not a {dtype} scalar", v.0)),
        }
    }

    fn block(&mut self, block: &Block, path: &str, depth: usize) -> Result<(), PlanError> {
        if depth > MAX_NESTING {
            return self.bad("blocks are nested too deeply");
        }
        for (i, step) in block.steps.iter().enumerate() {
            let path = format!("{path}{i}");
            self.place = format!("step {path}");
            self.device(step.device)?;
            for v in step.values() {
                self.value(v)?;
                if matches!(self.plan.values[self.plan.root(v).index()].storage, Storage::Packed { .. }) {
                    return self.bad(format!("uses value {}, which is kept in packed form only", v.0));
                }
            }
            if step.wait.iter().any(|&w| w >= i) {
                return self.bad("waits for a step that is not before it");
            }
            match &step.kind {
                StepKind::Launch { artifact, entry, grid, args, group } => {
                    let Some(artifact) = self.plan.artifacts.get(*artifact) else {
                        return self.bad(format!("there is no artifact {artifact}"));
                    };
                    let Some(entry) = artifact.entries.get(*entry) else {
                        return self.bad(format!("the artifact has no entry {entry}"));
                    };
                    if *group >= self.plan.groups.len() {
                        return self.bad(format!("there is no group {group}"));
                    }
                    grid.iter().try_for_each(|d| self.dim(d))?;
                    let mut buffers = 0;
                    for arg in args {
                        match arg {
                            Arg::Buffer(v) => {
                                self.value(*v)?;
                                if self.plan.dtype(*v).is_none() {
                                    return self.bad(format!("value {} has no device memory", v.0));
                                }
                                buffers += 1;
                            }
                            Arg::Dim(d) => self.dim(d)?,
                        }
                    }
                    if (buffers, args.len() - buffers) != (entry.buffers, entry.scalars) {
                        return self.bad(format!(
                            "kernel '{}' takes {} buffers and {} scalars, not {buffers} and {}",
                            entry.name,
                            entry.buffers,
                            entry.scalars,
                            args.len() - buffers
                        ));
                    }
                }
                StepKind::Copy { src, dst } | StepKind::Assign { src, dst } => {
                    self.value(*src)?;
                    self.value(*dst)?;
                }
                StepKind::WriteDim { dst, dim } => {
                    self.scalar(*dst, DType::I64)?;
                    self.dim(dim)?;
                }
                StepKind::Bind { sym, src } => {
                    self.sym(*sym)?;
                    self.scalar(*src, DType::I64)?;
                }
                StepKind::BindDims { value, fresh } => {
                    self.value(*value)?;
                    fresh.iter().try_for_each(|s| self.sym(*s))?;
                }
                StepKind::Guard { lhs, rhs, .. } => {
                    self.dim(lhs)?;
                    self.dim(rhs)?;
                }
                StepKind::If { condition, then_block, else_block } => {
                    self.scalar(*condition, DType::Bool)?;
                    self.block(then_block, &format!("{path}.then."), depth + 1)?;
                    self.block(else_block, &format!("{path}.else."), depth + 1)?;
                }
                StepKind::While { condition, body } => {
                    self.scalar(*condition, DType::Bool)?;
                    self.block(body, &format!("{path}."), depth + 1)?;
                }
                StepKind::Host { inputs, outputs, .. } => {
                    inputs.iter().chain(outputs).try_for_each(|v| self.value(*v))?;
                }
            }
        }
        Ok(())
    }
}

impl Plan {
    /// Checks that everything the plan refers to exists and fits: values, symbols, artifacts, entries, groups, devices,
    /// launch arguments, waits.
    pub fn check(&self) -> Result<(), PlanError> {
        let mut c = Check { plan: self, place: String::new() };
        for (i, v) in self.values.iter().enumerate() {
            c.place = format!("value {i}");
            c.device(v.device)?;
            let dims = self.dims(ValueRef(i as u32));
            dims.iter().try_for_each(|d| c.dim(d))?;
            match &v.storage {
                Storage::Constant(k) => {
                    let Some(t) = self.constants.get(*k) else {
                        return c.bad(format!("there is no constant {k}"));
                    };
                    let same = dims.len() == t.rank()
                        && dims.iter().zip(t.shape()).all(|(d, &n)| d.as_const() == i64::try_from(n).ok());
                    if v.ty.as_tensor().map(|(d, _)| d) != Some(t.dtype()) || !same {
                        return c.bad(format!("its type is not that of constant {k}"));
                    }
                }
                Storage::Packed { constant, packing } => {
                    let shape: Option<Vec<usize>> =
                        dims.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
                    let dtype = v.ty.as_tensor().map(|(d, _)| d);
                    let fits = self.constants.get(*constant).is_some_and(|t| {
                        Some(t.dtype()) == dtype
                            && shape.and_then(|s| packing.shape(&s)).is_some_and(|s| s == t.shape())
                    });
                    if !fits {
                        return c.bad(format!("it is not what constant {constant} was packed from"));
                    }
                }
                Storage::Alias(of) => {
                    c.value(*of)?;
                    let (mut at, mut left) = (*of, MAX_ALIASES);
                    while let Storage::Alias(next) = self.values[at.index()].storage {
                        c.value(next)?;
                        at = next;
                        left -= 1;
                        if left == 0 {
                            return c.bad("it is an alias of itself, or of too long a chain");
                        }
                    }
                    if self.values[at.index()].device != v.device {
                        return c.bad("it is an alias of a value on another device");
                    }
                }
                Storage::Arena { .. } | Storage::Pool if v.ty.as_tensor().is_none() => {
                    return c.bad(format!("{:?} has no device memory", v.ty));
                }
                _ => {}
            }
        }
        for (what, ports) in [("input", &self.inputs), ("output", &self.outputs)] {
            let mut names = BTreeSet::new();
            for p in ports {
                c.place = format!("{what} '{}'", p.name);
                c.value(p.value)?;
                if !names.insert(&p.name) {
                    return c.bad("the name occurs twice");
                }
            }
        }
        for p in &self.inputs {
            if !matches!(self.values[p.value.index()].storage, Storage::Input | Storage::Host) {
                c.place = format!("input '{}'", p.name);
                return c.bad("its storage is not given by the caller");
            }
        }
        c.place = "state".to_string();
        for s in &self.state {
            let (Some(i), Some(o)) = (self.inputs.get(s.input), self.outputs.get(s.output)) else {
                return c.bad("names an input or output that is not there");
            };
            if s.axis >= self.dims(i.value).len().min(self.dims(o.value).len()).max(1) {
                return c.bad(format!("there is no dim {}", s.axis));
            }
        }
        for (i, g) in self.groups.iter().enumerate() {
            c.place = format!("group {i} '{}'", g.name);
            g.inputs.iter().chain(&g.outputs).try_for_each(|v| c.value(*v))?;
            if g.inputs.len() != g.graph.inputs.len() || g.outputs.len() != g.graph.outputs.len() {
                return c.bad("its values do not match its subgraph");
            }
            c.dim(&g.flops)?;
            c.dim(&g.bytes)?;
        }
        c.place = "hosted groups".to_string();
        if self.hosted.iter().any(|h| h.group >= self.groups.len()) {
            return c.bad("names a group that is not there");
        }
        c.block(&self.body, "", 0)
    }
}
