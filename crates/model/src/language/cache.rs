//! Keys and values of the tokens that were already read, and which of those are tokens.

use tch::{Kind, Tensor};

use crate::layers::dims;

/// Keys and values of every layer, `[B, H, S, K]` each.
#[derive(Debug, Default)]
pub(super) struct LayerCache(Vec<(Tensor, Tensor)>);

impl LayerCache {
    /// Starts with these, one pair for each layer.
    pub(super) fn new(layers: Vec<(Tensor, Tensor)>) -> Self {
        Self(layers)
    }

    /// S, columns so far.
    pub(super) fn columns(&self) -> i64 {
        self.0.first().map_or(0, |(keys, _)| keys.size()[2])
    }

    /// Those of one layer.
    pub(super) fn of(&self, layer: usize) -> (&Tensor, &Tensor) {
        (&self.0[layer].0, &self.0[layer].1)
    }

    /// Forgets every row but `rows`, in their order.
    pub(super) fn keep_rows(&mut self, rows: &Tensor) {
        for (key, value) in &mut self.0 {
            *key = key.index_select(0, rows);
            *value = value.index_select(0, rows);
        }
    }

    /// Adds a layer's new keys and values; returns all of them.
    pub(super) fn append(&mut self, layer: usize, key: &Tensor, value: &Tensor) -> (Tensor, Tensor) {
        match self.0.get_mut(layer) {
            Some((keys, values)) => {
                *keys = Tensor::cat(&[&*keys, key], 2);
                *values = Tensor::cat(&[&*values, value], 2);
            }
            None => self.0.push((key.shallow_clone(), value.shallow_clone())),
        }
        let (keys, values) = self.of(layer);
        (keys.shallow_clone(), values.shallow_clone())
    }
}

/// What a language model remembers of a batch between two forwards.
#[derive(Debug, Default)]
pub struct KvCache {
    layers: LayerCache,
    /// `[B, S]`, true = token.
    mask: Option<Tensor>,
}

impl KvCache {
    /// Nothing read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// S, the columns read so far, padding counted.
    #[must_use]
    pub fn len(&self) -> i64 {
        self.mask.as_ref().map_or(0, |mask| mask.size()[1])
    }

    /// Whether nothing was read yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mask.is_none()
    }

    /// Forgets every row but `rows` (`[n]`, integers, which may repeat), in their order.
    pub fn keep_rows(&mut self, rows: &Tensor) {
        self.layers.keep_rows(rows);
        self.mask = self.mask.take().map(|mask| mask.index_select(0, rows));
    }
}

/// One forward's view of its tokens: where they stand, whom they see, what came before.
///
/// Layers work on the N tokens alone, `[N, ..]`, without padding: captions of a batch differ in length, and matrix
/// products are nearly all of the time. Only attention needs the rows, `[B, T, ..]`.
pub(super) struct Reading<'a> {
    cache: Option<&'a mut KvCache>,
    /// B, T.
    shape: [i64; 2],
    /// `[N]`: where the tokens stand among the B * T places; `None` when there is no padding.
    tokens: Option<Tensor>,
    /// `[B, T]`: the position of each new token among the tokens of its row; 0 for padding on the left.
    pub(super) positions: Tensor,
    /// `[B, 1, T, S]`, added to scores.
    pub(super) scores_mask: Tensor,
}

impl<'a> Reading<'a> {
    /// Begins to read columns `mask` `[B, T]` (1 = token, 0 = padding) after those in the cache.
    ///
    /// A query sees the tokens before it and itself. Padding sees itself too, so that no row of scores is empty: nobody
    /// looks at what comes of it.
    pub(super) fn begin(mask: &Tensor, mut cache: Option<&'a mut KvCache>, kind: Kind) -> Self {
        let new = mask.to_kind(Kind::Bool);
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        let all = match cache.as_ref().and_then(|cache| cache.mask.as_ref()) {
            Some(old) => Tensor::cat(&[old, &new], 1),
            None => new,
        };
        let shape @ [_, rows] = dims(mask);
        let total = past + rows;
        let places = mask.flatten(0, 1).nonzero().squeeze_dim(1);
        let tokens = (places.size()[0] < shape[0] * shape[1]).then_some(places);
        let positions = all.cumsum(1, Kind::Int64).narrow(1, past, rows) - 1;
        let before = Tensor::ones([rows, total], (Kind::Bool, all.device())).tril(past);
        let own = before.triu(past);
        let seen = before.logical_and(&all.unsqueeze(1).logical_or(&own)); // [B, T, S]
        let scores_mask = Tensor::zeros(seen.size(), (kind, all.device()))
            .masked_fill(&seen.logical_not(), f64::NEG_INFINITY)
            .unsqueeze(1);
        if let Some(cache) = cache.as_mut() {
            cache.mask = Some(all);
        }
        Self { cache, shape, tokens, positions: positions.clamp_min(0), scores_mask }
    }

