//! The Python loader that ours is measured against: a process that measures when it is told to.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::BenchError;

/// The script; it needs what `benches/peers/requirements.txt` names.
const SCRIPT: &str = include_str!("../../../../benches/peers/loader.py");

/// The running peer. It ends when it is dropped: its input closes.
pub struct Peer {
    python: PathBuf,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts the script over `shards`; it is written into `dir`.
    pub fn start(python: &Path, dir: &Path, shards: &[PathBuf]) -> Result<Self, BenchError> {
        let script = dir.join("peer_loader.py");
        std::fs::write(&script, SCRIPT)
            .map_err(|source| BenchError::Write { path: script.clone(), source })?;
        let failed = |problem: String| BenchError::Peer { python: python.to_owned(), problem };
        let mut child = Command::new(python)
            .arg(&script)
            .args(shards)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("it has no input or output".to_owned()));
        };
        let mut peer =
            Self { python: python.to_owned(), child, input: Some(input), output: BufReader::new(output) };
        match peer.line()?.as_str() {
            "ready" => Ok(peer),
            other => Err(peer.failed(format!("it said {other:?} when it started"))),
        }
    }

    /// Images per second over `time`.
    pub fn rate(&mut self, time: Duration) -> Result<f64, BenchError> {
        let asked = self.input.as_mut().map(|input| writeln!(input, "{}", time.as_secs_f64()));
        if !matches!(asked, Some(Ok(()))) {
            return Err(self.failed("it has ended".to_owned()));
        }
        let answer = self.line()?;
        answer.parse().map_err(|_| self.failed(format!("it answered {answer:?} instead of a rate")))
    }

    fn line(&mut self) -> Result<String, BenchError> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(0) => Err(self.failed("it ended without an answer".to_owned())),
            Ok(_) => Ok(line.trim().to_owned()),
            Err(error) => Err(self.failed(error.to_string())),
        }
    }

    fn failed(&self, problem: String) -> BenchError {
        BenchError::Peer { python: self.python.clone(), problem }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.input = None;
        // It may hang: it is nobody's child but ours.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
