//! Weights by whatever program: told apart by their bytes, sharded and whole, and what is wrong with an index.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use crate::common::gguf_file;
use checkpoint::foreign::pth::PthFile;
use checkpoint::foreign::torch_save::write_pth;
use checkpoint::{
    Announced, CheckpointError, Dtype, HashedSource, HostTensor, WeightFormat, WeightSource, new_file,
    new_folder, write_weights,
};
use proptest::prelude::*;
use tempfile::TempDir;

fn tensor(seed: usize) -> HostTensor {
    let dtype = Dtype::ALL[seed % Dtype::ALL.len()];
    let shape = vec![seed % 4 + 1, 3];
    let count = (seed % 4 + 1) * 3 * dtype.size();
    let bytes =
        (0..count).map(|byte| if dtype == Dtype::Bool { 1 } else { (byte * 7 + seed) as u8 }).collect();
    HostTensor::new(dtype, shape, bytes).unwrap()
}

fn announced(tensors: &[HostTensor]) -> Vec<Announced> {
    let one = |(place, it): (usize, &HostTensor)| Announced {
        name: format!("t{place:03}"),
        dtype: it.dtype,
        shape: it.shape.clone(),
    };
    tensors.iter().enumerate().map(one).collect()
}

fn write(folder: &Path, tensors: &[HostTensor], shard_bytes: u64) {
    let plan = announced(tensors);
    write_weights::<CheckpointError>(folder, &plan, shard_bytes, |place| Ok(tensors[place].clone())).unwrap();
}

fn assert_holds(source: &mut WeightSource, tensors: &[HostTensor]) {
    assert_eq!(source.infos().count(), tensors.len());
    for (place, tensor) in tensors.iter().enumerate() {
        assert_eq!(source.read(&format!("t{place:03}")).unwrap().as_ref(), Some(tensor));
    }
    assert_eq!(source.read("other").unwrap(), None);
}

