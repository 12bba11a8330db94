//! What a worker prints: to the terminal, to its log, and its last lines for the report.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::LaunchError;
use crate::screen::Screen;
use crate::terminal::{Plain, terminal_like};

/// Lines of a failed worker that go into the report.
const MAX_LINES: usize = 100;
/// Bytes searched for them, so that one endless line costs no memory.
const MAX_TAIL_BYTES: u64 = 64 * 1024;

/// The log of one worker of one generation. Earlier launches' lines stay in the file, in front.
#[derive(Debug)]
pub(crate) struct WorkerLog {
    path: PathBuf,
    file: File,
    /// Where this generation's lines begin.
    start: u64,
    /// Whether what comes through pipes and terminals is for a person to see.
    shown: Arc<AtomicBool>,
    /// Our ends of the terminals that rank 0 writes to, and where it goes on to.
    terminals: Vec<(File, &'static Screen)>,
    pumps: Vec<JoinHandle<()>>,
}

impl WorkerLog {
    /// Opens `logs/rank-N.log` and heads the new lines.
    pub(crate) fn open(logs: &Path, rank: usize, generation: u32) -> Result<Self, LaunchError> {
        let path = logs.join(format!("rank-{rank}.log"));
        let open = || -> io::Result<(File, u64)> {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            writeln!(file, "=== rank {rank}, generation {generation}")?;
            let start = file.metadata()?.len();
            Ok((file, start))
        };
        match open() {
            Ok((file, start)) => Ok(Self {
                path,
                file,
                start,
                shown: Arc::new(AtomicBool::new(rank == 0)),
                terminals: Vec::new(),
                pumps: Vec::new(),
            }),
            Err(source) => Err(LaunchError::Write { path, source }),
        }
    }

    /// Opens `logs/spare-N.log`, for a process that has no rank yet.
    pub(crate) fn of_spare(logs: &Path, number: u32) -> Result<Self, LaunchError> {
        let path = logs.join(format!("spare-{number}.log"));
        let file = File::create(&path).map_err(|source| LaunchError::Write { path: path.clone(), source })?;
        let shown = Arc::new(AtomicBool::new(false));
        Ok(Self { path, file, start: 0, shown, terminals: Vec::new(), pumps: Vec::new() })
    }

