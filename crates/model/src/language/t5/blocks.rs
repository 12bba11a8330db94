//! The parts of T5's layers: attention without scaling, without biases; RMS norms folded into what reads them.

use tch::{Kind, Tensor};

use super::config::{Activation, T5Config};
use crate::language::cache::LayerCache;
use crate::language::llama::{normed_linear, rms_normalised};
use crate::layers::{Linear, dims, linear_without_bias};
use crate::weights::Scope;

/// Number and size of the heads, and the norms' epsilon: the same in every layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub heads: i64,
    pub size: i64,
    pub eps: f64,
}

impl Shape {
    pub fn of(config: &T5Config) -> Self {
        Self { heads: config.num_heads, size: config.d_kv, eps: config.layer_norm_epsilon }
    }

    fn inner(self) -> i64 {
        self.heads * self.size
    }

    /// `[B, T, N * H * K]` to N of `[B, H, T, K]`.
    fn split(self, x: &Tensor) -> Vec<Tensor> {
        let [batch, tokens, width] = dims(x);
        let parts = x.view([batch, tokens, width / self.inner(), self.heads, self.size]);
        parts.permute([2, 0, 3, 1, 4]).unbind(0)
    }
}

/// softmax(q k' + bias) v, not scaled; `bias` broadcasts to `[B, H, T, S]`. The softmax is single precision.
fn attend(query: &Tensor, keys: &Tensor, values: &Tensor, bias: &Tensor) -> Tensor {
    let scores = query.matmul(&keys.transpose(2, 3)).to_kind(Kind::Float) + bias;
    let context = scores.softmax(-1, Kind::Float).to_kind(values.kind()).matmul(values);
    context.transpose(1, 2).flatten(2, 3)
}

/// A stack's tokens look at each other.
#[derive(Debug)]
pub(super) struct SelfAttention {
    qkv: Linear,
    out: Linear,
}

impl SelfAttention {
    pub fn load(config: &T5Config, scope: &mut Scope<'_>) -> Self {
        let inner = Shape::of(config).inner();
        let qkv = ["SelfAttention.q", "SelfAttention.k", "SelfAttention.v"].map(|name| (name, inner));
        Self {
            qkv: normed_linear(scope, "layer_norm", &qkv, config.d_model),
            out: linear_without_bias(scope, "SelfAttention.o", [inner, config.d_model]),
        }
    }

    /// The same with `of` each tensor in its place.
    pub fn map(&self, of: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self { qkv: self.qkv.map(of), out: self.out.map(of) }
    }

    /// `x` `[B, T, D]` plus what its tokens see; earlier tokens are in the `cache`, with its layer's number.
    pub fn forward(
        &self,
        x: &Tensor,
        bias: &Tensor,
        shape: Shape,
        cache: Option<(&mut LayerCache, usize)>,
    ) -> Tensor {
        let qkv = shape.split(&self.qkv.forward(&rms_normalised(x, shape.eps)));
        let context = match cache {
            Some((cache, layer)) => {
                let (keys, values) = cache.append(layer, &qkv[1], &qkv[2]);
                attend(&qkv[0], &keys, &values, bias)
            }
            None => attend(&qkv[0], &qkv[1], &qkv[2], bias),
        };
        x + self.out.forward(&context)
    }
}

/// The decoder's tokens look at what the encoder made.
#[derive(Debug)]
pub(super) struct CrossAttention {
    query: Linear,
    key_value: Linear,
    out: Linear,
}

impl CrossAttention {
    pub fn load(config: &T5Config, scope: &mut Scope<'_>) -> Self {
        let (inner, width) = (Shape::of(config).inner(), config.d_model);
        // In files of the first T5, and never read.
        scope.ignore("EncDecAttention.relative_attention_bias.");
        let parts = ["EncDecAttention.k", "EncDecAttention.v"]
            .map(|name| scope.at(name).take_f32("weight", &[inner, width]));
        Self {
            query: normed_linear(scope, "layer_norm", &[("EncDecAttention.q", inner)], width),
            key_value: Linear::new(&Tensor::cat(&parts, 0), None, scope.kind()),
            out: linear_without_bias(scope, "EncDecAttention.o", [inner, width]),
        }
    }

    /// The same with `of` each tensor in its place.
    pub fn map(&self, of: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self { query: self.query.map(of), key_value: self.key_value.map(of), out: self.out.map(of) }
    }

    /// Keys and values of the encoder's states `[B, S, D]`, `[B, H, S, K]` each: computed once.
    pub fn keys_values(&self, states: &Tensor, shape: Shape) -> (Tensor, Tensor) {
        let parts = shape.split(&self.key_value.forward(states));
        (parts[0].shallow_clone(), parts[1].shallow_clone())
    }

    /// `x` `[B, T, D]` plus what its tokens see.
    pub fn forward(
        &self,
        x: &Tensor,
        (keys, values): (&Tensor, &Tensor),
        mask: &Tensor,
        shape: Shape,
    ) -> Tensor {
        let query = shape.split(&self.query.forward(&rms_normalised(x, shape.eps)));
        x + self.out.forward(&attend(&query[0], keys, values, mask))
    }
}

/// Two matrices with an activation between them, or three where one gates.
#[derive(Debug)]
pub(super) struct FeedForward {
    inner: Linear,
    outer: Linear,
    is_gated: bool,
    activation: Activation,
}

impl FeedForward {
    pub fn load(config: &T5Config, scope: &mut Scope<'_>) -> Self {
        let names: &[&str] = match config.is_gated {
            true => &["DenseReluDense.wi_0", "DenseReluDense.wi_1"],
            false => &["DenseReluDense.wi"],
        };
        let parts: Vec<(&str, i64)> = names.iter().map(|name| (*name, config.d_ff)).collect();
        let outer = scope.at("DenseReluDense.wo").take_f32("weight", &[config.d_model, config.d_ff]);
        // What comes in here is too large for half precision in published models.
        let outer_kind = if scope.kind() == Kind::Half { Kind::Float } else { scope.kind() };
        Self {
            inner: normed_linear(scope, "layer_norm", &parts, config.d_model),
            outer: Linear::new(&outer, None, outer_kind),
            is_gated: config.is_gated,
            activation: config.dense_act_fn,
        }
    }

    /// The same with `of` each tensor in its place.
    pub fn map(&self, of: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self { inner: self.inner.map(of), outer: self.outer.map(of), ..*self }
    }

    /// `x` `[.., D]` plus what is made of it.
    pub fn forward(&self, x: &Tensor, eps: f64) -> Tensor {
        let inner = self.inner.forward(&rms_normalised(x, eps));
        let inner = match self.is_gated {
            true => {
                let halves = inner.chunk(2, -1);
                self.activate(&halves[0]).to_kind(self.outer.kind()) * &halves[1]
            }
            false => self.activate(&inner),
        };
        x + self.outer.forward(&inner)
    }

    fn activate(&self, x: &Tensor) -> Tensor {
        match self.activation {
            Activation::Relu => x.relu(),
            Activation::Gelu => x.gelu("none"),
            Activation::GeluNew => x.gelu("tanh"),
            Activation::Silu => x.silu(),
        }
    }
}
