//! What crosses ranks in stage 1: features and texts without gradient, and the few image rows that were drawn.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

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

/// The images of which a rank wants rows: what every rank holds, as raw frozen features, in parts of equal size.
pub(crate) struct Images<'a> {
    /// `[B, P, V]` each.
    pub parts: &'a [&'a Tensor],
    /// The part that is at hand. All ranks name the same one.
    pub at_hand: usize,
}

/// This rank's `wanted` images (`[R]`, global indices: by rank, then by part; as many on each rank), as places in
/// `images at hand ++ fetched`, with what was fetched: raw frozen rows `[F, P, V]`, `None` where nobody wanted others than
/// those at hand.
///
/// Indices travel first, then to each rank only the rows that it asked for, each once: never the whole batch of features,
/// which is 2.3 GB at the paper's sizes (spec 3.2). Frozen rows carry no gradient; the LayerNorm behind them is applied by
/// the rank that drew them, so that averaging gradients over ranks gives what routing them back would give.
pub(crate) fn fetch_images(
    images: &Images<'_>,
    wanted: &Tensor,
    group: &dyn ProcessGroup,
) -> Result<(Tensor, Option<Tensor>), CommError> {
    let part = images.parts[images.at_hand];
    let rows = part.size()[0];
    let first = images.at_hand as i64 * rows;
    let held = rows * images.parts.len() as i64;
    let rank = group.rank();
    let all = integers(&group.all_gather(wanted)?);
    let asked = requests(&all, group.world_size(), held, first..first + rows);
    let at_hand = |global: i64| global - rank as i64 * held - first;
    let on_device = |places: Vec<i64>| Tensor::from_slice(&places).to_device(part.device());
    let wanted = integers(wanted);
    if asked.iter().flatten().all(BTreeSet::is_empty) {
        return Ok((on_device(wanted.into_iter().map(at_hand).collect()), None));
    }
    let of_me: Vec<&BTreeSet<i64>> = asked.iter().map(|by_owner| &by_owner[rank]).collect();
    let counts = |sets: &[&BTreeSet<i64>]| sets.iter().map(|rows| rows.len() as i64).collect::<Vec<_>>();
    let offered =
        stacked(images.parts, of_me.iter().copied().flatten().map(|global| global - rank as i64 * held));
    let from_all: Vec<&BTreeSet<i64>> = asked[rank].iter().collect();
    let fetched = group.all_to_all(&offered, &counts(&of_me), &counts(&from_all))?;
    let place: BTreeMap<i64, i64> = from_all.into_iter().flatten().copied().zip(rows..).collect();
    let places = wanted.into_iter().map(|global| place.get(&global).copied().unwrap_or(at_hand(global)));
    Ok((on_device(places.collect()), (!place.is_empty()).then_some(fetched)))
}

/// For each asking rank and each owner, which rows it asks for, by global index. `all` holds the wishes of each of
/// `ranks`, which hold `held` rows each; a rank's own rows `at_hand` need no asking.
fn requests(all: &[i64], ranks: usize, held: i64, at_hand: Range<i64>) -> Vec<Vec<BTreeSet<i64>>> {
    let mut asked = vec![vec![BTreeSet::new(); ranks]; ranks];
    let wishes = all.len() / ranks;
    for (i, &global) in all.iter().enumerate() {
        let (asker, owner) = (i / wishes, (global / held) as usize);
        if asker != owner || !at_hand.contains(&(global % held)) {
            asked[asker][owner].insert(global);
        }
    }
    asked
}

/// The rows at `places` in all `parts`, one below the other, without gradient.
fn stacked(parts: &[&Tensor], places: impl Iterator<Item = i64>) -> Tensor {
    let rows = parts[0].size()[0];
    let row = |place: i64| parts[(place / rows) as usize].detach().narrow(0, place % rows, 1);
    let mut found = vec![parts[0].detach().narrow(0, 0, 0)];
    found.extend(places.map(row));
    Tensor::cat(&found, 0)
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_device(tch::Device::Cpu).to_kind(Kind::Int64))
        .expect("a vector of indices is 1-dimensional")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(rows: &[i64]) -> BTreeSet<i64> {
        rows.iter().copied().collect()
    }

    #[test]
    fn only_rows_of_others_are_asked_for_and_each_once() {
        // Ranks of 2 images that want 3 each: rank 0 wants 1, 3 and 3, rank 1 wants 1, 0 and 2.
        let found = requests(&[1, 3, 3, 1, 0, 2], 2, 2, 0..2);
        assert_eq!(found, [[set(&[]), set(&[3])], [set(&[0, 1]), set(&[])]]);
    }

    #[test]
    fn rows_of_other_parts_are_asked_for_too() {
        // Ranks of 4 images in two parts of which the second is at hand.
        let found = requests(&[1, 3, 6, 2], 2, 4, 2..4);
        assert_eq!(found, [[set(&[1]), set(&[])], [set(&[2]), set(&[])]]);
        let rows = |values: &[f32]| Tensor::from_slice(values).view([-1, 1, 1]);
        let (one, two) = (rows(&[0.0, 10.0]), rows(&[20.0, 30.0]));
        let images = Images { parts: &[&one, &two], at_hand: 1 };
        let group = collectives::SoloGroup::new(tch::Device::Cpu);
        let wanted = Tensor::from_slice(&[1i64, 3, 0, 2, 1]);
        let (places, fetched) = fetch_images(&images, &wanted, &group).expect("alone");
        let fetched = fetched.expect("two rows of the other part");
        assert_eq!(fetched.size(), [2, 1, 1]);
        let found = Tensor::cat(&[two, fetched], 0).index_select(0, &places).view([-1]);
        assert_eq!(Vec::<f32>::try_from(found).expect("values"), [10.0, 30.0, 0.0, 20.0, 10.0]);
    }
}
