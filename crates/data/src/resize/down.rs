//! The pass in a picture's height with wide registers: a register holds neighbours of one row.
//!
//! A column is here the same bytes of two rows that follow each other, in the order of [`weighted`]; about three output rows
//! read it. Rows are finished from the top, each while the two or three rows of columns that it reads are close at hand.

use std::ops::Range;

use pulp::NullaryFnOnce;

use super::taps::Pairs;
use super::weighted::weighted;
use super::{BEHIND, Rows};
use crate::wide::{Column, Columns, LANE, TOGETHER, Wide};

/// Each output row as a weighted sum of whole rows; see [`super::bicubic_rows`] for `finished`. `false`, and nothing done, for
/// rows that do not fill a register. Only the rows `there` have been given.
pub(super) fn vertical_pass<W: Wide>(
    wide: W,
    (rows, there): (Rows<'_>, Range<usize>),
    pairs: Pairs<'_>,
    columns: &mut Columns,
    out: &mut [u8],
    finished: &mut dyn FnMut(usize, &[u8]),
) -> bool {
    let block = W::LANES * LANE;
    if rows.length < block {
        return false;
    }
    let blocks = rows.length.div_ceil(block);
    let kept = pairs.each() * 2;
    let columns = W::columns(columns);
    columns.resize(columns.len().max(blocks * kept), [wide.splat(0); TOGETHER]);
    let columns = &mut columns[..blocks * kept];
    let first = pairs.of(0).0;
    let mut down = Down { wide, rows, there, pairs, columns, kept, first, ready: first };
    for number in 0..pairs.len() {
        let start = number * rows.length;
        down.make(number, &mut out[start..start + rows.length]);
        finished(number, &out[start..start + rows.length + BEHIND]);
    }
    true
}

/// Makes output rows from the top.
struct Down<'a, W: Wide> {
    wide: W,
    rows: Rows<'a>,
    /// The rows that are there.
    there: Range<usize>,
    pairs: Pairs<'a>,
    /// Pairs `first..ready` of each block of bytes, room for `kept` of them.
    columns: &'a mut [Column<W>],
    kept: usize,
    first: usize,
    ready: usize,
}

impl<W: Wide> Down<'_, W> {
    /// Output row `number`, behind the one before.
    fn make(&mut self, number: usize, out: &mut [u8]) {
        let (start, weights) = self.pairs.of(number);
        let needed = start + weights.len();
        if needed > self.first + self.kept {
            for columns in self.columns.chunks_exact_mut(self.kept) {
                columns.copy_within(start.min(self.ready) - self.first..self.ready - self.first, 0);
            }
            self.first = start;
            self.ready = self.ready.max(start);
        }
        while self.ready < needed {
            // Rows before the first one and behind the last one have no weight.
            let row = |number: usize| {
                let number = number.clamp(self.there.start, self.there.end - 1);
                self.rows.row(number - self.there.start)
            };
            let rows = [row(self.ready * 2), row(self.ready * 2 + 1)];
            let (wide, kept, place) = (self.wide, self.kept, self.ready - self.first);
            wide.vectorize(Arrange { wide, rows, columns: self.columns, kept, place });
            self.ready += 1;
        }
        let (wide, kept, place) = (self.wide, self.kept, start - self.first);
        wide.vectorize(OneRow { wide, columns: self.columns, kept, place, weights, out });
    }
}

/// A pair of rows becomes a column of each block.
struct Arrange<'a, W: Wide> {
    wide: W,
    rows: [&'a [u8]; 2],
    columns: &'a mut [Column<W>],
    kept: usize,
    place: usize,
}

impl<W: Wide> NullaryFnOnce for Arrange<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { wide, rows: [one, two], columns, kept, place } = self;
        let block = W::LANES * LANE;
        let mut reached = 0;
        for columns in columns.chunks_exact_mut(kept) {
            // The last block begins inside the one before it.
            let at = reached.min(one.len() - block);
            columns[place] = side_by_side(wide, wide.load(one, at), wide.load(two, at));
            reached += block;
        }
    }
}

/// The weighted sum of columns in each block.
struct OneRow<'a, W: Wide> {
    wide: W,
    columns: &'a [Column<W>],
    kept: usize,
    place: usize,
    weights: &'a [[i32; 2]],
    out: &'a mut [u8],
}

impl<W: Wide> NullaryFnOnce for OneRow<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { wide, columns, kept, place, weights, out } = self;
        let block = W::LANES * LANE;
        let mut reached = 0;
        for columns in columns.chunks_exact(kept) {
            let at = reached.min(out.len() - block);
            let sums = weighted(wide, &columns[place..place + weights.len()], weights);
            let lanes = wide.lanes(wide.pack(sums));
            out[at..at + block].copy_from_slice(lanes.as_ref().as_flattened());
            reached += block;
        }
    }
}

/// The bytes of two rows as pairs of 16-bit numbers, in the order in which packing brings them back.
#[inline(always)]
fn side_by_side<W: Wide>(wide: W, one: W::Register, two: W::Register) -> Column<W> {
    let nothing = wide.splat(0);
    let (lower, upper) = (wide.interleave(one, two, false), wide.interleave(one, two, true));
    [
        wide.interleave(lower, nothing, false),
        wide.interleave(lower, nothing, true),
        wide.interleave(upper, nothing, false),
        wide.interleave(upper, nothing, true),
    ]
}
