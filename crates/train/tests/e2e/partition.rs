//! T3 of the matrix: two nodes that no longer hear each other, through a proxy between their launchers that is cut.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use monitor::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Launch, TinyWorld, blip2, course, records};

/// More steps than are taken while the cut is not seen.
const SETS: [&str; 3] =
    ["stage1.steps=100000", "stage1.checkpoint_every_steps=50", "stage1.validate_every_steps=100000"];
/// Steps that both halves take together once the network is mended.
const TOGETHER: u64 = 60;
/// A launcher's lease, and as much again for whatever a busy machine does.
const LEASE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(120);

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

/// The launcher of one of two nodes with a rank each.
struct Node<'a> {
    world: &'a TinyWorld,
    launcher: Child,
    stderr: String,
}

impl<'a> Node<'a> {
    fn start(world: &'a TinyWorld, rank: usize, port: u16, stderr: &str) -> Self {
        let mut command = blip2();
        command.args(["launch", "config.toml", "--nnodes", "2", "--nproc-per-node", "1"]);
        command.args(["--node-rank", &rank.to_string(), "--rdzv", &format!("127.0.0.1:{port}")]);
        command.args(["--set", "run.dir=cut"]).args(SETS.iter().flat_map(|set| ["--set", set]));
        command.current_dir(world.path("")).env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(File::create(world.path(stderr)).unwrap());
        Self { world, launcher: command.spawn().unwrap(), stderr: stderr.to_owned() }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.world.path(&self.stderr)).unwrap()
    }

    fn end(&mut self) -> Option<i32> {
        let mut status = None;
        wait(&format!("the end of a node: {}", self.said()), || {
            status = self.launcher.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        let _ = self.launcher.kill().and_then(|()| self.launcher.wait());
    }
}

fn wait(what: &str, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < PATIENCE, "no {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// All that a run has written, by name and length.
fn written(world: &TinyWorld) -> io::Result<Vec<(String, u64)>> {
    let checkpoints = fs::read_dir(world.path("cut/checkpoints/stage1"))?;
    let mut all: Vec<_> =
        checkpoints.flatten().map(|entry| (entry.path().display().to_string(), 0)).collect();
    all.push(("metrics".into(), fs::metadata(world.path("cut/metrics.jsonl"))?.len()));
    all.sort();
    Ok(all)
}

#[test]
fn t3_a_partition_is_seen_within_the_lease_nobody_goes_on_alone_and_the_curve_stays_exact() {
    let world = TinyWorld::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut first = Node::start(&world, 0, port, "node-0.stderr");
    wait("coordinator", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let proxy = Proxy::start(port);
    let mut second = Node::start(&world, 1, proxy.port, "node-1.stderr");
    let metrics = world.path("cut/metrics.jsonl");
    let taken = || match metrics.is_file() {
        true => records(&metrics).last().map_or(0, |record| record.step),
        false => 0,
    };
    wait("step 20", || taken() >= 20);

    let cut = Instant::now();
    proxy.cut.store(true, Ordering::SeqCst);
    assert_eq!(second.end(), Some(75), "{}", second.said());
    assert!(cut.elapsed() <= LEASE, "{:?}", cut.elapsed());
    assert!(second.said().contains("node 0 is gone"), "{}", second.said());
    // The rank of node 0 has ended with it, or ends when its launcher misses the other.
    thread::sleep((LEASE + Duration::from_secs(2)).saturating_sub(cut.elapsed()));
    let (left, before) = (written(&world).unwrap(), taken());
    thread::sleep(Duration::from_secs(2));
    assert_eq!(written(&world).unwrap(), left, "half a run goes on alone");
    assert_eq!(first.launcher.try_wait().unwrap(), None, "node 0 waits for another node: {}", first.said());

    proxy.cut.store(false, Ordering::SeqCst);
    let mut second = Node::start(&world, 1, proxy.port, "node-1-again.stderr");
    wait("steps together", || taken() >= before + TOGETHER);
    kill(Pid::from_raw(first.launcher.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!((first.end(), second.end()), (Some(75), Some(75)), "{}{}", first.said(), second.said());
    assert_as_undisturbed(&world, taken());
}

/// The first `steps` are those of a run that is in one piece.
fn assert_as_undisturbed(world: &TinyWorld, steps: u64) {
    let mut whole = Launch { sets: &SETS, ..world.run("whole") }.start();
    whole.wait_for_step(Phase::Stage1, steps);
    whole.signal(Signal::SIGTERM);
    assert_eq!(whole.end().code, Some(75));
    let whole = course(&world.path("whole")).until(Phase::Stage1, steps);
    course(&world.path("cut")).assert_same(&whole, "cut in two");
}
