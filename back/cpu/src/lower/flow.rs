//! Loops and branches; carried tiles become phis, part by part.

use super::emit::{Reg, V, as_int};
use super::layout::Layout;
use super::{Fun, Result, Tile, Value, broken};
use std::fmt::Write;
use tongtu_tensor::DType;
use tongtu_tile::{Block, Inst, Val};

impl Fun<'_> {
    /// The types of a value's parts.
    fn part_types(&self, v: Val) -> Result<Vec<String>> {
        let (dtype, shape) = self.tile_ty(v)?;
        if self.kept(v) == Layout::Squares {
            return Ok(vec!["x86_amx".to_string(); super::mma::squares(shape)]);
        }
        let geo = self.geometry(shape);
        Ok((0..geo.parts()).map(|p| Reg::of(dtype).ty(geo.chunk(p).width)).collect())
    }

    /// The parts of `values`, each as the value it becomes is kept.
    fn carried(&mut self, values: &[Val], becomes: &[Val]) -> Result<Vec<Vec<V>>> {
        values.iter().zip(becomes).map(|(v, to)| self.parts_as(*v, self.kept(*to))).collect()
    }

    fn keep(&mut self, v: Val, parts: Vec<V>) -> Result<()> {
        let (dtype, shape) = self.tile_ty(v)?;
        let tile = Tile { dtype, shape: shape.to_vec(), layout: self.kept(v), parts };
        self.values[v.index()] = Some(Value::Tile(tile));
        Ok(())
    }

    /// Gives `v` fresh names for its parts; the phis that define them are written later.
    fn name_parts(&mut self, v: Val) -> Result<Vec<V>> {
        let count = self.part_types(v)?.len();
        let parts: Vec<V> = (0..count).map(|_| self.fresh("%c")).collect();
        self.keep(v, parts.clone())?;
        Ok(parts)
    }

    fn body(&mut self, block: &Block) -> Result<()> {
        for inst in &block.insts {
            self.inst(inst)?;
        }
        Ok(())
    }

    /// One phi for each part, joining two predecessors.
    fn phis(&mut self, v: Val, names: &[V], a: (&[V], &V), b: (&[V], &V)) -> Result<String> {
        let types = self.part_types(v)?;
        let mut w = String::new();
        for (i, name) in names.iter().enumerate() {
            let _ = writeln!(w, "  {name} = phi {} [{}, %{}], [{}, %{}]", types[i], a.0[i], a.1, b.0[i], b.1);
        }
        self.lines += names.len();
        Ok(w)
    }

    pub(super) fn for_loop(&mut self, inst: &Inst) -> Result<()> {
        let block = inst.blocks.first().ok_or_else(|| broken("a loop without a body"))?;
        let bounds = inst.operands[..3].iter().map(|v| self.scalar(*v)).collect::<Result<Vec<_>>>()?;
        let (lo, hi, step) = (&bounds[0], &bounds[1], &bounds[2]);
        let init = self.carried(&inst.operands[3..], &inst.results)?;
        let (head, exit) = (self.fresh("for"), self.fresh("end"));
        // The sum with the step may pass the greatest i64. Of numbers that are not negative it is compared as unsigned, which it
        // then fits; else `i` is held against what it must be below for another turn.
        let (mut add, mut below) = ("add nsw", "icmp slt");
        let last = match (as_int(hi), as_int(step)) {
            (_, Some(1)) => None,
            (Some(h), Some(s)) if h.checked_add(s).is_some() => None,
            _ if as_int(lo).is_some_and(|lo| lo >= 0) => {
                (add, below) = ("add nuw", "icmp ult");
                None
            }
            (Some(h), Some(s)) => Some(h.saturating_sub(s).to_string().into()),
            _ => Some(self.call("i64", "llvm.ssub.sat.i64", &[("i64", hi), ("i64", step)])),
        };
        let runs = matches!((as_int(lo), as_int(hi)), (Some(a), Some(b)) if a < b);
        let before = self.block.clone();
        if runs {
            self.line(format_args!("br label %{head}"));
        } else {
            let c = self.cmp("icmp slt", "i64", lo, hi);
            self.line(format_args!("br i1 {c}, label %{head}, label %{exit}"));
        }
        self.label(&head);
        let at = self.out.len();
        let i = self.fresh("%i");
        let index = Tile { dtype: DType::I64, shape: vec![], layout: Layout::Rows, parts: vec![i.clone()] };
        self.values[block.params[0].index()] = Some(Value::Tile(index));
        let names = block.params[1..].iter().map(|v| self.name_parts(*v)).collect::<Result<Vec<_>>>()?;
        self.body(block)?;
        let next = self.carried(&block.results, &inst.results)?;
        let latch = self.block.clone();
        let i1 = self.bin(add, "i64", &i, step);
        let more = match &last {
            Some(last) => self.cmp("icmp slt", "i64", &i, last),
            None => self.cmp(below, "i64", &i1, hi),
        };
        self.line(format_args!("br i1 {more}, label %{head}, label %{exit}"));
        let mut phis = format!("  {i} = phi i64 [{lo}, %{before}], [{i1}, %{latch}]\n");
        for (k, v) in block.params[1..].iter().enumerate() {
            phis += &self.phis(*v, &names[k], (&init[k], &before), (&next[k], &latch))?;
        }
        self.out.insert_str(at, &phis);
        self.label(&exit);
        for (k, r) in inst.results.iter().enumerate() {
            if runs {
                self.keep(*r, next[k].clone())?;
            } else {
                let names = self.name_parts(*r)?;
                let phis = self.phis(*r, &names, (&init[k], &before), (&next[k], &latch))?;
                self.out.push_str(&phis);
            }
        }
        Ok(())
    }

    pub(super) fn while_loop(&mut self, inst: &Inst) -> Result<()> {
        let block = inst.blocks.first().ok_or_else(|| broken("a loop without a body"))?;
        let first = self.scalar(inst.operands[0])?;
        let init = self.carried(&inst.operands[1..], &inst.results)?;
        let (head, exit) = (self.fresh("while"), self.fresh("end"));
        let before = self.block.clone();
        self.line(format_args!("br i1 {first}, label %{head}, label %{exit}"));
        self.label(&head);
        let at = self.out.len();
        let names = block.params.iter().map(|v| self.name_parts(*v)).collect::<Result<Vec<_>>>()?;
        self.body(block)?;
        let more = self.scalar(block.results[0])?;
        let next = self.carried(&block.results[1..], &inst.results)?;
        let latch = self.block.clone();
        self.line(format_args!("br i1 {more}, label %{head}, label %{exit}"));
        let mut phis = String::new();
        for (k, v) in block.params.iter().enumerate() {
            phis += &self.phis(*v, &names[k], (&init[k], &before), (&next[k], &latch))?;
        }
        self.out.insert_str(at, &phis);
        self.label(&exit);
        for (k, r) in inst.results.iter().enumerate() {
            let names = self.name_parts(*r)?;
            let phis = self.phis(*r, &names, (&init[k], &before), (&next[k], &latch))?;
            self.out.push_str(&phis);
        }
        Ok(())
    }

    pub(super) fn branch(&mut self, inst: &Inst) -> Result<()> {
        let [yes, no] = &inst.blocks[..] else { return Err(broken("a branch without two sides")) };
        let c = self.scalar(inst.operands[0])?;
        let (a, b, join) = (self.fresh("then"), self.fresh("else"), self.fresh("join"));
        self.line(format_args!("br i1 {c}, label %{a}, label %{b}"));
        let mut ends = Vec::new();
        for (label, block) in [(a, yes), (b, no)] {
            self.label(&label);
            self.body(block)?;
            let values = self.carried(&block.results, &inst.results)?;
            ends.push((values, self.block.clone()));
            self.line(format_args!("br label %{join}"));
        }
        self.label(&join);
        for (k, r) in inst.results.iter().enumerate() {
            let names = self.name_parts(*r)?;
            let phis = self.phis(*r, &names, (&ends[0].0[k], &ends[0].1), (&ends[1].0[k], &ends[1].1))?;
            self.out.push_str(&phis);
        }
        Ok(())
    }
}
