//! Llama (Touvron et al. 2023), frozen: rotary positions, shared key and value heads, SwiGLU, RMS norms.
//!
//! The gains of a layer's norms are folded into the matrices that read them, and matrices with the same input are one.

use tch::{Device, Kind, Tensor};

use super::cache::{KvCache, Reading};
use super::config::LlamaConfig;
use super::stack::{FrozenLayer, Keeping, Stack};
use super::{Vocabulary, root_of};
use crate::layers::{Linear, dims, linear_without_bias, masked_attention};
use crate::weights::{Scope, Weights};

/// A frozen Llama.
#[derive(Debug)]
pub struct Llama {
    pub(super) vocabulary: Vocabulary,
    pub(super) layers: Stack<Layer>,
    /// `[D]`; the last norm's gain stays, because a tied head is shared with the embeddings.
    final_gain: Tensor,
    heads: Heads,
    eps: f64,
    /// `[K / 2]`, radians per position.
    frequencies: Tensor,
    /// Layers keep their inputs alone where a gradient is wanted.
    pub(super) gradient_checkpointing: bool,
}

#[derive(Debug)]
pub(super) struct Layer {
    qkv: Linear,
    out: Linear,
    gate_up: Linear,
    down: Linear,
}

/// `groups` groups of queries, each with its own keys and values.
#[derive(Clone, Copy, Debug)]
struct Heads {
    groups: i64,
    queries_per_group: i64,
    size: i64,
}

/// What a layer needs beside its input.
struct Context<'a> {
    reading: Reading<'a>,
    /// `[B, 1, G * T, S]`.
    scores_mask: Tensor,
    /// `[B, T, 1, K]`.
    cos: Tensor,
    /// `[B, T, 1, K]`, the first half negative: `rotate_half(x)` is `x` rolled by half with its first half negated.
    sin: Tensor,
    heads: Heads,
    eps: f64,
}

impl Llama {
    pub(super) fn new(
        config: &LlamaConfig,
        weights: &mut Weights,
        (kind, device): (Kind, Device),
        keeping: &Keeping,
    ) -> Self {
        let heads = Heads {
            groups: config.key_value_heads(),
            queries_per_group: config.num_attention_heads / config.key_value_heads(),
            size: config.head_size(),
        };
        let (root, body) = root_of(weights, &["language_model.", "llm_model.", ""], &["model."]);
        let head = (!config.tie_word_embeddings).then_some("lm_head.weight");
        let mut scope = weights.scope(format!("{root}{body}"), kind, device);
        let table = scope.take("embed_tokens.weight", &[config.vocab_size, config.hidden_size]);
        let final_gain = scope.take_f32("norm.weight", &[config.hidden_size]);
        let load = |i| Layer::load(config, heads, &mut scope.at(format_args!("layers.{i}")));
        let layers = Stack::load(keeping, config.num_hidden_layers, load);
        let vocabulary = Vocabulary::new(table, head, &mut weights.scope(root, kind, device));
        let exponents =
            Tensor::arange_start_step(0, heads.size, 2, (Kind::Float, device)) / heads.size as f64;
        let frequencies = Tensor::from(config.rope_theta).pow(&exponents).reciprocal().to_kind(Kind::Float);
        Self {
            vocabulary,
            layers,
            final_gain,
            heads,
            eps: config.rms_norm_eps,
            frequencies,
            gradient_checkpointing: false,
        }
    }

    pub(super) fn forward(&self, embeds: &Tensor, mask: &Tensor, cache: Option<&mut KvCache>) -> Tensor {
        let mut context = self.context(mask, cache);
        let mut x = context.reading.pack(embeds); // [N, D]
        let recomputes = self.layers.recomputes(self.gradient_checkpointing) && !context.reading.remembers();
        for i in 0..self.layers.len() {
            x = match recomputes {
                true => {
                    let again = context.without_cache();
                    let run = move |layer: &Layer, x: &[Tensor]| {
                        layer.forward(i, &x[0], &mut again.without_cache())
                    };
                    self.layers.recomputed(i, &[&x], run)
                }
                false => self.layers.with(i, |layer| layer.forward(i, &x, &mut context)),
            };
        }
        context.reading.unpack(&(rms_normalised(&x, self.eps) * &self.final_gain))
    }

    fn context<'a>(&self, mask: &Tensor, cache: Option<&'a mut KvCache>) -> Context<'a> {
        let kind = self.vocabulary.kind();
        let reading = Reading::begin(mask, cache, kind);
        let scores_mask = reading.scores_mask.repeat([1, 1, self.heads.queries_per_group, 1]);
        let angles = reading.positions.to_kind(Kind::Float).unsqueeze(-1) * &self.frequencies; // [B, T, K / 2]
        let (cos, sin) = (angles.cos(), angles.sin());
        let cos = Tensor::cat(&[&cos, &cos], -1).unsqueeze(2).to_kind(kind);
        let sin = Tensor::cat(&[sin.neg(), sin], -1).unsqueeze(2).to_kind(kind);
        Context { reading, scores_mask, cos, sin, heads: self.heads, eps: self.eps }
    }
}

