//! `blip2 data index` on real files.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;

use assert_cmd::Command;

/// A shard of `files`, made by the `tar` of the system.
fn shard(dir: &Path, name: &str, files: &[&str]) {
    for file in files {
        fs::write(dir.join(file), "some bytes").unwrap();
    }
    Command::new("tar").current_dir(dir).args(["--format=gnu", "-cf", name]).args(files).assert().success();
    for file in files {
        fs::remove_file(dir.join(file)).unwrap();
    }
}

fn index(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blip2"));
    let output = command.current_dir(dir).args(["data", "index"]).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn shards_get_index_files_once_and_their_problems_are_told() {
    let dir = tempfile::tempdir().unwrap();
    shard(dir.path(), "0.tar", &["a.jpg", "a.txt", "b.png", "b.json"]);
    shard(dir.path(), "1.tar", &["c.jpg", "d.txt", "e.webp", "e.txt"]);
    let (code, stdout, _) = index(dir.path(), &["{0..1}.tar"]);
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with("2 shards, 3 usable samples of 5, digest "), "{stdout}");
    assert_eq!(lines[1], "2 index files written, 0 were there and fitted");
    assert_eq!(lines[2], "left out: caption_missing 1, image_missing 1");
    assert_eq!(lines[3], "worst: 1.tar: caption_missing 1, image_missing 1");
    assert!(dir.path().join("0.tar.index").is_file() && dir.path().join("1.tar.index").is_file());
    let (_, again, _) = index(dir.path(), &["."]);
    assert!(again.contains("0 index files written, 2 were there and fitted"), "{again}");
    let (_, whole, _) = index(dir.path(), &["--contents", "."]);
    assert!(whole.contains("2 index files written"), "{whole}");
}

#[test]
fn a_disk_that_takes_no_index_file_may_take_it_the_next_time() {
    let dir = tempfile::tempdir().unwrap();
    shard(dir.path(), "0.tar", &["a.jpg", "a.txt"]);
    // Root may write everywhere, so a folder is in the way.
    fs::create_dir(dir.path().join("0.tar.index")).unwrap();
    let (code, _, stderr) = index(dir.path(), &["0.tar"]);
    assert_eq!(code, Some(69), "{stderr}");
    assert!(stderr.contains("0.tar.index could not be written"), "{stderr}");
}

#[test]
fn a_shard_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, stderr) = index(dir.path(), &["{0..1}.tar"]);
    assert_eq!(code, Some(78));
    assert!(stderr.contains("0.tar does not exist"), "{stderr}");
    let (code, _, stderr) = index(dir.path(), &["https://user:word@host/0.tar"]);
    assert_eq!(code, Some(78));
    assert!(stderr.contains("https://host/0.tar") && !stderr.contains("user:word"), "{stderr}");
}
