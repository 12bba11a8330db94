//! The rows of one pass through the Q-Former, without padding.
//!
//! Captions differ in length. Token-wise layers (projections, feed-forwards, LayerNorms) run on the real tokens only,
//! `[M, D]`: first all query rows, image by image, then all text tokens, caption by caption. Attention needs the
//! rectangle `[B, Q + T]`, so that its inputs are spread out and its output is collected again. What padding holds in the
//! rectangle is a copy of a neighbour: its keys are masked and its outputs are dropped.
//!
//! The number of text rows is rounded up with copies of the first token, whose outputs nobody reads: oneDNN compiles a
//! kernel for each shape it meets, and every batch has another number of tokens.

use tch::{Kind, Tensor};

/// Packed text rows come in multiples of this.
const ROWS_MULTIPLE: i64 = 32;

/// Where the real tokens of a batch of captions are.
#[derive(Debug)]
pub struct Packing {
    /// Captions.
    pub batch: i64,
    /// Tokens of the longest.
    pub width: i64,
    /// 1 = token, `[B, T]`.
    pub mask: Tensor,
    /// Real tokens.
    tokens: i64,
    /// Place of each packed row in `[B * T]`, `[N]`: the real tokens, then fillers.
    positions: Tensor,
    /// For each place in `[B * T]` the packed row it shows.
    slots: Tensor,
}

impl Packing {
    /// Reads the mask (`[B, T]`, int64, 1 = token; each row starts with a token).
    #[must_use]
    pub fn new(mask: &Tensor) -> Self {
        let size = mask.size();
        let flat = mask.reshape([-1]);
        let real = flat.nonzero().view([-1]);
        let tokens = real.size()[0];
        let fillers = (ROWS_MULTIPLE - tokens % ROWS_MULTIPLE) % ROWS_MULTIPLE;
        Self {
            batch: size[0],
            width: size[1],
            mask: mask.shallow_clone(),
            tokens,
            positions: real.constant_pad_nd([0, fillers]),
            slots: (flat.cumsum(0, Kind::Int64) - 1).clamp_min(0),
        }
    }

    /// Real tokens; packed rows behind them are fillers.
    #[must_use]
    pub fn tokens(&self) -> i64 {
        self.tokens
    }

    /// The rows of `packed` (`[N, ..]`) that are no fillers.
    pub fn real(&self, packed: &Tensor) -> Tensor {
        packed.narrow(0, 0, self.tokens)
    }

    /// `[B, T]` or `[B, T, ..]` > `[N]` or `[N, ..]`.
    pub fn pack(&self, padded: &Tensor) -> Tensor {
        padded.flatten(0, 1).index_select(0, &self.positions)
    }

    /// `[N, D]` > `[B, T, D]`; what padding holds is not specified.
    pub fn unpack(&self, packed: &Tensor) -> Tensor {
        packed.index_select(0, &self.slots).view([self.batch, self.width, -1])
    }

    /// The packed row of each caption's first token, `[B]`.
    pub fn first_tokens(&self) -> Tensor {
        self.slots.view([self.batch, self.width]).select(1, 0)
    }

    /// Position of each packed row in its caption, from 0, `[N]`.
    pub fn offsets(&self) -> Tensor {
        self.positions.remainder(self.width)
    }
}

/// The layout of a pass: how many rows, which of them are queries, and how attention sees them.
pub(super) struct Layout {
    /// Rows of the rectangle.
    pub batch: i64,
    /// Query tokens of each row; 0 in a pass of texts alone.
    pub queries: i64,
    text: Option<Joint>,
}

struct Joint {
    /// For each place of the rectangle the packed row it shows, `[B * S]`.
    slots: Tensor,
    /// For each packed row its place in the rectangle, `[M]`.
    positions: Tensor,
}

impl Layout {
    /// Queries alone: no padding, so packed and rectangle are the same numbers.
    pub fn queries(batch: i64, queries: i64) -> Self {
        Self { batch, queries, text: None }
    }

