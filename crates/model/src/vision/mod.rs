//! The frozen image encoder: pixels in, one row for each image token out. No gradient, no dropout, no pooling.

mod clip;
mod dinov2;
mod efficientnet;
mod eva;
mod positions;
mod transformer;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

pub use positions::resize_positions;
pub use transformer::VitConfig;

use crate::weights::Weights;
use efficientnet::EfficientnetLite0;
use transformer::Transformer;

/// Which encoder, with its sizes. The set is closed: a new one is a file in this folder.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VisionConfig {
    /// EfficientNet-Lite0: the map of its last stage, 320 wide, 7 x 7 at 224 pixels.
    EfficientnetLite0,
    /// EVA-CLIP's ViT; ViT-g/14 is 39 layers of 1408, 16 heads, `mlp_ratio` 4.3637 (its 40th block is not run).
    EvaVit(VitConfig),
    /// CLIP's ViT; ViT-L/14 is 23 layers of 1024, 16 heads (its 24th block is not run).
    ClipVit(VitConfig),
    /// DINOv2's ViT; ViT-S/14 has layers of 384 with 6 heads.
    Dinov2Vit(VitConfig),
}

impl VisionConfig {
    /// V, the width of the features.
    #[must_use]
    pub fn width(&self) -> i64 {
        match self {
            Self::EfficientnetLite0 => efficientnet::WIDTH,
            Self::EvaVit(vit) | Self::ClipVit(vit) | Self::Dinov2Vit(vit) => vit.width,
        }
    }
}

/// A frozen encoder with its weights.
#[derive(Debug)]
pub struct VisionEncoder(Encoder);

#[derive(Debug)]
enum Encoder {
    EfficientnetLite0(EfficientnetLite0),
    Vit(Transformer),
}

impl VisionEncoder {
    /// Takes the encoder's tensors out of `weights`, under the names of LAVIS (`visual_encoder.`), of Hugging Face
    /// (`vision_model.`), or either without its prefix. Matrix products and convolutions will run in `kind`.
    ///
    /// Position embeddings of another grid are resized as LAVIS does. What the encoder does not run (deeper blocks,
    /// final norm, classifier) is marked as ignored. What is missing is told by [`Weights::finish`].
    #[must_use]
    pub fn new(config: &VisionConfig, weights: &mut Weights, kind: Kind, device: Device) -> Self {
        let _frozen = tch::no_grad_guard();
        Self(match config {
            VisionConfig::EfficientnetLite0 => {
                Encoder::EfficientnetLite0(EfficientnetLite0::new(weights, kind, device))
            }
            VisionConfig::EvaVit(vit) => Encoder::Vit(eva::load(vit, weights, kind, device)),
            VisionConfig::ClipVit(vit) => Encoder::Vit(clip::load(vit, weights, kind, device)),
            VisionConfig::Dinov2Vit(vit) => Encoder::Vit(dinov2::load(vit, weights, kind, device)),
        })
    }

    /// `pixels` `[B, 3, S, S]`, normalised, on the encoder's device, to single-precision features `[B, P, V]`.
    ///
    /// A ViT's first token is its class token. S must be the configured size for a ViT, and is free for EfficientNet.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let _frozen = tch::no_grad_guard();
        match &self.0 {
            Encoder::EfficientnetLite0(net) => net.forward(pixels),
            Encoder::Vit(vit) => vit.forward(pixels),
        }
    }

    /// `[P, V]`: tokens and width of the features of an `image_size` x `image_size` picture.
    #[must_use]
    pub fn output_shape(&self, image_size: i64) -> [i64; 2] {
        match &self.0 {
            Encoder::EfficientnetLite0(_) => {
                let grid = efficientnet::grid(image_size);
                [grid * grid, efficientnet::WIDTH]
            }
            Encoder::Vit(vit) => vit.output_shape(image_size),
        }
    }

    /// V, the width of the features.
    #[must_use]
    pub fn width(&self) -> i64 {
        match &self.0 {
            Encoder::EfficientnetLite0(_) => efficientnet::WIDTH,
            Encoder::Vit(vit) => vit.width(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Serialize)]
    struct File {
        architecture: VisionConfig,
    }

    #[test]
    fn a_unit_encoder_is_a_word_and_a_vit_is_a_table() {
        let file: File = toml::from_str("architecture = \"efficientnet_lite0\"").unwrap();
        assert_eq!(file.architecture, VisionConfig::EfficientnetLite0);
        let text = "[architecture.eva_vit]\nimg_size = 224\npatch_size = 14\nwidth = 1408\nlayers = 39\nheads = 16\n\
                    mlp_ratio = 4.3637";
        let file: File = toml::from_str(text).unwrap();
        let VisionConfig::EvaVit(vit) = &file.architecture else { panic!("{:?}", file.architecture) };
        // Truncated, not rounded: 1408 x 4.3637 = 6144.09.
        assert_eq!(vit.mlp_hidden(), 6144);
        assert!(toml::from_str::<File>(&text.replace("heads", "head")).is_err());
    }
}
