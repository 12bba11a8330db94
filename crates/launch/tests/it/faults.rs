//! Workers that hang, and nodes that go: who is named, how soon, and what becomes of the rest.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::{MeetingPlace, is_running, probe, rdzv, said, wait_for};
use launch::{Exit, FAILURE, Failure, LaunchSpec, Nodes, Patience, WorkerPhase, launch};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

/// Three ranks that take steps together; one of them suffers in one of them, in each generation as a line says.
fn suffer(dir: &Path, rank: usize, fault: &str, max_restarts: u32) -> (Exit, Vec<String>, Option<Failure>) {
    fs::write(dir.join(format!("fault-{rank}")), fault).unwrap();
    let spec = LaunchSpec {
        worker: probe(),
        args: vec!["steps".into(), dir.into()],
        nproc: 3,
        run_dir: dir.into(),
        max_restarts,
        nodes: Nodes::one(),
        patience: Patience { floor: Duration::from_millis(1500), ..Patience::default() },
    };
    let lines = RefCell::new(Vec::new());
    let exit = launch(&spec, &|line| lines.borrow_mut().push(line.to_owned())).unwrap();
    let failure = fs::read(dir.join(FAILURE)).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap());
    (exit, lines.into_inner(), failure)
}

#[test]
fn a_hang_is_found_in_time_with_the_right_rank_and_phase_and_overcome() {
    for (trial, (phase, what)) in [
        (WorkerPhase::Compute, "stop"),
        (WorkerPhase::Compute, "spin"),
        (WorkerPhase::Data, "sleep"),
        (WorkerPhase::Data, "fifo"),
        (WorkerPhase::Data, "stop"),
        (WorkerPhase::Compute, "spin"),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let what = if what == "fifo" { fifo.to_str().unwrap() } else { what };
        let (rank, step) = (trial % 3, 20 + trial);
        let start = Instant::now();
        let (exit, lines, failure) =
            suffer(dir.path(), rank, &format!("{step} {} {what}", phase.name()), (trial % 2) as u32);
        let expected = format!("in phase {} of step {step}", phase.name());
        assert!(lines[0].starts_with(&format!("rank {rank} ")) && lines[0].contains(&expected), "{lines:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        if trial % 2 == 1 {
            assert_eq!((exit, failure), (Exit::Done, None), "overcome: {lines:?}");
            assert!(lines.iter().any(|line| line.starts_with("going on: step")), "{lines:?}");
        } else {
            let failure = failure.unwrap();
            assert_eq!((exit, failure.rank), (Exit::Unavailable, rank));
            assert_eq!((failure.phase, failure.step), (Some(phase), Some(step as u64)));
            assert!(failure.message.contains(&expected), "{failure:?}");
        }
    }
}

#[test]
fn p8_who_dies_again_and_again_without_a_new_checkpoint_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    // Checkpoints of step 10, then of step 20; three generations die behind that one.
    let faults = "15 compute panic\n25 compute panic\n26 data panic\n27 compute panic\n";
    let (exit, lines, failure) = suffer(dir.path(), 1, faults, 2);
    let failure = failure.unwrap();
    assert_eq!((exit, failure.generation, failure.step), (Exit::GiveUp, 3, Some(27)), "{lines:?}");
    let counts = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!((counts("(1 of 2 without"), counts("(2 of 2 without")), (2, 1), "{lines:?}");
    assert_eq!(counts("nothing new was saved in the last tries"), 1, "{lines:?}");
}

#[test]
fn a_crash_is_told_with_rank_phase_step_and_last_words() {
    for (trial, (what, signal, code)) in
        [("panic", None, Some(101)), ("abort", Some(6), None), ("segv", Some(11), None)]
            .into_iter()
            .enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        let rank = 1 + trial % 2;
        let (exit, _, failure) = suffer(dir.path(), rank, &format!("9 compute {what}"), 0);
        let failure = failure.unwrap();
        assert_eq!(
            (exit, failure.rank, failure.signal, failure.exit_code),
            (Exit::Unavailable, rank, signal, code)
        );
        assert_eq!((failure.phase, failure.step), (Some(WorkerPhase::Compute), Some(9)));
        let spoke = failure.last_lines.iter().any(|line| line.contains("as the test wants"));
        assert_eq!(spoke, what == "panic", "{failure:?}");
    }
}