    /// `queries` query tokens in front of each caption (none when 0).
    pub fn with_text(queries: i64, text: &Packing) -> Self {
        let (batch, width, total) = (text.batch, text.width, queries + text.width);
        let grid = Tensor::arange(batch * queries, (Kind::Int64, text.mask.device()));
        let slots =
            Tensor::cat(&[grid.view([batch, queries]), text.slots.view([batch, width]) + batch * queries], 1);
        // Row b of the captions stands in row b of the rectangle, behind its queries.
        let rows = text.positions.divide_scalar_mode(width, "floor");
        let text_places = rows * total + text.positions.remainder(width) + queries;
        let query_places = (Tensor::arange(batch, (Kind::Int64, text.mask.device())) * total)
            .view([batch, 1])
            + Tensor::arange(queries, (Kind::Int64, text.mask.device()));
        let positions = Tensor::cat(&[query_places.view([-1]), text_places], 0);
        Self { batch, queries, text: Some(Joint { slots: slots.view([-1]), positions }) }
    }

    /// The same under another handle.
    pub fn share(&self) -> Self {
        let text = self.text.as_ref().map(|joint| Joint {
            slots: joint.slots.shallow_clone(),
            positions: joint.positions.shallow_clone(),
        });
        Self { batch: self.batch, queries: self.queries, text }
    }

    /// Packed rows that are queries.
    pub fn query_rows(&self) -> i64 {
        self.batch * self.queries
    }

    /// `[M, D]` > `[B, S, D]`.
    pub fn spread(&self, packed: &Tensor) -> Tensor {
        let width = packed.size()[1];
        match &self.text {
            None => packed.view([self.batch, self.queries, width]),
            Some(joint) => packed.index_select(0, &joint.slots).view([self.batch, -1, width]),
        }
    }

    /// `[B, S, D]` > `[M, D]`.
    pub fn collect(&self, rectangle: &Tensor) -> Tensor {
        let flat = rectangle.flatten(0, 1);
        match &self.text {
            None => flat,
            Some(joint) => flat.index_select(0, &joint.positions),
        }
    }

    /// Splits packed rows into queries and text.
    pub fn split(&self, packed: &Tensor) -> (Tensor, Tensor) {
        let queries = self.query_rows();
        (packed.narrow(0, 0, queries), packed.narrow(0, queries, packed.size()[0] - queries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.reshape([-1])).expect("values")
    }

    #[test]
    fn packs_real_tokens_and_puts_them_back() {
        let mask = Tensor::from_slice(&[1i64, 1, 0, 1, 0, 0]).view([2, 3]);
        let packing = Packing::new(&mask);
        assert_eq!(packing.tokens(), 3);
        let ids = Tensor::from_slice(&[10i64, 11, 0, 20, 0, 0]).view([2, 3]);
        let packed = packing.pack(&ids);
        assert_eq!(packed.size(), [ROWS_MULTIPLE], "rounded up");
        assert_eq!(ints(&packing.real(&packed)), [10, 11, 20]);
        assert_eq!(ints(&packing.first_tokens()), [0, 2]);
        assert_eq!(ints(&packing.real(&packing.offsets())), [0, 1, 0]);
        let padded = packing.unpack(&packed.view([-1, 1]));
        assert_eq!(ints(&(padded.squeeze_dim(2) * &mask)), ints(&(ids * mask)));
    }

    #[test]
    fn queries_stand_before_their_caption() {
        let mask = Tensor::from_slice(&[1i64, 0, 1, 1]).view([2, 2]);
        let layout = Layout::with_text(2, &Packing::new(&mask));
        // Queries 0 1 | 2 3, then text tokens 4 | 5 6, then fillers.
        let packed = Tensor::arange(4 + ROWS_MULTIPLE, (Kind::Int64, tch::Device::Cpu)).view([-1, 1]);
        let rectangle = layout.spread(&packed);
        assert_eq!(rectangle.size(), [2, 4, 1]);
        let shown = ints(&rectangle);
        assert_eq!((&shown[..3], &shown[4..]), (&[0, 1, 4][..], &[2, 3, 5, 6][..]), "place 3 is padding");
        assert_eq!(ints(&layout.collect(&rectangle))[..7], ints(&packed)[..7]);
        let (queries, text) = layout.split(&packed);
        assert_eq!((ints(&queries).len(), ints(&text).len() as i64), (4, ROWS_MULTIPLE));
    }
}
