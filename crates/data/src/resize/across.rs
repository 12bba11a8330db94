//! The pass in a picture's width with wide registers: several rows go together, one in each lane of 128 bits, because they
//! share their weights.
//!
//! A column of a few rows, which is two neighbouring pixels of each, is brought into the order of [`weighted`] once; about
//! four output pixels then read it.

use std::ops::Range;

use pulp::NullaryFnOnce;

use super::Rows;
use super::taps::Pairs;
use super::weighted::weighted;
use crate::wide::{Column, Columns, LANE, MOST_LANES, TOGETHER, Wide, bytes};

/// Most rows that are resampled together.
const MOST_ROWS: usize = MOST_LANES * TOGETHER;
/// Pixels of a lane.
const PIXELS: usize = 4;

/// Room that is used again.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    pub(super) columns: Columns,
    /// A few rows with room behind them.
    padded: Vec<u8>,
}

/// Each of `numbers` of the rows resampled in its width.
pub(super) fn horizontal_passes<W: Wide>(
    wide: W,
    rows: Rows<'_>,
    numbers: Range<usize>,
    pairs: Pairs<'_>,
    work: &mut Workspace,
    out: &mut Vec<u8>,
) {
    let together = TOGETHER * W::LANES;
    let length = pairs.len() * 3;
    let quads = (rows.length / 3).div_ceil(PIXELS);
    let columns = W::columns(&mut work.columns);
    // What four pixels read, and as much again: few enough to stay close at hand.
    let kept = pairs.each() * 4 + 2;
    columns.resize(columns.len().max(kept), [wide.splat(0); TOGETHER]);
    let columns = &mut columns[..kept];
    // What the last load sees behind the row must be there.
    let reach = quads * PIXELS * 3 + LANE;
    work.padded.resize(together * reach, 0);
    let wanted = numbers.len() * length;
    out.resize(wanted.next_multiple_of(together * length), 0);
    for (block, out) in out.chunks_exact_mut(together * length).enumerate() {
        let mut block_rows: [&[u8]; MOST_ROWS] = [&[]; MOST_ROWS];
        let places = block_rows.iter_mut().zip(work.padded.chunks_exact_mut(reach));
        for (place, (row, padded)) in places.enumerate() {
            // Behind the last row it is shown again; what is made of it is cut off.
            let number = (numbers.start + block * together + place).min(numbers.end - 1);
            *row = match rows.reaching(number, reach) {
                Some(row) => row,
                None => {
                    padded[..rows.length].copy_from_slice(rows.row(number));
                    padded
                }
            };
        }
        wide.vectorize(RowsTogether { wide, rows: &block_rows, quads, pairs, columns, out });
    }
    out.truncate(wanted);
}

/// Rows with room behind them, a lane each, and where they go.
struct RowsTogether<'a, W: Wide> {
    wide: W,
    rows: &'a [&'a [u8]; MOST_ROWS],
    quads: usize,
    pairs: Pairs<'a>,
    columns: &'a mut [Column<W>],
    out: &'a mut [u8],
}

impl<W: Wide> NullaryFnOnce for RowsTogether<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { wide, rows, quads, pairs, columns, out } = self;
        let length = pairs.len() * 3;
        // Columns `first_column..ready` are there.
        let (mut first_column, mut ready) = (0, 0);
        for first in (0..pairs.len()).step_by(PIXELS) {
            let last = (first + PIXELS).min(pairs.len()) - 1;
            let needed = pairs.of(last).0 + pairs.each();
            if needed + 1 > first_column + columns.len() {
                let start = pairs.of(first).0.min(ready);
                columns.copy_within(start - first_column..ready - first_column, 0);
                first_column = start;
            }
            // Columns behind the row have no weight.
            while ready < needed.min(quads * 2) {
                arrange(wide, rows, ready / 2, &mut columns[ready - first_column..]);
                ready += 2;
            }
            let mut sums = [[wide.splat(0); TOGETHER]; PIXELS];
            for (pixel, sums) in sums.iter_mut().enumerate() {
                let (start, weights) = pairs.of((first + pixel).min(last));
                let start = start - first_column;
                *sums = weighted(wide, &columns[start..start + weights.len()], weights);
            }
            // What is written behind four pixels is overwritten by the next four.
            let (at, room) = (first * 3, LANE.min(length - first * 3));
            let [one, two, three, four] = &sums;
            for part in 0..TOGETHER {
                let four = wide.pack([one[part], two[part], three[part], four[part]]);
                let lanes = wide.lanes(wide.rgb(four));
                for (lane, bytes) in lanes.as_ref().iter().enumerate() {
                    let at = (part * W::LANES + lane) * length + at;
                    match room {
                        LANE => out[at..at + LANE].copy_from_slice(bytes),
                        _ => copy_few(&mut out[at..at + room], bytes),
                    }
                }
            }
        }
    }
}

/// The end of a row, apart so that it is not in the way of the rest.
#[cold]
#[inline(never)]
fn copy_few(out: &mut [u8], bytes: &[u8; LANE]) {
    out.copy_from_slice(&bytes[..out.len()]);
}

/// Two columns from four pixels of each row.
#[inline(always)]
fn arrange<W: Wide>(wide: W, rows: &[&[u8]; MOST_ROWS], quad: usize, columns: &mut [Column<W>]) {
    let at = quad * PIXELS * 3;
    for part in 0..TOGETHER {
        let mut lanes = [[0; LANE]; MOST_LANES];
        for (lane, row) in lanes.iter_mut().zip(&rows[part * W::LANES..(part + 1) * W::LANES]) {
            *lane = bytes(row, at);
        }
        let pixels = wide.gather(lanes);
        columns[0][part] = wide.channels(pixels, false);
        columns[1][part] = wide.channels(pixels, true);
    }
}
