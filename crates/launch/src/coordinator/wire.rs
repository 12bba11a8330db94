//! Frames between launchers: bounded in size, and only from who holds the run's token.
//!
//! Both sides send 32 random bytes and prove with HMAC-SHA-256 that they hold the token; neither sends it. From the two
//! numbers comes a key for this connection alone. Each frame is `length (4 bytes) | HMAC (32) | JSON`, and the HMAC
//! covers direction and number of the frame, so that none can be forged, repeated, left out or sent back.
//! Nothing is secret in them, so nothing is encrypted.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use serde::{Serialize, de::DeserializeOwned};
use sha2::Sha256;

const MAGIC: &[u8; 8] = b"BLIP2RV1";
/// No message of ours is nearly so long.
const MAX_FRAME: usize = 16 * 1024;
/// A stranger that has not shown the token by then is let go, however slowly it speaks.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A peer that takes nothing any more must not hold up the others.
const WRITE: Duration = Duration::from_secs(2);

type Digest = [u8; 32];
/// The coordinator's answer to a wrong proof: no proof of its own, so that the node can tell "no" from a lost connection.
const REFUSAL: Digest = [0; 32];

/// Why a launcher's new connection is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Who answers there is not of this run: trying again changes nothing.
    #[error("{0}")]
    Refused(&'static str),
    /// Nothing was decided: try again.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToCoordinator = 1,
    ToNode = 2,
}

/// The sending half of a connection.
#[derive(Debug)]
pub(crate) struct Sender {
    stream: TcpStream,
    key: Digest,
    way: Way,
    frames: u64,
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: TcpStream,
    key: Digest,
    way: Way,
    frames: u64,
}

/// The coordinator's side of a new connection.
pub(crate) fn accept(stream: TcpStream, token: &[u8]) -> io::Result<(Sender, Receiver)> {
    let until = prepare(&stream)?;
    let own = nonce()?;
    (&stream).write_all(MAGIC)?;
    (&stream).write_all(&own)?;
    let mut from = Until { stream: &stream, until };
    let theirs: Digest = read(&mut from)?;
    let proof: Digest = read(&mut from)?;
    if !is_mac(token, &[b"node", &own, &theirs], &proof) {
        (&stream).write_all(&REFUSAL)?;
        return Err(refused("it does not hold the token of this run"));
    }
    (&stream).write_all(&mac(token, &[b"coordinator", &own, &theirs]))?;
    halves(stream, mac(token, &[b"connection", &own, &theirs]), Way::ToNode, Way::ToCoordinator)
}

/// A launcher's side.
pub(crate) fn open(stream: TcpStream, token: &[u8]) -> Result<(Sender, Receiver), OpenError> {
    let until = prepare(&stream)?;
    let mut from = Until { stream: &stream, until };
    if &read::<8>(&mut from)? != MAGIC {
        return Err(OpenError::Refused("what answers there is no blip2 launcher of this version"));
    }
    let theirs: Digest = read(&mut from)?;
    let own = nonce()?;
    (&stream).write_all(&own)?;
    (&stream).write_all(&mac(token, &[b"node", &theirs, &own]))?;
    let proof = read(&mut from)?;
    if !is_mac(token, &[b"coordinator", &theirs, &own], &proof) {
        return Err(OpenError::Refused("the launcher there holds another token"));
    }
    Ok(halves(stream, mac(token, &[b"connection", &theirs, &own]), Way::ToCoordinator, Way::ToNode)?)
}

impl Sender {
    /// Sends one message.
    pub(crate) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let payload = serde_json::to_vec(message)?;
        let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_FRAME);
        let length = length.ok_or_else(|| refused("a message of ours is too long"))?;
        let mut frame = length.to_be_bytes().to_vec();
        frame.extend(frame_mac(&self.key, self.way, self.frames, &payload));
        frame.extend(payload);
        self.frames += 1;
        self.stream.write_all(&frame)
    }

    /// Ends the connection, and with it the other half's waiting.
    pub(crate) fn close(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Receiver {
    /// How long to wait for bytes from now on; `None` for as long as it takes.
    pub(crate) fn wait_at_most(&self, at_most: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(at_most)
    }

    /// Waits for the next message, as a rule for as long as it takes.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let length = u32::from_be_bytes(read(&mut self.stream)?) as usize;
        if length > MAX_FRAME {
            return Err(refused("a message is longer than any of ours"));
        }
        let mac: Digest = read(&mut self.stream)?;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        let parts = frame_parts(self.way, self.frames);
        if !is_mac(&self.key, &[&parts, &payload], &mac) {
            return Err(refused("a message was changed on its way"));
        }
        self.frames += 1;
        Ok(serde_json::from_slice(&payload)?)
    }
}

/// Sets what holds for the whole connection, and says until when the handshake must be over.
fn prepare(stream: &TcpStream) -> io::Result<Instant> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE))?;
    Ok(Instant::now() + HANDSHAKE)
}

