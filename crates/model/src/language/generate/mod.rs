//! Tokens out of a language model.

use tch::{Kind, Tensor};

use super::{KvCache, LanguageModel};
use crate::layers::dims;

/// The most probable token after each token, for `prompt` `[B, T, H]` whose `mask` `[B, T]` is 1 on what is no padding;
/// padding may stand on either side.
///
/// A row ends before its first token of `eos`, which is not returned, or after `max_new_tokens`. Finished rows leave the
/// batch. Of equally probable tokens the one with the smallest id is taken.
#[must_use]
pub fn greedy(
    model: &LanguageModel,
    prompt: &Tensor,
    mask: &Tensor,
    max_new_tokens: usize,
    eos: &[i64],
) -> Vec<Vec<i64>> {
    let _no_gradient = tch::no_grad_guard();
    let [batch, _, _] = dims(prompt);
    let mut captions = vec![Vec::new(); usize::try_from(batch).unwrap_or_default()];
    let mut rows: Vec<usize> = (0..captions.len()).collect();
    let mut cache = KvCache::new();
    let mut last = last_tokens(&model.forward(prompt, mask, Some(&mut cache)), mask); // [B, H]
    for _ in 0..max_new_tokens {
        let mut ids = model.logits(&last).argmax(-1, false);
        let chosen = Vec::<i64>::try_from(&ids).expect("argmax gives a row of integers");
        let alive: Vec<usize> = (0..rows.len()).filter(|&i| !eos.contains(&chosen[i])).collect();
        for &i in &alive {
            captions[rows[i]].push(chosen[i]);
        }
        if alive.is_empty() || captions[rows[alive[0]]].len() == max_new_tokens {
            break;
        }
        if alive.len() < rows.len() {
            let kept: Vec<i64> = alive.iter().map(|&i| i as i64).collect();
            let kept = Tensor::from_slice(&kept).to_device(ids.device());
            cache.keep_rows(&kept);
            ids = ids.index_select(0, &kept);
            rows = alive.into_iter().map(|i| rows[i]).collect();
        }
        let ids = ids.unsqueeze(1);
        last = model.forward(&model.embed(&ids), &ids.ones_like(), Some(&mut cache)).select(1, 0);
    }
    captions
}

/// The rows of `hidden` `[B, T, H]` at each row's last token.
fn last_tokens(hidden: &Tensor, mask: &Tensor) -> Tensor {
    let [batch, tokens, width] = dims(hidden);
    let columns = Tensor::arange(tokens, (Kind::Int64, hidden.device()));
    let last = (mask.to_kind(Kind::Int64) * columns).argmax(1, false); // [B]
    hidden.gather(1, &last.view([batch, 1, 1]).expand([batch, 1, width], false), false).squeeze_dim(1)
}
