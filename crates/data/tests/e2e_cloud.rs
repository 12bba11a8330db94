//! `s3://`, `gs://` and `az://` through `object_store`, against the shard server on the loopback address.
#![cfg(feature = "cloud")]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::process::Command;
use std::time::Duration;

use common::Shard;
use common::server::{Fault, Server};
use data::{Index, RemoteOptions};

/// Names the shard to read.
const SHARD: &str = "BLIP2_TEST_SHARD";

/// Reads the shard that the environment names, with what else that says; started by [`is_read`], which sets it.
#[test]
#[ignore = "a part of a test that needs an environment of its own"]
fn reads_the_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let options = RemoteOptions {
        stall_timeout: Duration::from_millis(500),
        backoff: Duration::from_millis(10),
        ..RemoteOptions::new(dir.path())
    };
    let index = Index::open_sets(&[vec![std::env::var(SHARD).unwrap()]], Some(options)).unwrap();
    assert_eq!((0..index.len()).filter(|&sample| index.read(sample).is_ok()).count(), 50);
}

#[test]
fn d10_a_bucket_of_s3_is_read_through_faults() {
    let account = [
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "word"),
    ];
    is_read("s3://bucket/a.tar", "/bucket/a.tar", "AWS_ENDPOINT", &account);
}

#[test]
fn d10_a_bucket_of_google_is_read_through_faults() {
    let account = [("GOOGLE_ALLOW_HTTP", "true"), ("GOOGLE_BEARER_TOKEN", "word")];
    is_read("gs://bucket/a.tar", "/bucket/a.tar", "GOOGLE_BASE_URL", &account);
}

#[test]
fn d10_a_container_of_azure_is_read_through_faults() {
    // The account that Azure's emulator is known by.
    let (path, account) = ("/devstoreaccount1/bucket/a.tar", [("AZURE_STORAGE_USE_EMULATOR", "true")]);
    is_read("az://bucket/a.tar", path, "AZURITE_BLOB_STORAGE_URL", &account);
}

/// `shard` is read from a server that has it at `path`, is named by the variable `endpoint`, and fails twice behind the
/// first request.
fn is_read(shard: &str, path: &str, endpoint: &str, account: &[(&str, &str)]) {
    for fault in [None, Some(Fault::Status(503)), Some(Fault::Short), Some(Fault::Stall)] {
        let server = Server::start(Duration::ZERO, move |path, number| {
            fault.filter(|_| !path.ends_with(".index") && number < 3)
        });
        let mut contents = Shard::new();
        contents.samples("a", 50);
        server.put(path, contents.bytes());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "reads_the_bucket"])
            .env(SHARD, shard)
            .env(endpoint, &server.url)
            .envs(account.iter().copied())
            .env("NO_PROXY", "127.0.0.1")
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{fault:?}: {said}");
        assert_eq!(server.faults(), if fault.is_some() { 2 } else { 0 }, "{fault:?}: {said}");
    }
}
