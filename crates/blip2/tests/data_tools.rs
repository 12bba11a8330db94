//! `blip2 data make`, `verify`, `stats`, `inspect` and `blip2 bench loader`, as a user types them.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

fn blip2(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("blip2").unwrap();
    let output =
        command.current_dir(dir).args(args).env("XDG_CACHE_HOME", dir.join("cache")).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A picture that differs by `shade`.
fn picture(path: PathBuf, width: u32, height: u32, shade: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixel = |x: u32, y: u32| image::Rgb([(x * u32::from(shade) % 251) as u8, (y * 3 % 256) as u8, shade]);
    image::RgbImage::from_fn(width, height, pixel).save(path).unwrap();
}

/// Three pictures, five captions, a record whose picture is missing, one that is no picture, one without words.
fn coco() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join("images").join(name);
    picture(place("val2014/a.png"), 60, 40, 7);
    picture(place("val2014/b.png"), 30, 90, 90);
    fs::copy(place("val2014/a.png"), place("copy_of_a.png")).unwrap();
    fs::write(place("broken.jpg"), b"\xff\xd8\xff\xe0 and no more").unwrap();
    let records = r#"[
        {"image": "val2014/a.png", "caption": "a <b>cat</b>", "image_id": "coco_1"},
        {"image": "val2014/b.png", "caption": ["a dog", "a brown dog"]},
        {"image": "val2014/a.png", "caption": "a pet"},
        {"image": "gone.png", "caption": "nothing"},
        {"image": "broken.jpg", "caption": "a wreck"},
        {"image": "copy_of_a.png", "caption": "a cat again"},
        {"image": "val2014/c.png", "caption": " "}]"#;
    fs::write(dir.path().join("coco.json"), records).unwrap();
    dir
}

#[test]
fn annotations_become_shards_that_verify_and_can_be_looked_at() {
    let dir = coco();
    let make = ["data", "make", "--images", "images", "--annotations", "coco.json", "--out", "shards"];
    let (code, stdout, stderr) = blip2(dir.path(), &[&make[..], &["--samples-per-shard", "2"]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("3 samples with 5 captions in 2 shards"), "{stdout}");
    assert!(
        stdout.contains("left out: caption_empty 1, image_missing 1, image_corrupt 1") || {
            ["caption_empty 1", "image_missing 1", "image_corrupt 1"]
                .iter()
                .all(|reason| stdout.contains(reason))
        },
        "{stdout}"
    );
    assert!(stderr.contains("left out gone.png: image_missing"), "{stderr}");

    let (code, stdout, _) = blip2(dir.path(), &["data", "verify", "shards"]);
    assert_eq!((code, stdout.as_str()), (0, "3 samples are good, 0 left out\n"));

    let (code, stdout, _) =
        blip2(dir.path(), &["data", "stats", "--json", "shards/train-{000000..000001}.tar"]);
    let numbers: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, 0);
    assert_eq!(numbers["statistics"]["captions"], 5);
    assert_eq!(numbers["statistics"]["width"]["max"], 60);
    assert_eq!(numbers["statistics"]["kinds"]["png"], 3);
    assert_eq!(numbers["duplicates"], serde_json::json!({"same_bytes": 1, "same_look": 0}));

    let (code, stdout, _) = blip2(dir.path(), &["data", "inspect", "shards", "--out", "page.html"]);
    assert_eq!(code, 0, "{stdout}");
    let page = fs::read_to_string(dir.path().join("page.html")).unwrap();
    assert!(page.contains("a &lt;b&gt;cat&lt;/b&gt;") && !page.contains("<b>cat"), "captions are text");
    assert!(page.contains("a brown dog") && page.matches("data:image/jpeg;base64,").count() == 3);
    assert!(page.contains("as 000000000000"), "the copy is named with its original");

    // Nothing is overwritten.
    let (code, _, stderr) = blip2(dir.path(), &make);
    assert_eq!(code, 78);
    assert!(stderr.contains("train-000000.tar is there already"), "{stderr}");
}

#[test]
fn the_same_pictures_give_the_same_shards_with_any_number_of_threads() {
    let dir = coco();
    let made = |out: &str, workers: &str| {
        let args = [
            "data",
            "make",
            "--images",
            "images",
            "--annotations",
            "coco.json",
            "--out",
            out,
            "--workers",
            workers,
        ];
        assert_eq!(blip2(dir.path(), &args).0, 0);
        fs::read(dir.path().join(out).join("train-000000.tar")).unwrap()
    };
    assert_eq!(made("one", "1"), made("many", "5"));
}

