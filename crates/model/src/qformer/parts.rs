//! What trainable layers are made of, and what recomputation needs of them: their tensors, and another handle on them.

use tch::Tensor;
use tch::nn::{self, Path};

use crate::layers::LayerNorm;

/// Standard deviation of fresh weights (BERT's `initializer_range`).
const INIT_STDEV: f64 = 0.02;

/// A part of a model that a recomputed piece can take along.
pub(crate) trait Part {
    /// The same tensors under another handle.
    fn share(&self) -> Self;

    /// Adds its trainable tensors.
    fn collect<'a>(&'a self, into: &mut Vec<&'a Tensor>);
}

/// A linear layer with weights N(0, 0.02) and a zero bias.
pub(crate) fn linear(p: Path, from: i64, to: i64) -> nn::Linear {
    linear_of(p, from, to, INIT_STDEV)
}

/// A linear layer with weights N(0, `stdev`) and a zero bias.
pub(crate) fn linear_of(p: Path, from: i64, to: i64, stdev: f64) -> nn::Linear {
    let config = nn::LinearConfig {
        ws_init: nn::Init::Randn { mean: 0.0, stdev },
        bs_init: Some(nn::Init::Const(0.0)),
        bias: true,
    };
    nn::linear(p, from, to, config)
}

/// A LayerNorm over the last dimension that starts as none.
pub(crate) fn layer_norm(p: Path, width: i64, eps: f64) -> LayerNorm {
    LayerNorm {
        weight: p.var("weight", &[width], nn::Init::Const(1.0)),
        bias: p.var("bias", &[width], nn::Init::Const(0.0)),
        eps,
    }
}

impl Part for LayerNorm {
    fn share(&self) -> Self {
        Self::share(self)
    }

    fn collect<'a>(&'a self, into: &mut Vec<&'a Tensor>) {
        into.extend([&self.weight, &self.bias]);
    }
}

impl Part for nn::Linear {
    fn share(&self) -> Self {
        Self { ws: self.ws.shallow_clone(), bs: self.bs.as_ref().map(Tensor::shallow_clone) }
    }

    fn collect<'a>(&'a self, into: &mut Vec<&'a Tensor>) {
        into.push(&self.ws);
        into.extend(&self.bs);
    }
}

impl<T: Part> Part for Option<T> {
    fn share(&self) -> Self {
        self.as_ref().map(Part::share)
    }

    fn collect<'a>(&'a self, into: &mut Vec<&'a Tensor>) {
        if let Some(part) = self {
            part.collect(into);
        }
    }
}