impl Context<'_> {
    /// The same for layers that are computed again.
    fn without_cache(&self) -> Context<'static> {
        Context {
            reading: self.reading.without_cache(),
            scores_mask: self.scores_mask.shallow_clone(),
            cos: self.cos.shallow_clone(),
            sin: self.sin.shallow_clone(),
            heads: self.heads,
            eps: self.eps,
        }
    }
}

impl Layer {
    fn load(config: &LlamaConfig, heads: Heads, scope: &mut Scope<'_>) -> Self {
        let (width, hidden) = (config.hidden_size, config.intermediate_size);
        let (keys, queries) =
            (heads.groups * heads.size, heads.groups * heads.queries_per_group * heads.size);
        let qkv = [("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)];
        let gate_up = [("mlp.gate_proj", hidden), ("mlp.up_proj", hidden)];
        // A buffer in files of transformers before 4.32.
        scope.ignore("self_attn.rotary_emb.");
        Self {
            qkv: normed_linear(scope, "input_layernorm", &qkv, width),
            out: linear_without_bias(scope, "self_attn.o_proj", [queries, width]),
            gate_up: normed_linear(scope, "post_attention_layernorm", &gate_up, width),
            down: linear_without_bias(scope, "mlp.down_proj", [hidden, width]),
        }
    }

    /// `[N, D]` to the same.
    fn forward(&self, index: usize, x: &Tensor, context: &mut Context<'_>) -> Tensor {
        let x = x + self.attend(index, &rms_normalised(x, context.eps), context);
        &x + self.feed_forward(&rms_normalised(&x, context.eps))
    }

    /// `[N, D]` to the same.
    fn attend(&self, index: usize, x: &Tensor, context: &mut Context<'_>) -> Tensor {
        let Heads { groups: n, queries_per_group: g, size: k } = context.heads;
        let qkv = context.reading.unpack(&self.qkv.forward(x)); // [B, T, (N G + 2 N) K]
        let [batch, tokens, _] = dims(&qkv);
        let qkv = qkv.view([batch, tokens, n * g + 2 * n, k]).split_with_sizes([n * g + n, n], 2);
        let (qk, values) = (&qkv[0], qkv[1].transpose(1, 2)); // values [B, N, T, K]
        let qk = (qk * &context.cos + qk.roll([k / 2], [3]) * &context.sin).split_with_sizes([n * g, n], 2);
        let (keys, values) = context.reading.remember(index, qk[1].transpose(1, 2), values);
        // The G heads that share keys stand one after another as G * T rows of one head: nothing is repeated.
        let queries = qk[0].reshape([batch, tokens, n, g, k]).permute([0, 2, 3, 1, 4]);
        let queries = queries.reshape([batch, n, g * tokens, k]);
        let out = masked_attention(&queries, &keys, &values, &context.scores_mask); // [B, N, G * T, K]
        let out = out.reshape([batch, n, g, tokens, k]).permute([0, 3, 1, 2, 4]);
        self.out.forward(&context.reading.pack(&out.reshape([batch, tokens, n * g * k])))
    }

    /// `[N, D]` to the same.
    fn feed_forward(&self, x: &Tensor) -> Tensor {
        let gate_up = self.gate_up.forward(x).chunk(2, -1);
        self.down.forward(&(gate_up[0].silu() * &gate_up[1]))
    }
}

impl FrozenLayer for Layer {
    fn map(&self, of: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self {
            qkv: self.qkv.map(of),
            out: self.out.map(of),
            gate_up: self.gate_up.map(of),
            down: self.down.map(of),
        }
    }
}

/// Layers that read the same normed input, as one, with the norm's gain in their columns.
pub(super) fn normed_linear(scope: &mut Scope<'_>, norm: &str, parts: &[(&str, i64)], width: i64) -> Linear {
    let gain = scope.at(norm).take_f32("weight", &[width]);
    let weights: Vec<Tensor> =
        parts.iter().map(|(name, outputs)| scope.at(name).take_f32("weight", &[*outputs, width])).collect();
    Linear::new(&(Tensor::cat(&weights, 0) * gain), None, scope.kind())
}

/// Zhang and Sennrich 2019, without the gain; `[.., D]` single precision to the same.
pub(super) fn rms_normalised(x: &Tensor, eps: f64) -> Tensor {
    let mean_square = x.square().mean_dim(-1, true, Kind::Float);
    x * (mean_square + eps).rsqrt()
}
