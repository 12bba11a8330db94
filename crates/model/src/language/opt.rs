//! OPT (Zhang et al. 2022), frozen: learned positions, ReLU, norms before or after (OPT-350m) the branches.

use tch::{Device, Kind, Tensor};

use super::cache::{KvCache, Reading};
use super::config::OptConfig;
use super::stack::{FrozenLayer, Keeping, Stack};
use super::{Vocabulary, root_of};
use crate::layers::{
    LayerNorm, Linear, dims, fused_linear, layer_norm, linear, linear_without_bias, masked_attention,
};
use crate::weights::{Scope, Weights};

/// Row of the first position in `embed_positions`.
const POSITION_OFFSET: i64 = 2;
const EPS: f64 = 1e-5;

/// A frozen OPT.
#[derive(Debug)]
pub struct Opt {
    pub(super) vocabulary: Vocabulary,
    /// `[positions + 2, H]`.
    positions: Tensor,
    project_in: Option<Linear>,
    project_out: Option<Linear>,
    pub(super) layers: Stack<Layer>,
    final_norm: Option<LayerNorm>,
    /// Layers keep their inputs alone where a gradient is wanted.
    pub(super) gradient_checkpointing: bool,
}

#[derive(Debug)]
pub(super) struct Layer {
    norm_before: bool,
    heads: i64,
    attention_norm: LayerNorm,
    qkv: Linear,
    out: Linear,
    feed_forward_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Opt {
    pub(super) fn new(
        config: &OptConfig,
        weights: &mut Weights,
        (kind, device): (Kind, Device),
        keeping: &Keeping,
    ) -> Self {
        let (width, embedding) = (config.hidden_size, config.embedding_size());
        let bodies = ["model.decoder.", "decoder."];
        let (root, body) = root_of(weights, &["language_model.", "opt_model.", ""], &bodies);
        let head = (!config.tie_word_embeddings).then_some("lm_head.weight");
        let mut scope = weights.scope(format!("{root}{body}"), kind, device);
        let table = scope.take("embed_tokens.weight", &[config.vocab_size, embedding]);
        let rows = config.max_position_embeddings + POSITION_OFFSET;
        let positions = scope.take_f32("embed_positions.weight", &[rows, width]);
        let projected = embedding != width;
        let project_in = projected.then(|| linear_without_bias(&mut scope, "project_in", [embedding, width]));
        let project_out =
            projected.then(|| linear_without_bias(&mut scope, "project_out", [width, embedding]));
        let load = |i| Layer::load(config, &mut scope.at(format_args!("layers.{i}")));
        let layers = Stack::load(keeping, config.num_hidden_layers, load);
        let final_norm =
            config.do_layer_norm_before.then(|| layer_norm(&mut scope, "final_layer_norm", width, EPS));
        let vocabulary = Vocabulary::new(table, head, &mut weights.scope(root, kind, device));
        Self {
            vocabulary,
            positions,
            project_in,
            project_out,
            layers,
            final_norm,
            gradient_checkpointing: false,
        }
    }

    pub(super) fn forward(&self, embeds: &Tensor, mask: &Tensor, cache: Option<&mut KvCache>) -> Tensor {
        let mut reading = Reading::begin(mask, cache, self.vocabulary.kind());
        let positions =
            Tensor::embedding(&self.positions, &(&reading.positions + POSITION_OFFSET), -1, false, false);
        let embeds =
            self.project_in.as_ref().map_or(embeds.shallow_clone(), |project| project.forward(embeds));
        let mut x = reading.pack(&(embeds + positions)); // [N, H]
        let recomputes = self.layers.recomputes(self.gradient_checkpointing) && !reading.remembers();
        for i in 0..self.layers.len() {
            x = match recomputes {
                true => {
                    let again = reading.without_cache();
                    let run = move |layer: &Layer, x: &[Tensor]| {
                        layer.forward(i, &x[0], &mut again.without_cache())
                    };
                    self.layers.recomputed(i, &[&x], run)
                }
                false => self.layers.with(i, |layer| layer.forward(i, &x, &mut reading)),
            };
        }
        if let Some(norm) = &self.final_norm {
            x = norm.forward(&x);
        }
        if let Some(project) = &self.project_out {
            x = project.forward(&x).to_kind(Kind::Float);
        }
        reading.unpack(&x)
    }
}

impl Layer {
    fn load(config: &OptConfig, scope: &mut Scope<'_>) -> Self {
        let (width, hidden) = (config.hidden_size, config.ffn_dim);
        let mut attention = scope.at("self_attn");
        let qkv = fused_linear(&mut attention, &["q_proj", "k_proj", "v_proj"], [width, width]);
        let out = linear(&mut attention, "out_proj", [width, width]);
        Self {
            norm_before: config.do_layer_norm_before,
            heads: config.num_attention_heads,
            attention_norm: layer_norm(scope, "self_attn_layer_norm", width, EPS),
            qkv,
            out,
            feed_forward_norm: layer_norm(scope, "final_layer_norm", width, EPS),
            fc1: linear(scope, "fc1", [width, hidden]),
            fc2: linear(scope, "fc2", [hidden, width]),
        }
    }

    /// `[N, H]` to the same.
    fn forward(&self, index: usize, x: &Tensor, reading: &mut Reading<'_>) -> Tensor {
        if self.norm_before {
            let x = x + self.attend(index, &self.attention_norm.forward(x), reading);
            &x + self.feed_forward(&self.feed_forward_norm.forward(&x))
        } else {
            let x = self.attention_norm.forward(&(x + self.attend(index, x, reading)));
            self.feed_forward_norm.forward(&(&x + self.feed_forward(&x)))
        }
    }

    fn attend(&self, index: usize, x: &Tensor, reading: &mut Reading<'_>) -> Tensor {
        let qkv = reading.unpack(&self.qkv.forward(x)); // [B, T, 3 H]
        let [batch, tokens, three_widths] = dims(&qkv);
        let qkv = qkv.view([batch, tokens, 3, self.heads, three_widths / 3 / self.heads]);
        let qkv = qkv.permute([2, 0, 3, 1, 4]).unbind(0); // three of [B, heads, T, K]
        let (keys, values) = reading.remember(index, qkv[1].shallow_clone(), qkv[2].shallow_clone());
        let context = masked_attention(&qkv[0], &keys, &values, &reading.scores_mask); // [B, heads, T, K]
        self.out.forward(&reading.pack(&context.transpose(1, 2).flatten(2, 3)))
    }

    fn feed_forward(&self, x: &Tensor) -> Tensor {
        self.fc2.forward(&self.fc1.forward(x).relu())
    }
}

impl FrozenLayer for Layer {
    fn map(&self, of: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self {
            norm_before: self.norm_before,
            heads: self.heads,
            attention_norm: self.attention_norm.map(of),
            qkv: self.qkv.map(of),
            out: self.out.map(of),
            feed_forward_norm: self.feed_forward_norm.map(of),
            fc1: self.fc1.map(of),
            fc2: self.fc2.map(of),
        }
    }
}
