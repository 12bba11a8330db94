//! A tiny run, exported and opened by transformers itself. Without Python's torch and transformers it says so and ends.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;

use crate::common::{TinyWorld, blip2};
use checkpoint::{Dtype, HostTensor, TensorMap, read_safetensors, write_safetensors};
use data::{Rng, Stream};
use model::language::GenerateOptions;
use model::vision::VitConfig;
use model::{
    LanguageConfig, LanguageModel, LmText, QformerConfig, Stage1, Stage1Config, Stage2, Stage2Inputs,
    TextBranchConfig, TextInput, VisionConfig, VisionEncoder, Weights,
};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor, no_grad};

const WIDTH: usize = 32;
const HIDDEN: usize = 64;
const PICTURES: i64 = 3;
const NEW_TOKENS: usize = 5;
/// Exit code of `check_export.py` where Python lacks what it needs.
const LACKS_TORCH: i32 = 77;

/// EVA's names as LAVIS has them, two blocks.
fn eva() -> TensorMap {
    let mut tensors = TensorMap::new();
    let mut random = |name: &str, shape: &[usize], around: f32| {
        let mut rng = Rng::new(9, Stream::Init, &[tensors.len() as u64]);
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|_| around + rng.uniform_in(-0.2, 0.2) as f32).collect();
        tensors.insert(name.to_owned(), HostTensor::from_f32(shape, &values).unwrap());
    };
    random("cls_token", &[1, 1, WIDTH], 0.0);
    random("pos_embed", &[1, 5, WIDTH], 0.0);
    random("patch_embed.proj.weight", &[WIDTH, 3, 14, 14], 0.0);
    random("patch_embed.proj.bias", &[WIDTH], 0.0);
    for block in 0..2 {
        for norm in ["norm1", "norm2"] {
            random(&format!("blocks.{block}.{norm}.weight"), &[WIDTH], 1.0);
            random(&format!("blocks.{block}.{norm}.bias"), &[WIDTH], 0.0);
        }
        random(&format!("blocks.{block}.attn.qkv.weight"), &[3 * WIDTH, WIDTH], 0.0);
        for name in ["attn.q_bias", "attn.v_bias", "attn.proj.bias", "mlp.fc2.bias"] {
            random(&format!("blocks.{block}.{name}"), &[WIDTH], 0.0);
        }
        random(&format!("blocks.{block}.attn.proj.weight"), &[WIDTH, WIDTH], 0.0);
        random(&format!("blocks.{block}.mlp.fc1.weight"), &[HIDDEN, WIDTH], 0.0);
        random(&format!("blocks.{block}.mlp.fc1.bias"), &[HIDDEN], 0.0);
        random(&format!("blocks.{block}.mlp.fc2.weight"), &[WIDTH, HIDDEN], 0.0);
    }
    tensors
}

/// A run of both stages on EVA's encoder.
fn trained() -> TinyWorld {
    let world = TinyWorld::new();
    write_safetensors(&world.path("weights/vit/model.safetensors"), &eva(), &Default::default()).unwrap();
    let config = fs::read_to_string(world.path("config.toml")).unwrap();
    fs::write(world.path("config.toml"), config.replace("dinov2_vit", "eva_vit")).unwrap();
    world.run("run").done();
    world
}

fn torch(path: &Path) -> BTreeMap<String, Tensor> {
    let one = |it: &HostTensor| {
        let shape: Vec<i64> = it.shape.iter().map(|size| *size as i64).collect();
        Tensor::from_slice(&it.to_f32_vec()).reshape(shape)
    };
    read_safetensors(path).unwrap().iter().map(|(name, it)| (name.clone(), one(it))).collect()
}

fn host(tensor: &Tensor) -> HostTensor {
    let tensor = tensor.contiguous();
    let shape: Vec<usize> = tensor.size().iter().map(|size| *size as usize).collect();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    let dtype = if tensor.kind() == Kind::Int64 { Dtype::I64 } else { Dtype::F32 };
    HostTensor::new(dtype, shape, bytes).unwrap()
}

