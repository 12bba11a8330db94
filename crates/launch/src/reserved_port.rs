//! A port that nobody else is given between the moment it is chosen and the moment a process listens there.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockname, setsockopt, socket, sockopt,
};

use crate::addresses::first_that_will_do;

/// A TCP port of this machine, kept for one of its processes.
///
/// A socket is bound to it and does not listen. Where both sockets have `SO_REUSEADDR`, as those of the standard library, of
/// libtorch and of libuv, Linux lets another one be bound there and listen, as long as none listens yet (`socket(7)`). To who
/// asks for any port of this address or of all, or connects from one, it does not give this one.
#[derive(Debug)]
pub struct ReservedPort {
    _socket: OwnedFd,
    number: u16,
}

impl ReservedPort {
    /// Any port of `host`, a name or an address of this machine, that is free now.
    ///
    /// # Errors
    /// Where `host` has no address or is another machine's, or the system has no port or descriptor left.
    pub fn on(host: &str) -> io::Result<Self> {
        first_that_will_do(host, 0, Self::at)
    }

    fn at(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        let bound: SockaddrStorage = getsockname(socket.as_raw_fd())?;
        let v4 = bound.as_sockaddr_in().map(|address| address.port());
        let number = v4.or_else(|| bound.as_sockaddr_in6().map(|address| address.port()));
        let number = number.ok_or_else(|| io::Error::other("a socket without a port"))?;
        Ok(Self { _socket: socket, number })
    }

    /// Its number, kept for as long as this lives.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// Where the ranks of a generation meet.
#[derive(Debug)]
pub(crate) struct MeetingPlace {
    /// The name or address that ranks are told.
    host: String,
    /// What it means here, for any port. Asked for once, because names do not always answer, and whoever needs a port cannot
    /// wait.
    address: SocketAddr,
    /// Kept for rank 0, which is long in coming.
    port: Option<ReservedPort>,
}

impl MeetingPlace {
    /// At `host`, which means `address` here, on ports of its own.
    pub(crate) fn on(host: String, mut address: SocketAddr) -> Self {
        address.set_port(0);
        Self { host, address, port: None }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The port of the next generation, kept in the place of the last one's.
    pub(crate) fn next_port(&mut self) -> io::Result<u16> {
        Ok(self.port.insert(ReservedPort::at(self.address)?).number())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::errno::Errno;

    use super::*;

    #[test]
    fn who_was_told_of_it_listens_there_and_nobody_else_is_given_it() {
        let port = ReservedPort::on("127.0.0.1").unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port.number()));
        assert!(TcpStream::connect(address).is_err(), "nobody listens yet");
        // The kernel gives away no port that a socket without SO_REUSEADDR could not have.
        let stranger = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        assert_eq!(bind(stranger.as_raw_fd(), &SockaddrStorage::from(address)), Err(Errno::EADDRINUSE));
        let _listener = TcpListener::bind(address).unwrap();
        TcpStream::connect(address).unwrap();
        assert!(TcpListener::bind(address).is_err(), "one listens");
    }

    #[test]
    fn a_port_of_another_machine_is_refused() {
        assert_eq!(ReservedPort::on("203.0.113.1").unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
        assert!(ReservedPort::on("no-such-host.invalid").is_err());
    }
}
