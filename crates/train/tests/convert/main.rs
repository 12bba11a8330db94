//! Weights there and back: reference cases through `import` and `export`, and files that are wrong on purpose.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod bert;
mod hugging_face;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use checkpoint::foreign::pth::PthFile;
use checkpoint::foreign::torch_save::write_pth;
use checkpoint::{
    Announced, CheckpointError, HostTensor, TensorMap, WeightSource, read_safetensors, write_safetensors,
};
use model::vision::VitConfig;
use model::{VisionConfig, VisionEncoder, Weights};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use train::convert::{Export, Form, export, import};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn weights(case: &str) -> TensorMap {
    read_safetensors(&golden(case).join("weights.safetensors")).unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn quiet(_: &str) {}

/// A folder for one test.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes `{"model": tensors}` as torch does.
    fn pth(&self, name: &str, tensors: &TensorMap) -> PathBuf {
        let path = self.path(name);
        let announced: Vec<Announced> = tensors
            .iter()
            .map(|(name, it)| Announced { name: name.clone(), dtype: it.dtype, shape: it.shape.clone() })
            .collect();
        let names: Vec<(String, usize)> = tensors.keys().cloned().zip(0..).collect();
        let values: Vec<&HostTensor> = tensors.values().collect();
        write_pth::<CheckpointError>(&path, &announced, &names, |place| Ok(values[place].clone())).unwrap();
        path
    }

    /// Heads and the language model's sizes, which tensors do not tell.
    fn config(&self, case: &str) -> PathBuf {
        if case.contains("t5") {
            return golden("convert_t5").join("config.json");
        }
        golden("convert_opt").join("config.json")
    }

    fn export(&self, source: &Path, name: &str, form: Form) -> PathBuf {
        let dest = self.path(name);
        let export_ = Export {
            source: source.to_owned(),
            dest: dest.clone(),
            form,
            vision: None,
            language: None,
            shard_bytes: 200_000,
        };
        export(&export_, &quiet).unwrap();
        dest
    }
}

fn pth_tensors(path: &Path) -> TensorMap {
    let tensors = PthFile::open(path).unwrap().read_all().unwrap();
    tensors.into_iter().map(|(name, it)| (name.strip_prefix("model.").unwrap().to_owned(), it)).collect()
}

fn all_of(path: &Path) -> TensorMap {
    let mut source = WeightSource::open(path).unwrap();
    let names: Vec<String> = source.infos().map(|(name, ..)| name.to_owned()).collect();
    names.into_iter().map(|name| (name.clone(), source.read(&name).unwrap().unwrap())).collect()
}

/// Names first, so that a failure says which.
fn assert_same(found: &TensorMap, expected: &TensorMap) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in expected {
        assert!(found[name] == *tensor, "{name}: {:?}, wanted {tensor:?}", found[name]);
    }
}

#[test]
fn what_lavis_wrote_comes_back_bit_for_bit() {
    for case in ["stage1_eva", "stage1_clip", "stage2_opt_noprompt", "stage2_t5"] {
        let place = Place::new();
        let original = weights(case);
        let source = place.pth("lavis.pth", &original);
        import(&source, &place.path("ours"), Some(&place.config(case)), &quiet).unwrap();
        let whole = place.export(&place.path("ours"), "whole.pth", Form::LavisWhole);
        assert_same(&pth_tensors(&whole), &original);
        // what LAVIS's runner writes of it: no frozen parameter, but buffers and every copy
        let trained = pth_tensors(&place.export(&place.path("ours"), "trained.pth", Form::Lavis));
        let keys = json_of(&golden(case).join("expected.json"))["checkpoint_keys"].clone();
        let keys: Vec<String> = serde_json::from_value(keys).unwrap();
        let expected: TensorMap = keys.into_iter().map(|key| (key.clone(), original[&key].clone())).collect();
        assert_same(&trained, &expected);
        // and such a file is enough to come back from
        let again = place.pth("again.pth", &trained);
        import(&again, &place.path("from_trained"), Some(&place.config(case)), &quiet).unwrap();
        assert_same(&all_of(&place.path("from_trained/bridge")), &all_of(&place.path("ours/bridge")));
    }
}

