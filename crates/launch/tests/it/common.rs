//! Launchers in processes of their own, and waiting for what becomes of them.

use std::fmt::Display;
use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use launch::ReservedPort;

/// The example that is launcher and worker in these tests.
pub fn probe() -> PathBuf {
    // Test programs lie in target/PROFILE/deps/, examples in target/PROFILE/examples/.
    let test = std::env::current_exe().unwrap();
    let probe = test.ancestors().nth(2).unwrap().join("examples/probe");
    assert!(probe.exists(), "{} is missing; run `cargo build -p launch --examples`", probe.display());
    probe
}

/// A meeting place that nobody else is given meanwhile.
pub struct MeetingPlace {
    pub address: String,
    _port: ReservedPort,
}

/// One on loopback.
pub fn rdzv() -> MeetingPlace {
    let port = ReservedPort::on("127.0.0.1").unwrap();
    MeetingPlace { address: format!("127.0.0.1:{}", port.number()), _port: port }
}

/// What `look` finds, which takes no longer than a test may.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(Duration::from_secs(20), what, look)
}

/// What `look` finds before `at_most` has passed.
pub fn within<T>(at_most: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < at_most, "{what} did not happen in {at_most:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A zombie that nobody collects counts as gone.
pub fn is_running(pid: impl Display) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
