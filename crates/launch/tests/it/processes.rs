//! Real processes: what workers see, what becomes of them when one of them, or the launcher, ends.

use std::cell::RefCell;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{is_running, probe, within};
use launch::{Exit, FAILURE, Failure, LaunchError, LaunchSpec, Nodes, Patience, launch};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// A launch of `sh -c script` in `dir`.
fn shell(dir: &Path, nproc: usize, script: &str) -> LaunchSpec {
    LaunchSpec {
        worker: "/bin/sh".into(),
        args: vec!["-c".into(), script.into(), "worker".into(), dir.into()],
        nproc,
        run_dir: dir.into(),
        max_restarts: 0,
        nodes: Nodes::one(),
        patience: Patience::default(),
    }
}

fn run(spec: &LaunchSpec) -> (Exit, Vec<String>) {
    let lines = RefCell::new(Vec::new());
    let exit = launch(spec, &|line| lines.borrow_mut().push(line.to_owned())).unwrap();
    (exit, lines.into_inner())
}

fn failure(dir: &Path) -> Failure {
    serde_json::from_slice(&fs::read(dir.join(FAILURE)).unwrap()).unwrap()
}

fn read_pid(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[test]
fn workers_see_torchruns_environment() {
    let dir = tempfile::tempdir().unwrap();
    let (exit, lines) = run(&shell(dir.path(), 3, "env > $1/env-$RANK"));
    assert_eq!((exit, lines), (Exit::Done, vec![]));
    let mut ports = Vec::new();
    for rank in 0..3 {
        let text = fs::read_to_string(dir.path().join(format!("env-{rank}"))).unwrap();
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{name}=")));
            line.unwrap_or_else(|| panic!("{name} is not set")).split_once('=').unwrap().1.to_owned()
        };
        let rank = rank.to_string();
        for name in ["RANK", "LOCAL_RANK", "ROLE_RANK"] {
            assert_eq!(value(name), rank, "{name}");
        }
        for name in ["WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"] {
            assert_eq!(value(name), "3", "{name}");
        }
        assert_eq!((value("GROUP_RANK"), value("GROUP_WORLD_SIZE")), ("0".into(), "1".into()));
        assert_eq!((value("ROLE_NAME"), value("MASTER_ADDR")), ("default".into(), "127.0.0.1".into()));
        assert_eq!(value("TORCHELASTIC_RESTART_COUNT"), "0");
        assert_eq!(value("TORCHELASTIC_MAX_RESTARTS"), "0");
        assert_eq!(value("TORCHELASTIC_RUN_ID"), dir.path().file_name().unwrap().to_str().unwrap());
        assert!(value("OMP_NUM_THREADS").parse::<usize>().unwrap() >= 1);
        assert_eq!(value("BLIP2_LAUNCHER_PID"), std::process::id().to_string());
        ports.push(value("MASTER_PORT").parse::<u16>().unwrap());
    }
    assert!(ports[0] > 0 && ports.iter().all(|port| *port == ports[0]), "{ports:?}");
}

#[test]
fn output_of_each_rank_is_kept_in_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let (exit, _) = run(&shell(dir.path(), 2, "echo out of $RANK; echo err of $RANK >&2"));
    assert_eq!(exit, Exit::Done);
    let log = fs::read_to_string(dir.path().join("logs/rank-1.log")).unwrap();
    assert_eq!(log, "=== rank 1, generation 0\nout of 1\nerr of 1\n");
}

#[test]
fn rank_0_has_a_terminal_where_the_launcher_has_one_and_a_log_anyway() {
    let dir = tempfile::tempdir().unwrap();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).and_then(|()| unlockpt(&master)).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut command = Command::new(probe());
    command.arg("launch").arg(dir.path()).arg("2").stdout(Stdio::null()).stderr(terminal);
    let mut launcher = command.spawn().unwrap();
    drop(command);
    probe_pids(dir.path());
    kill(Pid::from_raw(launcher.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(launcher.wait().unwrap().code(), Some(75));
    let mut shown = Vec::new();
    // It ends with an error: the launcher has closed the other side.
    let _ = fs::File::from(master).read_to_end(&mut shown);
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("rank 0 at a terminal: true") && !shown.contains("rank 1 at"), "{shown}");
    for (rank, said) in [(0, "rank 0 at a terminal: true\n"), (1, "rank 1 at a terminal: false\n")] {
        let log = fs::read_to_string(dir.path().join(format!("logs/rank-{rank}.log"))).unwrap();
        assert!(log.ends_with(said), "{log}");
    }
}

#[test]
fn what_a_rank_says_that_is_not_on_the_terminal_is_told_with_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let script =
        "if [ $RANK = 1 ]; then echo 'blip2-worker: vocab.txt has no [CLS]' >&2; exit 78; fi; sleep 30";
    let (exit, lines) = run(&shell(dir.path(), 2, script));
    assert_eq!(exit, Exit::Config);
    assert!(
        lines.iter().any(|line| line == "rank 1 said: blip2-worker: vocab.txt has no [CLS]"),
        "{lines:?}"
    );
}

