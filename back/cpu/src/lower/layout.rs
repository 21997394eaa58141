//! How a tile's elements lie in LLVM values, and moving them about.

use super::emit::{Reg, V};
use super::{Fun, Result, Tile};
use std::collections::{HashMap, HashSet};
use tongtu_chip::Chip;
use tongtu_tensor::scalar::Binary;
use tongtu_tensor::{DType, Num};
use tongtu_tile::{Block, Kernel, Op, Val};

/// Where the elements of a tile are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Rows of the last dim, cut into chunks.
    Rows,
    /// Every element by itself, row-major: the left operand of a matrix multiplication.
    Elements,
    /// Squares of 16 rows by 16 columns in matrix registers, row by row: accumulators of a matrix unit.
    Squares,
}

/// One chunk of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    /// First position in the row.
    pub(super) start: usize,
    /// Positions it holds.
    pub(super) valid: usize,
    /// Lanes of the LLVM value: a power of two, at least `valid`.
    pub(super) width: usize,
}

/// The chunks of a tile.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    /// Product of the outer dims.
    pub(super) rows: usize,
    /// The last dim.
    pub(super) n: usize,
    /// The chunks of one row.
    pub(super) chunks: Vec<Chunk>,
}

impl Geometry {
    pub(super) fn new(shape: &[usize], lanes: usize) -> Geometry {
        let (n, rows) = match shape.split_last() {
            Some((n, outer)) => (*n, outer.iter().product()),
            None => (1, 1),
        };
        let mut chunks = Vec::new();
        let mut start = 0;
        while start < n {
            let valid = lanes.min(n - start);
            chunks.push(Chunk { start, valid, width: valid.next_power_of_two() });
            start += valid;
        }
        Geometry { rows, n, chunks }
    }

    /// Parts of a tile.
    pub(super) fn parts(&self) -> usize {
        self.rows * self.chunks.len()
    }

    /// The chunk that a part is.
    pub(super) fn chunk(&self, part: usize) -> Chunk {
        self.chunks[part % self.chunks.len()]
    }

    /// The part and lane that hold an element, given its row-major position.
    pub(super) fn find(&self, position: usize, lanes: usize) -> (usize, usize) {
        let (row, i) = (position / self.n, position % self.n);
        (row * self.chunks.len() + i / lanes, i % lanes)
    }
}

