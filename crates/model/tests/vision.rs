//! The frozen image encoders against LAVIS, transformers and efficientnet-lite-pytorch.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;

use common::{Case, Tensors, assert_close};
use model::vision::{VisionConfig, VisionEncoder, VitConfig, resize_positions};
use model::{Weights, WeightsError};
use tch::{Device, Kind, Tensor};

fn encoder(config: &VisionConfig, weights: Tensors) -> Result<VisionEncoder, WeightsError> {
    let mut weights = Weights::new(weights);
    let encoder = VisionEncoder::new(config, &mut weights, Kind::Float, Device::Cpu);
    weights.finish().map(|()| encoder)
}

/// The sizes of a LAVIS case, or of a `Blip2VisionModel` or `CLIPVisionModel`.
fn vit(case: &Case) -> VitConfig {
    if case.toml["vision"].get("width").is_some() {
        let int = |key: &str| case.int("vision", key);
        return VitConfig {
            img_size: int("img_size"),
            patch_size: int("patch_size"),
            width: int("width"),
            layers: case.toml["vision"].get("blocks").map_or_else(|| int("layers"), |_| int("blocks")),
            heads: int("heads"),
            mlp_ratio: case.toml["vision"]
                .get("mlp_ratio")
                .map_or(4.0, |_| case.number("vision", "mlp_ratio")),
        };
    }
    let config: serde_json::Value = serde_json::from_str(&case.text("config.json")).unwrap();
    let int = |key: &str| config[key].as_i64().unwrap();
    VitConfig {
        img_size: int("image_size"),
        patch_size: int("patch_size"),
        width: int("hidden_size"),
        layers: int("num_hidden_layers"),
        heads: int("num_attention_heads"),
        mlp_ratio: (int("intermediate_size") as f64 + 0.5) / int("hidden_size") as f64,
    }
}

fn assert_features(case: &Case, config: &VisionConfig, expected: &str) {
    let encoder = encoder(config, case.tensors("weights")).unwrap();
    let image = &case.tensors("inputs")["image"];
    let features = encoder.forward(image);
    let side = image.size()[3];
    assert_eq!(features.size()[1..], encoder.output_shape(side));
    assert_eq!(features.size()[2], encoder.width());
    assert!(!features.requires_grad());
    case.assert_close("tensor", expected, &features, &case.tensors("expected")[expected]);
}

#[test]
fn eva_equals_lavis() {
    let case = Case::open("vision_eva");
    assert_features(&case, &VisionConfig::EvaVit(vit(&case)), "features");
}

#[test]
fn clip_equals_lavis() {
    let case = Case::open("vision_clip");
    assert_features(&case, &VisionConfig::ClipVit(vit(&case)), "features");
}

#[test]
fn eva_equals_transformers() {
    let case = Case::open("vision_eva_hf");
    assert_features(&case, &VisionConfig::EvaVit(vit(&case)), "last_block_output");
}

#[test]
fn clip_equals_transformers_with_its_last_block_left_out() {
    let case = Case::open("vision_clip_hf");
    let vit = vit(&case);
    let penultimate = VitConfig { layers: vit.layers - 1, ..vit };
    assert_features(&case, &VisionConfig::ClipVit(penultimate), "hidden_states_m2");
}

#[test]
fn dinov2_equals_transformers_on_another_grid() {
    let case = Case::open("vision_dinov2");
    assert_features(&case, &VisionConfig::Dinov2Vit(vit(&case)), "hidden_states_m2");
}

#[test]
fn names_below_the_prefix_of_a_whole_blip2_are_found() {
    let case = Case::open("vision_eva_hf");
    let mut weights = case.tensors("weights");
    let names: Vec<String> = weights.keys().cloned().collect();
    for name in names {
        let tensor = weights.remove(&name).unwrap();
        weights.insert(format!("vision_model.{name}"), tensor);
    }
    let encoder = encoder(&VisionConfig::EvaVit(vit(&case)), weights).unwrap();
    let features = encoder.forward(&case.tensors("inputs")["image"]);
    case.assert_close("tensor", "features", &features, &case.tensors("expected")["last_block_output"]);
}

#[test]
fn positions_are_resized_as_lavis_does() {
    let case = Case::open("pos_embed");
    let expected = case.tensors("expected");
    assert_eq!(expected.len(), 4);
    for (name, positions) in case.tensors("inputs") {
        let grid = name.rsplit_once("to").unwrap().1.parse().unwrap();
        let resized = resize_positions(&positions, grid, name.starts_with("clip"));
        case.assert_close("tensor", &name, &resized, &expected[&name]);
    }
}