    /// The spare has got a rank, whose log says where to read on. Rank 0's lines are passed on from now on.
    pub(crate) fn take_rank(&self, logs: &Path, rank: usize, generation: u32) -> Result<(), LaunchError> {
        let path = logs.join(format!("rank-{rank}.log"));
        let own = self.path.file_name().unwrap_or_default().display();
        let head = || -> io::Result<()> {
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            writeln!(file, "=== rank {rank}, generation {generation}: goes on in {own}")
        };
        self.shown.store(rank == 0, Ordering::Relaxed);
        head().map_err(|source| LaunchError::Write { path: path.clone(), source })
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Says where the worker's output goes. Rank 0's is passed on and logged, through a terminal where we have one, because
    /// progress bars need it; so is that of a spare, without a rank yet, which may become rank 0. Other ranks write into
    /// their log.
    pub(crate) fn connect(&mut self, command: &mut Command, rank: Option<usize>) -> io::Result<()> {
        let log = || self.file.try_clone().map(Stdio::from);
        match rank {
            Some(0) | None => {
                let stdout = self.shown(&io::stdout(), Screen::stdout());
                let stderr = self.shown(&io::stderr(), Screen::stderr());
                command.stdout(stdout).stderr(stderr)
            }
            Some(_) => command.stdout(log()?).stderr(log()?),
        };
        command.stdin(Stdio::null());
        Ok(())
    }

    /// Without a terminal to give, bars are missed, and nothing else.
    fn shown(&mut self, to: &(impl IsTerminal + AsFd), screen: &'static Screen) -> Stdio {
        match to.is_terminal().then(|| terminal_like(to)) {
            Some(Ok((ours, workers))) => {
                self.terminals.push((ours, screen));
                Stdio::from(workers)
            }
            Some(Err(_)) | None => Stdio::piped(),
        }
    }

    /// Starts passing on what comes through pipes and terminals.
    pub(crate) fn pump(&mut self, child: &mut Child) -> io::Result<()> {
        for (from, to) in std::mem::take(&mut self.terminals) {
            let log = Plain::new(self.file.try_clone()?);
            self.spawn_pump(from, to, log)?;
        }
        if let Some(stdout) = child.stdout.take() {
            self.spawn_pump(stdout, Screen::stdout(), self.file.try_clone()?)?;
        }
        if let Some(stderr) = child.stderr.take() {
            self.spawn_pump(stderr, Screen::stderr(), self.file.try_clone()?)?;
        }
        Ok(())
    }

    fn spawn_pump(
        &mut self,
        from: impl Read + Send + 'static,
        to: &'static Screen,
        log: impl Write + Send + 'static,
    ) -> io::Result<()> {
        let shown = Arc::clone(&self.shown);
        let pass_on = move || pass_on(from, log, to, &shown);
        let pump = thread::Builder::new().name("rank-0 output".into()).spawn(pass_on)?;
        self.pumps.push(pump);
        Ok(())
    }

    /// Waits until the output of an ended worker is passed on; a process it left behind may hold the pipe open, so
    /// not for ever.
    pub(crate) fn drain(&mut self, at_most: Duration) {
        let start = Instant::now();
        while start.elapsed() < at_most && !self.pumps.iter().all(JoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The last lines of this generation.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.start.max(end.saturating_sub(MAX_TAIL_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(MAX_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        last_lines(&String::from_utf8_lossy(&read().unwrap_or_default()))
    }
}

fn last_lines(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(MAX_LINES)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Copies until the writer is gone, into the log and, where it is `shown`, to a person. A full disk must not block or end the
/// worker, so what cannot be written is dropped.
fn pass_on(mut from: impl Read, mut log: impl Write, to: &Screen, shown: &AtomicBool) {
    let mut buffer = [0u8; 8192];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let _ = log.write_all(&buffer[..count]);
                if shown.load(Ordering::Relaxed) {
                    to.push(&buffer[..count]);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Of a terminal: its last writer is gone.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_generations_last_hundred_lines_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = WorkerLog::open(dir.path(), 1, 0).unwrap();
        writeln!(old.file, "of the generation before").unwrap();
        let mut log = WorkerLog::open(dir.path(), 1, 1).unwrap();
        assert_eq!(log.last_lines(), Vec::<String>::new());
        for line in 0..250 {
            writeln!(log.file, "line {line}").unwrap();
        }
        let lines = log.last_lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[99].as_str()), (100, "line 150", "line 249"));
    }

    #[test]
    fn a_spares_lines_are_found_from_the_log_of_its_rank() {
        let dir = tempfile::tempdir().unwrap();
        let mut spare = WorkerLog::of_spare(dir.path(), 2).unwrap();
        writeln!(spare.file, "its last words").unwrap();
        assert!(!spare.shown.load(Ordering::Relaxed));
        spare.take_rank(dir.path(), 0, 3).unwrap();
        assert!(spare.shown.load(Ordering::Relaxed), "rank 0 is shown");
        let log = std::fs::read_to_string(dir.path().join("rank-0.log")).unwrap();
        assert_eq!(log, "=== rank 0, generation 3: goes on in spare-2.log\n");
        assert_eq!(spare.last_lines(), ["its last words"]);
    }

    #[test]
    fn a_flood_is_cut_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = WorkerLog::open(dir.path(), 0, 0).unwrap();
        log.file.write_all(&vec![b'x'; 1 << 20]).unwrap();
        log.file.write_all(b"\n\xff\x1b[0mend\n").unwrap();
        let lines = log.last_lines();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].len() <= 64 * 1024);
        assert_eq!(lines[1], "\u{fffd}\u{1b}[0mend");
    }

    #[test]
    fn output_goes_on_into_the_log_when_the_reader_is_gone() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let log = WorkerLog::open(dir.path(), 0, 0).unwrap();
        pass_on(
            &b"one\ntwo\n"[..],
            log.file.try_clone().unwrap(),
            &Screen::over(Closed),
            &AtomicBool::new(true),
        );
        assert_eq!(log.last_lines(), ["one", "two"]);
    }
}
