//! How ranks find each other.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use launch::{Source, World};
use tch::Device;
use torch_bridge::{BridgeError, Communicator, Membership, Store};

use crate::c10d::C10dGroup;
use crate::error::{CommError, Operation};
use crate::group::ProcessGroup;
use crate::place;
use crate::solo::SoloGroup;

/// By which a rank may come before rank 0 without a second being lost.
const HEAD_START: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(4);

/// How long to wait for the other ranks before calling them lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For all ranks to meet. The launcher's watchdog ends a rank that does not come a minute before, and names it.
    pub init: Duration,
    /// For one operation, which is also how long ranks may be apart when they call it. The launcher's watchdog knows more
    /// and is to speak first: it waits an hour at most where it has learnt nothing yet.
    pub operation: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { init: Duration::from_secs(300), operation: Duration::from_secs(7200) }
    }
}

/// Meets the other ranks of `world` with the default [`Timeouts`].
///
/// # Errors
/// As [`connect_within`].
pub fn connect(world: &World, device: Device) -> Result<Box<dyn ProcessGroup>, CommError> {
    connect_within(world, device, Timeouts::default())
}

/// What carries tensors between ranks. Closed: what libtorch brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabric {
    /// Sockets between hosts; a GPU's tensors go through the host.
    Gloo,
    /// Between GPUs, one a rank.
    Nccl,
}

/// Meets the other ranks of `world`: none where it is a world of one, else over Gloo for the CPU and NCCL for a GPU.
///
/// # Errors
/// As [`connect_over`]; [`CommError::Unsupported`] for a device without a backend in this build.
pub fn connect_within(
    world: &World,
    device: Device,
    timeouts: Timeouts,
) -> Result<Box<dyn ProcessGroup>, CommError> {
    if world.world_size == 1 {
        return Ok(Box::new(SoloGroup::new(device)));
    }
    let fabric = match device {
        Device::Cpu => Fabric::Gloo,
        Device::Cuda(_) => Fabric::Nccl,
        Device::Mps | Device::Vulkan => {
            let detail = format!("no collectives on {device:?}; use the CPU or CUDA");
            return Err(CommError::Unsupported { rank: world.rank, detail });
        }
    };
    Ok(Box::new(connect_over(fabric, world, device, timeouts)?))
}

/// Meets the other ranks of `world` over `fabric`, a world of one too.
///
/// Rank 0 serves the store on `master_addr:master_port` and on no other interface. Returns when all ranks have come.
///
/// # Errors
/// [`CommError::TimedOut`] where a rank does not come, [`CommError::Unreachable`] where nobody answers at the meeting
/// place, [`CommError::Address`] where rank 0 cannot listen there, [`CommError::Unsupported`] where this build has no such
/// fabric for `device`.
pub fn connect_over(
    fabric: Fabric,
    world: &World,
    device: Device,
    timeouts: Timeouts,
) -> Result<C10dGroup, CommError> {
    let store = store(world, timeouts.init)?;
    let host = match fabric {
        Fabric::Gloo => {
            Some(address_facing(world).map_err(|source| address_error(world, &source))?.to_string())
        }
        Fabric::Nccl => None,
    };
    let meeting = Meeting {
        store: Arc::new(Mutex::new(store)),
        fabric,
        host,
        generation: world.generation.to_string(),
        rank: world.rank,
        world_size: world.world_size,
        device,
        timeouts,
    };
    C10dGroup::new(meeting, "ranks")
}

/// Ranks that have found one store, by which they make groups.
#[derive(Clone)]
pub(crate) struct Meeting {
    store: Arc<Mutex<Store>>,
    fabric: Fabric,
    /// This machine's address on the way to rank 0, for Gloo.
    host: Option<String>,
    generation: String,
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    pub(crate) device: Device,
    timeouts: Timeouts,
}

