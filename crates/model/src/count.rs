//! How many parameters a bridge trains, from its sizes alone (spec 2.9): known before any memory is asked for.

use crate::qformer::QformerConfig;
use crate::stage1::Stage1Config;

/// Weight and bias of a linear layer.
const fn linear(from: i64, to: i64) -> i64 {
    from * to + to
}

/// Gain and bias of a LayerNorm.
const fn norm(width: i64) -> i64 {
    2 * width
}

impl QformerConfig {
    /// Queries, layers and, where there is one, the text branch.
    #[must_use]
    pub fn parameters(&self) -> i64 {
        let layers: i64 = (0..self.num_hidden_layers).map(|index| self.layer(index)).sum();
        let queries = self.num_query_tokens * self.hidden_size;
        queries + norm(self.hidden_size) + layers + self.text_branch()
    }

    fn layer(&self, index: i64) -> i64 {
        let feed_forwards = 1 + i64::from(self.text.is_some());
        let crosses = index % self.cross_attention_freq == 0;
        self.attention(self.hidden_size)
            + i64::from(crosses) * self.attention(self.encoder_hidden_size)
            + feed_forwards * self.feed_forward()
    }

    /// Query and output of width D, keys and values out of `from`; the LayerNorm behind.
    fn attention(&self, from: i64) -> i64 {
        let d = self.hidden_size;
        2 * linear(d, d) + 2 * linear(from, d) + norm(d)
    }

    fn feed_forward(&self) -> i64 {
        let (d, inner) = (self.hidden_size, self.intermediate_size);
        linear(d, inner) + linear(inner, d) + norm(d)
    }

    /// Embeddings, and the head whose matrix is the word embeddings.
    fn text_branch(&self) -> i64 {
        self.text.map_or(0, |text| {
            let d = self.hidden_size;
            let embeddings = (text.vocab_size + text.max_position_embeddings) * d;
            embeddings + linear(d, d) + norm(d) + text.vocab_size
        })
    }
}

impl Stage1Config {
    /// All that stage 1 trains.
    #[must_use]
    pub fn parameters(&self) -> i64 {
        let (d, e) = (self.qformer.hidden_size, self.projection_size);
        let temperature = 1;
        norm(self.qformer.encoder_hidden_size)
            + self.qformer.parameters()
            + 2 * linear(d, e)
            + linear(d, 2)
            + temperature
    }
}

/// All that stage 2 trains, in front of a language model of width `language_width`.
#[must_use]
pub fn stage2_parameters(qformer: &QformerConfig, language_width: i64) -> i64 {
    norm(qformer.encoder_hidden_size) + qformer.parameters() + linear(qformer.hidden_size, language_width)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Tensor, nn};

    use super::*;
    use crate::{ItgWeighting, NegativeWeighting, Stage1, TextBranchConfig};

    fn paper(encoder_hidden_size: i64, text: bool) -> QformerConfig {
        QformerConfig {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            cross_attention_freq: 2,
            num_query_tokens: 32,
            encoder_hidden_size,
            layer_norm_eps: 1e-12,
            dropout: 0.1,
            gradient_checkpointing: false,
            text: text.then_some(TextBranchConfig {
                vocab_size: 30523,
                max_position_embeddings: 512,
                decoder_start_id: 30522,
            }),
        }
    }

    fn stage1(qformer: QformerConfig) -> Stage1Config {
        Stage1Config {
            qformer,
            projection_size: 256,
            negative_weighting: NegativeWeighting::default(),
            itg_weighting: ItgWeighting::GlobalTokens,
        }
    }

    #[test]
    fn counts_are_the_papers() {
        assert_eq!(stage1(paper(1408, true)).parameters(), 186_705_470);
        assert_eq!(stage1(paper(1024, true)).parameters(), 183_165_758);
        let stage2 = |vision, language| stage2_parameters(&paper(vision, false), language);
        assert_eq!([2560, 4096, 2048].map(|l| stage2(1408, l)), [107_133_696, 108_314_880, 106_739_968]);
        assert_eq!([2560, 4096, 2048].map(|l| stage2(1024, l)), [103_593_984, 104_775_168, 103_200_256]);
    }

    #[test]
    fn a_count_is_what_a_built_model_holds() {
        for cross_attention_freq in [1, 2, 3] {
            let qformer = QformerConfig {
                hidden_size: 12,
                num_hidden_layers: 4,
                num_attention_heads: 3,
                intermediate_size: 20,
                cross_attention_freq,
                num_query_tokens: 5,
                encoder_hidden_size: 7,
                text: Some(TextBranchConfig {
                    vocab_size: 31,
                    max_position_embeddings: 9,
                    decoder_start_id: 30,
                }),
                ..paper(7, false)
            };
            let config = Stage1Config { projection_size: 6, ..stage1(qformer) };
            let store = nn::VarStore::new(Device::Cpu);
            let _built = Stage1::new(&store.root(), &config);
            let held: usize = store.trainable_variables().iter().map(Tensor::numel).sum();
            assert_eq!(config.parameters(), held as i64);
        }
    }
}
