//! From a config to an index and an order.

use crate::common::write_shards;
use data::source::{CacheConfig, Mix, SetConfig, SourceConfig};

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

#[test]
fn all_that_no_shard_could_mend_is_told_before_one_is_opened() {
    let set = |shards: &[&str], ratio, repeats| SetConfig {
        shards: shards.iter().map(|&shard| shard.to_owned()).collect(),
        ratio,
        repeats,
        epochs: None,
    };
    let said = |sets: Vec<SetConfig>| -> Vec<String> {
        let config = SourceConfig { sets, ..SourceConfig::default() };
        config.problems().iter().map(ToString::to_string).collect()
    };
    assert_eq!(said(vec![]), Vec::<String>::new());
    assert_eq!(
        said(vec![set(&["a-{0..9}.tar"], None, None), set(&["b-{0..9}.tar"], None, Some(2.0))]),
        [""; 0]
    );

    let ratios = [0.0, -1.0, f64::NAN, f64::INFINITY, 0.5];
    let wrong =
        said(ratios.iter().map(|&ratio| set(&[&format!("{ratio}.tar")], Some(ratio), None)).collect());
    assert_eq!(wrong.len(), 4, "{wrong:?}");
    for (number, problem) in wrong.iter().enumerate() {
        assert!(problem.starts_with(&format!("data.source.sets[{number}]: its `ratio`")), "{problem}");
    }

    let wrong = said(vec![
        set(&["a-{0..9}.tar"], Some(1.0), None),
        set(&[], None, None),
        set(&["b.tar", "a-7.tar", "a-8.tar"], Some(1.0), Some(1.0)),
    ]);
    let expected = [
        "sets[1]: names no shards",
        "sets[2]: has both",
        "sets[1]: either all",
        "sets[2]: a-7.tar is in sets[0] too",
    ];
    assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
    for (problem, expected) in wrong.iter().zip(expected) {
        assert!(problem.contains(expected), "{expected}: {problem}");
    }
}

#[test]
fn times_that_no_clock_can_add_are_refused() {
    let cache = CacheConfig {
        shard_deadline_seconds: u64::MAX,
        stall_seconds: 0,
        max_gib: 1 << 34,
        attempts: 0,
        dir: None,
    };
    let config = SourceConfig { cache, ..SourceConfig::default() };
    let said: Vec<String> = config.problems().iter().map(ToString::to_string).collect();
    for (problem, key) in said.iter().zip(["max_gib", "shard_deadline_seconds", "stall_seconds", "attempts"])
    {
        assert!(problem.starts_with(&format!("data.source.cache.{key}: must be")), "{problem}");
    }
    assert_eq!(said.len(), 4, "{said:?}");
}
