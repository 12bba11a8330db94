//! T3 of the matrix: two nodes that no longer hear each other, through a proxy between their launchers that is cut.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use launch::ReservedPort;
use nix::sys::signal::Signal;

use crate::common::TinyWorld;
use crate::common::nodes::{LEASE, Meeting, wait};

/// Steps that both halves take together once the network is mended.
const TOGETHER: u64 = 60;

/// Passes bytes on, both ways, until it is cut; then it keeps them, as a network does that will be mended.
struct Proxy {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Proxy {
    fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { port: listener.local_addr().unwrap().port(), cut: Arc::default() };
        let cut = Arc::clone(&proxy.cut);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                while cut.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(20));
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
                for (from, to) in [(near, far), back] {
                    let cut = Arc::clone(&cut);
                    thread::spawn(move || pass_on(from, to, &cut));
                }
            }
        });
        proxy
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) -> Option<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer).ok()?;
        while cut.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(20));
        }
        if count == 0 {
            return to.shutdown(std::net::Shutdown::Write).ok();
        }
        to.write_all(&buffer[..count]).ok()?;
    }
}

#[test]
fn t3_a_partition_is_seen_within_the_lease_nobody_goes_on_alone_and_the_curve_stays_exact() {
    let world = TinyWorld::new();
    let meeting = Meeting { world: &world, run: "cut" };
    let free = ReservedPort::on("127.0.0.1").unwrap();
    let port = free.number();
    let mut first = meeting.node(0, &format!("127.0.0.1:{port}"), &[], "node-0.stderr");
    wait(|| "coordinator".into(), || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let proxy = Proxy::start(port);
    let through_proxy = format!("127.0.0.1:{}", proxy.port);
    let mut second = meeting.node(1, &through_proxy, &[], "node-1.stderr");
    wait(|| "step 20".into(), || meeting.taken() >= 20);

    let cut = Instant::now();
    proxy.cut.store(true, Ordering::SeqCst);
    assert_eq!(second.end(), Some(75), "{}", second.said());
    assert!(cut.elapsed() <= LEASE, "{:?}", cut.elapsed());
    assert!(second.said().contains("node 0 is gone"), "{}", second.said());
    // The rank of node 0 has ended with it, or ends when its launcher misses the other.
    thread::sleep((LEASE + Duration::from_secs(2)).saturating_sub(cut.elapsed()));
    let (left, before) = (meeting.written(), meeting.taken());
    thread::sleep(Duration::from_secs(2));
    assert_eq!(meeting.written(), left, "half a run goes on alone");
    assert!(first.runs(), "node 0 waits for another node: {}", first.said());

    proxy.cut.store(false, Ordering::SeqCst);
    let mut second = meeting.node(1, &through_proxy, &[], "node-1-again.stderr");
    wait(|| "steps together".into(), || meeting.taken() >= before + TOGETHER);
    first.signal(Signal::SIGTERM);
    assert_eq!((first.end(), second.end()), (Some(75), Some(75)), "{}{}", first.said(), second.said());
    meeting.assert_as_undisturbed(meeting.taken());
}
