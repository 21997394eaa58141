//! Reductions and running combinations.

use super::emit::{Reg, V, int};
use super::layout::steps;
use super::{Fun, Result, broken};
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tensor::{Combiner, DType};
use tongtu_tile::{Flags, Inst};

/// A value for each operand of the combiner: one, or a pair.
type Item = Vec<V>;

impl Fun<'_> {
    /// The types a combination computes in: sums and the like of narrow floats in f32, rounded at the end.
    fn accumulators(&self, types: &[DType], combiner: Combiner) -> Vec<DType> {
        let wide = |d: DType| self.computes_in(d).unwrap_or(d);
        types
            .iter()
            .enumerate()
            .map(|(i, d)| if i == 0 && combiner != Combiner::Replace { wide(*d) } else { *d })
            .collect()
    }

    /// Combines two items lane by lane; `a` holds the earlier elements.
    fn combine(
        &mut self,
        c: Combiner,
        types: &[DType],
        n: usize,
        a: &Item,
        b: &Item,
        flags: Flags,
    ) -> Result<Item> {
        if let Some(op) = c.binary() {
            // Any grouping is allowed, so a sum may be taken in whatever order; each step is still exact.
            return Ok(vec![self.binary(op, types[0], n, &a[0], &b[0], flags)?]);
        }
        if c.arity() != 2 {
            return Err(broken("a combiner that combines nothing"));
        }
        let (value, bool_ty) = (types[0], Reg::I1.ty(n));
        let least = matches!(c, Combiner::ArgMin | Combiner::ArgMinLast);
        let last = matches!(c, Combiner::ArgMaxLast | Combiner::ArgMinLast);
        // Does b win? A greater (lesser) value does, NaN over numbers; of equals the index decides.
        let better = self.compare(if least { Compare::Lt } else { Compare::Gt }, value, n, &b[0], &a[0])?;
        let mut wins = better;
        let mut ties = self.compare(Compare::Eq, value, n, &a[0], &b[0])?;
        if value.is_float() {
            let ty = Reg::of(value).ty(n);
            let a_nan = self.cmp("fcmp uno", &ty, &a[0], &a[0]);
            let b_nan = self.cmp("fcmp uno", &ty, &b[0], &b[0]);
            let a_number = self.bin("xor", &bool_ty, &a_nan, &int(Reg::I1, 1, n));
            let over = self.bin("and", &bool_ty, &b_nan, &a_number);
            wins = self.bin("or", &bool_ty, &wins, &over);
            let both = self.bin("and", &bool_ty, &a_nan, &b_nan);
            ties = self.bin("or", &bool_ty, &ties, &both);
        }
        let order = self.compare(if last { Compare::Gt } else { Compare::Lt }, types[1], n, &b[1], &a[1])?;
        let by_index = self.bin("and", &bool_ty, &ties, &order);
        wins = self.bin("or", &bool_ty, &wins, &by_index);
        let mut out = Vec::new();
        for k in 0..2 {
            let ty = Reg::of(types[k]).ty(n);
            out.push(self.choose(n, &wins, &ty, &b[k], &a[k]));
        }
        Ok(out)
    }

    /// The operands' parts, as the accumulators' types.
    fn items(&mut self, inst: &Inst, types: &[DType], wide: &[DType]) -> Result<Vec<Item>> {
        let (_, shape) = self.tile_ty(inst.operands[0])?;
        let geo = self.geometry(shape);
        let mut items: Vec<Item> = vec![Vec::new(); geo.parts()];
        for (k, v) in inst.operands.iter().enumerate() {
            for (p, x) in self.operand(*v)?.iter().enumerate() {
                let x = self.cast(types[k], wide[k], Default::default(), geo.chunk(p).width, x)?;
                items[p].push(x);
            }
        }
        Ok(items)
    }

    /// Combines many items of `n` lanes, as a tree so that steps can overlap.
    fn tree(
        &mut self,
        c: Combiner,
        types: &[DType],
        n: usize,
        mut items: Vec<Item>,
        flags: Flags,
    ) -> Result<Item> {
        // A few long chains keep fewer values alive than a full tree.
        let chains = items.len().min(4);
        let rest = items.split_off(chains);
        for (i, item) in rest.into_iter().enumerate() {
            let slot = i % chains;
            items[slot] = self.combine(c, types, n, &items[slot].clone(), &item, flags)?;
        }
        while items.len() > 1 {
            let mut next = Vec::with_capacity(items.len().div_ceil(2));
            for pair in items.chunks(2) {
                next.push(match pair {
                    [a, b] => self.combine(c, types, n, a, b, flags)?,
                    _ => pair[0].clone(),
                });
            }
            items = next;
        }
        items.pop().ok_or_else(|| broken("a reduction of nothing"))
    }

    /// Combines the first `valid` lanes of an item of `n` lanes into one.
    fn across(
        &mut self,
        c: Combiner,
        types: &[DType],
        mut n: usize,
        valid: usize,
        mut item: Item,
        flags: Flags,
    ) -> Result<Item> {
        let mut left = valid;
        while n > 1 {
            let half = n / 2;
            if left <= half {
                for (k, d) in types.iter().enumerate() {
                    let low: Vec<Option<usize>> = (0..half).map(|i| Some(i.min(left - 1))).collect();
                    item[k] = self.part(Reg::of(*d), &item[k], n, &low);
                }
            } else {
                let mut low = Vec::new();
                let mut high = Vec::new();
                for (k, d) in types.iter().enumerate() {
                    let reg = Reg::of(*d);
                    low.push(self.part(reg, &item[k], n, &(0..half).map(Some).collect::<Vec<_>>()));
                    // Lanes past the end take no part; where they would, the lower lane is kept below.
                    let upper: Vec<Option<usize>> =
                        (0..half).map(|i| Some(if half + i < left { half + i } else { i })).collect();
                    high.push(self.part(reg, &item[k], n, &upper));
                }
                let both = self.combine(c, types, half, &low, &high, flags)?;
                item = if left == n {
                    both
                } else {
                    let taken: Vec<bool> = (0..half).map(|i| half + i < left).collect();
                    self.blend(types, half, &taken, &both, &low)
                };
                left = half;
                n = half;
                continue;
            }
            n = half;
        }
        Ok(item)
    }

    /// Lanes of one vector; of one lane a scalar.
    fn part(&mut self, reg: Reg, x: &V, n: usize, lanes: &[Option<usize>]) -> V {
        match lanes {
            [Some(lane)] => self.lane(reg, x, n, *lane),
            _ => self.shuffle(reg, x, &"poison".into(), n, lanes),
        }
    }

    /// `a` in the lanes that are true, `b` elsewhere.
    fn blend(&mut self, types: &[DType], n: usize, take: &[bool], a: &Item, b: &Item) -> Item {
        let mask: V = if n == 1 {
            take[0].to_string().into()
        } else {
            let lanes: Vec<String> = take.iter().map(|t| format!("i1 {t}")).collect();
            format!("<{}>", lanes.join(", ")).into()
        };
        (0..types.len()).map(|k| self.choose(n, &mask, &Reg::of(types[k]).ty(n), &a[k], &b[k])).collect()
    }

    pub(super) fn reduce(&mut self, inst: &Inst, c: Combiner, dims: &[usize]) -> Result<()> {
        let types: Vec<DType> = inst.operands.iter().map(|v| self.k.ty(*v).dtype()).collect();
        let wide = self.accumulators(&types, c);
        let (_, shape) = self.tile_ty(inst.operands[0])?;
        let items = self.items(inst, &types, &wide)?;
        let (geo, from) = (self.geometry(shape), steps(shape));
        let flags = inst.flags;
        let rank = shape.len();
        let last = rank > 0 && dims.contains(&(rank - 1));
        // Rows of the operand that meet in each row of the outer dims that stay.
        let outer = rank.saturating_sub(1);
        let stay: Vec<usize> = (0..outer).filter(|d| !dims.contains(d)).collect();
        let groups: usize = stay.iter().map(|d| shape[*d]).product();
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); groups];
        for row in 0..geo.rows {
            let mut group = 0;
            for d in &stay {
                let at = row * geo.n / from[*d] % shape[*d];
                group = group * shape[*d] + at;
            }
            members[group].push(row);
        }
        let cuts = geo.chunks.len();
        let mut results: Vec<Vec<Item>> = Vec::with_capacity(groups);
        for rows in &members {
            let mut columns = Vec::with_capacity(cuts);
            for (k, chunk) in geo.chunks.iter().enumerate() {
                let column = rows.iter().map(|r| items[r * cuts + k].clone()).collect();
                columns.push(self.tree(c, &wide, chunk.width, column, flags)?);
            }
            if !last {
                results.push(columns);
                continue;
            }
            // Full chunks meet lane by lane, then across; the last, shorter one by itself.
            let full = geo.chunks.iter().filter(|k| k.valid == geo.chunks[0].width).count();
            let mut ends = Vec::new();
            let rest = columns.split_off(full);
            if !columns.is_empty() {
                let n = geo.chunks[0].width;
                let all = self.tree(c, &wide, n, columns, flags)?;
                ends.push(self.across(c, &wide, n, n, all, flags)?);
            }
            for (item, chunk) in rest.into_iter().zip(&geo.chunks[full..]) {
                ends.push(self.across(c, &wide, chunk.width, chunk.valid, item, flags)?);
            }
            results.push(vec![self.tree(c, &wide, 1, ends, flags)?]);
        }
        for (k, r) in inst.results.iter().enumerate() {
            let (_, to) = self.tile_ty(*r)?;
            let goal = self.geometry(to);
            let reg = Reg::of(types[k]);
            let mut parts: Vec<V> = Vec::with_capacity(goal.parts());
            if last {
                // One scalar a group, in row-major order of what stays.
                let mut scalars = Vec::with_capacity(groups);
                for item in &results {
                    scalars.push(self.cast(wide[k], types[k], Default::default(), 1, &item[0][k])?);
                }
                for part in 0..goal.parts() {
                    let chunk = goal.chunk(part);
                    let at = part / goal.chunks.len() * goal.n + chunk.start;
                    parts.push(self.pack(reg, &scalars[at..at + chunk.valid], chunk.width));
                }
            } else {
                for columns in &results {
                    for (j, item) in columns.iter().enumerate() {
                        let n = geo.chunks.get(j).map_or(1, |c| c.width);
                        parts.push(self.cast(wide[k], types[k], Default::default(), n, &item[k])?);
                    }
                }
            }
            self.set(*r, parts)?;
        }
        Ok(())
    }

    pub(super) fn scan(&mut self, inst: &Inst, c: Combiner, dim: usize, reverse: bool) -> Result<()> {
        let types: Vec<DType> = inst.operands.iter().map(|v| self.k.ty(*v).dtype()).collect();
        let wide = self.accumulators(&types, c);
        let (_, shape) = self.tile_ty(inst.operands[0])?;
        let items = self.items(inst, &types, &wide)?;
        let (geo, from) = (self.geometry(shape), steps(shape));
        let flags = inst.flags;
        let cuts = geo.chunks.len();
        let mut out: Vec<Item> = items.clone();
        if dim + 1 < shape.len() {
            // Row after row.
            let gap = from[dim] / geo.n;
            let mut rows: Vec<usize> = (0..geo.rows).collect();
            if reverse {
                rows.reverse();
            }
            for row in rows {
                let at = row / gap % shape[dim];
                let before = if reverse { row + gap } else { row.wrapping_sub(gap) };
                if (reverse && at + 1 < shape[dim]) || (!reverse && at > 0) {
                    for k in 0..cuts {
                        let n = geo.chunks[k].width;
                        let (a, b) = (out[before * cuts + k].clone(), items[row * cuts + k].clone());
                        out[row * cuts + k] = self.combine(c, &wide, n, &a, &b, flags)?;
                    }
                }
            }
        } else {
            for row in 0..geo.rows {
                let mut carry: Option<Item> = None;
                let order: Vec<usize> = if reverse { (0..cuts).rev().collect() } else { (0..cuts).collect() };
                for k in order {
                    let chunk = geo.chunks[k];
                    let n = chunk.width;
                    let mut item = items[row * cuts + k].clone();
                    let mut step = 1;
                    while step < chunk.valid {
                        // Lane i meets the lane `step` before it (after it, in reverse); the first ones stay.
                        let source = |i: usize| if reverse { i + step } else { i.wrapping_sub(step) };
                        let take: Vec<bool> =
                            (0..n).map(|i| source(i) < chunk.valid && i < chunk.valid).collect();
                        let lanes: Vec<Option<usize>> =
                            (0..n).map(|i| Some(if take[i] { source(i) } else { i })).collect();
                        let mut moved = Vec::new();
                        for (x, d) in item.iter().zip(&wide) {
                            moved.push(self.part(Reg::of(*d), x, n, &lanes));
                        }
                        let both = self.combine(c, &wide, n, &moved, &item, flags)?;
                        item = self.blend(&wide, n, &take, &both, &item);
                        step *= 2;
                    }
                    if let Some(carry) = &carry {
                        let mut spread = Vec::new();
                        for (x, d) in carry.iter().zip(&wide) {
                            spread.push(self.spread(Reg::of(*d), x, n));
                        }
                        item = self.combine(c, &wide, n, &spread, &item, flags)?;
                    }
                    let end = if reverse { 0 } else { chunk.valid - 1 };
                    let mut next = Vec::new();
                    for (x, d) in item.iter().zip(&wide) {
                        next.push(self.lane(Reg::of(*d), x, n, end));
                    }
                    carry = Some(next);
                    out[row * cuts + k] = item;
                }
            }
        }
        for (k, r) in inst.results.iter().enumerate() {
            let mut parts = Vec::with_capacity(out.len());
            for (p, item) in out.iter().enumerate() {
                parts.push(self.cast(wide[k], types[k], Default::default(), geo.chunk(p).width, &item[k])?);
            }
            self.set(*r, parts)?;
        }
        Ok(())
    }

    /// The sum of a product's two operands, for combiners that are one operation.
    pub(super) fn add(&mut self, dtype: DType, n: usize, a: &V, b: &V, flags: Flags) -> Result<V> {
        self.binary(Binary::Add, dtype, n, a, b, flags)
    }
}
