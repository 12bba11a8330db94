//! One object into one file, over as many requests as it takes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use crate::error::DataError;
use crate::location::Url;

use super::RemoteOptions;
use super::cache::{Cache, Note};
use super::retry::persist;
use super::store::{Condition, Failure, Reply, Store};

/// Read and written at once.
const CHUNK: usize = 256 << 10;
/// An index file above this size is none: ten times that of the largest shard.
const MAX_TEXT: u64 = 512 << 20;
/// The end of a tar is zeros.
const TAR_END: usize = 512;

/// The beginning of an object, on disk; a later call, also of another process, goes on behind it.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    note_path: PathBuf,
    file: File,
    received: u64,
    version: Option<String>,
}

impl Part {
    /// What an earlier download of `url` left, or nothing. The caller holds the lock.
    pub(super) fn open(cache: &Cache, url: &Url) -> Result<Self, DataError> {
        let (path, note_path) = cache.part_paths(url);
        let unwritable = |source| DataError::Unwritable { path: path.clone(), source };
        let opened = File::options().read(true).append(true).create(true).open(&path);
        let file = opened.map_err(unwritable)?;
        let received = file.metadata().map_err(unwritable)?.len();
        let version = Note::read(&note_path).map(|note| note.version);
        let mut part = Self { path, note_path, file, received, version };
        if !part.is_versioned() {
            part.restart(None)?;
        }
        Ok(part)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    pub(super) fn is_begun(&self) -> bool {
        self.received > 0
    }

    /// Whether what comes can be told to be of the same object: bytes of two that are put together are neither.
    fn is_versioned(&self) -> bool {
        self.version().is_some_and(|version| !version.is_empty())
    }

    /// Forgets all bytes; what comes must be `version`, if there is one.
    pub(super) fn restart(&mut self, version: Option<String>) -> Result<(), DataError> {
        self.file.set_len(0).map_err(|source| DataError::Unwritable { path: self.path.clone(), source })?;
        (self.received, self.version) = (0, version);
        Ok(())
    }

    /// Removes the file; nothing that could be gone on with is left.
    pub(super) fn discard(self) {
        // If that fails, the next download finds bytes of a version that it does not want, and starts anew.
        let _ = std::fs::remove_file(&self.note_path);
        let _ = std::fs::remove_file(&self.path);
    }

    /// Gives the whole object its name in the cache.
    pub(super) fn finish(self, cache: &Cache, url: &Url, note: &Note) -> Result<File, DataError> {
        let path = cache.shard_path(url, &note.version);
        // By its name it counts as whole, also after the machine has lost its power.
        let named = self.file.sync_all().and_then(|()| std::fs::rename(&self.path, &path));
        named.map_err(|source| DataError::Unwritable { path, source })?;
        cache.write_note(url, note)?;
        let _ = std::fs::remove_file(&self.note_path); // a note without its part says nothing
        Ok(self.file)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| Failure::retry(format!("the cache's disk: {error}")))?;
        self.received += bytes.len() as u64;
        Ok(())
    }

    /// Whether the bytes end as a tar ends.
    fn ends_like_a_tar(&self) -> bool {
        let mut tail = [1; TAR_END];
        let start = self.received.checked_sub(TAR_END as u64);
        start.is_some_and(|start| self.file.read_exact_at(&mut tail, start).is_ok()) && tail == [0; TAR_END]
    }
}

/// What one download needs.
pub(super) struct Download<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) url: &'a Url,
    pub(super) options: &'a RemoteOptions,
    pub(super) cache: &'a Cache,
    /// Length of the object, if an index says so.
    pub(super) expected: Option<u64>,
    pub(super) deadline: Instant,
}

