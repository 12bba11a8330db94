//! `s3://` through `object_store`, against the shard server on the loopback address.
#![cfg(feature = "cloud")]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::process::Command;
use std::time::Duration;

use common::Shard;
use common::server::{Fault, Server};
use data::{Index, RemoteOptions};

/// Reads `s3://bucket/a.tar` with what the environment says; started by the test below, which sets it.
#[test]
#[ignore = "a part of a test that needs an environment of its own"]
fn reads_the_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let options = RemoteOptions {
        stall_timeout: Duration::from_millis(500),
        backoff: Duration::from_millis(10),
        ..RemoteOptions::new(dir.path())
    };
    let index = Index::open_sets(&[vec!["s3://bucket/a.tar".into()]], Some(options)).unwrap();
    assert_eq!((0..index.len()).filter(|&sample| index.read(sample).is_ok()).count(), 50);
}

#[test]
fn d10_a_bucket_is_read_through_faults() {
    for fault in [None, Some(Fault::Status(503)), Some(Fault::Short), Some(Fault::Stall)] {
        let server = Server::start(Duration::ZERO, move |path, number| {
            fault.filter(|_| !path.ends_with(".index") && number < 3)
        });
        let mut shard = Shard::new();
        shard.samples("a", 50);
        server.put("/bucket/a.tar", shard.bytes());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "reads_the_bucket"])
            .env("AWS_ENDPOINT", &server.url)
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "word")
            .env("NO_PROXY", "127.0.0.1")
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{fault:?}: {said}");
        assert_eq!(server.faults(), if fault.is_some() { 2 } else { 0 }, "{fault:?}: {said}");
    }
}