impl Meeting {
    /// This rank's end of the group `name`.
    pub(crate) fn communicator(&self, name: &str) -> Result<Communicator, CommError> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let member = Membership {
            store: &store,
            // A store that outlives a restart (torchrun's does) holds the addresses of dead ranks.
            prefix: &format!("blip2/generation/{}/{name}", self.generation),
            rank: self.rank,
            world_size: self.world_size,
            init_timeout: self.timeouts.init,
            op_timeout: self.timeouts.operation,
        };
        match (&self.host, self.fabric, self.device) {
            (Some(host), Fabric::Gloo, _) => Communicator::gloo(&member, host),
            (_, Fabric::Nccl, Device::Cuda(index)) => Communicator::nccl(&member, index),
            (_, fabric, device) => {
                Err(BridgeError::Unsupported(format!("{fabric:?} between ranks on {device:?}")))
            }
        }
        .map_err(|error| CommError::new(self.rank, Operation::Rendezvous, error))
    }
}

fn store(world: &World, timeout: Duration) -> Result<Store, CommError> {
    let address = (world.master_addr.as_str(), world.master_port);
    let join = || {
        await_listener(address, timeout / 2);
        Store::join(address.0, address.1, world.world_size, timeout)
    };
    let opened = if world.rank == 0 {
        match TcpListener::bind(address) {
            Ok(listener) => Store::serve(listener, world.world_size, timeout),
            // torchrun's agent serves a store there before it starts the ranks, and means them to join it.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && world.source == Source::Torchrun => join(),
            Err(source) => return Err(address_error(world, &source)),
        }
    } else {
        join()
    };
    opened.map_err(|error| match place::why_not_joined(address.0, address.1) {
        Some(detail) if world.rank != 0 => CommError::Unreachable {
            rank: world.rank,
            address: format!("{}:{}", address.0, address.1),
            seconds: timeout.as_secs(),
            detail,
        },
        _ => CommError::new(world.rank, Operation::Rendezvous, error),
    })
}

/// Waits a while until somebody listens at `address`, where that is this machine: libtorch, finding nobody, looks again
/// after a second.
fn await_listener((host, port): (&str, u16), at_most: Duration) {
    let Some(host) = host.parse::<IpAddr>().ok().filter(IpAddr::is_loopback) else { return };
    let listens = || {
        // A socket that finds nobody can be given the very port that it asks for, and so meet itself.
        TcpStream::connect((host, port)).is_ok_and(|stream| {
            matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(other)) if own != other)
        })
    };
    let start = Instant::now();
    while start.elapsed() < HEAD_START.min(at_most) && !listens() {
        thread::sleep(LOOK_EVERY);
    }
}

/// This machine's address on the way to rank 0, loopback where rank 0 is met there. Peers reach us by it.
///
/// Connecting a datagram socket asks the routing table and sends nothing.
fn address_facing(world: &World) -> io::Result<IpAddr> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for master in (world.master_addr.as_str(), world.master_port).to_socket_addrs()? {
        let any: IpAddr = match master.is_ipv4() {
            true => Ipv4Addr::UNSPECIFIED.into(),
            false => Ipv6Addr::UNSPECIFIED.into(),
        };
        let faced = UdpSocket::bind((any, 0)).and_then(|socket| {
            socket.connect(master)?;
            socket.local_addr()
        });
        match faced {
            Ok(own) => return Ok(own.ip()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn address_error(world: &World, source: &io::Error) -> CommError {
    let address = format!("{}:{}", world.master_addr, world.master_port);
    CommError::Address {
        rank: world.rank,
        address,
        detail: place::why_not_listening(world.master_port, source),
    }
}

#[cfg(test)]
mod tests {
    use launch::Patience;

    use super::*;

    #[test]
    fn the_watchdog_speaks_first() {
        let (timeouts, patience) = (Timeouts::default(), Patience::default());
        assert!(timeouts.init >= patience.start + Duration::from_secs(60));
        // Ranks may wait for one of another node, whose launcher has this patience and is told of hangs a lease later.
        assert!(timeouts.operation >= 2 * patience.unknown + Duration::from_secs(60));
    }
}