#[test]
fn kill_9_of_one_worker_ends_the_others_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    // They neither heed SIGTERM nor look up, like workers inside a collective.
    let spec = shell(
        dir.path(),
        3,
        "trap '' TERM; echo up $RANK; echo $$ > $1/pid-$RANK; while :; do sleep 1; done",
    );
    let pids =
        || (0..3).map(|rank| read_pid(&dir.path().join(format!("pid-{rank}")))).collect::<Option<Vec<_>>>();
    let (exit, lines, pids, took) = thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let pids = within(Duration::from_secs(20), "the start of all workers", pids);
            kill(Pid::from_raw(pids[1]), Signal::SIGKILL).unwrap();
            (pids, Instant::now())
        });
        let (exit, lines) = run(&spec);
        let (pids, killed) = killer.join().unwrap();
        (exit, lines, pids, killed.elapsed())
    });
    assert_eq!(exit, Exit::Unavailable);
    assert!(took <= Duration::from_secs(6), "{took:?}");
    assert!(pids.iter().all(|pid| !is_running(*pid)));
    let failure = failure(dir.path());
    assert_eq!((failure.rank, failure.exit_code, failure.signal), (1, None, Some(9)));
    assert_eq!(failure.last_lines, ["up 1"]);
    assert!(failure.seconds_since_start > 0.0 && failure.message.contains("SIGKILL"), "{failure:?}");
    assert_eq!(failure.others.len(), 2);
    assert!(failure.others.iter().all(|other| other.seconds_since_start > failure.seconds_since_start));
    assert!(lines[0].starts_with("rank 1 was killed by SIGKILL"), "{lines:?}");
}

#[test]
fn the_first_of_many_failures_is_named_again_and_again() {
    for trial in 0..10usize {
        let dir = tempfile::tempdir().unwrap();
        let culprit = trial % 3;
        // The others report a lost peer as soon as they see that the culprit is gone.
        let script = format!(
            "if [ $RANK = {culprit} ]; then touch $1/gone; kill -SEGV $$; fi; \
             while [ ! -e $1/gone ]; do sleep 0.01; done; exit 69"
        );
        assert_eq!(run(&shell(dir.path(), 3, &script)).0, Exit::Unavailable);
        let failure = failure(dir.path());
        assert_eq!((failure.rank, failure.signal), (culprit, Some(11)), "trial {trial}");
    }
}

#[test]
fn a_generation_is_formed_again_after_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo $TORCHELASTIC_RESTART_COUNT >> $1/seen-$RANK; \
                  [ $RANK$TORCHELASTIC_RESTART_COUNT = 10 ] && exit 3; exit 0";
    let spec = LaunchSpec { max_restarts: 2, ..shell(dir.path(), 2, script) };
    let (exit, lines) = run(&spec);
    assert_eq!(exit, Exit::Done);
    assert!(lines[0].contains("rank 1 exited with code 3") && lines[0].contains("1 of 2"), "{lines:?}");
    assert_eq!(fs::read_to_string(dir.path().join("seen-1")).unwrap(), "0\n1\n");
    assert!(!dir.path().join(FAILURE).exists(), "a finished run has no failure");
}

#[test]
fn restarts_are_spent_and_some_codes_never_ask_for_one() {
    for (code, generations, exit) in [
        (69, 3, Exit::GiveUp),
        (101, 3, Exit::GiveUp),
        (73, 1, Exit::Busy),
        (75, 1, Exit::Stopped),
        (78, 1, Exit::Config),
        (93, 1, Exit::GiveUp),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("echo $RANK >> $1/seen-$RANK; exit {code}");
        let spec = LaunchSpec { max_restarts: 2, ..shell(dir.path(), 2, &script) };
        assert_eq!(run(&spec).0, exit, "code {code}");
        let seen = fs::read_to_string(dir.path().join("seen-0")).unwrap();
        assert_eq!(seen.lines().count(), generations, "code {code}");
        // 75 is no failure, and the folder of 73 belongs to another run.
        let reported = dir.path().join(FAILURE).exists();
        assert_eq!(reported, !matches!(exit, Exit::Stopped | Exit::Busy), "code {code}");
    }
}

#[test]
fn what_a_worker_leaves_behind_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (exit, _) = run(&shell(dir.path(), 1, "sleep 60 & echo $! > $1/child"));
    assert_eq!(exit, Exit::Done);
    let pid = read_pid(&dir.path().join("child")).unwrap();
    within(Duration::from_secs(2), "the end of the grandchild", || (!is_running(pid)).then_some(()));
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let spec = LaunchSpec { worker: "/nowhere/blip2-worker".into(), ..shell(dir.path(), 2, "") };
    let error = launch(&spec, &|_| {}).unwrap_err();
    assert!(matches!(error, LaunchError::Spawn { .. }));
    assert!(error.to_string().contains("/nowhere/blip2-worker"), "{error}");
}

