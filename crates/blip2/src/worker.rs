//! `blip2-worker`, found the way git finds its subcommands: beside the command itself.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use launch::{LaunchError, worker_command};

use crate::error::CommandError;

const NAME: &str = "blip2-worker";

/// The program that links libtorch.
pub struct Worker {
    path: PathBuf,
}

impl Worker {
    /// Finds it beside the program that runs now, links followed.
    pub fn beside_this_program() -> Result<Self, CommandError> {
        let find = || std::env::current_exe().and_then(|path| path.canonicalize());
        let this = find().map_err(|source| LaunchError::System { action: "find this program", source })?;
        let path = this.with_file_name(NAME);
        match path.is_file() {
            true => Ok(Self { path }),
            false => Err(CommandError::NoWorker { path }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs it in the terminal of this program and passes its exit code on.
    pub fn run(&self, asked: &'static str, args: &[OsString]) -> Result<ExitCode, CommandError> {
        let status = self.command(args).status().map_err(|source| self.not_started(source))?;
        code(status, asked)
    }

    /// Runs it for one line of output; its exit code instead when it fails, having said why.
    pub fn ask(
        &self,
        asked: &'static str,
        args: &[OsString],
    ) -> Result<Result<OsString, ExitCode>, CommandError> {
        let mut command = self.command(args);
        let output = command.stderr(Stdio::inherit()).output().map_err(|source| self.not_started(source))?;
        if !output.status.success() {
            return code(output.status, asked).map(Err);
        }
        let line = output.stdout.strip_suffix(b"\n").unwrap_or(&output.stdout);
        Ok(Ok(OsString::from_vec(line.to_vec())))
    }

    fn command(&self, args: &[OsString]) -> Command {
        let mut command = worker_command(&self.path);
        command.args(args).stdin(Stdio::null());
        command
    }

    fn not_started(&self, source: std::io::Error) -> CommandError {
        LaunchError::Spawn { program: self.path.clone(), source }.into()
    }
}

fn code(status: ExitStatus, asked: &'static str) -> Result<ExitCode, CommandError> {
    match status.code().map(u8::try_from) {
        Some(Ok(code)) => Ok(code.into()),
        Some(Err(_)) | None => Err(CommandError::WorkerKilled { asked }),
    }
}

/// `command config --set a=b --set c=d`, as the worker reads it.
pub fn config_args(command: &str, config: &Path, overrides: &[String]) -> Vec<OsString> {
    let sets = overrides.iter().flat_map(|assignment| [OsStr::new("--set"), OsStr::new(assignment)]);
    [OsStr::new(command)]
        .into_iter()
        .chain(sets)
        .chain([OsStr::new("--"), config.as_os_str()])
        .map(Into::into)
        .collect()
}