#[test]
fn the_hugging_face_form_is_transformers_own() {
    for (case, converted) in [("stage2_opt_noprompt", "convert_opt"), ("stage2_t5", "convert_t5")] {
        let place = Place::new();
        let source = place.pth("lavis.pth", &weights(case));
        import(&source, &place.path("ours"), Some(&place.config(case)), &quiet).unwrap();
        let folder = place.export(&place.path("ours"), "hf", Form::HuggingFace);
        let expected = weights(converted);
        assert_same(&all_of(&folder), &expected);
        assert!(folder.join("model.safetensors.index.json").is_file(), "above 200 kB there are shards");
        let (found, wanted) =
            (json_of(&folder.join("config.json")), json_of(&golden(converted).join("config.json")));
        assert_eq!(found["vision_config"], wanted["vision_config"]);
        assert_eq!(found["image_token_index"], wanted["image_token_index"]);
        for (key, value) in wanted["text_config"].as_object().unwrap() {
            assert_eq!(found["text_config"][key], *value, "{key}");
        }
        for (key, value) in wanted["qformer_config"].as_object().unwrap() {
            let is_training = key.ends_with("dropout_prob");
            assert!(is_training || found["qformer_config"][key] == *value, "{key}");
        }
        // from there and back again, shards and all
        import(&folder, &place.path("back"), None, &quiet).unwrap();
        let again = place.export(&place.path("back"), "hf_again", Form::HuggingFace);
        assert_same(&all_of(&again), &expected);
        assert_eq!(json_of(&again.join("config.json")), found);
        let whole = place.export(&place.path("back"), "whole.pth", Form::LavisWhole);
        assert_same(&pth_tensors(&whole), &weights(case));
    }
}

#[test]
fn sizes_that_a_config_leaves_out_are_transformers_defaults() {
    // the hub's configs say only what differs from the defaults; these sizes differ, so leaving one out must show
    let place = Place::new();
    let folder = place.path("hf");
    fs::create_dir(&folder).unwrap();
    fs::copy(golden("convert_opt").join("weights.safetensors"), folder.join("model.safetensors")).unwrap();
    let mut config = json_of(&golden("convert_opt").join("config.json"));
    for key in ["pad_token_id", "do_layer_norm_before", "word_embed_proj_dim", "tie_word_embeddings"] {
        config["text_config"].as_object_mut().unwrap().remove(key).unwrap();
    }
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    import(&folder, &place.path("ours"), None, &quiet).unwrap();
    let language = json_of(&place.path("ours/language/config.json"));
    assert_eq!((&language["pad_token_id"], &language["tie_word_embeddings"]), (&json!(1), &json!(true)));
    config["text_config"].as_object_mut().unwrap().remove("ffn_dim").unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let error = import(&folder, &place.path("other"), None, &quiet).unwrap_err().to_string();
    assert!(error.contains("layers.0.fc1.weight is [112, 52], wanted [3072, 52]"), "{error}");
}