    /// The same columns for layers that are computed again; nothing is remembered.
    pub(super) fn without_cache(&self) -> Reading<'static> {
        Reading {
            cache: None,
            shape: self.shape,
            tokens: self.tokens.as_ref().map(Tensor::shallow_clone),
            positions: self.positions.shallow_clone(),
            scores_mask: self.scores_mask.shallow_clone(),
        }
    }

    /// Whether what is read is remembered: such layers are not computed again.
    pub(super) fn remembers(&self) -> bool {
        self.cache.is_some()
    }

    /// The tokens of `x` `[B, T, C]` alone, `[N, C]`.
    pub(super) fn pack(&self, x: &Tensor) -> Tensor {
        let x = x.flatten(0, 1);
        self.tokens.as_ref().map_or_else(|| x.shallow_clone(), |tokens| x.index_select(0, tokens))
    }

    /// `x` `[N, C]` back in its rows, `[B, T, C]`, with zeros for padding.
    pub(super) fn unpack(&self, x: &Tensor) -> Tensor {
        let [batch, columns] = self.shape;
        let width = x.size()[1];
        let places = match &self.tokens {
            Some(tokens) => {
                x.new_zeros([batch * columns, width], (x.kind(), x.device())).index_copy(0, tokens, x)
            }
            None => x.shallow_clone(),
        };
        places.view([batch, columns, width])
    }

    /// All keys and values that a layer's queries may see.
    pub(super) fn remember(&mut self, layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor) {
        match self.cache.as_mut() {
            Some(cache) => cache.layers.append(layer, &key, &value),
            None => (key, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(rows: &[&[i64]]) -> Tensor {
        Tensor::from_slice2(rows)
    }

    fn seen(reading: &Reading<'_>, row: i64) -> Vec<Vec<i64>> {
        let open = reading.scores_mask.isfinite().to_kind(Kind::Int64).get(row).get(0);
        Vec::<Vec<i64>>::try_from(open).unwrap()
    }

    #[test]
    fn padding_on_either_side_is_unseen_and_not_counted() {
        let reading = Reading::begin(&mask(&[&[0, 1, 1], &[1, 1, 0]]), None, Kind::Float);
        assert_eq!(Vec::<Vec<i64>>::try_from(&reading.positions).unwrap(), [[0, 0, 1], [0, 1, 1]]);
        assert_eq!(seen(&reading, 0), [[1, 0, 0], [0, 1, 0], [0, 1, 1]]);
        assert_eq!(seen(&reading, 1), [[1, 0, 0], [1, 1, 0], [1, 1, 1]]);
    }

    #[test]
    fn packing_drops_padding_and_unpacking_puts_zeros_there() {
        let x = Tensor::arange(6, (Kind::Int64, tch::Device::Cpu)).view([2, 3, 1]) + 1;
        let reading = Reading::begin(&mask(&[&[0, 1, 1], &[1, 1, 0]]), None, Kind::Float);
        let packed = reading.pack(&x);
        assert_eq!(Vec::<i64>::try_from(packed.flatten(0, 1)).unwrap(), [2, 3, 4, 5]);
        assert_eq!(Vec::<i64>::try_from(reading.unpack(&packed).flatten(0, 2)).unwrap(), [0, 2, 3, 4, 5, 0]);
        let full = Reading::begin(&mask(&[&[1, 1, 1], &[1, 1, 1]]), None, Kind::Float);
        assert!(full.unpack(&full.pack(&x)).equal(&x));
    }

    #[test]
    fn a_cache_continues_rows_and_drops_them() {
        let mut cache = KvCache::new();
        Reading::begin(&mask(&[&[0, 1, 1], &[1, 1, 0]]), Some(&mut cache), Kind::Float);
        assert_eq!(cache.len(), 3);
        cache.keep_rows(&Tensor::from_slice(&[1i64]));
        let next = Reading::begin(&mask(&[&[1]]), Some(&mut cache), Kind::Float);
        assert_eq!(Vec::<Vec<i64>>::try_from(&next.positions).unwrap(), [[2]]);
        assert_eq!(seen(&next, 0), [[1, 1, 0, 1]]);
    }
}