/// The checkpoint that a phase handed over, and its weights, averaged where an average is kept.
fn weights_of(world: &TinyWorld, phase: &str) -> BTreeMap<String, Tensor> {
    let phase = world.path("run/checkpoints").join(phase);
    let listed = checkpoint::list(&phase).unwrap();
    let taken = checkpoint::pinned(&phase).unwrap().unwrap_or_else(|| listed.last().unwrap().clone());
    let mut weights = torch(&taken.path.join("model.safetensors"));
    for (name, average) in torch(&taken.path.join("optimizer.safetensors")) {
        if let Some(parameter) = name.strip_prefix("average.") {
            weights.insert(parameter.to_owned(), average);
        }
    }
    weights
}

fn qformer(text: Option<TextBranchConfig>) -> QformerConfig {
    QformerConfig {
        hidden_size: WIDTH as i64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: HIDDEN as i64,
        cross_attention_freq: 2,
        num_query_tokens: 4,
        encoder_hidden_size: WIDTH as i64,
        layer_norm_eps: 1e-12,
        dropout: 0.0,
        gradient_checkpointing: false,
        text,
    }
}

fn fill(store: &VarStore, weights: &BTreeMap<String, Tensor>) {
    for (name, mut parameter) in store.variables() {
        no_grad(|| parameter.copy_(&weights[&name]));
    }
}

/// Normalised pictures, and what the frozen encoder makes of them.
fn pictures(world: &TinyWorld) -> (Tensor, Tensor) {
    let pixels = Tensor::arange(PICTURES * 3 * 28 * 28, (Kind::Float, Device::Cpu)).square().sin();
    let pixels = pixels.reshape([PICTURES, 3, 28, 28]);
    let vit = VitConfig { img_size: 28, patch_size: 14, width: 32, layers: 2, heads: 4, mlp_ratio: 2.0 };
    let mut weights = Weights::new(torch(&world.path("weights/vit/model.safetensors")));
    let encoder = VisionEncoder::new(&VisionConfig::EvaVit(vit), &mut weights, Kind::Float, Device::Cpu);
    weights.finish().unwrap();
    let features = encoder.forward(&pixels);
    (pixels, features)
}