#[test]
fn a_folder_is_taken_with_its_captions_and_scaled_on_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join("in").join(name);
    picture(place("deep/large.png"), 300, 120, 5);
    fs::write(place("deep/large.txt"), "a long wall\n").unwrap();
    picture(place("small.png"), 20, 30, 9);
    fs::write(place("small.json"), r#"{"caption": ["one", "two"], "licence": "none"}"#).unwrap();
    picture(place("silent.png"), 20, 30, 11);
    let args = ["data", "make", "--images", "in", "--out", "out", "--name", "web", "--shorter-side", "60"];
    let (code, stdout, stderr) = blip2(dir.path(), &args);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.contains("2 samples with 3 captions in 1 shards") && stdout.contains("1 pictures scaled"),
        "{stdout}"
    );
    assert!(stdout.contains("caption_missing 1"), "{stdout}");
    let (_, stdout, _) = blip2(dir.path(), &["data", "stats", "--json", "out/web-000000.tar"]);
    let numbers: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(numbers["statistics"]["width"]["max"], 150);
    assert_eq!(numbers["statistics"]["height"]["max"], 60);
    assert_eq!(numbers["statistics"]["kinds"], serde_json::json!({"jpeg": 1, "png": 1, "webp": 0}));
}

#[test]
fn a_bad_sample_is_counted_with_its_shard_and_ends_with_1() {
    let dir = coco();
    let args = ["data", "make", "--images", "images", "--annotations", "coco.json", "--out", "shards"];
    assert_eq!(blip2(dir.path(), &args).0, 0);
    let shard = dir.path().join("shards/train-000000.tar");
    let mut bytes = fs::read(&shard).unwrap();
    // In the middle of the first picture's compressed pixels.
    bytes[512 + 60..512 + 80].fill(0x55);
    fs::write(&shard, bytes).unwrap();
    let (code, stdout, _) = blip2(dir.path(), &["data", "verify", "shards"]);
    assert_eq!(code, 1, "{stdout}");
    assert!(stdout.starts_with("2 samples are good, 1 left out\n"), "{stdout}");
    assert!(stdout.contains("train-000000.tar: image_corrupt 1"), "{stdout}");
    assert!(stdout.contains("sample 000000000000 of shard"), "{stdout}");
    let (code, stdout, _) = blip2(dir.path(), &["data", "verify", "--json", "shards"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, 1);
    assert_eq!(report["by_reason"], serde_json::json!({"image_corrupt": 1}));
}

#[test]
fn what_cannot_be_used_is_named_in_one_line() {
    let dir = coco();
    fs::write(dir.path().join("bad.jsonl"), "{\"image\": \"a.png\", \"caption\": \"x\"}\n{\"caption\": 1}\n")
        .unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    let make = |rest: &[&'static str]| [&["data", "make", "--out", "o", "--images"], rest].concat();
    let cases = [
        (make(&["images", "--annotations", "bad.jsonl"]), "bad.jsonl: line 2: it has none of image"),
        (make(&["empty"]), "no .jpg, .jpeg, .png or .webp"),
        (vec!["data", "verify", "gone.tar"], "gone.tar"),
        (vec!["data", "stats", "empty"], "empty"),
    ];
    for (args, word) in cases {
        let (code, _, stderr) = blip2(dir.path(), &args);
        assert_eq!(code, 78, "{args:?}: {stderr}");
        assert!(stderr.contains(word) && stderr.trim_end().lines().count() == 1, "{args:?}: {stderr}");
    }
}

#[test]
fn the_bench_ends_with_a_line_of_json_and_names_a_missing_peer() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = blip2(dir.path(), &["bench", "loader", "--seconds", "0.1", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let report: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    for key in ["images_per_second", "decode_only_images_per_second", "read_only_samples_per_second"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key} in {report}");
    }
    assert!(report.get("ratio_to_peer").is_none(), "{report}");
    let (code, _, stderr) = blip2(dir.path(), &["bench", "loader", "--seconds", "0.1", "--peer"]);
    assert_eq!(code, 78);
    assert!(stderr.contains("scripts/bench --peers"), "{stderr}");
}