fn refusal(folder: &Path) -> String {
    WeightSource::open(folder).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn shards_hold_no_more_than_they_may_and_come_back() {
    let tensors: Vec<HostTensor> = (0..30).map(tensor).collect();
    for (shard_bytes, files) in [(u64::MAX, 1), (200, 8), (1, 31)] {
        let dir = TempDir::new().unwrap();
        write(dir.path(), &tensors, shard_bytes);
        let sizes: Vec<u64> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .map(|path| {
                let header = checkpoint::read_header(&path).unwrap();
                header.tensors.values().map(|it| it.len as u64).sum()
            })
            .collect();
        let alone = |size: &u64| *size <= 4 * 3 * 8;
        assert!(sizes.iter().all(|size| *size <= shard_bytes || alone(size)), "{sizes:?}");
        assert!(files == 1 || sizes.len() > 1, "{sizes:?} for {shard_bytes}");
        assert!(sizes.len() <= files, "{} files for {shard_bytes}", sizes.len());
        let mut source = WeightSource::open(dir.path()).unwrap();
        assert_eq!(source.format(), WeightFormat::Safetensors);
        assert_holds(&mut source, &tensors);
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    let tensors: Vec<HostTensor> = (0..6).map(tensor).collect();
    let dir = TempDir::new().unwrap();
    write(dir.path(), &tensors, 60);
    let index = dir.path().join("model.safetensors.index.json");
    let whole = fs::read_to_string(&index).unwrap();
    let change = |from: &str, to: &str| {
        assert!(whole.contains(from), "{whole}");
        fs::write(&index, whole.replacen(from, to, 1)).unwrap();
        refusal(dir.path())
    };
    assert!(change("\"t000\"", "\"t999\"").contains("t999 is not in"));
    assert!(change("model-00001-of", "../model-00001-of").contains("no file name"));
    assert!(change("\"t000\": \"model-00001", "\"t000\": \"model-00002").contains("t000 is not in"));
    let first = whole.find("\"t000\"").unwrap();
    let line_end = first + whole[first..].find('\n').unwrap() + 1;
    fs::write(&index, format!("{}{}", &whole[..first], &whole[line_end..])).unwrap();
    assert!(refusal(dir.path()).contains("does not name t000"));
    fs::write(&index, "[".repeat(100_000)).unwrap();
    assert!(refusal(dir.path()).contains("index.json"));
    fs::write(&index, whole).unwrap();
    let shard = |number: usize, count: usize| format!("model-{number:05}-of-{count:05}.safetensors");
    let count = fs::read_dir(dir.path()).unwrap().count() - 1;
    fs::copy(dir.path().join(shard(1, count)), dir.path().join(shard(9, 9))).unwrap();
    assert!(refusal(dir.path()).contains("names no tensor of model-00009-of-00009.safetensors"));
    // Of another program, or of another set of weights: not looked at.
    fs::rename(dir.path().join(shard(9, 9)), dir.path().join("adapter_model-00009-of-00009.safetensors"))
        .unwrap();
    assert_holds(&mut WeightSource::open(dir.path()).unwrap(), &tensors);
    fs::remove_file(dir.path().join(shard(1, count))).unwrap();
    assert!(refusal(dir.path()).contains(&format!("names {}, which is not beside it", shard(1, count))));
}

#[test]
fn a_digest_knows_tensors_and_not_how_they_lie_in_files() {
    let tensors: Vec<HostTensor> = (0..12).map(tensor).collect();
    let digest = |tensors: &[HostTensor], shard_bytes: u64, first: &[&str]| {
        let dir = TempDir::new().unwrap();
        write(dir.path(), tensors, shard_bytes);
        let mut source = HashedSource::new(WeightSource::open(dir.path()).unwrap());
        for name in first {
            assert_eq!(
                source.read(name).unwrap(),
                Some(tensors[name[1..].parse::<usize>().unwrap()].clone())
            );
        }
        source.digest().unwrap()
    };
    let whole = digest(&tensors, u64::MAX, &[]);
    assert_eq!(digest(&tensors, 60, &["t011", "t003", "t011"]), whole, "in shards, read in another order");
    let mut other = tensors.clone();
    other[7].bytes[0] ^= 1;
    assert_ne!(digest(&other, u64::MAX, &["t000"]), whole, "a bit of a tensor that nobody asked for");
    let mut other = tensors.clone();
    other[7].shape.reverse();
    assert_ne!(digest(&other, u64::MAX, &[]), whole, "another shape of the same bytes");
    assert_ne!(digest(&tensors[1..], u64::MAX, &[]), digest(&tensors[..11], u64::MAX, &[]));
}

#[test]
fn a_file_is_told_by_its_form_whatever_its_counts_look_like() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    // lengths whose bytes are those of a pickle of protocol 2, and of a zip
    for length in [0x0280, 0x4b50] {
        let json = format!("{{{}}}", " ".repeat(length - 2));
        fs::write(&path, [&(length as u64).to_le_bytes()[..], json.as_bytes()].concat()).unwrap();
        assert_eq!(WeightSource::open(&path).unwrap().format(), WeightFormat::Safetensors, "{length:#x}");
    }
    // as many tensors as a brace is: 123
    let lines: Vec<Vec<u8>> = (0..b'{').map(|n| gguf_file::line(&format!("t{n}"), &[0], 0, 0)).collect();
    fs::write(&path, gguf_file::gguf(&[], &lines, &[])).unwrap();
    let source = WeightSource::open(&path).unwrap();
    assert_eq!((source.format(), source.infos().count()), (WeightFormat::Gguf, 123));
}

#[test]
fn a_folder_without_weights_says_what_it_looked_for() {
    let dir = TempDir::new().unwrap();
    assert!(refusal(dir.path()).contains("pytorch_model.bin"));
}

#[test]
fn a_pth_of_ours_is_read_back_with_its_copies() {
    let tensors: Vec<HostTensor> =
        (0..20).map(tensor).chain([HostTensor::from_f32(&[], &[0.07]).unwrap()]).collect();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.pth");
    let mut names: Vec<(String, usize)> =
        (0..tensors.len()).map(|place| (format!("t{place:03}"), place)).collect();
    names.push(("tied".to_owned(), 3));
    let plan = announced(&tensors);
    write_pth::<CheckpointError>(&path, &plan, &names, |place| Ok(tensors[place].clone())).unwrap();
    let mut file = PthFile::open(&path).unwrap();
    assert_eq!(file.names().count(), tensors.len() + 1);
    for (name, place) in names {
        assert_eq!(file.read(&format!("model.{name}")).unwrap().as_ref(), Some(&tensors[place]));
    }
    assert_eq!(WeightSource::open(&path).unwrap().format(), WeightFormat::Torch);
}

#[test]
fn a_tensor_that_is_not_as_announced_is_refused() {
    let dir = TempDir::new().unwrap();
    let plan = announced(&[tensor(1)]);
    let other = |_| Ok::<_, CheckpointError>(tensor(2));
    let error = write_weights(dir.path(), &plan, u64::MAX, other).unwrap_err();
    assert!(error.to_string().contains("was announced"), "{error}");
    let error = write_pth(&dir.path().join("a.pth"), &plan, &[("x".to_owned(), 0)], other).unwrap_err();
    assert!(error.to_string().contains("was announced"), "{error}");
}

#[test]
fn what_fails_leaves_nothing_and_what_was_killed_is_cleared() {
    let dir = TempDir::new().unwrap();
    let dest = dir.path().join("out");
    let fail = |_: &Path| Err(CheckpointError::Tensor { name: "x".to_owned(), reason: "no".to_owned() });
    let left = || fs::read_dir(dir.path()).unwrap().count();
    new_folder(&dest, |folder| {
        fs::write(folder.join("half"), "h").map_err(|_| ()).map_or(Ok(()), |()| fail(folder))
    })
    .unwrap_err();
    new_file(&dest, fail).unwrap_err();
    assert_eq!(left(), 0);
    // of a process that is gone: no process has this number
    fs::create_dir(dir.path().join(".out.partial-4194999")).unwrap();
    fs::create_dir(dir.path().join(".other.partial-4194999")).unwrap();
    new_folder::<CheckpointError>(&dest, |folder| {
        assert!(!dest.exists(), "only whole");
        fs::write(folder.join("a"), "a").unwrap();
        Ok(())
    })
    .unwrap();
    assert_eq!(left(), 2, "the folder, and what is another's");
    assert_eq!(fs::read_to_string(dest.join("a")).unwrap(), "a");
}

proptest! {
    #[test]
    fn any_tensors_come_back_from_any_shards(
        seeds in prop::collection::vec(0usize..1000, 0..12), shard_bytes in 1u64..300,
    ) {
        let tensors: Vec<HostTensor> = seeds.into_iter().map(tensor).collect();
        let dir = TempDir::new().unwrap();
        let most = Cell::new(0);
        let plan = announced(&tensors);
        write_weights::<CheckpointError>(dir.path(), &plan, shard_bytes, |place| {
            most.set(most.get() + 1);
            Ok(tensors[place].clone())
        }).unwrap();
        prop_assert_eq!(most.get(), tensors.len(), "each is read once");
        assert_holds(&mut WeightSource::open(dir.path()).unwrap(), &tensors);
    }
}
