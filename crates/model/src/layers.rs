//! What the frozen models share. Their residual stream is single precision; matrix products run in the weights' kind.

use tch::{Kind, Tensor};

use crate::weights::Scope;

/// The sizes of `x`, which must have exactly as many dimensions as the caller names.
pub(crate) fn dims<const N: usize>(x: &Tensor) -> [i64; N] {
    x.size().try_into().unwrap_or_else(|size| panic!("expected {N} dimensions, got {size:?}"))
}

/// `x W' + b`, frozen.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl Linear {
    /// Both parts are single precision (they may have been fused or folded) and become `kind` here.
    pub(crate) fn new(weight: &Tensor, bias: Option<&Tensor>, kind: Kind) -> Self {
        // A matrix product reads rows: what was cut or transposed is laid out anew, once.
        let lay_out = |tensor: &Tensor| tensor.to_kind(kind).contiguous();
        Self { weight: lay_out(weight), bias: bias.map(lay_out) }
    }

    /// The same with `of` each tensor in its place.
    pub(crate) fn map(&self, of: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self { weight: of(&self.weight), bias: self.bias.as_ref().map(of) }
    }

    /// Of the weights.
    pub(crate) fn kind(&self) -> Kind {
        self.weight.kind()
    }

    /// `x` of any kind, `[.., in]`, to `[.., out]` of the weights' kind.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.to_kind(self.weight.kind()).linear(&self.weight, self.bias.as_ref())
    }
}

/// `{name}.weight` `[out, in]` and `{name}.bias` `[out]`.
pub(crate) fn linear(scope: &mut Scope<'_>, name: &str, [inputs, outputs]: [i64; 2]) -> Linear {
    let (weight, bias) = linear_f32(scope, name, [inputs, outputs]);
    Linear::new(&weight, Some(&bias), scope.kind())
}

/// `{name}.weight` `[out, in]`, and no bias.
pub(crate) fn linear_without_bias(scope: &mut Scope<'_>, name: &str, [inputs, outputs]: [i64; 2]) -> Linear {
    let weight = scope.at(name).take_f32("weight", &[outputs, inputs]);
    Linear::new(&weight, None, scope.kind())
}

/// As [`linear`], still single precision, for what is fused.
pub(crate) fn linear_f32(scope: &mut Scope<'_>, name: &str, [inputs, outputs]: [i64; 2]) -> (Tensor, Tensor) {
    let mut scope = scope.at(name);
    (scope.take_f32("weight", &[outputs, inputs]), scope.take_f32("bias", &[outputs]))
}

/// Several layers that read the same input, as one: `[in]` to all outputs one after another.
pub(crate) fn fused_linear(scope: &mut Scope<'_>, names: &[&str], [inputs, outputs]: [i64; 2]) -> Linear {
    let parts: Vec<(Tensor, Tensor)> =
        names.iter().map(|name| linear_f32(scope, name, [inputs, outputs])).collect();
    let (weights, biases): (Vec<Tensor>, Vec<Tensor>) = parts.into_iter().unzip();
    Linear::new(&Tensor::cat(&weights, 0), Some(&Tensor::cat(&biases, 0)), scope.kind())
}

/// Ba et al. 2016, in single precision. The trainable parts have it too: tch's own cannot be shared.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    /// `[D]`.
    pub weight: Tensor,
    /// `[D]`.
    pub bias: Tensor,
    pub eps: f64,
}

impl LayerNorm {
    /// The same tensors under another handle.
    pub(crate) fn share(&self) -> Self {
        self.map(&mut Tensor::shallow_clone)
    }

    /// The same with `of` each tensor in its place.
    pub(crate) fn map(&self, of: &mut dyn FnMut(&Tensor) -> Tensor) -> Self {
        Self { weight: of(&self.weight), bias: of(&self.bias), eps: self.eps }
    }

    /// `[.., D]` to the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, false)
    }
}

/// `{name}.weight` and `{name}.bias`, `[width]`.
pub(crate) fn layer_norm(scope: &mut Scope<'_>, name: &str, width: i64, eps: f64) -> LayerNorm {
    let mut scope = scope.at(name);
    LayerNorm { weight: scope.take_f32("weight", &[width]), bias: scope.take_f32("bias", &[width]), eps }
}

/// A frozen layer's output for `inputs`, which alone are kept until the backward pass; the rest is computed again there.
pub(crate) fn recomputed(inputs: &[&Tensor], layer: impl Fn(&[Tensor]) -> Tensor + Send + 'static) -> Tensor {
    torch_bridge::recomputed(inputs, &[], 1, move |inputs| vec![layer(inputs)]).remove(0)
}

/// Softmax attention over everything, scores divided by the root of the head size.
///
/// `[B, H, T, K]` with `[B, H, S, K]` gives `[B, H, T, K]`.
pub(crate) fn attention(query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
    Tensor::scaled_dot_product_attention(query, key, value, None::<&Tensor>, 0.0, false, None, false)
}

/// As [`attention`], with `mask` `[B, 1, T, S]` added to the scores.
///
/// By hand: libtorch's fused kernel takes nine times as long for the gradient of a caption in bf16 on a CPU (14 ms
/// against 1.6 for `[32, 3, 54, 64]`, one thread). The softmax sums in single precision whatever its kind.
pub(crate) fn masked_attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: &Tensor) -> Tensor {
    let [_, _, _, size] = dims(query);
    let scores = (query * (size as f64).powf(-0.5)).matmul(&key.transpose(2, 3)) + mask;
    scores.softmax(-1, scores.kind()).matmul(value)
}
