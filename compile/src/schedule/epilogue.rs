//! What follows a product or convolution: its elementwise operations on register tiles of results, and their stores.

use tongtu_graph::{Graph, ValueId};
use tongtu_tensor::DType;
use tongtu_tensor::scalar::Binary;
use tongtu_tile::{TileMap, Val};

use crate::emit::{CAST, Coord, Emitter, zero_of};
use crate::error::Error;

/// Coordinates of a group's results from those of the anchor's result.
pub fn result_coords(e: &mut Emitter<'_>, dims: &[Option<usize>], anchor: &[Coord]) -> Vec<Coord> {
    let zero = e.b.int(0);
    dims.iter().map(|d| d.map_or(Coord::at(zero), |d| anchor[d])).collect()
}

/// Whether what follows a contraction is better computed row by row than on the whole register tile at once.
pub fn heavy_epilogue(g: &Graph) -> bool {
    g.nodes.iter().filter(|n| crate::fuse::expensive(&n.op)).count() > 0 || g.nodes.len() > 24
}

/// Scratch for one register tile of results.
pub fn epilogue_view(e: &mut Emitter<'_>, ct: DType, rows: usize, columns: usize) -> Result<Val, Error> {
    let scratch = e.b.alloc(ct, rows * columns)?;
    let (zero, one) = (e.b.int(0), e.b.int(1));
    let (r, c) = (e.b.int(rows as i64), e.b.int(columns as i64));
    Ok(e.b.view(scratch, zero, &[r, c], &[c, one])?)
}

/// The place of a register tile of results, or of one of its rows.
pub type Place<'b> = dyn FnMut(&mut Emitter<'_>, Option<Val>) -> Result<Vec<Coord>, Error> + 'b;

/// Computes what follows `anchor` from its accumulators and stores the results. `coords` gives the place of the whole tile, or of
/// one of its rows; with scratch the work is done row by row.
pub fn epilogue(
    e: &mut Emitter<'_>,
    anchor: ValueId,
    acc: Val,
    scratch: Option<Val>,
    outs: &[Val],
    coords: &mut Place<'_>,
) -> Result<(), Error> {
    epilogue_of(e, anchor, acc, scratch, None, outs, coords)
}

/// As [`epilogue`], for no more than a number of rows where there is scratch.
pub fn epilogue_of(
    e: &mut Emitter<'_>,
    anchor: ValueId,
    acc: Val,
    scratch: Option<Val>,
    most: Option<Val>,
    outs: &[Val],
    coords: &mut Place<'_>,
) -> Result<(), Error> {
    divided_epilogue(e, anchor, acc, scratch, (most, None), outs, coords)
}

/// As [`epilogue_of`], with what rows are divided by first, where there is scratch: a view and a column of it.
pub fn divided_epilogue(
    e: &mut Emitter<'_>,
    anchor: ValueId,
    acc: Val,
    scratch: Option<Val>,
    (most, divisor): (Option<Val>, Option<(Val, Val)>),
    outs: &[Val],
    coords: &mut Place<'_>,
) -> Result<(), Error> {
    let g = e.graph;
    let finish = |e: &mut Emitter<'_>, acc: Val, c: &[Coord]| -> Result<(), Error> {
        let t = e.b.cast(acc, g.dtype(anchor), CAST)?;
        e.bind(anchor, t);
        for (&v, &view) in g.outputs.iter().zip(outs) {
            let t = e.emit(v, c)?;
            e.store_view(view, t, c)?;
        }
        Ok(())
    };
    let Some(view) = scratch else {
        let c = coords(e, None)?;
        return finish(e, acc, &c);
    };
    let shape = e.shape.clone();
    let (zero, mut rows) = (e.b.int(0), e.b.int(shape[0] as i64));
    if let Some(most) = most {
        rows = e.b.min(rows, most)?;
    }
    e.b.store(view, acc, &[zero, zero], TileMap::along(&shape, &[0, 1]), &[true, true])?;
    let ct = e.b.dtype(acc);
    e.for_loop(zero, rows, 1, &[], |e, row, _| {
        let line = [1, shape[1]];
        e.shape = line.to_vec();
        let map = TileMap::along(&line, &[0, 1]);
        let mut acc = e.b.load(view, &[row, zero], map, &[true, true], zero_of(ct))?;
        if let Some((divisors, column)) = divisor {
            let map = TileMap::along(&[1, 1], &[0, 1]);
            let t = e.b.load(divisors, &[row, column], map, &[true, true], zero_of(ct))?;
            let t = e.b.broadcast(t, &line)?;
            acc = e.b.binary(Binary::Div, acc, t)?;
        }
        let c = coords(e, Some(row))?;
        finish(e, acc, &c)?;
        Ok(vec![])
    })?;
    e.shape = shape;
    Ok(())
}

/// The place of a row of a panel.
pub type RowPlace<'b> = dyn FnMut(&mut Emitter<'_>, Val, Val) -> Result<Vec<Coord>, Error> + 'b;

/// As [`epilogue`], from the sums of rows of neighbouring panels of `width` columns in scratch, row by row, so that memory is read and
/// written along its lines. `coords` gives the place of a row of a panel, both counted from the first.
pub fn epilogue_rows(
    e: &mut Emitter<'_>,
    anchor: ValueId,
    sums: Val,
    (rows, panels, width): (Val, Val, usize),
    outs: &[Val],
    coords: &mut RowPlace<'_>,
) -> Result<(), Error> {
    let g = e.graph;
    let ct = e.b.dtype(sums);
    let zero = e.b.int(0);
    e.for_loop(zero, rows, 1, &[], |e, row, _| {
        e.for_loop(zero, panels, 1, &[], |e, panel, _| {
            e.shape = vec![1, width];
            let first = e.b.mul_int(panel, width as i64)?;
            let map = TileMap::along(&e.shape, &[0, 1]);
            let acc = e.b.load(sums, &[row, first], map, &[true, true], zero_of(ct))?;
            let t = e.b.cast(acc, g.dtype(anchor), CAST)?;
            let c = coords(e, row, panel)?;
            e.bind(anchor, t);
            for (&v, &view) in g.outputs.iter().zip(outs) {
                let t = e.emit(v, &c)?;
                e.store_view(view, t, &c)?;
            }
            Ok(vec![])
        })
    })?;
    Ok(())
}
