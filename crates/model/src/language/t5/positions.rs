//! T5's relative positions: a learned number for each head and each bucket of distances.

use tch::{Device, Kind, Tensor};

use super::config::T5Config;
use crate::weights::Scope;

/// In which directions a stack looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// The encoder: half of the buckets are for what comes later.
    Both,
    /// The decoder.
    Back,
}

/// What is added to the scores of every layer of a stack; only the first layer's file entry has it.
#[derive(Debug)]
pub(super) struct RelativeBias {
    /// `[buckets, H]`.
    table: Tensor,
    direction: Direction,
    max_distance: i64,
}

impl RelativeBias {
    pub fn load(config: &T5Config, direction: Direction, scope: &mut Scope<'_>) -> Self {
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        let mut scope = scope.at("block.0.layer.0.SelfAttention.relative_attention_bias");
        let table = scope.take_f32("weight", &shape);
        Self { table, direction, max_distance: config.relative_attention_max_distance }
    }

    /// `[1, H, rows, past + rows]`: for queries behind `past` columns.
    pub fn of(&self, past: i64, rows: i64) -> Tensor {
        let device = self.table.device();
        let buckets = buckets(self.direction, [self.table.size()[0], self.max_distance], past, rows, device);
        let bias = Tensor::embedding(&self.table, &buckets, -1, false, false); // [rows, S, H]
        bias.permute([2, 0, 1]).unsqueeze(0)
    }
}

/// The bucket of each distance, `[rows, past + rows]`: the first half one by one, the rest on a logarithmic scale up to
/// `max_distance` (Raffel et al. 2020, section 2.1).
fn buckets(direction: Direction, sizes: [i64; 2], past: i64, rows: i64, device: Device) -> Tensor {
    let [buckets, max_distance] = sizes;
    let columns = Tensor::arange(past + rows, (Kind::Int64, device)).unsqueeze(0);
    let queries = Tensor::arange_start(past, past + rows, (Kind::Int64, device)).unsqueeze(1);
    let later = columns - queries; // positive where the key comes after the query
    let (buckets, offset, distance) = match direction {
        Direction::Both => (buckets / 2, later.gt(0).to_kind(Kind::Int64) * (buckets / 2), later.abs()),
        Direction::Back => (buckets, later.zeros_like(), later.clamp_max(0).neg()),
    };
    let exact = buckets / 2;
    let scale = (max_distance as f64 / exact as f64).ln();
    // In single precision, as the peers: a distance on the edge of two buckets must fall on the same side.
    let ratio = distance.to_kind(Kind::Float).clamp_min(1.0) / exact as f64;
    let logarithmic = (ratio.log() / scale * (buckets - exact) as f64).to_kind(Kind::Int64) + exact;
    offset + distance.where_self(&distance.lt(exact), &logarithmic.clamp_max(buckets - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(direction: Direction, sizes: [i64; 2], past: i64, rows: i64, row: i64) -> Vec<i64> {
        Vec::try_from(buckets(direction, sizes, past, rows, Device::Cpu).get(row)).unwrap()
    }

    #[test]
    fn near_distances_have_buckets_of_their_own_and_far_ones_share() {
        // 8 buckets back to a distance of 16: 0 to 3 exactly, then 4..5, 6..7, 8..11, 12 and more.
        let back = row(Direction::Back, [8, 16], 0, 20, 19);
        let expected = [[7; 8].as_slice(), &[6; 4], &[5; 2], &[4; 2], &[3, 2, 1, 0]].concat();
        assert_eq!(back, expected);
        // The future is not seen, whatever its bucket.
        assert_eq!(row(Direction::Back, [8, 16], 0, 3, 0), [0, 0, 0]);
    }

    #[test]
    fn both_directions_share_the_buckets() {
        // 4 buckets each way: 0, 1, then 2..5, 6 and more of at most 16.
        assert_eq!(row(Direction::Both, [8, 16], 0, 5, 2), [2, 1, 0, 5, 6]);
    }

    #[test]
    fn a_cached_query_has_the_row_that_it_would_have_had() {
        for direction in [Direction::Both, Direction::Back] {
            let whole = row(direction, [32, 128], 0, 90, 77);
            assert_eq!(row(direction, [32, 128], 77, 1, 0), whole[..78]);
        }
    }

    #[test]
    fn edges_fall_as_in_single_precision() {
        // 32 buckets to 128: ln(64 / 16) / ln(8) * 16 = 10.67; 32 is an edge in theory (ln 2 / ln 8 * 16 = 5.33 is not);
        // the ends are 15 exact and 31 for everything far.
        let back = row(Direction::Back, [32, 128], 0, 301, 300);
        let at = |distance: usize| back[300 - distance];
        assert_eq!(
            [at(0), at(15), at(16), at(32), at(64), at(127), at(128), at(300)],
            [0, 15, 16, 21, 26, 31, 31, 31]
        );
    }
}
