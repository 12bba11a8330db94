//! T5 and Flan-T5 (Raffel et al. 2020; Chung et al. 2022), frozen: an encoder that reads what is given, a decoder that
//! continues; relative positions, RMS norms before the branches, attention that is not scaled.

mod blocks;
mod config;
mod positions;

use tch::{Device, Kind, Tensor};

use blocks::{CrossAttention, FeedForward, SelfAttention, Shape};
pub use config::{Activation, T5Config};
use positions::{Direction, RelativeBias};

use super::Vocabulary;
use super::cache::LayerCache;
use super::llama::rms_normalised;
use super::stack::{AnyStack, FrozenLayer, Keeping, Stack, meet};
use crate::weights::{Scope, Weights};

/// The number of a stack, for ranks that hold the layers together.
const ENCODER: usize = 0;
const DECODER: usize = 1;

/// A frozen T5.
#[derive(Debug)]
pub struct T5 {
    pub(super) vocabulary: Vocabulary,
    shape: Shape,
    start: i64,
    encoder: Stack<EncoderLayer>,
    encoder_bias: RelativeBias,
    /// `[D]`.
    encoder_gain: Tensor,
    decoder: Stack<DecoderLayer>,
    decoder_bias: RelativeBias,
    /// `[D]`, with the factor before a tied head in it.
    decoder_gain: Tensor,
    /// Layers keep their inputs alone where a gradient is wanted.
    pub(super) gradient_checkpointing: bool,
}

#[derive(Debug)]
struct EncoderLayer {
    attention: SelfAttention,
    feed_forward: FeedForward,
}

#[derive(Debug)]
struct DecoderLayer {
    attention: SelfAttention,
    cross: CrossAttention,
    feed_forward: FeedForward,
}

/// What all layers of the decoder add to their scores.
#[derive(Debug)]
struct Biases {
    /// To those of its own tokens, `[1, H, T, past + T]`: no token sees a later one.
    own: Tensor,
    /// To those of the encoder's states, `[B, 1, 1, S]`.
    encoded: Tensor,
}

impl Biases {
    /// The same tensors under another handle.
    fn share(&self) -> Self {
        Self { own: self.own.shallow_clone(), encoded: self.encoded.shallow_clone() }
    }
}

/// What the decoder remembers of a batch: what the encoder read, and its own tokens so far.
#[derive(Debug)]
pub struct T5Cache {
    /// Of the encoder's states.
    encoded: LayerCache,
    /// `[B, 1, 1, S]`, added to scores.
    encoded_mask: Tensor,
    own: LayerCache,
}

impl T5Cache {
    /// Forgets every row but `rows` (`[n]`, integers, which may repeat), in their order.
    pub fn keep_rows(&mut self, rows: &Tensor) {
        self.encoded.keep_rows(rows);
        self.own.keep_rows(rows);
        self.encoded_mask = self.encoded_mask.index_select(0, rows);
    }
}