impl Download<'_> {
    /// Fills `part` with the whole object.
    pub(super) fn run(&self, part: &mut Part) -> Result<(), DataError> {
        persist(self.url, self.options, self.deadline, || {
            let before = part.received;
            let version = part.version.clone();
            let begun = if part.is_versioned() { Ok(()) } else { part.restart(version) };
            let result = begun.map_err(Failure::retry).and_then(|()| self.attempt(part));
            (part.received > before, result)
        })
    }

    /// One request, and a second one where the first seems to have ended too early: a wrong Content-Length looks
    /// like a whole answer.
    fn attempt(&self, part: &mut Part) -> Result<(), Failure> {
        loop {
            let before = part.received;
            let ended = self.request(part)?;
            let as_expected = self.expected.is_none_or(|expected| expected == part.received);
            if ended || (as_expected && (self.expected.is_some() || part.ends_like_a_tar())) {
                return Ok(());
            }
            if part.received == before {
                return Ok(()); // a store without ranges that said the same twice
            }
        }
    }

    /// Asks for the rest; true when the store says that there is none.
    fn request(&self, part: &mut Part) -> Result<bool, Failure> {
        let condition = part.version.as_deref().filter(|version| !version.is_empty());
        let condition = condition.map_or(Condition::Any, Condition::Like);
        match self.store.get(self.url, part.received, condition)? {
            Reply::Unchanged => Err(Failure::retry("an answer to another question")),
            Reply::Ended { total } if total == part.received => Ok(true),
            Reply::Ended { .. } => Err(Failure::Changed),
            Reply::Body { body, offset, total, version } => {
                self.same_version(part, version)?;
                if offset == 0 && total.is_some_and(|total| total == part.received) {
                    return Ok(true);
                }
                if offset > 0 && !part.is_versioned() {
                    return Err(Failure::retry("the server names no version and ended its answer early"));
                }
                if offset != part.received {
                    if offset != 0 {
                        return Err(Failure::retry("the server sent another range"));
                    }
                    let version = part.version.take();
                    part.restart(version).map_err(Failure::retry)?;
                }
                let rest = total.map(|total| total.saturating_sub(part.received));
                self.cache.make_room(rest.unwrap_or(0)).map_err(|problem| Failure::Refused { problem })?;
                self.copy(body, part, total)?;
                Ok(false)
            }
        }
    }

    /// The first answer names the version that the others must have.
    fn same_version(&self, part: &mut Part, version: Option<String>) -> Result<(), Failure> {
        let version = version.unwrap_or_default();
        match &part.version {
            Some(known) if *known != version => Err(Failure::Changed),
            Some(_) => Ok(()),
            None => {
                let note = Note { version };
                note.write(&part.note_path)
                    .map_err(|error| Failure::retry(format!("the cache's disk: {error}")))?;
                part.version = Some(note.version);
                Ok(())
            }
        }
    }

    fn copy(
        &self,
        mut body: Box<dyn Read + Send>,
        part: &mut Part,
        total: Option<u64>,
    ) -> Result<(), Failure> {
        let mut buffer = vec![0; CHUNK];
        loop {
            match body.read(&mut buffer).map_err(Failure::retry)? {
                0 if total.is_some_and(|total| part.received < total) => {
                    return Err(Failure::retry("the answer ended early"));
                }
                0 => return Ok(()),
                count => part.append(&buffer[..count])?,
            }
            if Instant::now() >= self.deadline {
                return Err(Failure::retry("the deadline is over; the server is too slow"));
            }
        }
    }
}

/// A small object as text; `None` if there is none, or none that we may see, or no text.
pub(super) fn fetch_text(
    store: &dyn Store,
    url: &Url,
    options: &RemoteOptions,
) -> Result<Option<String>, DataError> {
    let deadline = Instant::now() + options.shard_deadline;
    persist(url, options, deadline, || (false, text(store, url)))
}

fn text(store: &dyn Store, url: &Url) -> Result<Option<String>, Failure> {
    match store.get(url, 0, Condition::Any) {
        Ok(Reply::Body { body, total, .. }) => {
            let mut bytes = Vec::new();
            body.take(MAX_TEXT).read_to_end(&mut bytes).map_err(Failure::retry)?;
            if total.is_some_and(|total| total != bytes.len() as u64) {
                return Err(Failure::retry("the answer ended early"));
            }
            Ok(String::from_utf8(bytes).ok())
        }
        Ok(Reply::Unchanged | Reply::Ended { .. }) => Ok(None),
        Err(Failure::Missing | Failure::Refused { .. }) => Ok(None),
        Err(failure) => Err(failure),
    }
}