/// Launchers of two nodes on loopback.
struct TwoNodes {
    dir: tempfile::TempDir,
    nodes: Vec<Child>,
    rdzv: MeetingPlace,
}

impl TwoNodes {
    fn start() -> Self {
        let mut two = Self { dir: tempfile::tempdir().unwrap(), nodes: Vec::new(), rdzv: rdzv() };
        two.join(None);
        // So that the first one is node 0.
        wait_for("node 0 to listen", || std::net::TcpStream::connect(&two.rdzv.address).ok());
        two.join(None);
        two
    }

    /// Of ranks that take steps together, and suffer as `fault` says of one of them.
    fn taking_steps(rank: usize, fault: &str) -> Self {
        let mut two = Self { dir: tempfile::tempdir().unwrap(), nodes: Vec::new(), rdzv: rdzv() };
        fs::write(two.dir.path().join(format!("fault-{rank}")), fault).unwrap();
        two.join_with(None, &["steps"]);
        wait_for("node 0 to listen", || std::net::TcpStream::connect(&two.rdzv.address).ok());
        two.join_with(None, &["steps"]);
        two
    }

    fn join(&mut self, token: Option<&str>) {
        self.join_with(token, &[]);
    }

    fn join_with(&mut self, token: Option<&str>, task: &[&str]) {
        let mut command = Command::new(probe());
        command.arg("node").arg(self.dir.path()).arg("2").arg(&self.rdzv.address).args(task);
        command.envs(token.map(|token| ("BLIP2_RDZV_TOKEN", token)));
        self.nodes.push(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    }

    /// Process ids of the four ranks of a generation.
    fn ranks(&self, generation: u32) -> Vec<Pid> {
        wait_for(&format!("all ranks of generation {generation}"), || {
            (0..4)
                .map(|rank| {
                    let path = self.dir.path().join(format!("pid-{rank}-of-4-in-{generation}"));
                    fs::read_to_string(path).ok()?.parse().ok().map(Pid::from_raw)
                })
                .collect()
        })
    }

    fn signal(&self, node: usize, signal: Signal) {
        kill(Pid::from_raw(self.nodes[node].id().cast_signed()), signal).unwrap();
    }

    fn end(&mut self) -> Vec<Output> {
        self.nodes.drain(..).map(|node| node.wait_with_output().unwrap()).collect()
    }
}

impl Drop for TwoNodes {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill().and_then(|()| node.wait());
        }
    }
}

/// Addresses, as `/proc/net/tcp` writes them, on which a process listens.
fn listens_on(pid: u32) -> BTreeSet<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let sockets: Vec<String> = links
        .filter_map(|link| {
            fs::read_link(link.path()).ok()?.to_str()?.strip_prefix("socket:[").map(str::to_owned)
        })
        .map(|inode| inode.trim_end_matches(']').to_owned())
        .collect();
    let mut addresses = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        for line in fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.len() > 9 && fields[3] == "0A" && sockets.iter().any(|inode| inode == fields[9]) {
                addresses.insert(fields[1].split(':').next().unwrap().to_owned());
            }
        }
    }
    addresses
}

#[test]
fn two_nodes_form_one_set_form_it_again_after_a_kill_and_stop_together() {
    let mut two = TwoNodes::start();
    let ranks = two.ranks(0);
    assert_eq!(
        listens_on(two.nodes[0].id()),
        BTreeSet::from(["0100007F".to_owned()]),
        "127.0.0.1 and nothing else"
    );
    assert_eq!(listens_on(two.nodes[1].id()), BTreeSet::new());
    kill(ranks[3], Signal::SIGKILL).unwrap();
    let again = two.ranks(1);
    assert!(ranks.iter().all(|pid| !is_running(*pid)), "one generation at a time");
    two.signal(1, Signal::SIGTERM);
    let ends = two.end();
    for end in &ends {
        assert_eq!(end.status.code(), Some(75), "{}", said(end));
    }
    assert!(again.iter().all(|pid| !is_running(*pid)));
    let all = said(&ends[0]) + &said(&ends[1]);
    assert_eq!(all.matches("rank 3 was killed by SIGKILL").count(), 1, "{all}");
    assert!(
        all.contains("starting all ranks again") && all.contains("SIGTERM received by another node"),
        "{all}"
    );
}

