//! Two hosts on a real network that is cut, slowed down and filtered, and whose clocks differ: rows T3, T4, T5 and O5 of the
//! matrix.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::TinyWorld;
use crate::common::hosts::{Cut, Hosts};
use crate::common::nodes::{LEASE, Meeting, Node, wait};

/// What workers that are to end may take.
const GRACE: Duration = Duration::from_secs(5);
/// Steps that both take once the network is mended.
const TOGETHER: u64 = 20;
const PORT: u16 = 29_400;
/// Where Debian has it, on any processor.
const FAKETIME: &str = "LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1";

/// Two hosts with a node of one run each.
struct Two<'a> {
    hosts: Hosts,
    meeting: Meeting<'a>,
    nodes: [Node<'a>; 2],
}

impl<'a> Two<'a> {
    /// Each launcher is started by a command line `before` it, which may be empty.
    fn start(world: &'a TinyWorld, before: [&[&str]; 2]) -> Self {
        let (hosts, meeting) = (Hosts::start(2), Meeting { world, run: "two" });
        let start = |host: usize| node(&hosts, meeting, host, before[host], &format!("node-{host}.stderr"));
        Self { nodes: [start(0), start(1)], hosts, meeting }
    }

    fn wait_for_step(&self, step: u64) {
        wait(|| format!("step {step}: {}", self.said()), || self.meeting.taken() >= step);
    }

    fn said(&self) -> String {
        self.nodes.each_ref().map(Node::said).concat()
    }

    /// Nobody ended, was taken for hung or was started again.
    fn assert_goes_on(&mut self, what: &str) {
        let said = self.said();
        assert!(self.nodes.each_mut().into_iter().all(Node::runs), "{what}: {said}");
        assert!(!said.contains("again") && !said.contains("hangs"), "{what}: {said}");
    }

    /// Stops the run, which has been exact.
    fn stop(mut self) {
        self.nodes[0].signal(Signal::SIGTERM);
        let ends = self.nodes.each_mut().map(Node::end);
        assert_eq!(ends, [Some(75); 2], "{}", self.said());
        self.meeting.assert_as_undisturbed(self.meeting.taken());
    }
}

fn node<'a>(hosts: &Hosts, meeting: Meeting<'a>, host: usize, before: &[&str], stderr: &str) -> Node<'a> {
    let before: Vec<String> =
        hosts.on(host).into_iter().chain(before.iter().map(|&word| word.to_owned())).collect();
    meeting.node(host, &format!("{}:{PORT}", hosts.address(0)), &before, stderr)
}

#[test]
#[ignore = "takes root, ip, nft and tc; scripts/hosts-test"]
fn t3_a_host_that_is_cut_off_in_any_way_stops_and_comes_back_exactly() {
    let world = TinyWorld::new();
    let mut two = Two::start(&world, [&[]; 2]);
    two.wait_for_step(20);
    for (number, cut) in [Cut::BothWays, Cut::Out, Cut::In, Cut::Reset, Cut::Link].into_iter().enumerate() {
        let began = Instant::now();
        two.hosts.cut(1, cut);
        // Where connections are reset, a rank tells before its launcher misses the other.
        let [first, cut_off] = &mut two.nodes;
        wait(
            || format!("sign of {cut:?}: {}", first.said()),
            || !cut_off.runs() || cut_off.said().contains("node 0 is gone"),
        );
        let seen = began.elapsed();
        assert_eq!(two.nodes[1].end(), Some(75), "{cut:?}: {}", two.said());
        println!("{cut:?}: seen after {seen:.1?}, ended after {:.1?}", began.elapsed());
        assert!(
            seen <= LEASE && began.elapsed() <= LEASE + GRACE,
            "{cut:?}: {seen:?}, {:?}",
            began.elapsed()
        );
        // The rank of node 0 has ended with the other, or ends when its launcher misses the other.
        thread::sleep((LEASE + GRACE).saturating_sub(began.elapsed()));
        let (left, before) = (two.meeting.written(), two.meeting.taken());
        thread::sleep(Duration::from_secs(30).saturating_sub(began.elapsed()));
        assert_eq!(two.meeting.written(), left, "{cut:?}: half a run goes on alone");
        assert!(two.nodes[0].runs(), "{cut:?}: node 0 waits for the other: {}", two.nodes[0].said());
        two.hosts.mend(1, cut);
        two.nodes[1] = node(&two.hosts, two.meeting, 1, &[], &format!("node-1-again-{number}.stderr"));
        two.wait_for_step(before + TOGETHER);
    }
    two.stop();
}

