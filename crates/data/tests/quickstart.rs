//! The quick start from the real packages, where they are in the cache; nothing is downloaded here.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use data::prepare::{Item, PACKAGES, PrepareOptions, quickstart};
use data::{DecodeOptions, Index, decode};

fn fixture() -> Vec<Item> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quickstart/items.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The user's cache of packages when it holds all of them.
fn cache() -> Option<PathBuf> {
    // What launch::cache_dir() does; a test may not read the environment either.
    let printed =
        Command::new("sh").args(["-c", "printf %s \"${XDG_CACHE_HOME:-$HOME/.cache}\""]).output().unwrap();
    let cache = Path::new(&String::from_utf8(printed.stdout).unwrap()).join("blip2/packages");
    let missing: Vec<&str> =
        PACKAGES.iter().map(|package| package.file).filter(|file| !cache.join(file).exists()).collect();
    if missing.is_empty() {
        return Some(cache);
    }
    eprintln!("skipped: {} lacks {missing:?}; `blip2 data prepare quickstart` brings them", cache.display());
    None
}

#[test]
fn shards_of_the_real_packages_hold_exactly_the_items() {
    let Some(cache) = cache() else { return };
    let dir = tempfile::tempdir().unwrap();
    let options = PrepareOptions { cache, out: dir.path().join("quickstart") };
    let prepared = quickstart(&options, &mut |_| {}).unwrap();
    let counts: Vec<(&str, usize, usize)> =
        prepared.sets.iter().map(|set| (set.name, set.shards.len(), set.samples)).collect();
    assert_eq!(
        counts,
        [
            ("train-google", 2, 1364),
            ("train-twitter", 2, 1364),
            ("val", 1, 69),
            ("val_twitter", 1, 69),
            ("val_fluent", 1, 69),
            ("concept_google", 1, 166),
            ("concept_twitter", 1, 166),
            ("both", 1, 166),
            ("style", 1, 1364),
        ]
    );
    for (set, plan) in prepared.sets.iter().zip(data::prepare::SETS) {
        let patterns: Vec<String> = set.shards.iter().map(|shard| shard.display().to_string()).collect();
        let index = Index::open(&patterns).unwrap();
        assert_eq!((index.len(), index.problems().total()), (set.samples, 0), "{}", set.name);
        let expected = fixture().into_iter().filter(|item| item.split == plan.split);
        for (number, item) in expected.enumerate() {
            let sample = index.read(number).unwrap();
            assert_eq!(sample.captions.captions, [item.caption.as_str()], "{}", set.name);
            let code = item.hexcode.to_lowercase().replace("-fe0f", "");
            assert_eq!(*sample.key, format!("{}-{code}", plan.style.name()));
            assert!(!sample.captions.tags.contains(&item.caption));
        }
    }
}

#[test]
fn pictures_decode_at_the_size_their_package_promises() {
    let Some(cache) = cache() else { return };
    let dir = tempfile::tempdir().unwrap();
    let prepared = quickstart(&PrepareOptions { cache, out: dir.path().to_path_buf() }, &mut |_| {}).unwrap();
    for (name, side) in [("concept_google", 64), ("concept_twitter", 64), ("both", 256)] {
        let set = prepared.sets.iter().find(|set| set.name == name).unwrap();
        let index = Index::open(&[set.shards[0].display().to_string()]).unwrap();
        for number in 0..index.len() {
            let picture = decode(&index.read_image(number).unwrap(), &DecodeOptions::default()).unwrap();
            // Four of Fluent's 3391 pictures are 264 high.
            assert_eq!(picture.width, side, "{name} {number}");
            assert!(picture.height == side || (side, picture.height) == (256, 264), "{name} {number}");
        }
    }
}

#[test]
fn a_second_preparation_finds_everything_and_a_damaged_shard_is_made_again() {
    let Some(cache) = cache() else { return };
    let dir = tempfile::tempdir().unwrap();
    let options = PrepareOptions { cache, out: dir.path().to_path_buf() };
    let first = quickstart(&options, &mut |_| {}).unwrap();
    let digests = |sets: &[data::prepare::Written]| -> HashMap<PathBuf, Vec<u8>> {
        let shards = sets.iter().flat_map(|set| set.shards.clone());
        shards.map(|shard| (shard.clone(), std::fs::read(shard).unwrap())).collect()
    };
    let bytes = digests(&first.sets);
    let mut lines = Vec::new();
    assert_eq!(quickstart(&options, &mut |line| lines.push(line.to_owned())).unwrap(), first);
    assert!(lines.len() == 1 && lines[0].starts_with("shards: already prepared"), "{lines:?}");
    std::fs::write(&first.sets[3].shards[0], "damaged").unwrap();
    assert_eq!(quickstart(&options, &mut |_| {}).unwrap(), first);
    assert_eq!(digests(&first.sets), bytes);
}