#[test]
fn t4_ranks_that_wait_for_one_of_another_node_are_left_alone() {
    // Rank 3 writes a checkpoint for four times as long as a hang may take to be seen.
    let mut two = TwoNodes::taking_steps(3, "20 save nap");
    for end in two.end() {
        assert_eq!((end.status.code(), said(&end).contains("hangs")), (Some(0), false), "{}", said(&end));
    }
}

#[test]
fn t4_a_rank_that_hangs_is_named_by_its_own_node() {
    let mut two = TwoNodes::taking_steps(3, "23 data sleep");
    let ends = two.end();
    let all = said(&ends[0]) + &said(&ends[1]);
    assert!(ends.iter().all(|end| end.status.success()), "overcome: {all}");
    assert_eq!(all.matches(" hangs in phase ").count(), 2, "as it is seen, and as the cause: {all}");
    assert_eq!(all.matches("rank 3 hangs in phase data of step 23").count(), 2, "{all}");
}

#[test]
fn node_0_gone_ends_the_other_with_75_and_no_worker_is_left() {
    let mut two = TwoNodes::start();
    let ranks = two.ranks(0);
    let start = Instant::now();
    two.signal(0, Signal::SIGKILL);
    let ends = two.end();
    assert_eq!(ends[1].status.code(), Some(75), "{}", said(&ends[1]));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    for pid in ranks {
        wait_for("the end of a worker", || (!is_running(pid)).then_some(()));
    }
}

#[test]
fn a_node_that_is_gone_is_waited_for_and_replaced() {
    let mut two = TwoNodes::start();
    two.ranks(0);
    two.signal(1, Signal::SIGKILL);
    let mut lost = two.nodes.remove(1);
    lost.wait().unwrap();
    two.join(None);
    two.ranks(1);
    two.signal(0, Signal::SIGINT);
    for end in two.end() {
        assert_eq!(end.status.code(), Some(75), "{}", said(&end));
    }
}

#[test]
fn a_stranger_without_the_token_is_refused_and_changes_nothing() {
    let mut two = TwoNodes::start();
    let ranks = two.ranks(0);
    two.join(Some("guessed, and wrong"));
    let stranger = two.nodes.remove(2).wait_with_output().unwrap();
    assert_eq!(stranger.status.code(), Some(78), "{}", said(&stranger));
    assert!(said(&stranger).contains("holds another token"), "{}", said(&stranger));
    assert!(ranks.iter().all(|pid| is_running(*pid)));
    two.signal(0, Signal::SIGTERM);
    for end in two.end() {
        assert_eq!(end.status.code(), Some(75), "{}", said(&end));
    }
}

#[test]
fn a_meeting_that_does_not_happen_says_what_was_tried() {
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let mut command = Command::new(probe());
    let output =
        command.arg("node").arg(dir.path()).args(["1", "no-such-host.invalid:29400"]).output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let said = said(&output);
    assert!(said.contains("no-such-host.invalid:29400") && said.contains("no address"), "{said}");
}

#[test]
fn the_second_launcher_in_a_run_folder_ends_with_73_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let launch = || {
        let mut command = Command::new(probe());
        command
            .arg("launch")
            .arg(dir.path())
            .arg("2")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let first = launch();
    wait_for("the first worker", || fs::read(dir.path().join("pid-1")).ok());
    let start = Instant::now();
    let second = launch().wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(73), "{}", said(&second));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(said(&second).contains(&format!("process {}", first.id())), "{}", said(&second));
    kill(Pid::from_raw(first.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(first.wait_with_output().unwrap().status.code(), Some(75));
}
