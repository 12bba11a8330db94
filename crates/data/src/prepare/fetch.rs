//! Packages out of the user's cache, or through the registries' own clients into it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::error::PrepareError;
use super::package::{Package, Registry};
use crate::index;

/// Attempts before a download is given up.
const ATTEMPTS: u32 = 3;
/// Lines of a failed command's output that are shown from each end: npm says the cause first, pip last.
const SHOWN_LINES: usize = 4;

/// Brings packages into a folder.
pub struct Fetcher<'a> {
    cache: &'a Path,
    /// Ways to call a client, the first that starts is used: program and leading arguments.
    npm: Vec<Vec<String>>,
    pip: Vec<Vec<String>>,
    apt: Vec<Vec<String>>,
    /// Before the second attempt; doubled after each.
    pause: Duration,
}

impl<'a> Fetcher<'a> {
    /// Uses `npm`, `pip` and `apt-get` as they are found on `PATH`.
    pub fn new(cache: &'a Path) -> Self {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        Self {
            cache,
            npm: vec![words("npm")],
            pip: vec![words("pip"), words("pip3"), words("python3 -m pip")],
            apt: vec![words("apt-get")],
            pause: Duration::from_secs(2),
        }
    }

    /// Path of the package's verified file. A file of the right digest in the cache is taken as it is, without a
    /// network; any other is replaced.
    pub fn fetch(&self, package: &Package, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, PrepareError> {
        let path = self.cache.join(package.file);
        if is_pinned(package, &path)? {
            return Ok(path);
        }
        std::fs::create_dir_all(self.cache).map_err(PrepareError::io("create", self.cache))?;
        let mut attempt = 1;
        loop {
            progress(&format!("{}: downloading {} MB", package.spec(), package.megabytes));
            match self.download(package, attempt) {
                Ok(()) => return Ok(path),
                Err(error @ (PrepareError::Download { .. } | PrepareError::Digest { .. }))
                    if attempt < ATTEMPTS =>
                {
                    let pause = self.pause * (1 << (attempt - 1));
                    let reason = error.to_string();
                    let reason = reason.lines().next().unwrap_or_default();
                    progress(&format!("attempt {attempt} of {ATTEMPTS}, again in {pause:?}: {reason}"));
                    std::thread::sleep(pause);
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One download into a folder of its own, verified, then renamed into the cache: no half file is ever found there.
    fn download(&self, package: &Package, attempt: u32) -> Result<(), PrepareError> {
        let fresh =
            tempfile::tempdir_in(self.cache).map_err(PrepareError::io("create a folder in", self.cache))?;
        self.run(package, fresh.path(), attempt)?;
        let file = fresh.path().join(package.file);
        if !file.exists() {
            let output = format!("it ended well and left no {}", package.file);
            return Err(self.failed(package, self.command(package, 0), attempt, output));
        }
        let found = sha256(&file).map_err(PrepareError::io("read", &file))?;
        if found != package.sha256 {
            let (file, expected) = (package.file, package.sha256);
            return Err(PrepareError::Digest { package: package.spec(), file, found, expected });
        }
        let path = self.cache.join(package.file);
        std::fs::rename(&file, &path).map_err(PrepareError::io("write", &path))
    }

    /// Runs the first way of calling the client that starts.
    fn run(&self, package: &Package, into: &Path, attempt: u32) -> Result<(), PrepareError> {
        for way in 0..self.ways(package).len() {
            let command = self.command(package, way);
            let output = match Command::new(&command[0]).args(&command[1..]).current_dir(into).output() {
                Ok(output) if output.status.success() => return Ok(()),
                Ok(output) => [output.stdout, output.stderr].concat(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => error.to_string().into_bytes(),
            };
            return Err(self.failed(package, command, attempt, shown_lines(&output)));
        }
        Err(PrepareError::ToolMissing {
            package: package.spec(),
            tool: match package.registry {
                Registry::Npm => "npm (Node.js)",
                Registry::PyPi => "pip (Python)",
                Registry::Debian => "apt-get (Debian, Ubuntu)",
            },
            command: self.command(package, 0).join(" "),
            file: package.file,
            cache: self.cache.to_path_buf(),
        })
    }

    fn ways(&self, package: &Package) -> &[Vec<String>] {
        match package.registry {
            Registry::Npm => &self.npm,
            Registry::PyPi => &self.pip,
            Registry::Debian => &self.apt,
        }
    }

    /// The client leaves the file in its working directory, so the command is the one a person would type.
    fn command(&self, package: &Package, way: usize) -> Vec<String> {
        let spec = package.spec();
        let arguments: &[&str] = match package.registry {
            Registry::Npm => &["pack", &spec],
            Registry::PyPi => &[
                "download",
                "--no-deps",
                // A source package would run its own code before its digest is looked at.
                "--only-binary=:all:",
                "--disable-pip-version-check",
                "--no-input",
                &spec,
            ],
            Registry::Debian => &["download", &spec],
        };
        let mut command = self.ways(package)[way].clone();
        command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        command
    }

    fn failed(&self, package: &Package, command: Vec<String>, attempts: u32, output: String) -> PrepareError {
        PrepareError::Download {
            package: package.spec(),
            command: command.join(" "),
            attempts,
            output,
            file: package.file,
            cache: self.cache.to_path_buf(),
        }
    }
}

/// Whether the file is there and has the pinned digest.
fn is_pinned(package: &Package, path: &Path) -> Result<bool, PrepareError> {
    match sha256(path) {
        Ok(found) => Ok(found == package.sha256),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(PrepareError::io("read", path)(error)),
    }
}

/// SHA-256 of a file, in hex.
pub fn sha256(path: &Path) -> io::Result<String> {
    index::sha256(&File::open(path)?)
}

/// The first and last lines of what a command said.
fn shown_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    if lines.len() <= 2 * SHOWN_LINES {
        return lines.join("\n");
    }
    let (first, last) = (&lines[..SHOWN_LINES], &lines[lines.len() - SHOWN_LINES..]);
    [first, &["..."], last].concat().join("\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// `abc`, whose SHA-256 is in FIPS 180-2.
    const PACKAGE: Package = Package {
        registry: Registry::Npm,
        name: "thing",
        version: "1.0.0",
        file: "thing-1.0.0.tgz",
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        megabytes: 1,
        licence: "MIT",
        credit: "nobody",
    };

    /// A client that runs `script`; `$0.log` counts the calls.
    fn fetcher<'a>(dir: &'a Path, cache: &'a Path, script: &str) -> Fetcher<'a> {
        let client = dir.join("client");
        std::fs::write(&client, format!("#!/bin/sh\necho \"$*\" >> $0.log\n{script}\n")).unwrap();
        std::fs::set_permissions(&client, std::fs::Permissions::from_mode(0o755)).unwrap();
        let client = vec![client.display().to_string()];
        let ways = vec![client];
        Fetcher { cache, npm: ways.clone(), pip: ways.clone(), apt: ways, pause: Duration::ZERO }
    }

    fn calls(dir: &Path) -> usize {
        std::fs::read_to_string(dir.join("client.log")).map_or(0, |log| log.lines().count())
    }

    #[test]
    fn a_package_is_downloaded_once_and_then_found() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("deep/cache");
        let fetcher = fetcher(dir.path(), &cache, "printf abc > thing-1.0.0.tgz");
        let path = fetcher.fetch(&PACKAGE, &mut |_| {}).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
        assert_eq!(fetcher.fetch(&PACKAGE, &mut |line| panic!("{line}")).unwrap(), path);
        assert_eq!(calls(dir.path()), 1);
        // Nothing but the file stays in the cache.
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1);
        std::fs::write(&path, "damaged").unwrap();
        fetcher.fetch(&PACKAGE, &mut |_| {}).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), calls(dir.path())), (b"abc".to_vec(), 2));
    }

    #[test]
    fn a_failing_download_is_tried_again_and_then_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let fetcher = fetcher(dir.path(), dir.path(), "echo ENOTFOUND registry >&2; exit 1");
        let mut lines = Vec::new();
        let error = fetcher.fetch(&PACKAGE, &mut |line| lines.push(line.to_owned())).unwrap_err();
        assert_eq!(calls(dir.path()), 3);
        assert_eq!(lines.len(), 5, "{lines:?}");
        let text = error.to_string();
        for part in
            ["thing@1.0.0", "pack thing@1.0.0", "ENOTFOUND", "online", "thing-1.0.0.tgz", "3 attempt(s)"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn of_long_output_both_ends_are_shown() {
        let output: String = (0..20).map(|line| format!("line {line}\n\n")).collect();
        let shown = shown_lines(output.as_bytes());
        assert_eq!(shown.lines().count(), 9);
        assert!(shown.starts_with("line 0\n") && shown.ends_with("line 19"), "{shown}");
        assert_eq!(shown_lines(b"one\n"), "one");
    }

    #[test]
    fn the_second_attempt_may_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let script = "test $(wc -l < $0.log) -ge 2 || exit 7; printf abc > thing-1.0.0.tgz";
        fetcher(dir.path(), dir.path(), script).fetch(&PACKAGE, &mut |_| {}).unwrap();
        assert_eq!(calls(dir.path()), 2);
    }

    #[test]
    fn another_file_than_the_pinned_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let fetcher = fetcher(dir.path(), &cache, "printf abd > thing-1.0.0.tgz");
        let error = fetcher.fetch(&PACKAGE, &mut |_| {}).unwrap_err();
        assert!(matches!(error, PrepareError::Digest { .. }), "{error}");
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_client_is_named_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let gone = vec![dir.path().join("gone").display().to_string()];
        let fetcher = Fetcher {
            cache: dir.path(),
            npm: vec![gone.clone()],
            pip: vec![gone.clone(), gone.clone()],
            apt: vec![gone],
            pause: Duration::ZERO,
        };
        for (registry, tool) in
            [(Registry::Npm, "npm"), (Registry::PyPi, "pip"), (Registry::Debian, "apt-get")]
        {
            let error = fetcher.fetch(&Package { registry, ..PACKAGE }, &mut |_| {}).unwrap_err();
            assert!(matches!(error, PrepareError::ToolMissing { .. }), "{error}");
            assert!(error.to_string().contains(&format!("{tool} (")), "{error}");
        }
    }

    #[test]
    fn apt_get_is_asked_for_the_exact_version() {
        let dir = tempfile::tempdir().unwrap();
        let fetcher = fetcher(dir.path(), dir.path(), "printf abc > thing-1.0.0.tgz");
        fetcher.fetch(&Package { registry: Registry::Debian, ..PACKAGE }, &mut |_| {}).unwrap();
        let asked = std::fs::read_to_string(dir.path().join("client.log")).unwrap();
        assert_eq!(asked, "download thing=1.0.0\n");
    }

    #[test]
    fn pip_may_be_called_in_several_ways() {
        let dir = tempfile::tempdir().unwrap();
        let mut fetcher = fetcher(dir.path(), dir.path(), "printf abc > thing-1.0.0.tgz");
        fetcher.pip.insert(0, vec![dir.path().join("gone").display().to_string()]);
        fetcher.fetch(&Package { registry: Registry::PyPi, ..PACKAGE }, &mut |_| {}).unwrap();
    }
}
