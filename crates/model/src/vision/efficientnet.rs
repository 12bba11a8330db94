//! EfficientNet-Lite0 (Tan and Le 2019; Google's Lite variant: ReLU6, no squeeze-and-excitation) up to its last stage.
//!
//! Names and numbers are those of `efficientnet_lite_pytorch` 0.1.0, converted from TensorFlow: hence the asymmetric
//! "same" padding. Batch norms are folded into the convolutions before them.

use tch::{Device, Kind, Tensor};

use crate::layers::dims;
use crate::weights::{Scope, Weights};

/// V: channels of the last stage.
pub(super) const WIDTH: i64 = 320;

const BATCH_NORM_EPS: f64 = 1e-3;
const STEM_CHANNELS: i64 = 32;

/// Blocks of one resolution or width: only the first one strides.
struct Stage {
    blocks: usize,
    kernel: i64,
    stride: i64,
    expansion: i64,
    channels: i64,
}

const STAGES: [Stage; 7] = [
    Stage { blocks: 1, kernel: 3, stride: 1, expansion: 1, channels: 16 },
    Stage { blocks: 2, kernel: 3, stride: 2, expansion: 6, channels: 24 },
    Stage { blocks: 2, kernel: 5, stride: 2, expansion: 6, channels: 40 },
    Stage { blocks: 3, kernel: 3, stride: 2, expansion: 6, channels: 80 },
    Stage { blocks: 3, kernel: 5, stride: 1, expansion: 6, channels: 112 },
    Stage { blocks: 4, kernel: 5, stride: 2, expansion: 6, channels: 192 },
    Stage { blocks: 1, kernel: 3, stride: 1, expansion: 6, channels: WIDTH },
];

/// Side of the last stage's map: five times halved, rounded up.
pub(super) fn grid(image_size: i64) -> i64 {
    (0..5).fold(image_size, |side, _| (side + 1) / 2)
}

/// The frozen network.
#[derive(Debug)]
pub(super) struct EfficientnetLite0 {
    stem: Conv,
    blocks: Vec<InvertedResidual>,
}

/// Sandler et al. 2018: expand, filter each channel, project; a short cut where the sizes allow it.
#[derive(Debug)]
struct InvertedResidual {
    expand: Option<Conv>,
    depthwise: Conv,
    project: Conv,
    short_cut: bool,
}

/// A convolution with its batch norm folded in.
#[derive(Debug)]
struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    groups: i64,
    relu6: bool,
}

impl EfficientnetLite0 {
    pub(super) fn new(weights: &mut Weights, kind: Kind, device: Device) -> Self {
        let mut scope = weights.scope("", kind, device);
        for head in ["_conv_head.", "_bn1.", "_fc."] {
            scope.ignore(head);
        }
        let stem = conv(&mut scope, ["_conv_stem", "_bn0"], [STEM_CHANNELS, 3, 3, 3]).strided(2).activated();
        let mut blocks = Vec::new();
        let mut inputs = STEM_CHANNELS;
        for stage in &STAGES {
            for i in 0..stage.blocks {
                let stride = if i == 0 { stage.stride } else { 1 };
                let mut scope = scope.at(format_args!("_blocks.{}", blocks.len()));
                blocks.push(InvertedResidual::load(&mut scope, stage, inputs, stride));
                inputs = stage.channels;
            }
        }
        Self { stem, blocks }
    }

    /// `[B, 3, S, S]` to `[B, G * G, 320]`, single precision.
    pub(super) fn forward(&self, pixels: &Tensor) -> Tensor {
        let pixels = channels_last(&pixels.to_kind(self.stem.weight.kind()));
        let map = self.blocks.iter().fold(self.stem.forward(&pixels), |map, block| block.forward(&map));
        let [batch, channels, height, width] = dims(&map);
        map.permute([0, 2, 3, 1]).reshape([batch, height * width, channels]).to_kind(Kind::Float)
    }
}

impl InvertedResidual {
    fn load(scope: &mut Scope<'_>, stage: &Stage, inputs: i64, stride: i64) -> Self {
        let hidden = inputs * stage.expansion;
        let expand = (stage.expansion != 1)
            .then(|| conv(scope, ["_expand_conv", "_bn0"], [hidden, inputs, 1, 1]).activated());
        let depthwise = conv(scope, ["_depthwise_conv", "_bn1"], [hidden, 1, stage.kernel, stage.kernel]);
        Self {
            expand,
            depthwise: depthwise.depthwise().strided(stride).activated(),
            project: conv(scope, ["_project_conv", "_bn2"], [stage.channels, hidden, 1, 1]),
            short_cut: stride == 1 && inputs == stage.channels,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let expanded = self.expand.as_ref().map(|expand| expand.forward(x));
        let mut y = self.project.forward(&self.depthwise.forward(expanded.as_ref().unwrap_or(x)));
        if self.short_cut {
            y += x;
        }
        y
    }
}

impl Conv {
    fn strided(self, stride: i64) -> Self {
        Self { stride, ..self }
    }

    fn depthwise(self) -> Self {
        Self { groups: self.weight.size()[0], ..self }
    }

    fn activated(self) -> Self {
        Self { relu6: true, ..self }
    }

    /// TensorFlow's "same": the output is `ceil(S / stride)`, and an odd padding has its larger part right and below.
    fn forward(&self, x: &Tensor) -> Tensor {
        let [_, _, height, width] = dims(x);
        let [_, _, kernel, _] = dims(&self.weight);
        let missing =
            |side: i64| (((side + self.stride - 1) / self.stride - 1) * self.stride + kernel - side).max(0);
        let (down, right) = (missing(height), missing(width));
        let symmetric = down % 2 == 0 && right % 2 == 0;
        let padded = if symmetric {
            x.shallow_clone()
        } else {
            x.constant_pad_nd([right / 2, right - right / 2, down / 2, down - down / 2])
        };
        let padding = if symmetric { [down / 2, right / 2] } else { [0, 0] };
        let stride = [self.stride, self.stride];
        let mut y = padded.conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], self.groups);
        if self.relu6 { y.clamp_(0.0, 6.0) } else { y }
    }
}

/// Reads a convolution `shape` and folds its batch norm in: `g (W x - m) / s + b` is `(g / s W) x + (b - m g / s)`.
fn conv(scope: &mut Scope<'_>, [conv, norm]: [&str; 2], shape: [i64; 4]) -> Conv {
    let weight = scope.at(conv).take_f32("weight", &shape);
    let mut norm = scope.at(norm);
    let mut of_norm = |name: &str| norm.take_f32(name, &shape[..1]);
    let (gain, bias) = (of_norm("weight"), of_norm("bias"));
    let (mean, variance) = (of_norm("running_mean"), of_norm("running_var"));
    let factor = gain / (variance + BATCH_NORM_EPS).sqrt();
    let weight = weight * factor.view([-1, 1, 1, 1]);
    let bias = bias - mean * &factor;
    let kind = scope.kind();
    Conv {
        weight: channels_last(&weight.to_kind(kind)),
        bias: bias.to_kind(kind),
        stride: 1,
        groups: 1,
        relu6: false,
    }
}

/// The same `[B, C, H, W]` laid out as `[B, H, W, C]`: oneDNN's convolutions and our 1 x 1 ones are faster so.
fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}
