//! Shards that are kept open for reading: those that were used last.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Local shards kept open at once.
const MAX_LOCAL: usize = 256;
/// Remote ones: two blocks. What the cache drops stays on the disk while it is open, so these come on top of its bound.
const MAX_REMOTE: usize = 16;
/// A shard of the cache that is read counts as used at least so often.
const TOUCH: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct OpenShards(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    files: HashMap<u32, Open>,
    uses: u64,
}

#[derive(Debug)]
struct Open {
    file: Arc<File>,
    remote: bool,
    /// Number of the last use.
    used: u64,
    touched: Instant,
}

impl OpenShards {
    /// Shard `number`, if it is open.
    pub(crate) fn get(&self, number: u32) -> Option<Arc<File>> {
        let mut kept = self.lock();
        kept.uses += 1;
        let uses = kept.uses;
        let open = kept.files.get_mut(&number)?;
        open.used = uses;
        if open.remote && open.touched.elapsed() >= TOUCH {
            open.touched = Instant::now();
            // The cache drops first what was not used for the longest time; if it cannot be set, that is this one.
            let _ = open.file.set_modified(SystemTime::now());
        }
        Some(Arc::clone(&open.file))
    }

    /// Keeps shard `number` open, and closes the one of its kind that was not used for the longest time if there are
    /// too many.
    pub(crate) fn keep(&self, number: u32, file: &Arc<File>, remote: bool) {
        let mut kept = self.lock();
        kept.uses += 1;
        let open = Open { file: Arc::clone(file), remote, used: kept.uses, touched: Instant::now() };
        kept.files.insert(number, open);
        let of_kind = || kept.files.iter().filter(|(_, open)| open.remote == remote);
        if of_kind().count() > if remote { MAX_REMOTE } else { MAX_LOCAL } {
            let oldest = of_kind().min_by_key(|(_, open)| open.used).map(|(&number, _)| number);
            oldest.and_then(|oldest| kept.files.remove(&oldest));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_used_last_stay_open_and_few_remote_ones() {
        let open = OpenShards::default();
        let files: Vec<Arc<File>> = (0..300).map(|_| Arc::new(tempfile::tempfile().unwrap())).collect();
        for (number, file) in files.iter().enumerate() {
            open.keep(number as u32, file, true);
            assert!(open.get(0).is_some(), "used all the time");
            open.keep(1000 + number as u32, file, false);
        }
        // The test's own handle, and those that are kept.
        let kept = files.iter().map(|file| Arc::strong_count(file) - 1).sum::<usize>();
        assert_eq!(kept, MAX_REMOTE + MAX_LOCAL);
        assert!(open.get(299).is_some() && open.get(1).is_none());
    }
}
