//! `s3://`, `gs://` and `az://` through `object_store`, against the shard server on the loopback address.
#![cfg(feature = "cloud")]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::process::Command;
use std::time::Duration;

use common::Shard;
use common::server::{Fault, Server};
use data::{Index, RemoteOptions};

/// Reads a bucket's `a.tar` with what the environment says; it is set for a process of its own by [`d10_a_bucket`].
fn reads(url: &str) {
    let dir = tempfile::tempdir().unwrap();
    let options = RemoteOptions {
        stall_timeout: Duration::from_millis(500),
        backoff: Duration::from_millis(10),
        ..RemoteOptions::new(dir.path())
    };
    let index = Index::open_sets(&[vec![url.into()]], Some(options)).unwrap();
    assert_eq!((0..index.len()).filter(|&sample| index.read(sample).is_ok()).count(), 50);
}

#[test]
#[ignore = "a part of a test that needs an environment of its own"]
fn reads_s3() {
    reads("s3://bucket/a.tar");
}

#[test]
#[ignore = "a part of a test that needs an environment of its own"]
fn reads_gs() {
    reads("gs://bucket/a.tar");
}

#[test]
#[ignore = "a part of a test that needs an environment of its own"]
fn reads_az() {
    reads("az://bucket/a.tar");
}

#[test]
fn d10_a_bucket_of_s3_is_read_through_faults() {
    d10_a_bucket("reads_s3", "/bucket/a.tar", |server| {
        vec![
            ("AWS_ENDPOINT", server.into()),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "key".into()),
            ("AWS_SECRET_ACCESS_KEY", "word".into()),
        ]
    });
}

#[test]
fn d10_a_bucket_of_google_is_read_through_faults() {
    d10_a_bucket("reads_gs", "/bucket/a.tar", |server| {
        vec![
            ("GOOGLE_BASE_URL", server.into()),
            ("GOOGLE_ALLOW_HTTP", "true".into()),
            ("GOOGLE_BEARER_TOKEN", "word".into()),
        ]
    });
}

#[test]
fn d10_a_container_of_azure_is_read_through_faults() {
    // The account and key that Azure's emulator is known by.
    d10_a_bucket("reads_az", "/devstoreaccount1/bucket/a.tar", |server| {
        vec![("AZURE_STORAGE_USE_EMULATOR", "true".into()), ("AZURITE_BLOB_STORAGE_URL", server.into())]
    });
}

/// `part` reads the shard at `path` of a server that fails twice behind the first request.
fn d10_a_bucket(part: &str, path: &str, environment: impl Fn(&str) -> Vec<(&'static str, String)>) {
    for fault in [None, Some(Fault::Status(503)), Some(Fault::Short), Some(Fault::Stall)] {
        let server = Server::start(Duration::ZERO, move |path, number| {
            fault.filter(|_| !path.ends_with(".index") && number < 3)
        });
        let mut shard = Shard::new();
        shard.samples("a", 50);
        server.put(path, shard.bytes());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", part])
            .envs(environment(&server.url))
            .env("NO_PROXY", "127.0.0.1")
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{fault:?}: {said}");
        assert_eq!(server.faults(), if fault.is_some() { 2 } else { 0 }, "{fault:?}: {said}");
    }
}
