//! Loops and branches.

use tongtu_tile::{Inst, Val};

use super::{Emit, Slot, Text, element, shaped};
use crate::legal::is_950;

impl Emit<'_> {
    /// Defines a region's parameters and gives `name = init` pairs.
    fn carry(&mut self, params: &[Val], init: &[String]) -> (String, String) {
        let mut pairs = Vec::new();
        let mut tys = Vec::new();
        for (&p, i) in params.iter().zip(init) {
            let name = self.fresh();
            pairs.push(format!("{name} = {i}"));
            tys.push(self.ty(p));
            self.define(p, Slot::Value(name));
        }
        (pairs.join(", "), tys.join(", "))
    }

    fn results(&mut self, inst: &Inst, name: &str) {
        for (k, &r) in inst.results.iter().enumerate() {
            let own = if inst.results.len() > 1 { format!("{name}#{k}") } else { name.to_string() };
            self.define(r, Slot::Value(own));
        }
    }

    fn head(&mut self, inst: &Inst) -> (String, String) {
        let name = self.fresh();
        let head = match inst.results.len() {
            0 => String::new(),
            1 => format!("{name} = "),
            n => format!("{name}:{n} = "),
        };
        (name, head)
    }

    fn yielded(&self, vals: &[Val]) -> Text<(String, String)> {
        let names = vals.iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let tys = vals.iter().map(|&v| self.ty(v)).collect::<Vec<_>>();
        Ok((names.join(", "), tys.join(", ")))
    }

    pub(super) fn for_loop(&mut self, inst: &Inst) -> Text<()> {
        let block = &inst.blocks[0];
        let ops = inst.operands.iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let low = self.not_negative.contains(&ops[0]);
        let counted = !self.is_plain(&ops[0], &ops[1], &ops[2]);
        let bounds = if counted {
            let turns = self.turns(&ops[0], &ops[1], &ops[2]);
            [self.index_constant(0), self.index(&turns), self.index_constant(1)]
        } else {
            [self.index(&ops[0]), self.index(&ops[1]), self.index(&ops[2])]
        };
        let (name, head) = self.head(inst);
        let i = self.fresh();
        self.carried.extend(&block.params[1..]);
        let (pairs, tys) = self.carry(&block.params[1..], &ops[3..]);
        let carry = if pairs.is_empty() { String::new() } else { format!(" iter_args({pairs}) -> ({tys})") };
        self.line(format!("{head}scf.for {i} = {} to {} step {}{carry} {{", bounds[0], bounds[1], bounds[2]));
        self.depth += 1;
        let mut at = self.fresh();
        self.line(format!("{at} = arith.index_cast {i} : index to i64"));
        if counted {
            let far = self.int_op("muli", &at, &ops[2]);
            at = self.int_op("addi", &ops[0], &far);
        }
        if low {
            self.not_negative.insert(at.clone());
        }
        self.define(block.params[0], Slot::Value(at));
        self.block(block)?;
        if !inst.results.is_empty() {
            // Tiles that change places: one would be written before the other is read.
            let moved =
                |(k, v): (usize, &Val)| block.params[1..].iter().position(|p| p == v).is_some_and(|p| p != k);
            let moves: Vec<Val> =
                block.results.iter().enumerate().filter(|x| moved(*x)).map(|x| *x.1).collect();
            for v in moves {
                if self.shape(v).is_empty() {
                    continue;
                }
                let (t, ty) = (self.scalar(v)?, self.ty(v));
                let own = self.dense(&t, &ty);
                self.define(v, Slot::Value(own));
            }
            let (names, tys) = self.yielded(&block.results)?;
            self.line(format!("scf.yield {names} : {tys}"));
        }
        self.depth -= 1;
        self.line("}".to_string());
        self.results(inst, &name);
        Ok(())
    }

    /// Whether a loop's variable stays within its type when it passes the end, or would after 2^40 turns.
    fn is_plain(&self, lo: &str, hi: &str, step: &str) -> bool {
        let [lo, hi, step] = [lo, hi, step].map(|v| self.known.get(v).copied());
        match step {
            Some(1) => true,
            Some(n @ 2..=0x10_0000) => {
                lo.is_some_and(|lo| lo < 1 << 62) || hi.is_some_and(|hi| hi < i64::MAX - n)
            }
            _ => false,
        }
    }

    /// How often a loop turns.
    fn turns(&mut self, lo: &str, hi: &str, step: &str) -> String {
        // The way to the last turn at most, as a number without sign; half of it is divided, then what is left.
        let (zero, one) = (self.int(0), self.int(1));
        let way = self.int_op("subi", hi, lo);
        let way = self.int_op("subi", &way, &one);
        let half = self.int_op("shrui", &way, &one);
        let half = self.int_op("divsi", &half, step);
        let twice = self.int_op("shli", &half, &one);
        let done = self.int_op("muli", &twice, step);
        let left = self.int_op("subi", &way, &done);
        let (some, wraps) = (self.pred("sge", &left, step), self.pred("slt", &left, &zero));
        let more = self.fresh();
        self.line(format!("{more} = arith.ori {some}, {wraps} : i1"));
        let more_int = self.fresh();
        self.line(format!("{more_int} = arith.extui {more} : i1 to i64"));
        let turns = self.int_op("addi", &twice, &more_int);
        let turns = self.int_op("addi", &turns, &one);
        let (any, n) = (self.pred("slt", lo, hi), self.fresh());
        self.line(format!("{n} = arith.select {any}, {turns}, {zero} : i64"));
        n
    }

    /// The condition and scalars are carried as values. Carried tiles live in memory, for the vendor's compiler fails on them.
    pub(super) fn while_loop(&mut self, inst: &Inst) -> Text<()> {
        let block = &inst.blocks[0];
        let ops = inst.operands.iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let (mut homes, mut init, mut tys) = (Vec::new(), vec![ops[0].clone()], vec!["i1".to_string()]);
        for (&p, o) in block.params.iter().zip(&ops[1..]) {
            let shape = self.shape(p);
            if shape.is_empty() {
                init.push(o.clone());
                tys.push(self.ty(p));
                homes.push(None);
                continue;
            }
            let ty = format!("memref<{}>", shaped(&shape, &element(self.dtype(p))));
            let home = self.fresh();
            self.line(format!("{home} = memref.alloc() : {ty}"));
            self.put_home(o, &home, &self.ty(p), &ty);
            homes.push(Some((home, ty)));
        }
        let name = self.fresh();
        let names: Vec<String> = tys.iter().map(|_| self.fresh()).collect();
        let pairs: Vec<String> = names.iter().zip(&init).map(|(n, o)| format!("{n} = {o}")).collect();
        let tys_text = tys.join(", ");
        let count = if tys.len() > 1 { format!(":{}", tys.len()) } else { String::new() };
        self.line(format!(
            "{name}{count} = scf.while ({}) : ({tys_text}) -> ({tys_text}) {{",
            pairs.join(", ")
        ));
        self.line(format!("  scf.condition({}) {} : {tys_text}", names[0], names.join(", ")));
        self.line("} do {".to_string());
        let inner: Vec<String> = tys.iter().map(|_| self.fresh()).collect();
        let typed: Vec<String> = inner.iter().zip(&tys).map(|(p, t)| format!("{p}: {t}")).collect();
        self.line(format!("^bb0({}):", typed.join(", ")));
        self.depth += 1;
        let mut scalars = inner.into_iter().skip(1);
        for (&p, home) in block.params.iter().zip(&homes) {
            let value = match home {
                Some((home, ty)) => Some(self.take_home(home, ty)),
                None => scalars.next(),
            };
            if let Some(v) = value {
                self.define(p, Slot::Value(v));
            }
        }
        self.block(block)?;
        let mut out = vec![self.scalar(block.results[0])?];
        for (&r, home) in block.results[1..].iter().zip(&homes) {
            let value = self.scalar(r)?;
            match home {
                Some((home, ty)) => self.put_home(&value, home, &self.ty(r), ty),
                None => out.push(value),
            }
        }
        self.line(format!("scf.yield {} : {tys_text}", out.join(", ")));
        self.depth -= 1;
        self.line("}".to_string());
        let mut next = 1;
        for (&r, home) in inst.results.iter().zip(&homes) {
            let value = match home {
                Some((home, ty)) => self.take_home(home, ty),
                None => {
                    next += 1;
                    format!("{name}#{}", next - 1)
                }
            };
            self.define(r, Slot::Value(value));
        }
        Ok(())
    }

    /// A copy of a carried tile's memory as a tensor, for the memory is written before the tensor's last use.
    fn take_home(&mut self, home: &str, ty: &str) -> String {
        let (copy, t) = (self.fresh(), self.fresh());
        self.line(format!("{copy} = memref.alloc() : {ty}"));
        self.line(format!("memref.copy {home}, {copy} : {ty} to {ty}"));
        self.line(format!("{t} = bufferization.to_tensor {copy} restrict writable : {ty}"));
        t
    }

    pub(crate) fn put_home(&mut self, value: &str, home: &str, tensor: &str, ty: &str) {
        self.line(format!(
            "bufferization.materialize_in_destination {value} in writable {home} : ({tensor}, {ty}) -> ()"
        ));
    }

    pub(super) fn branch(&mut self, inst: &Inst) -> Text<()> {
        let condition = self.scalar(inst.operands[0])?;
        let (name, head) = self.head(inst);
        let tys = inst.results.iter().map(|&r| self.ty(r)).collect::<Vec<_>>().join(", ");
        let arrow = if inst.results.is_empty() { String::new() } else { format!(" -> ({tys})") };
        self.line(format!("{head}scf.if {condition}{arrow} {{"));
        for (i, block) in inst.blocks.iter().enumerate() {
            if i > 0 {
                self.line("} else {".to_string());
            }
            self.depth += 1;
            self.block(block)?;
            if !inst.results.is_empty() {
                let (mut names, mut tys) = (Vec::new(), Vec::new());
                for &v in &block.results {
                    let (name, ty) = (self.scalar(v)?, self.ty(v));
                    // One chip's compiler forgets that what a branch hands through is the loop's, and writes there first.
                    let copied = is_950(self.chip) && self.carried.contains(&v) && !self.shape(v).is_empty();
                    names.push(if copied { self.dense(&name, &ty) } else { name });
                    tys.push(ty);
                }
                self.line(format!("scf.yield {} : {}", names.join(", "), tys.join(", ")));
            }
            self.depth -= 1;
        }
        self.line("}".to_string());
        self.results(inst, &name);
        Ok(())
    }
}
