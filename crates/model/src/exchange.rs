//! What crosses ranks in stage 1: features and texts without gradient, and the few image rows that were drawn.

use std::collections::{BTreeMap, BTreeSet};

use collectives::{CommError, ProcessGroup};
use tch::{Kind, Tensor};

use crate::inputs::TextInput;

/// All ranks' texts, `[W * B, T']`, padded to the longest of all.
pub(crate) fn gather_texts(text: &TextInput, group: &dyn ProcessGroup) -> Result<TextInput, CommError> {
    let width = Tensor::from_slice(&[text.ids.size()[1]]).to_device(group.device());
    let width = group.all_gather(&width)?.max().int64_value(&[]);
    let padded = text.widened(width);
    Ok(TextInput { ids: group.all_gather(&padded.ids)?, mask: group.all_gather(&padded.mask)? })
}

/// This rank's `wanted` images (global indices, rank-major), as places in `own images ++ fetched`, with what was
/// fetched: raw frozen rows `[F, P, V]` of other ranks, `None` where no image of another rank was wanted.
///
/// Indices travel first, then only the rows that somebody asked for: never the whole batch of features, which is 2.3 GB
/// at the paper's sizes (spec 3.2). Frozen rows carry no gradient; the LayerNorm behind them is applied by the rank
/// that drew them, so that averaging gradients over ranks gives what routing them back would give.
pub(crate) fn fetch_images(
    features: &Tensor,
    wanted: &Tensor,
    group: &dyn ProcessGroup,
) -> Result<(Tensor, Option<Tensor>), CommError> {
    let batch = features.size()[0];
    let rank = group.rank() as i64;
    let all = integers(&group.all_gather(wanted)?);
    let per_rank = requests(&all, batch);
    let most = per_rank.iter().map(BTreeSet::len).max().unwrap_or(0) as i64;
    if most == 0 {
        return Ok((wanted - rank * batch, None));
    }
    // Every rank offers as many rows as the most asked one, so that the message is even; fillers are row 0.
    let mut offered: Vec<i64> = per_rank[rank as usize].iter().map(|global| global - rank * batch).collect();
    offered.resize(most as usize, 0);
    let offered = Tensor::from_slice(&offered).to_device(features.device());
    let pool = group.all_gather(&features.detach().index_select(0, &offered))?;
    let place: BTreeMap<i64, i64> = per_rank
        .iter()
        .enumerate()
        .flat_map(|(owner, rows)| {
            rows.iter().enumerate().map(move |(i, &global)| (global, owner as i64 * most + i as i64))
        })
        .collect();
    let (mut places, mut fetched) = (Vec::new(), Vec::new());
    for global in integers(wanted) {
        if global / batch == rank {
            places.push(global - rank * batch);
        } else {
            places.push(batch + fetched.len() as i64);
            fetched.push(place[&global]);
        }
    }
    let places = Tensor::from_slice(&places).to_device(features.device());
    if fetched.is_empty() {
        return Ok((places, None));
    }
    let fetched = Tensor::from_slice(&fetched).to_device(features.device());
    Ok((places, Some(pool.index_select(0, &fetched))))
}

/// For each rank, which of its rows other ranks asked for. `all` holds `batch` global indices of each rank.
fn requests(all: &[i64], batch: i64) -> Vec<BTreeSet<i64>> {
    let mut per_rank = vec![BTreeSet::new(); all.len() / batch as usize];
    for (i, &global) in all.iter().enumerate() {
        let (asker, owner) = (i as i64 / batch, global / batch);
        if asker != owner {
            per_rank[owner as usize].insert(global);
        }
    }
    per_rank
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_device(tch::Device::Cpu).to_kind(Kind::Int64))
        .expect("a vector of indices is 1-dimensional")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_of_others_are_asked_for_and_each_once() {
        // Ranks of 2: rank 0 wants 1 and 3, rank 1 wants 1 and 0.
        let found = requests(&[1, 3, 1, 0], 2);
        assert_eq!(found, [BTreeSet::from([0, 1]), BTreeSet::from([3])]);
    }
}