/// Row-major steps of a shape.
pub(super) fn steps(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// Chooses the layout each value is wanted in, and finds the loads that a product may do itself, next to their
/// use: those with one use, in a product of the same block, with no write and no region in between. They come
/// with the number of rows that the matrix unit wants side by side.
pub(super) fn choose(k: &Kernel, chip: &Chip) -> (Vec<Layout>, HashMap<Val, usize>, HashSet<Val>) {
    let mut uses: HashMap<Val, (usize, usize)> = HashMap::new();
    let mut loads = Vec::new();
    walk(&k.body, &mut uses, &mut loads);
    let mut wanted = vec![Layout::Rows; k.types.len()];
    for v in loads {
        if let Some((all, left)) = uses.get(&v)
            && all == left
        {
            wanted[v.index()] = Layout::Elements;
        }
    }
    // Values that are one accumulator at different times live in matrix registers together, or not at all.
    let mut classes = Classes { parent: (0..k.types.len()).collect(), products: Vec::new() };
    classes.join_block(&k.body);
    let mut fits: HashMap<usize, bool> = HashMap::new();
    for (acc, a, b) in classes.products.clone() {
        let class = classes.find(acc.index());
        let ok = super::mma::unit(k, chip, acc, a, b).is_some();
        *fits.entry(class).or_insert(true) &= ok;
        if ok {
            wanted[a.index()] = Layout::Rows;
        }
    }
    for (v, layout) in wanted.iter_mut().enumerate() {
        if fits.get(&classes.find(v)) == Some(&true) {
            *layout = Layout::Squares;
        }
    }
    let mut streamed = HashMap::new();
    stream(&k.body, &uses, &wanted, &mut streamed, k);
    let by_unit = classes.products.iter().filter(|p| wanted[p.0.index()] == Layout::Squares);
    let unit_operands = by_unit.flat_map(|p| [p.1, p.2]).collect();
    (wanted, streamed, unit_operands)
}

/// What a value that only dot products read is made of: a load, then of bytes operations with one number.
#[derive(Debug, Clone)]
pub(super) struct Bytes {
    pub(super) load: Val,
    pub(super) then: Vec<(Binary, i64)>,
}

/// Right operands of products that the chip sums several steps of at once, and what they are computed from, none of which anything else
/// reads: the product loads and computes them itself.
pub(super) fn dots(k: &Kernel, chip: &Chip, wanted: &[Layout]) -> HashMap<Val, Bytes> {
    let mut found = HashMap::new();
    if !super::dot::sums_groups(chip) {
        return found;
    }
    let (mut uses, mut loads) = (HashMap::new(), Vec::new());
    walk(&k.body, &mut uses, &mut loads);
    let mut numbers = HashMap::new();
    dots_of(&k.body, (k, chip), wanted, &mut numbers, &mut found);
    // Keep what is read by nothing else, products first.
    let mut inside: HashMap<Val, usize> = HashMap::new();
    count_inside(&k.body, &found, &mut inside);
    let stray = |v: &Val| uses.get(v).map_or(0, |u| u.0) != inside.get(v).copied().unwrap_or(0);
    let bad: HashSet<Val> = found.iter().filter(|(v, _)| stray(v)).map(|(_, b)| b.load).collect();
    found.retain(|_, b| !bad.contains(&b.load));
    found
}

fn dots_of(
    block: &Block,
    (k, chip): (&Kernel, &Chip),
    wanted: &[Layout],
    numbers: &mut HashMap<Val, i64>,
    out: &mut HashMap<Val, Bytes>,
) {
    let mut live: HashMap<Val, Bytes> = HashMap::new();
    for inst in &block.insts {
        let result = inst.results.first();
        match (&inst.op, result) {
            (Op::Full { value: Num::Int(n), .. }, Some(r)) => {
                numbers.extend(i64::try_from(*n).ok().map(|n| (*r, n)));
            }
            (Op::Broadcast { .. }, Some(r)) => {
                let known = numbers.get(&inst.operands[0]).copied();
                numbers.extend(known.map(|n| (*r, n)));
            }
            (Op::Load { masked: false, .. }, Some(r))
                if matches!(k.ty(*r).dtype(), DType::U8 | DType::I8 | DType::BF16) =>
            {
                live.insert(*r, Bytes { load: *r, then: Vec::new() });
            }
            (Op::Binary(op @ (Binary::And | Binary::Shr)), Some(r)) => {
                if let (Some(from), Some(&n)) = (live.get(&inst.operands[0]), numbers.get(&inst.operands[1]))
                    && k.ty(*r).dtype() == DType::U8
                    && (0..8).contains(&n) | (*op == Binary::And)
                {
                    let mut then = from.then.clone();
                    then.push((*op, n));
                    live.insert(*r, Bytes { load: from.load, then });
                }
            }
            (Op::Mma {}, Some(r)) if wanted[r.index()] != Layout::Squares => {
                let (a, b) = (inst.operands[1], inst.operands[2]);
                if super::dot::is_dot(k, chip, inst.operands[0], a, b)
                    && let Some(bytes) = live.get(&b)
                {
                    let of = bytes.load;
                    out.extend(live.iter().filter(|(_, x)| x.load == of).map(|(v, x)| (*v, x.clone())));
                }
            }
            (Op::Store { .. } | Op::Scatter { .. } | Op::AtomicReduce { .. }, _) => live.clear(),
            (Op::AtomicRmw { .. } | Op::AtomicCas { .. }, _) => live.clear(),
            _ if !inst.blocks.is_empty() => live.clear(),
            _ => {}
        }
        for b in &inst.blocks {
            dots_of(b, (k, chip), wanted, numbers, out);
        }
    }
}

/// Uses of values by each other and by dot products.
fn count_inside(block: &Block, found: &HashMap<Val, Bytes>, out: &mut HashMap<Val, usize>) {
    for inst in &block.insts {
        let made = inst.results.first().is_some_and(|r| found.contains_key(r));
        if made {
            *out.entry(inst.operands[0]).or_default() += 1;
        }
        if let (Op::Mma {}, [_, _, b]) = (&inst.op, &inst.operands[..]) {
            *out.entry(*b).or_default() += 1;
        }
        for b in &inst.blocks {
            count_inside(b, found, out);
        }
    }
}

fn stream(
    block: &Block,
    uses: &HashMap<Val, (usize, usize)>,
    wanted: &[Layout],
    out: &mut HashMap<Val, usize>,
    k: &Kernel,
) {
    let mut loads: Vec<Val> = Vec::new();
    for inst in &block.insts {
        match &inst.op {
            Op::Load { masked: false, .. } => loads.extend(inst.results.first()),
            Op::Mma {} => {
                for (i, v) in inst.operands[1..].iter().enumerate() {
                    if loads.contains(v) && uses.get(v).is_some_and(|u| u.0 == 1) {
                        let bits = k.ty(*v).dtype().bits() as usize;
                        let unit = wanted[inst.results[0].index()] == Layout::Squares;
                        out.insert(*v, if i == 0 || !unit { 1 } else { 32 / bits });
                    }
                }
            }
            Op::Store { .. } | Op::Scatter { .. } | Op::AtomicReduce { .. } => loads.clear(),
            Op::AtomicRmw { .. } | Op::AtomicCas { .. } => loads.clear(),
            _ if !inst.blocks.is_empty() => loads.clear(),
            _ => {}
        }
        for b in &inst.blocks {
            stream(b, uses, wanted, out, k);
        }
    }
}

/// Which values are the same accumulator at different times.
struct Classes {
    parent: Vec<usize>,
    /// Accumulator, left and right operand of every product.
    products: Vec<(Val, Val, Val)>,
}

impl Classes {
    fn find(&mut self, v: usize) -> usize {
        let mut at = v;
        while self.parent[at] != at {
            self.parent[at] = self.parent[self.parent[at]];
            at = self.parent[at];
        }
        at
    }

    fn join(&mut self, a: Val, b: Val) {
        let (a, b) = (self.find(a.index()), self.find(b.index()));
        self.parent[a] = b;
    }

    fn join_block(&mut self, block: &Block) {
        for inst in &block.insts {
            match (&inst.op, &inst.blocks[..]) {
                (Op::Mma {}, _) => {
                    self.products.push((inst.operands[0], inst.operands[1], inst.operands[2]));
                    self.join(inst.operands[0], inst.results[0]);
                }
                (Op::For {}, [body]) => {
                    for (i, r) in inst.results.iter().enumerate() {
                        self.join(*r, inst.operands[3 + i]);
                        self.join(*r, body.params[1 + i]);
                        self.join(*r, body.results[i]);
                    }
                }
                (Op::While {}, [body]) => {
                    for (i, r) in inst.results.iter().enumerate() {
                        self.join(*r, inst.operands[1 + i]);
                        self.join(*r, body.params[i]);
                        self.join(*r, body.results[1 + i]);
                    }
                }
                (Op::If {}, [yes, no]) => {
                    for (i, r) in inst.results.iter().enumerate() {
                        self.join(*r, yes.results[i]);
                        self.join(*r, no.results[i]);
                    }
                }
                _ => {}
            }
            for b in &inst.blocks {
                self.join_block(b);
            }
        }
    }
}

/// Counts uses, and uses as left operand of a multiplication; lists the results of unmasked loads.
fn walk(block: &Block, uses: &mut HashMap<Val, (usize, usize)>, loads: &mut Vec<Val>) {
    for inst in &block.insts {
        for (i, v) in inst.operands.iter().enumerate() {
            let count = uses.entry(*v).or_default();
            count.0 += 1;
            count.1 += usize::from(matches!(inst.op, Op::Mma {}) && i == 1);
        }
        if matches!(inst.op, Op::Load { masked: false, .. }) {
            loads.extend(inst.results.first());
        }
        for b in &inst.blocks {
            walk(b, uses, loads);
        }
    }
    for v in &block.results {
        uses.entry(*v).or_default().0 += 1;
    }
}

impl Fun<'_> {
    pub(super) fn geometry(&self, shape: &[usize]) -> Geometry {
        Geometry::new(shape, self.lanes)
    }

    /// The parts of a tile in rows.
    pub(super) fn rows(&mut self, tile: &Tile) -> Result<Vec<V>> {
        match tile.layout {
            Layout::Rows => return Ok(tile.parts.clone()),
            Layout::Squares => return self.unsquare(tile),
            Layout::Elements => {}
        }
        let (reg, geo) = (Reg::of(tile.dtype), self.geometry(&tile.shape));
        let mut parts = Vec::with_capacity(geo.parts());
        for part in 0..geo.parts() {
            let chunk = geo.chunk(part);
            let at = part / geo.chunks.len() * geo.n + chunk.start;
            let lanes: Vec<V> = tile.parts[at..at + chunk.valid].to_vec();
            parts.push(self.pack(reg, &lanes, chunk.width));
        }
        Ok(parts)
    }

    /// The parts of a tile in a layout that a value is wanted in.
    pub(super) fn parts_as(&mut self, v: Val, layout: Layout) -> Result<Vec<V>> {
        let tile = self.tile(v)?.clone();
        match layout {
            Layout::Squares if tile.layout == Layout::Squares => Ok(tile.parts),
            Layout::Squares => self.square(&tile),
            _ => self.rows(&tile),
        }
    }

    /// The layout a value that control flow joins is kept in.
    pub(super) fn kept(&self, v: Val) -> Layout {
        match self.wanted[v.index()] {
            Layout::Squares => Layout::Squares,
            _ => Layout::Rows,
        }
    }

    /// The parts of an operand in rows.
    pub(super) fn operand(&mut self, v: Val) -> Result<Vec<V>> {
        let tile = self.tile(v)?.clone();
        self.rows(&tile)
    }

    /// Every element of a tile, row-major.
    pub(super) fn elements(&mut self, tile: &Tile) -> Result<Vec<V>> {
        if tile.layout == Layout::Elements {
            return Ok(tile.parts.clone());
        }
        let (reg, geo) = (Reg::of(tile.dtype), self.geometry(&tile.shape));
        let mut out = Vec::with_capacity(geo.rows * geo.n);
        for (part, x) in self.rows(tile)?.iter().enumerate() {
            let chunk = geo.chunk(part);
            for lane in 0..chunk.valid {
                out.push(self.lane(reg, x, chunk.width, lane));
            }
        }
        Ok(out)
    }

    /// A value of `width` lanes from single elements.
    pub(super) fn pack(&mut self, reg: Reg, elements: &[V], width: usize) -> V {
        if width == 1 {
            return elements[0].clone();
        }
        if elements.iter().all(|e| e == &elements[0]) {
            return self.spread(reg, &elements[0], width);
        }
        let (ty, one) = (reg.ty(width), reg.ty(1));
        let mut v: V = "poison".into();
        for (i, e) in elements.iter().enumerate() {
            v = self.def(format_args!("insertelement {ty} {v}, {one} {e}, i64 {i}"));
        }
        v
    }

    /// A value of `width` lanes whose lane `i` is lane `from[i].1` of part `from[i].0`; each part comes with
    /// its own width. Lanes past the end of `from` hold anything.
    pub(super) fn assemble(
        &mut self,
        reg: Reg,
        parts: &[(V, usize)],
        from: &[(usize, usize)],
        width: usize,
    ) -> V {
        if width == 1 {
            let (part, lane) = from[0];
            return self.lane(reg, &parts[part].0, parts[part].1, lane);
        }
        let (first, _) = from[0];
        if parts[first].1 == width && from.iter().enumerate().all(|(i, f)| *f == (first, i)) {
            return parts[first].0.clone();
        }
        // Scalars are inserted; vectors are shuffled in, two at a time.
        let mut result: Option<(V, Vec<Option<usize>>)> = None;
        let mut done = vec![false; from.len()];
        for i in 0..from.len() {
            if done[i] {
                continue;
            }
            let part = from[i].0;
            let (x, n) = parts[part].clone();
            let mut lanes = vec![None; width];
            for (j, f) in from.iter().enumerate() {
                if f.0 == part {
                    lanes[j] = Some(f.1);
                    done[j] = true;
                }
            }
            let placed = if n == 1 {
                if let Some((v, has)) = &result
                    && lanes.iter().flatten().count() == 1
                {
                    let (ty, one) = (reg.ty(width), reg.ty(1));
                    let mut has = has.clone();
                    has[i] = Some(i);
                    let v = self.def(format_args!("insertelement {ty} {v}, {one} {x}, i64 {i}"));
                    result = Some((v, has));
                    continue;
                }
                self.spread(reg, &x, width)
            } else {
                self.shuffle(reg, &x, &"poison".into(), n, &lanes)
            };
            result = Some(match result {
                None => (placed, (0..width).map(|j| lanes[j].map(|_| j)).collect()),
                Some((v, has)) => {
                    let both: Vec<Option<usize>> = (0..width)
                        .map(|j| if lanes[j].is_some() { Some(width + j) } else { has[j] })
                        .collect();
                    let v = self.shuffle(reg, &v, &placed, width, &both);
                    (v, both.iter().enumerate().map(|(j, b)| b.map(|_| j)).collect())
                }
            });
        }
        result.map_or_else(|| "poison".into(), |r| r.0)
    }

    /// A tile of shape `shape` whose element at row-major position `p` is the one at `source(p)` in the row-major
    /// order of `of`.
    pub(super) fn rearrange(
        &mut self,
        of: &[(Reg, Vec<usize>, Vec<V>)],
        shape: &[usize],
        source: impl Fn(usize) -> (usize, usize),
    ) -> Vec<V> {
        let geo = self.geometry(shape);
        let lanes = self.lanes;
        let sources: Vec<Geometry> = of.iter().map(|(_, s, _)| self.geometry(s)).collect();
        let reg = of[0].0;
        let mut out = Vec::with_capacity(geo.parts());
        for part in 0..geo.parts() {
            let chunk = geo.chunk(part);
            let at = part / geo.chunks.len() * geo.n + chunk.start;
            let mut parts: Vec<(V, usize)> = Vec::new();
            let mut seen: HashMap<V, usize> = HashMap::new();
            let mut from = Vec::with_capacity(chunk.valid);
            for i in 0..chunk.valid {
                let (tile, position) = source(at + i);
                let (p, lane) = sources[tile].find(position, lanes);
                let name = &of[tile].2[p];
                let width = sources[tile].chunk(p).width;
                let index = *seen.entry(name.clone()).or_insert_with(|| {
                    parts.push((name.clone(), width));
                    parts.len() - 1
                });
                from.push((index, lane));
            }
            out.push(self.assemble(reg, &parts, &from, chunk.width));
        }
        out
    }
}