/// A launcher in a process of its own.
fn start_probe(dir: &Path) -> Child {
    let mut command = Command::new(probe());
    command.arg("launch").arg(dir).arg("2").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn probe_pids(dir: &Path) -> Vec<i32> {
    within(Duration::from_secs(20), "the start of both workers", || {
        (0..2).map(|rank| read_pid(&dir.join(format!("pid-{rank}")))).collect()
    })
}

#[test]
fn a_stop_signal_is_handed_on_and_75_passed_through() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
        let dir = tempfile::tempdir().unwrap();
        let probe = start_probe(dir.path());
        probe_pids(dir.path());
        let start = Instant::now();
        kill(Pid::from_raw(probe.id().cast_signed()), signal).unwrap();
        let output = probe.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(75), "{signal}: {stderr}");
        assert!(start.elapsed() < Duration::from_secs(3), "{signal}: {:?}", start.elapsed());
        assert!(stderr.contains(signal.as_str()), "{stderr}");
        assert!(!dir.path().join(FAILURE).exists());
    }
}

#[test]
fn workers_do_not_outlive_a_killed_launcher() {
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let mut probe = start_probe(dir.path());
        let pids = probe_pids(dir.path());
        assert!(pids.iter().all(|pid| is_running(*pid)));
        probe.kill().unwrap();
        probe.wait().unwrap();
        for pid in pids {
            within(Duration::from_secs(2), "the end of a worker", || (!is_running(pid)).then_some(()));
        }
    }
}

#[test]
fn a_second_interrupt_ends_launcher_and_workers_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut probe = start_probe(dir.path());
    let launcher = Pid::from_raw(probe.id().cast_signed());
    let pids = probe_pids(dir.path());
    // A stopped worker cannot heed the first one.
    kill(Pid::from_raw(pids[1]), Signal::SIGSTOP).unwrap();
    kill(launcher, Signal::SIGINT).unwrap();
    within(Duration::from_secs(3), "the end of the worker that can", || (!is_running(pids[0])).then_some(()));
    assert!(probe.try_wait().unwrap().is_none(), "the launcher waits for the other worker");
    kill(launcher, Signal::SIGINT).unwrap();
    within(Duration::from_secs(1), "the end of the launcher", || probe.try_wait().unwrap());
    within(Duration::from_secs(2), "the end of the worker", || (!is_running(pids[1])).then_some(()));
}

#[test]
fn the_report_of_the_launch_before_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(&shell(dir.path(), 1, "exit 3")).0, Exit::Unavailable);
    let before = failure(dir.path());
    assert_eq!(run(&shell(dir.path(), 1, "exit 75")).0, Exit::Stopped);
    assert!(!dir.path().join(FAILURE).exists(), "nothing failed in this launch");
    let kept = fs::read(dir.path().join("failure-before.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Failure>(&kept).unwrap(), before);
}

#[test]
fn a_terminal_that_takes_nothing_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(probe());
    command.arg("launch").arg(dir.path()).args(["2", "talk"]);
    // Nobody reads these pipes.
    let mut launcher = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let code = within(Duration::from_secs(30), "the end of the run", || launcher.try_wait().unwrap());
    assert_eq!(code.code(), Some(0));
    assert!((0..2).all(|rank| dir.path().join(format!("done-{rank}")).exists()));
    // Rank 1 writes into its log itself; rank 0's two pipes are copied, in pieces of lines.
    let lengths =
        [0, 1].map(|rank| fs::metadata(dir.path().join(format!("logs/rank-{rank}.log"))).unwrap().len());
    assert!(lengths[0] == lengths[1] && lengths[0] > 3_000_000, "{lengths:?}");
}

#[test]
fn a_spare_or_a_replacement_that_cannot_be_started_does_not_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    fs::copy(probe(), &program).unwrap();
    // The spare's log cannot be written.
    fs::create_dir_all(dir.path().join("logs/spare-1.log")).unwrap();
    let args = vec!["outlive".into(), dir.path().into()];
    let spec = LaunchSpec { worker: program, args, max_restarts: 1, ..shell(dir.path(), 2, "") };
    let lines = RefCell::new(Vec::new());
    let report = |line: &str| {
        // Who is to be started again is there again.
        if line.contains("so the others cannot go on either") {
            fs::rename(dir.path().join("hidden"), &spec.worker).unwrap();
        }
        lines.borrow_mut().push(line.to_owned());
    };
    let exit = launch(&spec, &report).unwrap();
    let lines = lines.into_inner();
    assert_eq!(exit, Exit::Done, "{lines:?}");
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("so no spare waits"), 1, "{lines:?}");
    assert_eq!(count("so the others cannot go on either"), 1, "{lines:?}");
    assert_eq!(count("starting all ranks again (1 of 1"), 1, "{lines:?}");
}