#[test]
fn clip_is_no_encoder_of_transformers_blip2_and_nothing_is_left() {
    let place = Place::new();
    let source = place.pth("lavis.pth", &weights("stage1_clip"));
    import(&source, &place.path("ours"), Some(&place.config("stage1_clip")), &quiet).unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_blip2-worker"))
        .args(["export", "--to", "hf", "ours", "hf"])
        .current_dir(place.0.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78), "{said}");
    assert!(said.contains("CLIP's"), "{said}");
    let left: Vec<_> =
        fs::read_dir(place.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn all_that_does_not_fit_is_told_at_once_before_anything_is_written() {
    let place = Place::new();
    let mut tensors = weights("stage1_eva");
    tensors.remove("temp");
    tensors.remove("Qformer.bert.encoder.layer.1.output_query.dense.bias");
    tensors.remove("visual_encoder.blocks.1.attn.v_bias");
    let odd = HostTensor::from_f32(&[3], &[0.0; 3]).unwrap();
    tensors.insert("itm_head.bias".to_owned(), odd.clone());
    tensors.insert("Qformer.bert.pooler.dense.bias".to_owned(), odd);
    let source = place.pth("lavis.pth", &tensors);
    let config = place.config("stage1_eva");
    let refused = Command::new(env!("CARGO_BIN_EXE_blip2-worker"))
        .args(["import".as_ref(), "--config".as_ref(), config.as_os_str()])
        .args([source.as_os_str(), place.path("ours").as_os_str()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78), "{said}");
    for part in [
        "missing",
        "model.temp,",
        "model.Qformer.bert.encoder.layer.1.output_query.dense.bias",
        "model.visual_encoder.encoder.layers.1.self_attn.qkv.bias",
        "unexpected",
        "model.Qformer.bert.pooler.dense.bias",
        "model.itm_head.bias is [3], wanted [2]",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 1, "only lavis.pth");
}

#[test]
fn a_copy_that_is_none_is_refused_and_a_place_that_is_taken_too() {
    let place = Place::new();
    let mut tensors = weights("stage2_opt_noprompt");
    let head = tensors.get_mut("opt_model.lm_head.weight").unwrap();
    head.bytes[0] ^= 1;
    let source = place.pth("lavis.pth", &tensors);
    let config = place.config("opt");
    let error = import(&source, &place.path("ours"), Some(&config), &quiet).unwrap_err().to_string();
    assert!(error.contains("opt_model.lm_head.weight must be a copy"), "{error}");
    fs::create_dir(place.path("taken")).unwrap();
    let error = import(&source, &place.path("taken"), Some(&config), &quiet).unwrap_err().to_string();
    assert!(error.contains("there already"), "{error}");
}

#[test]
fn a_name_from_another_program_is_refused_without_being_called() {
    let place = Place::new();
    let pickle = b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.";
    let path = place.path("evil.pth");
    // any zip with a data.pkl: the one that is written for torch, its pickle replaced
    let mut zip = zip_of(&[("archive/data.pkl", pickle)]);
    fs::write(&path, std::mem::take(&mut zip)).unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_blip2-worker"))
        .args(["import".as_ref(), path.as_os_str(), place.path("ours").as_os_str()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78), "{said}");
    assert!(said.contains("posix.system"), "{said}");
    assert!(!place.path("ours").exists());
}

/// A stored zip, by hand: local headers, then the directory.
fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let offset = bytes.len() as u32;
        let crc = crc32(content);
        let sizes = [crc, content.len() as u32, content.len() as u32].map(u32::to_le_bytes).concat();
        let name_len = (name.len() as u16).to_le_bytes();
        let head = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0], &sizes[..], &name_len, &[0, 0]].concat();
        bytes.extend([&b"PK\x03\x04"[..], &head, name.as_bytes(), content].concat());
        let tail = [&[0; 10][..], &offset.to_le_bytes(), name.as_bytes()].concat();
        directory.extend([&b"PK\x01\x02"[..], &[20, 0], &head, &tail].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let place = [(directory.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat();
    bytes.extend(directory);
    [&bytes[..], b"PK\x05\x06", &[0; 4], &count, &count, &place, &[0; 2]].concat()
}

fn crc32(bytes: &[u8]) -> u32 {
    let table =
        |byte: u32| (0..8).fold(byte, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 });
    !bytes.iter().fold(u32::MAX, |crc, byte| crc >> 8 ^ table((crc ^ u32::from(*byte)) & 0xff))
}

fn vit(layers: i64, width: i64, mlp_ratio: f64) -> VitConfig {
    VitConfig { img_size: 28, patch_size: 14, width, layers, heads: 4, mlp_ratio }
}

fn torch(map: &TensorMap) -> BTreeMap<String, Tensor> {
    let one = |it: &HostTensor| {
        let shape: Vec<i64> = it.shape.iter().map(|size| *size as i64).collect();
        Tensor::from_slice(&it.to_f32_vec()).reshape(shape)
    };
    map.iter().map(|(name, it)| (name.clone(), one(it))).collect()
}

fn features(config: &VisionConfig, map: &TensorMap) -> Tensor {
    let mut weights = Weights::new(torch(map));
    let encoder = VisionEncoder::new(config, &mut weights, Kind::Float, Device::Cpu);
    weights.finish().unwrap();
    let pixels = Tensor::arange(2 * 3 * 28 * 28, (Kind::Float, Device::Cpu)).sin().reshape([2, 3, 28, 28]);
    encoder.forward(&pixels)
}

/// The encoder of a stage 1 as its own file, with parts that BLIP-2 does not run.
fn encoder_file(case: &str, more: &[&str]) -> TensorMap {
    let mut map: TensorMap = weights(case)
        .into_iter()
        .filter_map(|(name, it)| Some((name.strip_prefix("visual_encoder.")?.to_owned(), it)))
        .collect();
    let zero = HostTensor::from_f32(&[1], &[0.0]).unwrap();
    map.extend(more.iter().map(|name| ((*name).to_owned(), zero.clone())));
    map
}

#[test]
fn encoders_of_eva_and_clip_see_the_same_under_our_names() {
    type Family = fn(VitConfig) -> VisionConfig;
    let cases = [
        (
            "stage1_eva",
            "mlp.fc2.bias",
            &["head.weight", "norm.bias"][..],
            VisionConfig::EvaVit as Family,
            4.3637,
        ),
        ("stage1_clip", "mlp.c_proj.bias", &["proj", "ln_post.weight"], VisionConfig::ClipVit, 4.0),
    ];
    for (case, of_a_block, more, family, mlp_ratio) in cases {
        let place = Place::new();
        let file = encoder_file(case, more);
        let bias = file.iter().filter(|(name, _)| name.ends_with(of_a_block)).map(|(_, it)| it.shape[0]);
        let widths: Vec<usize> = bias.collect();
        let config = family(vit(widths.len() as i64, widths[0] as i64, mlp_ratio));
        let heads = place.path("config.json");
        fs::write(&heads, json!({ "num_attention_heads": 4 }).to_string()).unwrap();
        import(&place.pth("encoder.pth", &file), &place.path("ours"), Some(&heads), &quiet).unwrap();
        let ours = all_of(&place.path("ours"));
        assert!(ours.keys().all(|name| !more.contains(&name.as_str())), "{case}");
        let record = json_of(&place.path("ours/import.json"));
        assert_eq!(record["left_out"].as_array().unwrap().len(), more.len(), "{record}");
        assert_eq!(features(&config, &ours), features(&config, &file), "{case}");
    }
}
