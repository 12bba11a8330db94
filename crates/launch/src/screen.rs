//! What a person reads, without ever waiting for that person: a terminal that is held (Ctrl-S, a pager) takes nothing for
//! hours, and neither a worker nor the launcher may stand still for it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that wait for the reader; what comes beyond them is not shown.
const ROOM: usize = 256 * 1024;
/// So long the last words may take at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

static STDOUT: OnceLock<Screen> = OnceLock::new();
static STDERR: OnceLock<Screen> = OnceLock::new();

/// Writes a line to standard error without waiting for whoever reads it. A program that ends asks for [`last_words`] first.
pub fn say(line: &str) {
    Screen::stderr().push(format!("{line}\n").as_bytes());
}

/// Waits until all that was said is shown, but no longer than a second. [`crate::launch`] ends with it.
pub fn last_words() {
    let start = Instant::now();
    for screen in [STDOUT.get(), STDERR.get()].into_iter().flatten() {
        screen.wait_until_shown(LAST_WORDS.saturating_sub(start.elapsed()));
    }
}

/// An output of this process, with a thread of its own that waits for it.
#[derive(Debug)]
pub(crate) struct Screen {
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    chunks: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Ends of lines that found no room.
    missed: usize,
    /// The thread is writing the chunk that it took last.
    writing: bool,
    /// Nobody writes.
    closed: bool,
}

impl Screen {
    pub(crate) fn stdout() -> &'static Self {
        STDOUT.get_or_init(|| Self::of(&io::stdout()))
    }

    pub(crate) fn stderr() -> &'static Self {
        STDERR.get_or_init(|| Self::of(&io::stderr()))
    }

    /// Through a descriptor of our own, because whoever waits in the library's holds a lock that others want.
    fn of(stream: &impl AsFd) -> Self {
        match stream.as_fd().try_clone_to_owned() {
            Ok(own) => Self::over(File::from(own)),
            Err(_) => Self::closed(),
        }
    }

    /// Shows what is pushed by writing it to `to`.
    pub(crate) fn over(to: impl Write + Send + 'static) -> Self {
        let queue = Arc::new(Queue::default());
        let from = Arc::clone(&queue);
        match thread::Builder::new().name("screen".into()).spawn(move || from.show(to)) {
            Ok(_) => Self { queue },
            Err(_) => Self::closed(),
        }
    }

    /// Output is never needed to train, so what cannot be had is done without.
    fn closed() -> Self {
        let screen = Self { queue: Arc::default() };
        screen.queue.lock().closed = true;
        screen
    }

    /// Shows `bytes` after all that came before, or counts their lines where there is no room.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut waiting = self.queue.lock();
        if waiting.closed || bytes.is_empty() {
            return;
        }
        if waiting.bytes + bytes.len() > ROOM {
            waiting.missed += bytes.iter().filter(|byte| **byte == b'\n').count().max(1);
            return;
        }
        let notice = waiting.notice();
        for chunk in notice.into_iter().chain([bytes.to_vec()]) {
            waiting.bytes += chunk.len();
            waiting.chunks.push_back(chunk);
        }
        self.queue.changed.notify_all();
    }

    fn wait_until_shown(&self, at_most: Duration) {
        let start = Instant::now();
        let mut waiting = self.queue.lock();
        while !waiting.closed && (waiting.writing || !waiting.chunks.is_empty()) {
            let left = at_most.saturating_sub(start.elapsed());
            if left.is_zero() {
                return;
            }
            let woken = self.queue.changed.wait_timeout(waiting, left);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Waiting {
    /// The line in the place of those that found no room.
    fn notice(&mut self) -> Option<Vec<u8>> {
        let missed = std::mem::take(&mut self.missed);
        (missed > 0).then(|| format!("\n[{missed} lines not shown; the logs have them]\n").into_bytes())
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let Some(chunk) = self.chunks.pop_front() else { return self.notice() };
        self.bytes -= chunk.len();
        Some(chunk)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what comes, for as long as this process lives. What a closed terminal does not take is dropped.
    fn show(&self, mut to: impl Write) {
        let mut waiting = self.lock();
        loop {
            let Some(chunk) = waiting.next() else {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            waiting.writing = true;
            drop(waiting);
            let _ = to.write_all(&chunk).and_then(|()| to.flush());
            waiting = self.lock();
            waiting.writing = false;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn nobody_waits_for_a_reader_who_is_told_how_much_was_left_out() {
        let (mut reader, writer) = io::pipe().unwrap();
        let screen = Screen::over(writer);
        let start = Instant::now();
        for number in 0..200_000 {
            screen.push(format!("line {number:06}\n").as_bytes());
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let (mut text, mut bytes, mut lines) = (String::new(), [0; 4096], 0);
        while lines < 200_000 {
            let count = reader.read(&mut bytes).unwrap();
            text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            lines = whole
                .map(|line| match line.strip_prefix('[') {
                    Some(notice) => notice.split_once(" lines not shown").unwrap().0.parse().unwrap(),
                    None => usize::from(line.starts_with("line ")),
                })
                .sum();
        }
        assert_eq!(lines, 200_000, "shown, or counted");
        assert!(text.contains(" lines not shown"));
        screen.push(b"and on\n");
        screen.wait_until_shown(Duration::from_secs(5));
        assert_eq!(reader.read(&mut bytes).unwrap(), 7);
    }

    #[test]
    fn a_reader_who_takes_nothing_is_not_waited_for_at_the_end() {
        let (_reader, writer) = io::pipe().unwrap();
        let screen = Screen::over(writer);
        screen.push(&[b'x'; ROOM / 2]);
        let start = Instant::now();
        screen.wait_until_shown(Duration::from_millis(100));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
