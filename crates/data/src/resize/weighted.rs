//! What both passes do with wide registers: weighted sums of columns.
//!
//! `vpmaddwd` multiplies pairs of 16-bit numbers and adds each pair; a weight has 23 bits and so goes through it in two
//! parts, see [`super::taps::Pairs`].

use super::taps::PRECISION_BITS;
use crate::wide::{Column, TOGETHER, Wide};

/// The sum of `columns`, each times its weights, without fractional bits.
#[inline(always)]
pub(super) fn weighted<W: Wide>(wide: W, columns: &[Column<W>], weights: &[[i32; 2]]) -> Column<W> {
    let mut high = [wide.splat(0); TOGETHER];
    let mut low = [wide.splat(1 << (PRECISION_BITS - 1)); TOGETHER];
    for (column, &[high_weights, low_weights]) in columns.iter().zip(weights) {
        let (high_weights, low_weights) = (wide.splat(high_weights), wide.splat(low_weights));
        for part in 0..TOGETHER {
            high[part] = wide.add_products(high[part], column[part], high_weights);
            low[part] = wide.add_products(low[part], column[part], low_weights);
        }
    }
    for part in 0..TOGETHER {
        high[part] = wide.whole(high[part], low[part]);
    }
    high
}