#[test]
#[ignore = "takes root, ip, nft and tc; scripts/hosts-test"]
fn t3_a_short_cut_costs_time_and_nothing_else() {
    let world = TinyWorld::new();
    let mut two = Two::start(&world, [&[]; 2]);
    two.wait_for_step(20);
    two.hosts.cut(1, Cut::BothWays);
    // What was sent in the meantime comes after as long again at most; a node waits for half a lease.
    thread::sleep(LEASE / 8);
    let before = two.meeting.taken();
    two.hosts.mend(1, Cut::BothWays);
    two.wait_for_step(before + TOGETHER);
    two.assert_goes_on("a short cut");
    two.stop();
}

#[test]
#[ignore = "takes root, ip, nft and tc; scripts/hosts-test"]
fn t4_a_slow_network_is_no_failure() {
    let world = TinyWorld::new();
    let mut two = Two::start(&world, [&[]; 2]);
    two.wait_for_step(5);
    (0..2).for_each(|host| two.hosts.slow_down(host, "1mbit"));
    let (before, began) = (two.meeting.taken(), Instant::now());
    two.wait_for_step(before + 6);
    println!("{:.1} s a step", began.elapsed().as_secs_f64() / (two.meeting.taken() - before) as f64);
    two.assert_goes_on("a slow network");
    two.stop();
}

#[test]
#[ignore = "takes root, ip, nft and faketime; scripts/hosts-test"]
fn t5_clocks_that_differ_or_jump_change_nothing() {
    let world = TinyWorld::new();
    let jumps = world.path("jumps");
    let write = |seconds: i32| fs::write(&jumps, format!("{seconds:+}\n")).unwrap();
    write(0);
    let from_file = format!("FAKETIME_TIMESTAMP_FILE={}", jumps.display());
    let wrong = |how| ["env", FAKETIME, "DONT_FAKE_MONOTONIC=1", "FAKETIME_NO_CACHE=1", how];
    for (host, how) in [(1, "FAKETIME=+1h"), (0, "FAKETIME=-1h"), (1, from_file.as_str())] {
        let mut before: [&[&str]; 2] = [&[]; 2];
        let wrong = wrong(how);
        before[host] = &wrong;
        let mut two = Two::start(&world, before);
        two.wait_for_step(10);
        for process in family(two.nodes[host].launcher.id()) {
            let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
            assert!(maps.contains("libfaketime"), "{how}: process {process} sees the true time");
        }
        for jump in 0..10 {
            write(if jump % 2 == 0 { 3600 } else { -3600 });
            thread::sleep(Duration::from_millis(1500));
        }
        let step = two.meeting.taken();
        two.wait_for_step(step + TOGETHER);
        two.assert_goes_on(how);
        two.stop();
        for run in ["two", "whole"] {
            fs::remove_dir_all(world.path(run)).unwrap();
        }
    }
}

/// A launcher and its workers, which are children of its first thread.
fn family(launcher: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    let workers: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert!(!workers.is_empty());
    [vec![launcher], workers].concat()
}

#[test]
#[ignore = "takes root, ip, nft and tc; scripts/hosts-test"]
fn o5_hosts_listen_on_loopback_and_on_the_network_of_their_meeting_place() {
    let world = TinyWorld::new();
    let two = Two::start(&world, [&[]; 2]);
    two.wait_for_step(5);
    for (host, node) in two.nodes.iter().enumerate() {
        let own: Ipv4Addr = two.hosts.address(host).parse().unwrap();
        let open = listening(node.launcher.id());
        assert!(open.iter().all(|&address| address == own || address.is_loopback()), "host {host}: {open:?}");
        assert!(open.contains(&own), "host {host} has no port for the other one: {open:?}");
    }
    two.stop();
}

/// All addresses of a process's host on which anything listens; of IPv6, which the hosts do not have, none may.
fn listening(pid: u32) -> BTreeSet<Ipv4Addr> {
    let table = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap();
    let listens = |line: &&str| line.split_whitespace().nth(3) == Some("0A");
    assert_eq!(table("tcp6").lines().find(listens), None);
    let address = |line: &str| {
        let hex = line.split_whitespace().nth(1).unwrap().split(':').next().unwrap();
        Ipv4Addr::from(u32::from_str_radix(hex, 16).unwrap().swap_bytes())
    };
    table("tcp").lines().filter(listens).map(address).collect()
}
