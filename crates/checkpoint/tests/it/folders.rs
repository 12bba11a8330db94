//! Checkpoint folders from outside: what is saved comes back, what is altered is refused, what is old makes room.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::{
    CHUNK_BYTES, CheckpointError, Dtype, HostTensor, MANIFEST, Snapshot, Store, Writer, latest_valid, list,
    pinned, verify,
};

/// A small snapshot that differs for each step.
fn snapshot(step: u64) -> Snapshot {
    let values: Vec<f32> = (0..24).map(|i| i as f32 + step as f32 * 100.0).collect();
    let mut snapshot = Snapshot { phase: "stage1".to_owned(), ..Snapshot::default() };
    snapshot.model.insert("query_tokens".to_owned(), HostTensor::from_f32(&[1, 4, 6], &values).unwrap());
    snapshot.model.insert("temperature".to_owned(), HostTensor::from_f32(&[], &values[..1]).unwrap());
    snapshot
        .optimizer
        .insert("exp_avg.query_tokens".to_owned(), HostTensor::from_f32(&[24], &values).unwrap());
    snapshot.state = serde_json::json!({ "step": step, "loss": 0.1_f64 + step as f64, "seed": u64::MAX });
    snapshot.config = format!("[run]\nname = \"test\" # {step}\n");
    snapshot.parent = Some("stage0/step-00000009".to_owned());
    snapshot.frozen.insert("vision".to_owned(), "ab12".to_owned());
    snapshot
}

fn steps(dir: &Path) -> Vec<u64> {
    list(dir).unwrap().into_iter().map(|listed| listed.step).collect()
}

#[test]
fn what_is_saved_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    assert!(latest_valid(dir.path()).unwrap().is_none());
    assert!(latest_valid(&dir.path().join("nowhere")).unwrap().is_none());
    let store = Store::open(&dir.path().join("checkpoints"), 3).unwrap();
    let path = store.save(&snapshot(100), 100).unwrap();
    assert!(path.ends_with("step-00000100"));
    let loaded = store.latest_valid().unwrap().unwrap();
    assert_eq!((loaded.step, loaded.snapshot), (100, snapshot(100)));
    assert!(loaded.warnings.is_empty());
    let manifest = verify(&path).unwrap();
    assert_eq!((manifest.step, manifest.files.len()), (100, 4));
}

#[test]
fn the_newest_are_kept_and_the_pinned_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 2).unwrap();
    for step in [10, 20, 30, 40, 50] {
        store.save(&snapshot(step), step).unwrap();
        if step == 20 {
            store.pin(20).unwrap();
        }
    }
    assert_eq!(steps(dir.path()), [20, 40, 50]);
    assert_eq!(pinned(dir.path()).unwrap().unwrap().step, 20);
    store.pin(50).unwrap();
    store.save(&snapshot(60), 60).unwrap();
    assert_eq!(steps(dir.path()), [50, 60]);
}

#[test]
fn a_step_saved_again_replaces_and_later_steps_are_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 3).unwrap();
    for step in [10, 20, 30] {
        store.save(&snapshot(step), step).unwrap();
    }
    let mut other = snapshot(20);
    other.config.push_str("# second course\n");
    store.save(&other, 20).unwrap();
    assert_eq!(steps(dir.path()), [10, 20]);
    assert_eq!(store.latest_valid().unwrap().unwrap().snapshot, other);
    assert!(dir.path().join("superseded-step-00000030.0").is_dir());
}

#[test]
fn a_damaged_checkpoint_is_passed_over_with_a_warning_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 3).unwrap();
    store.save(&snapshot(10), 10).unwrap();
    let newest = store.save(&snapshot(20), 20).unwrap();
    flip_bit(&newest.join("model.safetensors"), 200, 3);
    let loaded = store.latest_valid().unwrap().unwrap();
    assert_eq!((loaded.step, loaded.snapshot), (10, snapshot(10)));
    assert_eq!(loaded.warnings.len(), 1);
    for part in ["step-00000020", "model.safetensors", "chunk 0"] {
        assert!(loaded.warnings[0].contains(part), "{} names {part}", loaded.warnings[0]);
    }
}

#[test]
fn when_none_is_valid_the_error_lists_each() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 3).unwrap();
    for step in [10, 20] {
        let path = store.save(&snapshot(step), step).unwrap();
        fs::remove_file(path.join("state.json")).unwrap();
    }
    match store.latest_valid() {
        Err(CheckpointError::NoneValid { problems, .. }) => {
            assert!(problems[0].contains("step-00000020") && problems[1].contains("step-00000010"));
        }
        other => panic!("{other:?}"),
    }
}