fn check(world: &TinyWorld, export: &str, case: &TensorMap) -> Output {
    let path = world.path("case.safetensors");
    write_safetensors(&path, case, &Default::default()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check_export.py");
    let mut python = Command::new("python3");
    python.arg(script).arg(world.path(export)).arg(path);
    let output = python.output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    output
}

/// False where Python lacks torch: then the message is the test's result.
fn agrees(output: &Output) -> bool {
    if output.status.code() == Some(LACKS_TORCH) {
        println!("not compared with transformers: python3 has no torch or no transformers");
        return false;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

fn export(world: &TinyWorld, source: &str, dest: &str) -> PathBuf {
    let output =
        blip2().args(["export", source, dest, "--to", "hf"]).current_dir(world.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    world.path(dest)
}

fn stage2_case(world: &TinyWorld) -> TensorMap {
    let text = fs::read_to_string(world.path("weights/llama/config.json")).unwrap();
    let mut weights = Weights::new(torch(&world.path("weights/llama/model.safetensors")));
    let config = LanguageConfig::from_hf_json(&text).unwrap();
    let language = LanguageModel::new(&config, &mut weights, Kind::Float, Device::Cpu);
    weights.finish().unwrap();
    let store = VarStore::new(Device::Cpu);
    let stage = Stage2::new(&store.root(), &qformer(None), Rc::new(language), &[]);
    fill(&store, &weights_of(world, "stage2"));
    let (pixels, features) = pictures(world);
    let prompt: Vec<i64> = vec![1, 2, 3];
    let words = [1_i64, 2, 3, 7, 5, 9].repeat(PICTURES as usize);
    let ids = Tensor::from_slice(&words).reshape([PICTURES, -1]);
    let text = LmText::new(ids.shallow_clone(), ids.ones_like(), 0);
    let (_, _, trace) =
        no_grad(|| stage.forward(&Stage2Inputs { image: features.shallow_clone(), text }, false));
    let logits = no_grad(|| stage.logits(&trace.hidden).to_kind(Kind::Float));
    let mut tokens = Vec::new();
    for row in stage.caption(&features, &prompt, &GenerateOptions::greedy(NEW_TOKENS, &[0])) {
        tokens.extend(row.iter().copied().chain(std::iter::repeat(-1)).take(NEW_TOKENS));
    }
    TensorMap::from([
        ("pixel_values".to_owned(), host(&pixels)),
        ("prompt_ids".to_owned(), host(&Tensor::from_slice(&prompt).unsqueeze(0))),
        ("text_ids".to_owned(), host(&ids)),
        ("logits".to_owned(), host(&logits)),
        ("tokens".to_owned(), host(&Tensor::from_slice(&tokens).reshape([PICTURES, -1]))),
    ])
}

fn stage1_case(world: &TinyWorld) -> TensorMap {
    let weights = weights_of(world, "stage1");
    let vocab_size = weights["embeddings.word_embeddings.weight"].size()[0];
    let text = TextBranchConfig { vocab_size, max_position_embeddings: 16, decoder_start_id: vocab_size - 1 };
    let config = Stage1Config {
        qformer: qformer(Some(text)),
        projection_size: 16,
        negative_weighting: Default::default(),
        itg_weighting: Default::default(),
    };
    let store = VarStore::new(Device::Cpu);
    let stage = Stage1::new(&store.root(), &config);
    fill(&store, &weights);
    let (pixels, features) = pictures(world);
    // [CLS] words [SEP] [PAD]
    let ids =
        Tensor::from_slice(&[2_i64, 6, 7, 9, 3, 0, 2, 8, 3, 0, 0, 0, 2, 5, 10, 11, 12, 3]).reshape([3, 6]);
    let mask = ids.ne(0).to_kind(Kind::Int64);
    let texts = TextInput { ids: ids.shallow_clone(), mask: mask.shallow_clone() };
    let images = stage.encode_images(&features);
    let rows = Tensor::from_slice(&[0_i64, 1, 2]);
    let itm = stage.itm_scores(&images, &rows, &texts);
    // [B, Q, E] with [N, E]: the best query counts
    let itc = images.projections.matmul(&stage.encode_texts(&texts).transpose(0, 1)).amax([1], false);
    TensorMap::from([
        ("pixel_values".to_owned(), host(&pixels)),
        ("text_ids".to_owned(), host(&ids)),
        ("text_mask".to_owned(), host(&mask)),
        ("itm".to_owned(), host(&itm)),
        ("itc".to_owned(), host(&itc)),
    ])
}

#[test]
fn an_export_opens_in_transformers_and_computes_the_same() {
    let world = trained();
    let folder = export(&world, "run", "hf");
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(folder.join(name).is_file(), "{name}");
    }
    if !agrees(&check(&world, "hf", &stage2_case(&world))) {
        return;
    }
    let pinned = checkpoint::pinned(&world.path("run/checkpoints/stage1")).unwrap().unwrap();
    export(&world, pinned.path.to_str().unwrap(), "hf1");
    assert!(agrees(&check(&world, "hf1", &stage1_case(&world))));
}

#[test]
fn other_frozen_weights_than_those_of_the_run_are_refused() {
    let world = trained();
    let mut other = eva();
    other.get_mut("cls_token").unwrap().bytes[0] ^= 1;
    write_safetensors(&world.path("weights/vit/model.safetensors"), &other, &Default::default()).unwrap();
    let output =
        blip2().args(["export", "run", "hf", "--to", "hf"]).current_dir(world.path("")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("trained beside"), "{said}");
    assert!(!world.path("hf").exists());
}
