//! The token by which the launchers of a run know each other.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::{LaunchError, environment};

/// Holds the token of a run of several nodes, where no shared run folder does.
pub(crate) const TOKEN: &str = "BLIP2_RDZV_TOKEN";
/// The token in the run folder, for who may read it.
const TOKEN_FILE: &str = ".rdzv-token";
/// Bytes of the shortest token: who hears a proof can try all shorter ones.
const SHORTEST: usize = 16;
const TICK: Duration = Duration::from_millis(20);

/// The run's token: the environment's, else the one in the run folder, which the first node makes.
pub(crate) fn token(run_dir: &Path) -> Result<Vec<u8>, LaunchError> {
    match environment::read_filled(TOKEN) {
        Some(token) => long_enough(token),
        None => of_folder(run_dir),
    }
}

fn long_enough(token: String) -> Result<Vec<u8>, LaunchError> {
    match token.len() {
        length if length < SHORTEST => Err(LaunchError::Environment {
            detail: format!(
                "{TOKEN} has {length} bytes and can be guessed; give at least {SHORTEST}, such as what \
                 `openssl rand -hex 32` prints"
            ),
        }),
        _ => Ok(token.into_bytes()),
    }
}

fn of_folder(run_dir: &Path) -> Result<Vec<u8>, LaunchError> {
    let path = run_dir.join(TOKEN_FILE);
    let failed = |source| LaunchError::Write { path: path.clone(), source };
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let mut bytes = [0u8; 32];
            getrandom::fill(&mut bytes).map_err(|error| failed(io::Error::other(error)))?;
            file.write_all(hex(&bytes).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    // The node that makes it may be writing right now.
    for _ in 0..100 {
        let token = fs::read(&path).map_err(failed)?;
        if token.len() == 64 {
            return Ok(token);
        }
        thread::sleep(TICK);
    }
    Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is half written; remove it")))
}

/// Two digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn all_nodes_find_one_token_that_nobody_else_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let tokens: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| of_folder(dir.path()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(tokens.iter().all(|token| token == &tokens[0] && token.len() == 64));
        let mode = fs::metadata(dir.path().join(TOKEN_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_token_that_can_be_guessed_is_refused_with_what_to_do() {
        let error = long_enough("fifteen letters".into()).unwrap_err();
        assert_eq!(error.exit(), crate::Exit::Config);
        assert!(error.to_string().contains("BLIP2_RDZV_TOKEN has 15 bytes"), "{error}");
        assert_eq!(long_enough("sixteen letters!".into()).unwrap(), b"sixteen letters!");
    }
}