impl T5 {
    pub(super) fn new(
        config: &T5Config,
        weights: &mut Weights,
        (kind, device): (Kind, Device),
        keeping: &Keeping,
    ) -> Self {
        const ROOTS: [&str; 3] = ["language_model.", "t5_model.", ""];
        let root = ROOTS.into_iter().find(|root| weights.has(&format!("{root}shared.weight"))).unwrap_or("");
        // Files of Flan-T5 may call themselves tied and have a head all the same.
        let is_tied = config.tie_word_embeddings && !weights.has(&format!("{root}lm_head.weight"));
        let mut scope = weights.scope(root, kind, device);
        let table = scope.take("shared.weight", &[config.vocab_size, config.d_model]);
        for copy in ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] {
            scope.ignore(copy);
        }
        let vocabulary = Vocabulary::new(table, (!is_tied).then_some("lm_head.weight"), &mut scope);
        let mut encoder = scope.at("encoder");
        let encoder_bias = RelativeBias::load(config, Direction::Both, &mut encoder);
        let encoder_gain = encoder.take_f32("final_layer_norm.weight", &[config.d_model]);
        let encoder = EncoderLayer::all(config, &mut encoder, keeping);
        let mut decoder = scope.at("decoder");
        let decoder_bias = RelativeBias::load(config, Direction::Back, &mut decoder);
        let scale = if config.scale_decoder_outputs { (config.d_model as f64).powf(-0.5) } else { 1.0 };
        let decoder_gain = decoder.take_f32("final_layer_norm.weight", &[config.d_model]) * scale;
        let decoder = DecoderLayer::all(config, &mut decoder, keeping);
        let (shape, start) = (Shape::of(config), config.decoder_start_token_id);
        Self {
            vocabulary,
            shape,
            start,
            encoder,
            encoder_bias,
            encoder_gain,
            decoder,
            decoder_bias,
            decoder_gain,
            gradient_checkpointing: false,
        }
    }

    /// What the decoder reads before the first token.
    #[must_use]
    pub fn decoder_start(&self) -> i64 {
        self.start
    }

    /// Reads `embeds` `[B, S, D]` with their `mask` `[B, S]` (1 = token). Positions are columns, padding counted, as the
    /// peers count them.
    pub fn encode(&self, embeds: &Tensor, mask: &Tensor) -> T5Cache {
        meet(&self.stacks(), Some(ENCODER));
        let (states, encoded_mask) = self.encoded(embeds, mask);
        meet(&self.stacks(), Some(DECODER));
        let of = |layer: &DecoderLayer| layer.cross.keys_values(&states, self.shape);
        let keys_values = (0..self.decoder.len()).map(|i| self.decoder.with(i, of));
        T5Cache { encoded: LayerCache::new(keys_values.collect()), encoded_mask, own: LayerCache::default() }
    }

    /// The encoder's states `[B, S, D]`, and what is added to the scores of who looks at them, `[B, 1, 1, S]`.
    fn encoded(&self, embeds: &Tensor, mask: &Tensor) -> (Tensor, Tensor) {
        let hidden = mask.eq(0).unsqueeze(1).unsqueeze(1);
        let encoded_mask = Tensor::zeros(hidden.size(), (Kind::Float, embeds.device()))
            .masked_fill(&hidden, f64::NEG_INFINITY);
        let bias = self.encoder_bias.of(0, embeds.size()[1]) + &encoded_mask;
        let mut x = embeds.shallow_clone();
        let shape = self.shape;
        for i in 0..self.encoder.len() {
            x = match self.encoder.recomputes(self.gradient_checkpointing) {
                true => {
                    let bias = bias.shallow_clone();
                    let run = move |layer: &EncoderLayer, x: &[Tensor]| layer.forward(&x[0], &bias, shape);
                    self.encoder.recomputed(i, &[&x], run)
                }
                false => self.encoder.with(i, |layer| layer.forward(&x, &bias, shape)),
            };
        }
        (rms_normalised(&x, self.shape.eps) * &self.encoder_gain, encoded_mask)
    }

    /// Reads decoder tokens `ids` `[B, T]` behind those in the cache: states `[B, T, D]` behind the last norm, single
    /// precision, each of which predicts the next token. A row's padding stands on the right, where no token sees it.
    pub fn decode(&self, ids: &Tensor, cache: &mut T5Cache) -> Tensor {
        meet(&self.stacks(), Some(DECODER));
        let biases = self.biases(cache.own.columns(), ids.size()[1], &cache.encoded_mask);
        let mut x = self.vocabulary.embed(ids);
        for i in 0..self.decoder.len() {
            x = self.decoder.with(i, |layer| {
                layer.forward(&x, cache.encoded.of(i), &biases, self.shape, Some((&mut cache.own, i)))
            });
        }
        rms_normalised(&x, self.shape.eps) * &self.decoder_gain
    }

    /// Reads `embeds` `[B, S, D]` with their `mask` `[B, S]`, and says `ids` `[B, T]`: the states `[B, T, D]` that predict
    /// them. Nothing is remembered: what a cache holds is computed in each layer as it is needed.
    pub(super) fn read(&self, embeds: &Tensor, mask: &Tensor, ids: &Tensor) -> Tensor {
        let (states, encoded_mask) = self.encoded(embeds, mask);
        let biases = self.biases(0, ids.size()[1], &encoded_mask);
        let mut x = self.vocabulary.embed(&self.shifted_right(ids));
        let shape = self.shape;
        for i in 0..self.decoder.len() {
            x = match self.decoder.recomputes(self.gradient_checkpointing) {
                true => {
                    let biases = biases.share();
                    let run = move |layer: &DecoderLayer, x: &[Tensor]| {
                        layer.forward_on(&x[0], &x[1], &biases, shape)
                    };
                    self.decoder.recomputed(i, &[&x, &states], run)
                }
                false => self.decoder.with(i, |layer| layer.forward_on(&x, &states, &biases, shape)),
            };
        }
        rms_normalised(&x, self.shape.eps) * &self.decoder_gain
    }

    /// By [`ENCODER`] and [`DECODER`].
    pub(super) fn stacks(&self) -> [&dyn AnyStack; 2] {
        [&self.encoder, &self.decoder]
    }

    /// For `rows` new tokens behind `past`.
    fn biases(&self, past: i64, rows: i64, encoded_mask: &Tensor) -> Biases {
        let own = self.decoder_bias.of(past, rows);
        let later = Tensor::ones([rows, past + rows], (Kind::Bool, own.device())).triu(past + 1);
        Biases { own: own.masked_fill(&later, f64::NEG_INFINITY), encoded: encoded_mask.shallow_clone() }
    }

    /// The decoder's input for targets `ids` `[B, T]`: the start, then all but the last.
    pub(super) fn shifted_right(&self, ids: &Tensor) -> Tensor {
        let start = ids.new_full([ids.size()[0], 1], self.start, (Kind::Int64, ids.device()));
        Tensor::cat(&[&start, &ids.narrow(1, 0, ids.size()[1] - 1)], 1)
    }
}