fn flip_bit(path: &Path, byte: usize, bit: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[byte] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A bit in every single byte of every file, manifest included: none may go unnoticed.
#[test]
fn a_bit_flipped_anywhere_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = Store::open(dir.path(), 1).unwrap().save(&snapshot(1), 1).unwrap();
    for file in files(&path) {
        let whole = fs::read(&file).unwrap();
        for byte in 0..whole.len() {
            flip_bit(&file, byte, (byte % 8) as u8);
            let error = verify(&path).expect_err("an altered checkpoint passed");
            if file.file_name().unwrap() != MANIFEST {
                assert!(error.to_string().contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
            }
            fs::write(&file, &whole).unwrap();
        }
    }
    verify(&path).unwrap();
}

#[test]
fn truncation_zeroed_blocks_missing_and_swapped_files_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = Store::open(dir.path(), 1).unwrap().save(&snapshot(1), 1).unwrap();
    for file in files(&path) {
        let whole = fs::read(&file).unwrap();
        for kept in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..kept]).unwrap();
            verify(&path).expect_err("truncated");
        }
        let mut zeroed = whole.clone();
        zeroed[whole.len() / 3..].fill(0);
        fs::write(&file, zeroed).unwrap();
        verify(&path).expect_err("zeroed");
        fs::remove_file(&file).unwrap();
        verify(&path).expect_err("missing");
        fs::write(&file, [whole.as_slice(), b"x"].concat()).unwrap();
        verify(&path).expect_err("longer");
        fs::write(&file, whole).unwrap();
    }
    let (model, optimizer) = (path.join("model.safetensors"), path.join("optimizer.safetensors"));
    fs::rename(&model, path.join("x")).unwrap();
    fs::rename(&optimizer, &model).unwrap();
    fs::rename(path.join("x"), &optimizer).unwrap();
    verify(&path).expect_err("swapped");
}

#[test]
fn another_version_of_the_format_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = Store::open(dir.path(), 1).unwrap().save(&snapshot(1), 1).unwrap();
    let text = fs::read_to_string(path.join(MANIFEST)).unwrap();
    for changed in [
        text.replace("\"format\": 1", "\"format\": 7"),
        text.replace("\"format\": 1", "\"new_field\": 0, \"format\": 7"),
    ] {
        fs::write(path.join(MANIFEST), changed).unwrap();
        let error = verify(&path).unwrap_err();
        assert!(matches!(error, CheckpointError::Malformed { .. }));
        assert!(error.to_string().contains("folder format 7"), "{error}");
    }
}

#[test]
fn a_folder_renamed_to_another_step_is_not_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 3).unwrap();
    let path = store.save(&snapshot(5), 5).unwrap();
    fs::rename(path, dir.path().join("step-00000500")).unwrap();
    assert!(matches!(store.latest_valid(), Err(CheckpointError::NoneValid { .. })));
}

#[test]
fn damage_behind_the_first_chunk_is_placed() {
    let dir = tempfile::tempdir().unwrap();
    let mut big = snapshot(1);
    big.model.insert("big".to_owned(), HostTensor::zeros(Dtype::U8, &[3 * CHUNK_BYTES]).unwrap());
    let path = Store::open(dir.path(), 1).unwrap().save(&big, 1).unwrap();
    assert_eq!(verify(&path).unwrap().files["model.safetensors"].blake3.len(), 4);
    flip_bit(&path.join("model.safetensors"), 2 * CHUNK_BYTES + 77, 0);
    let error = verify(&path).unwrap_err().to_string();
    assert!(error.contains("chunk 2 (bytes 8388608..12582912)"), "{error}");
}

#[test]
fn leftovers_are_cleared_and_strangers_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for leftover in [".writing-step-00000030", ".deleting-step-00000010"] {
        fs::create_dir(dir.path().join(leftover)).unwrap();
        fs::write(dir.path().join(leftover).join("model.safetensors"), b"half").unwrap();
    }
    for stranger in ["step-notes", "step-7", "notes.txt"] {
        fs::write(dir.path().join(stranger), b"mine").unwrap();
    }
    Store::open(dir.path(), 1).unwrap();
    let left: Vec<_> = files(dir.path()).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(left, ["notes.txt", "step-7", "step-notes"]);
    assert!(steps(dir.path()).is_empty());
}

#[test]
fn the_writer_saves_beside_its_caller() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(Store::open(dir.path(), 10).unwrap());
    assert!(writer.submit(snapshot(1), 1).is_none());
    let first = writer.finish().unwrap().unwrap();
    assert_eq!((first.step, writer.finish().is_none()), (1, true));
    // Two at once: the second is either started (the first was quick) or counted as skipped; never queued.
    writer.submit(snapshot(2), 2);
    let collected = writer.submit(snapshot(3), 3);
    assert_eq!(collected.is_none(), writer.skipped() == 1);
    let outcomes = writer.save_now(&snapshot(4), 4);
    assert_eq!(outcomes.last().unwrap().as_ref().unwrap().step, 4);
    assert_eq!(steps(dir.path()).last(), Some(&4));
}

#[test]
fn a_failed_save_is_a_value_and_the_next_one_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 3).unwrap();
    let mut writer = Writer::new(store);
    let mut broken = snapshot(1);
    broken.model.insert("bad".to_owned(), HostTensor { dtype: Dtype::F32, shape: vec![2], bytes: vec![0] });
    writer.submit(broken, 1);
    assert!(matches!(writer.finish(), Some(Err(CheckpointError::Tensor { .. }))));
    writer.submit(snapshot(2), 2);
    assert_eq!(writer.finish().unwrap().unwrap().step, 2);
    assert_eq!(writer.saved(), 2);
    assert_eq!(files(dir.path()).len(), 1, "the failed save leaves nothing");
}
