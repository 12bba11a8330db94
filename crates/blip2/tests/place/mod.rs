//! A folder in which the real `blip2` is tried, with a fake worker beside it.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use tempfile::TempDir;

/// A folder with `blip2` in it, and a fake `blip2-worker` where wanted.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn without_worker() -> Self {
        // Inside target/, so that a link to the program is possible: a copy would take time and could still be open
        // for writing in another test's child when it is started.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::hard_link(env!("CARGO_BIN_EXE_blip2"), dir.path().join("blip2")).unwrap();
        Self { dir }
    }

    pub fn with_worker() -> Self {
        let place = Self::without_worker();
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_worker");
        std::os::unix::fs::symlink(fake, place.path("blip2-worker")).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("blip2"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("FAKE_DIR", self.dir.path())
            .env_remove("LIBTORCH");
        command
    }

    /// What the fake worker was asked, a line a process.
    pub fn asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Exit code, standard output and standard error.
pub fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}
