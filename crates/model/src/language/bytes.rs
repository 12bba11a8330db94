//! How many bytes a frozen language model is, from its sizes alone: known before any memory is asked for.

use tch::Kind;

use super::config::{LanguageConfig, LlamaConfig, OptConfig};
use super::shards::{aligned, part_of};
use super::t5::T5Config;

/// Bytes of a number in single precision.
const SINGLE: i64 = 4;

/// Bytes of a frozen language model's weights as they lie in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenBytes {
    /// Embeddings, head and last norms, which every rank holds.
    pub ends: i64,
    /// The layers of each stack.
    pub stacks: Vec<Vec<i64>>,
}

impl FrozenBytes {
    /// Of the whole model, which a rank holds that holds no part.
    #[must_use]
    pub fn whole(&self) -> i64 {
        self.ends + self.stacks.iter().flatten().sum::<i64>()
    }

    /// What each of `world_size` ranks holds of a model that is parted.
    #[must_use]
    pub fn parted(&self, world_size: i64) -> i64 {
        self.ends + self.stacks.iter().flatten().map(|&layer| part_of(layer, world_size)).sum::<i64>()
    }

    /// What a rank of them needs beside: of each stack two gathered layers, the one that computes and the one that comes.
    #[must_use]
    pub fn gathered(&self, world_size: i64) -> i64 {
        let first = self.stacks.iter().filter_map(|layers| layers.first());
        first.map(|&layer| 2 * part_of(layer, world_size) * world_size).sum()
    }
}

impl LanguageConfig {
    /// With matrices of `kind`.
    #[must_use]
    pub fn frozen_bytes(&self, kind: Kind) -> FrozenBytes {
        let element = kind.elt_size_in_bytes() as i64;
        match self {
            Self::Opt(opt) => opt_bytes(opt, element),
            Self::Llama(llama) => llama_bytes(llama, element),
            Self::T5(t5) => t5_bytes(t5, kind),
        }
    }
}

/// Tensors of so many elements, one after another.
fn laid_out(elements: &[i64], size: i64) -> i64 {
    elements.iter().map(|count| aligned(count * size)).sum()
}

/// Embeddings, and the head where it is another matrix.
const fn vocabulary(words: i64, width: i64, is_tied: bool) -> i64 {
    if is_tied { words * width } else { 2 * words * width }
}

fn opt_bytes(opt: &OptConfig, element: i64) -> FrozenBytes {
    let (d, inner, embedding) = (opt.hidden_size, opt.ffn_dim, opt.embedding_size());
    let matrices = [3 * d * d, 3 * d, d * d, d, inner * d, inner, d * inner, d];
    let layer = laid_out(&matrices, element) + laid_out(&[d; 4], SINGLE);
    let projections = if embedding == d { 0 } else { 2 * embedding * d };
    let matrices = vocabulary(opt.vocab_size, embedding, opt.tie_word_embeddings) + projections;
    let positions = (opt.max_position_embeddings + 2) * d;
    let norm = if opt.do_layer_norm_before { 2 * d } else { 0 };
    FrozenBytes {
        ends: matrices * element + (positions + norm) * SINGLE,
        stacks: vec![vec![layer; count(opt.num_hidden_layers)]],
    }
}

fn llama_bytes(llama: &LlamaConfig, element: i64) -> FrozenBytes {
    let (d, inner) = (llama.hidden_size, llama.intermediate_size);
    let queries = llama.num_attention_heads * llama.head_size();
    let keys = llama.key_value_heads() * llama.head_size();
    let layer = laid_out(&[(queries + 2 * keys) * d, d * queries, 2 * inner * d, d * inner], element);
    let matrices = vocabulary(llama.vocab_size, d, llama.tie_word_embeddings);
    FrozenBytes {
        ends: matrices * element + (d + llama.head_size() / 2) * SINGLE,
        stacks: vec![vec![layer; count(llama.num_hidden_layers)]],
    }
}

fn t5_bytes(t5: &T5Config, kind: Kind) -> FrozenBytes {
    let element = kind.elt_size_in_bytes() as i64;
    let (d, inner) = (t5.d_model, t5.num_heads * t5.d_kv);
    let gates = 1 + i64::from(t5.is_gated);
    // The last matrix of a layer is too large for fp16 in published models.
    let outer = laid_out(&[d * t5.d_ff], if kind == Kind::Half { SINGLE } else { element });
    let attention = laid_out(&[3 * inner * d, d * inner], element);
    let feed_forward = laid_out(&[gates * t5.d_ff * d], element) + outer;
    let cross = laid_out(&[inner * d, 2 * inner * d, d * inner], element);
    let encoder = vec![attention + feed_forward; count(t5.num_layers)];
    let decoder = vec![attention + cross + feed_forward; count(t5.num_decoder_layers)];
    let biases = 2 * t5.relative_attention_num_buckets * t5.num_heads;
    let matrices = vocabulary(t5.vocab_size, d, t5.tie_word_embeddings);
    FrozenBytes { ends: matrices * element + (biases + 2 * d) * SINGLE, stacks: vec![encoder, decoder] }
}

fn count(layers: i64) -> usize {
    usize::try_from(layers).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use collectives::SoloGroup;
    use serde_json::json;
    use tch::Device;

    use super::*;
    use crate::Weights;
    use crate::language::LanguageModel;

    /// Sizes that are no multiples of anything.
    fn configs() -> Vec<LanguageConfig> {
        let all = [
            json!({"model_type": "opt", "vocab_size": 13, "hidden_size": 12, "num_hidden_layers": 3, "ffn_dim": 22,
                "num_attention_heads": 2, "max_position_embeddings": 9}),
            json!({"model_type": "llama", "vocab_size": 13, "hidden_size": 12, "num_hidden_layers": 3,
                "intermediate_size": 22, "num_attention_heads": 4, "num_key_value_heads": 2}),
            json!({"model_type": "t5", "vocab_size": 13, "d_model": 12, "d_kv": 5, "d_ff": 22, "num_layers": 2,
                "num_decoder_layers": 3, "num_heads": 3, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false}),
        ];
        all.iter().map(|config| LanguageConfig::from_hf_json(&config.to_string()).unwrap()).collect()
    }

    #[test]
    fn bytes_of_layers_are_those_of_a_built_model_whole_and_parted() {
        for (config, kind) in configs()
            .iter()
            .flat_map(|config| [Kind::Float, Kind::BFloat16, Kind::Half].map(|kind| (config, kind)))
        {
            let solo = Box::new(SoloGroup::new(Device::Cpu));
            for model in [
                LanguageModel::new(config, &mut Weights::random(), kind, Device::Cpu),
                LanguageModel::parted(config, &mut Weights::random(), kind, solo),
            ] {
                let built = match &model {
                    LanguageModel::Causal(causal) => vec![causal.stack().bytes()],
                    LanguageModel::T5(t5) => t5.stacks().map(|stack| stack.bytes()).to_vec(),
                };
                assert_eq!(config.frozen_bytes(kind).stacks, built, "{config:?} in {kind:?}");
            }
        }
    }

    #[test]
    fn ranks_hold_the_ends_and_an_equal_part_of_each_layer() {
        let bytes = FrozenBytes { ends: 100, stacks: vec![vec![640], vec![1280; 2]] };
        assert_eq!((bytes.whole(), bytes.parted(1)), (3300, 3300));
        // Thirds of 640 and of 1280, up to the next 64.
        assert_eq!((bytes.parted(3), bytes.gathered(3)), (100 + 256 + 2 * 448, 2 * 3 * (256 + 448)));
    }
}
