//! Files of a Debian package, unpacked by `dpkg-deb`, which is wherever `apt-get` is.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use super::error::PrepareError;
use super::tarball::{self, Members};

/// The files of the package at `path` below `folder` (as `./usr/share/...`, with the final slash) that `wanted` accepts.
pub fn read(path: &Path, folder: &str, wanted: impl Fn(&str) -> bool) -> Result<Members, PrepareError> {
    read_with("dpkg-deb", path, folder, wanted)
}

/// [`read`] by another program.
fn read_with(
    tool: &str,
    path: &Path,
    folder: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Members, PrepareError> {
    let mut child = start(tool, path)?;
    let mut members = Ok(Members::new());
    if let Some(mut tar) = child.stdout.take() {
        members = tarball::members(&mut tar, folder, path, wanted).and_then(|members| {
            // The padding behind a tar's end too, or the tool would die of a broken pipe; after an error it may.
            io::copy(&mut tar, &mut io::sink()).map_err(PrepareError::io("unpack", path))?;
            Ok(members)
        });
    }
    let Output { status, stderr, .. } = child.wait_with_output().map_err(PrepareError::io("unpack", path))?;
    if members.is_ok() && !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        let problem = format!("{tool} ended with {status}: {}", said.trim());
        return Err(PrepareError::Package { path: path.to_path_buf(), problem });
    }
    members
}

/// The tool with the package's tar on its standard output.
fn start(tool: &str, path: &Path) -> Result<Child, PrepareError> {
    let mut command = Command::new(tool);
    command.arg("--fsys-tarfile").arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            PrepareError::UnpackerMissing { path: path.to_path_buf(), tool: tool.to_owned() }
        }
        _ => PrepareError::io("unpack", path)(error),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A tool that runs `script`, where `$2` is the package: a tar of one file.
    fn tool(dir: &Path, script: &str) -> (String, PathBuf) {
        let tool = dir.join("tool");
        std::fs::write(&tool, format!("#!/bin/sh\ntest \"$1\" = --fsys-tarfile || exit 9\n{script}\n"))
            .unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        // tar::Builder would take "./" off
        header.as_mut_bytes()[..7].copy_from_slice(b"./usr/a");
        header.set_cksum();
        builder.append(&header, &b"abc"[..]).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.resize(200_000, 0);
        let package = dir.join("a.deb");
        std::fs::write(&package, bytes).unwrap();
        (tool.display().to_string(), package)
    }

    #[test]
    fn the_tools_tar_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (tool, package) = tool(dir.path(), "cat \"$2\"");
        let members = read_with(&tool, &package, "./usr/", |_| true).unwrap();
        assert_eq!(members, Members::from([("a".to_owned(), b"abc".to_vec())]));
    }

    #[test]
    fn a_tool_that_fails_or_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (tool, package) = tool(dir.path(), "cat \"$2\"; echo not a debian package >&2; exit 2");
        let error = read_with(&tool, &package, "./usr/", |_| true).unwrap_err();
        assert!(matches!(error, PrepareError::Package { .. }), "{error}");
        assert!(error.to_string().contains("not a debian package"), "{error}");
        let error = read_with("dpkg-deb-that-is-not-there", &package, "./usr/", |_| true).unwrap_err();
        assert!(matches!(error, PrepareError::UnpackerMissing { .. }), "{error}");
        assert!(error.to_string().contains("install dpkg"), "{error}");
    }
}
