//! Launchers before their nodes have met: with which code they end, and how soon.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{probe, rdzv, said, wait_for};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
use nix::unistd::Pid;

/// A launcher of several nodes in a folder, of two where `how` does not say how many.
fn node(dir: &Path, rdzv: &str, how: &[&str]) -> Child {
    let mut command = Command::new(probe());
    command.arg("node").arg(dir).arg("1").arg(rdzv).args(how);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ask_to_stop(launcher: &Child) {
    kill(Pid::from_raw(launcher.id().cast_signed()), Signal::SIGTERM).unwrap();
}

fn all_end_with(code: i32, launchers: impl IntoIterator<Item = Child>) {
    for (number, launcher) in launchers.into_iter().enumerate() {
        let output = launcher.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "launcher {number}: {}", said(&output));
    }
}

#[test]
fn a_stop_before_the_nodes_have_met_is_75_at_once() {
    // It listens and waits for the other; nobody listens; nobody answers.
    let here = rdzv();
    for (rdzv, how) in [(&*here.address, "0"), (&*here.address, "1"), ("203.0.113.1:29400", "1")] {
        for signal in [Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGINT] {
            let dir = tempfile::tempdir().unwrap();
            let node = node(dir.path(), rdzv, &[how]);
            wait_for("the launcher's start", || dir.path().join("logs").exists().then_some(()));
            let start = Instant::now();
            kill(Pid::from_raw(node.id().cast_signed()), signal).unwrap();
            let output = node.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(75), "{signal}, {rdzv}: {}", said(&output));
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        }
    }
}

#[test]
fn the_second_launcher_of_node_0_is_told_of_the_first_and_not_of_its_port() {
    let dir = tempfile::tempdir().unwrap();
    let place = rdzv();
    let rdzv = &*place.address;
    let first = node(dir.path(), rdzv, &["0"]);
    wait_for("node 0 to listen", || TcpStream::connect(rdzv).ok());
    let start = Instant::now();
    let second = node(dir.path(), rdzv, &["0"]).wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(73), "{}", said(&second));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    ask_to_stop(&first);
    all_end_with(75, [first]);
}

#[test]
fn connections_that_break_are_tried_again_and_never_a_mistake_of_the_users() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rdzv = listener.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path(), &rdzv, &["1"]);
    let tries = thread::spawn(move || {
        let mut tries = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The test says when it is over.
            let mut first = [0];
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            if stream.read(&mut first).is_ok_and(|bytes| bytes == 1 && first == [b'!']) {
                return tries;
            }
            tries += 1;
            let _ = stream.write_all(&[b"BLIP2RV1".as_slice(), &[7; 32]].concat());
        }
        tries
    });
    let output = node.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    TcpStream::connect(&rdzv).unwrap().write_all(b"!").unwrap();
    assert!(tries.join().unwrap() > 5);
}

#[test]
fn a_replacement_that_comes_before_the_lease_has_run_out_waits_for_the_number() {
    // Folders of one name that share no lock, as on a machine that lost its power.
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let place = rdzv();
    let rdzv = &*place.address;
    let start = |folder: &tempfile::TempDir, number: &str| {
        let mut command = Command::new(probe());
        command.args(["node", "run", "1", rdzv, number]).current_dir(folder.path());
        command.env("BLIP2_RDZV_TOKEN", "0123456789abcdef").stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let up = |folder: &tempfile::TempDir, name: &str| {
        let path = folder.path().join("run").join(name);
        wait_for(name, || fs::read_to_string(&path).ok().filter(|text| !text.is_empty()));
    };
    let (node_0, mut silent) = (start(&folders[0], "0"), start(&folders[1], "1"));
    up(&folders[1], "pid-1-of-2-in-0");
    kill(Pid::from_raw(silent.id().cast_signed()), Signal::SIGSTOP).unwrap();
    let replacement = start(&folders[2], "1");
    up(&folders[2], "pid-1-of-2-in-1");
    silent.kill().and_then(|()| silent.wait()).unwrap();
    ask_to_stop(&node_0);
    all_end_with(75, [node_0, replacement]);
}

#[test]
fn a_stranger_who_speaks_slowly_is_hung_up_on_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let place = rdzv();
    let rdzv = &*place.address;
    let nodes = ["0", "1"].map(|number| node(dir.path(), rdzv, &[number]));
    wait_for("both nodes' workers", || fs::read(dir.path().join("pid-1-of-2-in-0")).ok());
    let mut stranger = TcpStream::connect(rdzv).unwrap();
    let start = Instant::now();
    // 64 bytes would be a proof, and take 13 seconds.
    while stranger.write_all(b"x").is_ok() {
        assert!(start.elapsed() < Duration::from_secs(8), "still listened to");
        thread::sleep(Duration::from_millis(200));
    }
    nodes.iter().for_each(ask_to_stop);
    all_end_with(75, nodes);
}

/// The port that the worker `pid` was told.
fn master_port(pid: &str) -> u16 {
    let environment = String::from_utf8(fs::read(format!("/proc/{pid}/environ")).unwrap()).unwrap();
    environment.split('\0').find_map(|pair| pair.strip_prefix("MASTER_PORT=")).unwrap().parse().unwrap()
}

#[test]
fn the_port_where_ranks_meet_is_kept_for_them() {
    let (alone, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = rdzv();
    let mut command = Command::new(probe());
    command.arg("launch").arg(alone.path()).arg("2").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut launchers = vec![command.spawn().unwrap()];
    launchers.extend(["0", "1"].map(|number| node(two.path(), &place.address, &[number])));
    for path in [alone.path().join("pid-0"), two.path().join("pid-0-of-2-in-0")] {
        let pid = wait_for("a worker", || fs::read_to_string(&path).ok().filter(|pid| !pid.is_empty()));
        let address = SocketAddr::from(([127, 0, 0, 1], master_port(&pid)));
        let stranger = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        assert_eq!(bind(stranger.as_raw_fd(), &SockaddrStorage::from(address)), Err(Errno::EADDRINUSE));
        TcpListener::bind(address).unwrap();
    }
    launchers.iter().for_each(ask_to_stop);
    all_end_with(75, launchers);
}

#[test]
fn every_node_hears_how_the_run_ended_although_node_0_is_done_first() {
    let dir = tempfile::tempdir().unwrap();
    let place = rdzv();
    let mut first = node(dir.path(), &place.address, &["0", "of-12", "nothing"]);
    let mut said_by_first = BufReader::new(first.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("waiting for the others") {
        line.clear();
        assert!(said_by_first.read_line(&mut line).unwrap() > 0, "node 0 ended");
    }
    // Its own connection is to be the first that the coordinator answers.
    thread::sleep(Duration::from_millis(300));
    let mut nodes = vec![first];
    nodes.extend(
        (1..12).map(|number| {
            node(dir.path(), &place.address, &[number.to_string().as_str(), "of-12", "nothing"])
        }),
    );
    all_end_with(0, nodes);
}
