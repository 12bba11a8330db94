//! Why ranks do not meet: what a person needs to know of the meeting place, looked up once it has failed.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;

/// Long enough for any network that training is worth on.
const PROBE: Duration = Duration::from_secs(1);

/// What a rank sees that cannot join at `host`:`port`; `None` where somebody answers there, so that others are missing.
pub(crate) fn why_not_joined(host: &str, port: u16) -> Option<String> {
    let addresses: Vec<SocketAddr> = match (host, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            return Some(format!("the name {host} has no address ({error}); {}", local_addresses()));
        }
    };
    let mut seen = Vec::new();
    for address in &addresses {
        match TcpStream::connect_timeout(address, PROBE) {
            Ok(_) => return None,
            Err(error) => seen.push(format!("{address}: {}", in_words(&error))),
        }
    }
    Some(format!("{host} is {}; {}", seen.join(", "), local_addresses()))
}

/// Why rank 0 cannot listen at `port`.
pub(crate) fn why_not_listening(port: u16, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match holder(port) {
            Some((pid, name)) => format!("{error}: process {pid} ({name}) listens there"),
            None => format!("{error}: a process of somebody else listens there"),
        },
        io::ErrorKind::AddrNotAvailable => {
            format!("{error}: it is not of this machine; {}", local_addresses())
        }
        _ => error.to_string(),
    }
}

/// What a failed connection means for somebody who looks for its cause.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => format!("nobody listens there ({error})"),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            format!("no answer in {} s, as behind a firewall", PROBE.as_secs())
        }
        _ => error.to_string(),
    }
}

/// `this machine has lo 127.0.0.1, eth0 10.0.0.2`.
fn local_addresses() -> String {
    let interfaces = getifaddrs().into_iter().flatten();
    let named = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => v4.ip().to_string(),
            (_, Some(v6)) => v6.ip().to_string(),
            _ => return None,
        };
        Some(format!("{} {ip}", interface.interface_name))
    });
    format!("this machine has {}", named.collect::<Vec<_>>().join(", "))
}

/// The process that listens on TCP `port` of this machine, where this user may see it: its id and name.
fn holder(port: u16) -> Option<(u32, String)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes: Vec<String> = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Local address, state (0A = LISTEN), inode.
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            let listens = *state == "0A" && local.ends_with(&format!(":{port:04X}"));
            listens.then(|| format!("socket:[{inode}]"))
        })
        .collect();
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        holds(&process.path(), &inodes).then(|| {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            (pid, name.trim_end().to_owned())
        })
    })
}

fn holds(process: &Path, inodes: &[String]) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
    targets.any(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
}
