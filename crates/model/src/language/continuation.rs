//! A batch of texts that a frozen language model goes on with, token by token, remembering what it read.

use tch::{Kind, Tensor};

use super::cache::KvCache;
use super::generate::Decoder;
use super::t5::T5Cache;
use super::{LanguageModel, last_tokens};

/// See [`LanguageModel::begin`].
#[derive(Debug)]
pub struct Continuation<'a> {
    model: &'a LanguageModel,
    past: Past,
    /// `[R, H]`: the state that predicts each row's next token.
    last: Tensor,
}

#[derive(Debug)]
enum Past {
    Causal(KvCache),
    T5(T5Cache),
}

impl LanguageModel {
    /// Reads `before` `[B, S, H]` whose `mask` `[B, S]` is 1 on what is no padding; padding may stand on either side.
    /// What comes back goes on behind it.
    #[must_use]
    pub fn begin(&self, before: &Tensor, mask: &Tensor) -> Continuation<'_> {
        let _no_gradient = tch::no_grad_guard();
        match self {
            Self::Causal(causal) => {
                let mut cache = KvCache::new();
                let last = last_tokens(&causal.forward(before, mask, Some(&mut cache)), mask);
                Continuation { model: self, past: Past::Causal(cache), last }
            }
            Self::T5(t5) => {
                let mut cache = t5.encode(before, mask);
                let start =
                    Tensor::full([before.size()[0], 1], t5.decoder_start(), (Kind::Int64, before.device()));
                let last = t5.decode(&start, &mut cache).select(1, 0);
                Continuation { model: self, past: Past::T5(cache), last }
            }
        }
    }
}

impl Decoder for Continuation<'_> {
    fn scores(&self) -> Tensor {
        let _no_gradient = tch::no_grad_guard();
        self.model.logits(&self.last)
    }

    fn advance(&mut self, rows: &[i64], tokens: &[i64]) {
        let _no_gradient = tch::no_grad_guard();
        let device = self.last.device();
        let is_same = rows.iter().copied().eq(0..self.last.size()[0]);
        let kept = (!is_same).then(|| Tensor::from_slice(rows).to_device(device));
        let ids = Tensor::from_slice(tokens).to_device(device).unsqueeze(1);
        let states = match (&mut self.past, self.model) {
            (Past::Causal(cache), LanguageModel::Causal(causal)) => {
                kept.iter().for_each(|rows| cache.keep_rows(rows));
                causal.forward(&self.model.embed(&ids), &ids.ones_like(), Some(cache))
            }
            (Past::T5(cache), LanguageModel::T5(t5)) => {
                kept.iter().for_each(|rows| cache.keep_rows(rows));
                t5.decode(&ids, cache)
            }
            _ => unreachable!("a continuation begins with its own model's past"),
        };
        self.last = states.select(1, 0);
    }
}
