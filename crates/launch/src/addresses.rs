//! What a name means here.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// What `attempt` makes of the first address of `host` that will do.
///
/// # Errors
/// Of the last address, or where `host` has none.
pub(crate) fn first_that_will_do<T>(
    host: &str,
    port: u16,
    attempt: impl Fn(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match attempt(address) {
            Ok(made) => return Ok(made),
            Err(error) => last = error,
        }
    }
    Err(last)
}
