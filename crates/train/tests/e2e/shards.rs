//! Weights as the hub has them: in shards under an index, as safetensors or as `torch.save` wrote them.

use std::fs;
use std::path::Path;

use crate::common::{Launch, TinyWorld, course};
use checkpoint::foreign::torch_save::write_pth;
use checkpoint::{
    Announced, CheckpointError, HostTensor, TensorMap, read_safetensors, write_safetensors, write_weights,
};
use monitor::EvalFile;
use serde_json::{Value, json};

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SETS: [&str; 4] =
    ["stage1.steps=2", "stage1.validate_every_steps=0", "stage2.steps=4", "stage2.checkpoint_every_steps=2"];

fn announced(tensors: &TensorMap) -> (Vec<Announced>, Vec<&HostTensor>) {
    let one = |(name, it): (&String, &HostTensor)| Announced {
        name: name.clone(),
        dtype: it.dtype,
        shape: it.shape.clone(),
    };
    (tensors.iter().map(one).collect(), tensors.values().collect())
}

/// Cuts the weights of a folder into shards: a llama's into three.
fn cut(folder: &Path) {
    let tensors = read_safetensors(&folder.join(WHOLE)).unwrap();
    let (plan, values) = announced(&tensors);
    let total: usize = values.iter().map(|tensor| tensor.bytes.len()).sum();
    fs::remove_file(folder.join(WHOLE)).unwrap();
    write_weights::<CheckpointError>(folder, &plan, total as u64 * 9 / 20, |place| Ok(values[place].clone()))
        .unwrap();
    let index: Value = serde_json::from_slice(&fs::read(folder.join(INDEX)).unwrap()).unwrap();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), tensors.len());
}

/// Writes the weights of a folder as two `.bin` under an index. `torch_save` puts `model.` before each name.
fn save_by_torch(folder: &Path) {
    let tensors = read_safetensors(&folder.join(WHOLE)).unwrap();
    fs::remove_file(folder.join(WHOLE)).unwrap();
    let mut weight_map = serde_json::Map::new();
    for number in [0, 1] {
        let shard = format!("pytorch_model-0000{}-of-00002.bin", number + 1);
        let half: TensorMap = tensors
            .clone()
            .into_iter()
            .enumerate()
            .filter(|(n, _)| n % 2 == number)
            .map(|(_, it)| it)
            .collect();
        let (plan, values) = announced(&half);
        let bare = |name: &String| name.strip_prefix("model.").unwrap().to_owned();
        let names: Vec<(String, usize)> = half.keys().map(bare).zip(0..).collect();
        write_pth::<CheckpointError>(&folder.join(&shard), &plan, &names, |place| Ok(values[place].clone()))
            .unwrap();
        weight_map.extend(half.keys().map(|name| (name.clone(), Value::from(shard.as_str()))));
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    fs::write(folder.join("pytorch_model.bin.index.json"), index.to_string()).unwrap();
}

/// Every number of the course, every caption and every digest.
fn assert_same(world: &TinyWorld, one: &str, other: &str) {
    course(&world.path(one)).assert_same(&course(&world.path(other)), other);
    let captions = |run: &str| EvalFile::read(&world.path(run).join("eval.json")).unwrap().captions;
    assert_eq!(captions(one), captions(other));
    let frozen = |run: &str| {
        let stage2 = world.path(run).join("checkpoints/stage2");
        checkpoint::latest_valid(&stage2).unwrap().unwrap().snapshot.frozen
    };
    assert_eq!(frozen(one), frozen(other));
}

#[test]
fn shards_and_bins_train_as_one_file_does() {
    let world = TinyWorld::new();
    let run = |name: &str, sets: &[&str]| Launch { sets, ..world.run(name) }.done();
    run("whole", &SETS);
    for folder in ["vit", "bert", "llama"] {
        cut(&world.path(&format!("weights/{folder}")));
    }
    run("cut", &SETS);
    assert_same(&world, "whole", "cut");
    let parted = [&SETS[..], &["distributed.sharding=frozen"]].concat();
    run("parted", &parted);
    assert_same(&world, "whole", "parted");
    // A run that began on shards goes on from torch's files: the weights are the same.
    let fresh = TinyWorld::new();
    fs::remove_dir_all(world.path("weights")).unwrap();
    fs::rename(fresh.path("weights"), world.path("weights")).unwrap();
    save_by_torch(&world.path("weights/llama"));
    fs::remove_file(world.path("cut/report.html")).unwrap();
    fs::remove_dir_all(world.path("cut/checkpoints/stage2/step-00000004")).unwrap();
    run("cut", &SETS);
    course(&world.path("cut")).assert_same(&course(&world.path("whole")), "gone on from bins");
    run("bins", &SETS);
    assert_same(&world, "whole", "bins");
}

#[test]
fn an_index_that_lies_is_refused_before_weights_are_read() {
    let world = TinyWorld::new();
    let folder = world.path("weights/llama");
    cut(&folder);
    let whole = fs::read_to_string(folder.join(INDEX)).unwrap();
    let refused = |what: &str, part: &str| {
        let ended = Launch { ranks: 1, sets: &SETS, ..world.run("refused") }.end();
        assert_eq!(ended.code, Some(78), "{what}: {}", ended.stderr);
        let said =
            |line: &str| line.contains("weights/llama/model.safetensors.index.json") && line.contains(part);
        assert_eq!(ended.stderr.lines().filter(|line| said(line)).count(), 1, "{what}: {}", ended.stderr);
    };
    let second = folder.join("model-00002-of-00003.safetensors");
    let bytes = fs::read(&second).unwrap();
    fs::remove_file(&second).unwrap();
    refused("a missing shard", "names model-00002-of-00003.safetensors, which is not beside it");
    let mut tensors = TensorMap::new();
    tensors.insert("stray".to_owned(), HostTensor::from_f32(&[1], &[0.0]).unwrap());
    fs::write(&second, bytes).unwrap();
    let stray = folder.join("model-00004-of-00004.safetensors");
    write_safetensors(&stray, &tensors, &Default::default()).unwrap();
    refused("a shard too many", "names no tensor of model-00004-of-00004.safetensors, which lies beside it");
    fs::remove_file(&stray).unwrap();
    fs::write(folder.join(INDEX), whole.replacen("model-00001-of-00003", "model-00002-of-00003", 1)).unwrap();
    refused("a name in another shard", "is not in model-00002-of-00003.safetensors");
    fs::write(folder.join(INDEX), whole.replacen("model-00001-of-00003", "../llama/model-00001-of-00003", 1))
        .unwrap();
    refused("a path out of the folder", "is no file name");
}
