//! From a config to an index and an order.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::write_shards;
use data::source::{Mix, SetConfig, SourceConfig};

fn folders() -> (tempfile::TempDir, [String; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let folders = ["a", "b"].map(|name| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        write_shards(&dir.path().join(name), 4, 10)
    });
    (dir, folders)
}

#[test]
fn one_list_is_shuffled_whole_and_sets_are_mixed() {
    let (_dir, [a, b]) = folders();
    let plain = SourceConfig::default();
    let index = plain.open(&[a.clone(), b.clone()]).unwrap();
    let order = plain.order(3, &index, 8).unwrap();
    assert_eq!(order.slice(0, 80), data::Order::new(3, 80).slice(0, 80));
    let set =
        |shards: &str, ratio| SetConfig { shards: vec![shards.to_owned()], ratio, ..SetConfig::default() };
    let mixed =
        SourceConfig { sets: vec![set(&a, Some(3.0)), set(&b, Some(1.0))], mix: Mix::Batches, ..plain };
    let index = mixed.open(&[]).unwrap();
    let order = mixed.order(3, &index, 8).unwrap();
    let drawn = order.drawn(60_000 * 8);
    assert_eq!([drawn[0].samples, drawn[1].samples], [45_000 * 8, 15_000 * 8]);
    // Without ratios: as often as their sizes say.
    let sized = SourceConfig { sets: vec![set(&a, None), set(&b, None)], ..mixed };
    let drawn = sized.order(3, &index, 8).unwrap().drawn(60_000 * 8);
    assert_eq!(drawn[0].samples, drawn[1].samples);
}

#[test]
fn what_says_two_things_is_refused() {
    let (_dir, [a, b]) = folders();
    let set = SetConfig { shards: vec![b], ratio: Some(1.0), repeats: Some(1.0), epochs: None };
    let config = SourceConfig { sets: vec![set], ..SourceConfig::default() };
    assert!(config.open(&[a]).unwrap_err().to_string().contains("use one of them"));
    let index = config.open(&[]).unwrap();
    assert!(config.order(1, &index, 8).unwrap_err().to_string().contains("data.source.sets[0]"));
    assert!(SourceConfig::default().open(&[]).unwrap_err().to_string().contains("no shards"));
    let zero = SourceConfig { shards_per_block: Some(0), ..SourceConfig::default() };
    assert!(zero.order(1, &index, 8).unwrap_err().to_string().contains("shards_per_block"));
    assert!(serde_json::from_str::<SourceConfig>(r#"{"shard_per_block": 3}"#).is_err());
}