/// Reads that are over at one time all together: a peer must not gain time with each byte.
struct Until<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(bytes)
    }
}

fn halves(stream: TcpStream, key: Digest, out: Way, back: Way) -> io::Result<(Sender, Receiver)> {
    stream.set_read_timeout(None)?;
    let sender = Sender { stream: stream.try_clone()?, key, way: out, frames: 0 };
    Ok((sender, Receiver { stream, key, way: back, frames: 0 }))
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn nonce() -> io::Result<Digest> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Option<Hmac<Sha256>> {
    // HMAC takes keys of any length, so there always is one.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    parts.iter().for_each(|part| mac.update(part));
    Some(mac)
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Digest {
    keyed(key, parts).map_or([0; 32], |mac| mac.finalize().into_bytes().into())
}

/// Compares in constant time.
fn is_mac(key: &[u8], parts: &[&[u8]], claimed: &Digest) -> bool {
    keyed(key, parts).is_some_and(|mac| mac.verify_slice(claimed).is_ok())
}

fn frame_parts(way: Way, number: u64) -> [u8; 9] {
    let mut parts = [way as u8; 9];
    parts[1..].copy_from_slice(&number.to_be_bytes());
    parts
}

fn frame_mac(key: &Digest, way: Way, number: u64, payload: &[u8]) -> Digest {
    mac(key, &[&frame_parts(way, number), payload])
}

fn refused(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, detail.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    type Halves = (Sender, Receiver);

    fn pair(token: &'static [u8], other: &'static [u8]) -> (io::Result<Halves>, Result<Halves, OpenError>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let node = thread::spawn(move || open(TcpStream::connect(address).unwrap(), other));
        let coordinator = accept(listener.accept().unwrap().0, token);
        (coordinator, node.join().unwrap())
    }

    #[test]
    fn messages_pass_both_ways_between_holders_of_the_token() {
        let (coordinator, node) = pair(b"secret", b"secret");
        let ((mut to_node, mut from_node), (mut to_coordinator, mut from_coordinator)) =
            (coordinator.unwrap(), node.unwrap());
        for number in 0..3u32 {
            to_node.send(&number).unwrap();
            to_coordinator.send(&(number + 10)).unwrap();
            assert_eq!(from_coordinator.next::<u32>().unwrap(), number);
            assert_eq!(from_node.next::<u32>().unwrap(), number + 10);
        }
    }

    #[test]
    fn another_token_is_refused_on_both_sides() {
        let (coordinator, node) = pair(b"secret", b"guess");
        assert!(coordinator.unwrap_err().to_string().contains("token"));
        let refused = node.unwrap_err();
        assert!(
            matches!(refused, OpenError::Refused(_)) && refused.to_string().contains("token"),
            "{refused}"
        );
    }

    #[test]
    fn a_connection_that_breaks_before_the_proof_says_nothing_of_the_token() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let node = thread::spawn(move || open(TcpStream::connect(address).unwrap(), b"secret"));
        let mut coordinator = listener.accept().unwrap().0;
        coordinator.write_all(MAGIC).unwrap();
        coordinator.write_all(&[7; 32]).unwrap();
        let _: [u8; 64] = read(&mut coordinator).unwrap();
        drop(coordinator);
        assert!(matches!(node.join().unwrap(), Err(OpenError::Io(_))));
    }

    #[test]
    fn a_stranger_gains_no_time_by_speaking_slowly() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stranger = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = listener.accept().unwrap().0;
        let speak = thread::spawn(move || {
            while stranger.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(200));
            }
        });
        let start = Instant::now();
        let mut from = Until { stream: &stream, until: start + Duration::from_millis(500) };
        let error = read::<32>(&mut from).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        drop(stream);
        speak.join().unwrap();
    }

    #[test]
    fn forged_repeated_and_endless_frames_are_refused() {
        let changes: [fn(&mut Sender) -> io::Result<()>; 3] = [
            |sender| {
                sender.key[0] ^= 1;
                sender.send(&1u32)
            },
            |sender| {
                sender.send(&1u32)?;
                sender.frames = 0;
                sender.send(&1u32)
            },
            |sender| sender.stream.write_all(&u32::MAX.to_be_bytes()),
        ];
        for (case, change) in changes.into_iter().enumerate() {
            let (coordinator, node) = pair(b"secret", b"secret");
            let ((_keep, mut from_node), (mut to_coordinator, _from)) = (coordinator.unwrap(), node.unwrap());
            change(&mut to_coordinator).unwrap();
            let all: Vec<_> = (0..2).map(|_| from_node.next::<u32>()).take_while(Result::is_ok).collect();
            assert!(all.len() < 2, "case {case}");
        }
        let (coordinator, _node) = pair(b"secret", b"secret");
        let too_long = "x".repeat(MAX_FRAME);
        assert!(coordinator.unwrap().0.send(&too_long).is_err());
    }
}
