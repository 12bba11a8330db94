//! Trying again: how often, how long in between, and what it means when it ends.

use std::io;
use std::time::{Duration, Instant};

use crate::error::DataError;
use crate::location::Url;
use crate::rng::{Rng, Stream};

use super::RemoteOptions;
use super::store::Failure;

/// No wait of our own choice is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Calls `step` until it succeeds, fails for good, fails `attempts` times in a row, or the deadline is over.
///
/// The first part of what `step` returns says whether it got anywhere; if so, the count starts anew.
pub(super) fn persist<T>(
    url: &Url,
    options: &RemoteOptions,
    deadline: Instant,
    mut step: impl FnMut() -> (bool, Result<T, Failure>),
) -> Result<T, DataError> {
    let started = Instant::now();
    let mut failures = 0;
    loop {
        let (progressed, result) = step();
        let (problem, after) = match result {
            Ok(value) => return Ok(value),
            Err(Failure::Retry { problem, after }) => (problem, after),
            Err(failure) => return Err(fatal(url, failure)),
        };
        failures = if progressed { 1 } else { failures + 1 };
        let wait = wait(options.backoff, failures, after);
        let too_late = Instant::now().checked_add(wait).is_none_or(|then| then >= deadline);
        if failures >= options.attempts || too_late {
            let spent = started.elapsed().as_secs_f64();
            let asked =
                after.map(|after| format!(", and asks for {} s", after.as_secs())).unwrap_or_default();
            let message =
                format!("gave up after {failures} failure(s) in a row and {spent:.1} s: {problem}{asked}");
            let source = io::Error::new(io::ErrorKind::TimedOut, message);
            return Err(DataError::Unreadable { shard: url.to_string(), source });
        }
        std::thread::sleep(wait);
    }
}

/// The wait after failure number `failures`, at least what the server asked for: who asks too soon fails again. The
/// deadline is what bounds it.
fn wait(first: Duration, failures: u32, after: Option<Duration>) -> Duration {
    let longest = first.saturating_mul(1 << (failures - 1).min(20)).min(LONGEST_WAIT);
    // Ranks that failed together must not come back together.
    let mut rng = Rng::new(u64::from(std::process::id()), Stream::Backoff, &[failures.into()]);
    let own = longest.mul_f64(rng.uniform_in(0.5, 1.0));
    own.max(after.unwrap_or_default())
}

fn fatal(url: &Url, failure: Failure) -> DataError {
    let shard = url.to_string();
    match failure {
        Failure::Missing => {
            let source = io::Error::new(io::ErrorKind::NotFound, "the server knows no such object");
            DataError::ShardMissing { shard, source }
        }
        Failure::Changed => {
            DataError::ShardChanged { shard, problem: "the server holds another version of it".into() }
        }
        Failure::Refused { problem } | Failure::Retry { problem, .. } => {
            DataError::Pattern { pattern: shard, problem }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::Location;

    #[test]
    fn waits_double_up_to_a_bound_and_a_server_is_heard() {
        let first = Duration::from_millis(100);
        for failures in 1..40 {
            let longest = first.mul_f64(2f64.powi(failures as i32 - 1)).min(LONGEST_WAIT);
            let waited = wait(first, failures, None);
            assert!(waited >= longest / 2 && waited <= longest, "{failures}: {waited:?}");
        }
        assert_eq!(wait(first, 1, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(wait(first, 1, Some(Duration::from_secs(7000))), Duration::from_secs(7000));
    }

    #[test]
    fn a_server_that_asks_for_longer_than_there_is_ends_it_at_once_and_is_quoted() {
        let options = RemoteOptions::new("unused");
        let Ok(Location::Remote(url)) = Location::parse("http://localhost/a.tar") else { panic!("a URL") };
        for after in [Duration::from_secs(7000), Duration::MAX] {
            let mut calls = 0;
            let deadline = Instant::now() + Duration::from_secs(60);
            let error = persist::<()>(&url, &options, deadline, || {
                calls += 1;
                (false, Err(Failure::Retry { problem: "busy".into(), after: Some(after) }))
            });
            let DataError::Unreadable { source, .. } = error.unwrap_err() else { panic!("another error") };
            assert_eq!(calls, 1);
            assert!(
                source.to_string().contains(&format!("busy, and asks for {} s", after.as_secs())),
                "{source}"
            );
        }
    }
}