impl EncoderLayer {
    fn all(config: &T5Config, scope: &mut Scope<'_>, keeping: &Keeping) -> Stack<Self> {
        let one = |i: i64| {
            let mut scope = scope.at(format_args!("block.{i}.layer"));
            Self {
                attention: SelfAttention::load(config, &mut scope.at(0)),
                feed_forward: FeedForward::load(config, &mut scope.at(1)),
            }
        };
        Stack::load(keeping, config.num_layers, one)
    }

    /// `x` `[B, S, D]` to the same.
    fn forward(&self, x: &Tensor, bias: &Tensor, shape: Shape) -> Tensor {
        let x = self.attention.forward(x, bias, shape, None);
        self.feed_forward.forward(&x, shape.eps)
    }
}

impl FrozenLayer for EncoderLayer {
    fn map(&self, of: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self { attention: self.attention.map(of), feed_forward: self.feed_forward.map(of) }
    }
}

impl DecoderLayer {
    fn all(config: &T5Config, scope: &mut Scope<'_>, keeping: &Keeping) -> Stack<Self> {
        let one = |i: i64| {
            let mut scope = scope.at(format_args!("block.{i}.layer"));
            Self {
                attention: SelfAttention::load(config, &mut scope.at(0)),
                cross: CrossAttention::load(config, &mut scope.at(1)),
                feed_forward: FeedForward::load(config, &mut scope.at(2)),
            }
        };
        Stack::load(keeping, config.num_decoder_layers, one)
    }

    /// `x` `[B, T, D]` to the same, with keys and values of the encoder's states; earlier tokens are in the `cache`.
    fn forward(
        &self,
        x: &Tensor,
        encoded: (&Tensor, &Tensor),
        biases: &Biases,
        shape: Shape,
        cache: Option<(&mut LayerCache, usize)>,
    ) -> Tensor {
        let x = self.attention.forward(x, &biases.own, shape, cache);
        let x = self.cross.forward(&x, encoded, &biases.encoded, shape);
        self.feed_forward.forward(&x, shape.eps)
    }

    /// [`DecoderLayer::forward`] of a whole text on the encoder's `states` `[B, S, D]`.
    fn forward_on(&self, x: &Tensor, states: &Tensor, biases: &Biases, shape: Shape) -> Tensor {
        let (keys, values) = self.cross.keys_values(states, shape);
        self.forward(x, (&keys, &values), biases, shape, None)
    }
}

impl FrozenLayer for DecoderLayer {
    fn map(&self, of: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self {
            attention: self.attention.map(of),
            cross: self.cross.map(of),
            feed_forward: self.feed_forward.map(of),
        }
    }
}