#[test]
fn one_error_names_every_weight_that_does_not_fit() {
    let case = Case::open("vision_eva");
    let mut weights = case.tensors("weights");
    weights.remove("visual_encoder.blocks.1.attn.v_bias");
    weights.insert("visual_encoder.blocks.0.extra".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
    let narrow = VitConfig { mlp_ratio: 4.0, ..vit(&case) };
    let error = encoder(&VisionConfig::EvaVit(narrow), weights).unwrap_err();
    assert_eq!(error.missing, ["visual_encoder.blocks.1.attn.v_bias"]);
    assert_eq!(error.unexpected, ["visual_encoder.blocks.0.extra"]);
    assert_eq!(error.misshapen.len(), 3 * 3, "{error}");
}

#[test]
fn half_precision_stays_close() {
    let case = Case::open("vision_eva");
    let mut weights = Weights::new(case.tensors("weights"));
    let encoder =
        VisionEncoder::new(&VisionConfig::EvaVit(vit(&case)), &mut weights, Kind::BFloat16, Device::Cpu);
    let features = encoder.forward(&case.tensors("inputs")["image"]);
    assert_eq!(features.kind(), Kind::Float);
    assert_close("features", &features, &case.tensors("expected")["features"], 0.0, 0.02);
}

/// Weights too large to keep: the formula of `tests/golden/scripts/make_model_cases.py`.
fn formula(name: &str, shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let phase: f64 = name.bytes().map(f64::from).sum();
    let wave = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.7 + phase).sin();
    let values = if name.ends_with("running_var") {
        wave * 0.5 + 1.0
    } else if name.ends_with("running_mean") || name.ends_with(".bias") {
        wave * 0.2 + 0.1
    } else if shape.len() == 1 {
        wave * 0.3 + 1.0
    } else {
        wave * 2.0 / (shape[1..].iter().product::<i64>() as f64).sqrt()
    };
    values.to_kind(Kind::Float).view(shape)
}

/// `(blocks, kernel, expansion, channels)` of each stage of `efficientnet_lite_pytorch`.
const STAGES: [(usize, i64, i64, i64); 7] = [
    (1, 3, 1, 16),
    (2, 3, 6, 24),
    (2, 5, 6, 40),
    (3, 3, 6, 80),
    (3, 5, 6, 112),
    (4, 5, 6, 192),
    (1, 3, 6, 320),
];

fn efficientnet_weights() -> Tensors {
    let mut weights = Tensors::new();
    let mut layer = |conv: String, norm: String, shape: [i64; 4]| {
        let name = format!("{conv}.weight");
        weights.insert(name.clone(), formula(&name, &shape));
        for part in ["weight", "bias", "running_mean", "running_var"] {
            let name = format!("{norm}.{part}");
            weights.insert(name.clone(), formula(&name, &shape[..1]));
        }
    };
    layer("_conv_stem".into(), "_bn0".into(), [32, 3, 3, 3]);
    layer("_conv_head".into(), "_bn1".into(), [1280, 320, 1, 1]);
    let (mut block, mut inputs) = (0, 32);
    for (blocks, kernel, expansion, channels) in STAGES {
        for _ in 0..blocks {
            let hidden = inputs * expansion;
            let name = |part: &str| format!("_blocks.{block}.{part}");
            if expansion != 1 {
                layer(name("_expand_conv"), name("_bn0"), [hidden, inputs, 1, 1]);
            }
            layer(name("_depthwise_conv"), name("_bn1"), [hidden, 1, kernel, kernel]);
            layer(name("_project_conv"), name("_bn2"), [channels, hidden, 1, 1]);
            (block, inputs) = (block + 1, channels);
        }
    }
    weights
}

#[test]
fn efficientnet_lite0_equals_its_pytorch_package() {
    let case = Case::open("vision_efficientnet_lite0");
    let encoder = encoder(&VisionConfig::EfficientnetLite0, efficientnet_weights()).unwrap();
    for side in [224, 96] {
        let pixels = (Tensor::arange(2 * 3 * side * side, (Kind::Double, Device::Cpu)) * 0.013).sin();
        let features = encoder.forward(&pixels.to_kind(Kind::Float).view([2, 3, side, side]));
        assert_eq!(features.size()[1..], encoder.output_shape(side));
        let name = format!("features.{side}");
        case.assert_close("tensor", &name, &features, &case.tensors("expected")[&name]);
    }
}
