//! The smallest worker that keeps the contract, and a launcher for it. The process tests run both.
//!
//! `probe launch DIR NPROC` launches `probe work DIR` NPROC times; each worker writes `DIR/pid-RANK`, waits, and ends
//! with 75 when asked to stop. `probe node DIR NPROC RDZV` is one of two nodes of such a launch; with a number behind it the
//! one of that number, with `of-N` one of N, with `steps` or `nothing` of a launch of another kind.
//!
//! `probe nothing DIR` is done at once.
//!
//! `probe talk DIR` says more in each of 40 steps than a pipe holds. `probe outlive DIR` outlives the loss of a peer: in
//! generation 0 rank 1 hides its program and dies, and rank 0 waits where nobody comes.
//!
//! `probe steps DIR` takes 40 steps together with the other ranks, who meet in files, and does in one of them what
//! `DIR/fault-RANK` says, a line for each generation. Every tenth step it says that it has written a checkpoint.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use launch::{
    Exit, LaunchError, LaunchSpec, Nodes, Patience, ProgressPage, Source, StopFlag, WorkerPhase, World,
    die_with_parent, launch,
};
use nix::sys::signal::{Signal, raise};

/// So that a test that goes wrong leaves nothing behind.
const AT_MOST: Duration = Duration::from_secs(60);
const STEPS: u64 = 40;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["launch", dir, nproc] => start(Path::new(dir), nproc, Nodes::one(), "work"),
        ["launch", dir, nproc, task] => start(Path::new(dir), nproc, Nodes::one(), task),
        ["node", dir, nproc, rdzv, ref how @ ..] => {
            let task = ["steps", "nothing"].into_iter().find(|task| how.contains(task)).unwrap_or("work");
            let node_rank = how.iter().find_map(|word| word.parse().ok());
            let nnodes = how.iter().find_map(|word| word.strip_prefix("of-")?.parse().ok()).unwrap_or(2);
            let several = |rdzv| Nodes { nnodes, node_rank, ..nodes(rdzv, task) };
            rdzv.parse().and_then(|rdzv| start(Path::new(dir), nproc, several(rdzv), task))
        }
        ["work", dir] => work(Path::new(dir)),
        ["nothing", _] => World::from_env().and_then(|world| die_with_parent(&world)).map(|()| Exit::Done),
        ["steps", dir] => steps(Path::new(dir)),
        ["talk", dir] => talk(Path::new(dir)),
        ["outlive", dir] => outlive(Path::new(dir)),
        _ => Err(LaunchError::Arguments { detail: "probe launch DIR NPROC | probe work DIR".into() }),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("probe: {error}");
            error.exit().into()
        }
    }
}

/// Nodes with little patience, where that is what a test looks at.
fn nodes(rdzv: launch::Rdzv, task: &str) -> Nodes {
    let (lease, join) = if task == "nothing" { (20, 60) } else { (2, 5) };
    let (lease, join) = (Duration::from_secs(lease), Duration::from_secs(join));
    Nodes { rdzv: Some(rdzv), lease, join, ..Nodes::one() }
}

/// So that a test need not wait for ten seconds.
fn impatient() -> Patience {
    Patience { floor: Duration::from_millis(1500), ..Patience::default() }
}

fn start(dir: &Path, nproc: &str, nodes: Nodes, task: &str) -> Result<Exit, LaunchError> {
    let bad = |detail: String| LaunchError::Arguments { detail };
    let spec = LaunchSpec {
        worker: std::env::current_exe().map_err(|e| bad(e.to_string()))?,
        args: vec![task.into(), dir.into()],
        nproc: nproc.parse().map_err(|_| bad(format!("{nproc:?} is no number")))?,
        run_dir: dir.into(),
        max_restarts: if nodes.nnodes > 1 { 2 } else { 0 },
        nodes,
        patience: if task == "steps" { impatient() } else { Patience::default() },
    };
    launch(&spec, &launch::say)
}

fn work(dir: &Path) -> Result<Exit, LaunchError> {
    let world = World::from_env()?;
    die_with_parent(&world)?;
    let stop = StopFlag::install()?;
    eprintln!("rank {} at a terminal: {}", world.rank, std::io::stderr().is_terminal());
    // With several nodes a test wants to know all ranks of a generation; with one the rank is enough.
    let name = match world.local_world_size == world.world_size {
        true => format!("pid-{}", world.rank),
        false => format!("pid-{}-of-{}-in-{}", world.rank, world.world_size, world.generation),
    };
    write(dir, &name, &std::process::id().to_string())?;
    let start = Instant::now();
    while !stop.requested() && start.elapsed() < AT_MOST {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(if stop.requested() { Exit::Stopped } else { Exit::GiveUp })
}

fn steps(dir: &Path) -> Result<Exit, LaunchError> {
    let world = World::from_env()?;
    die_with_parent(&world)?;
    let page = ProgressPage::from_env();
    let faults = fs::read_to_string(dir.join(format!("fault-{}", world.rank))).unwrap_or_default();
    let fault =
        faults.lines().nth(usize::try_from(world.generation).unwrap_or(usize::MAX)).unwrap_or_default();
    let go_through = |phase: WorkerPhase, step| {
        page.write(phase, step);
        std::thread::sleep(Duration::from_millis(2));
        if let Some(what) = fault.strip_prefix(&format!("{step} {} ", phase.name())) {
            suffer(what);
        }
    };
    for step in 0..STEPS {
        go_through(WorkerPhase::Data, step);
        go_through(WorkerPhase::Compute, step);
        page.write(WorkerPhase::Reduce, step);
        meet(dir, &world, step)?;
        // Gradients take their way when all have come. The launcher looks every 20 ms, so it sees all ranks here.
        std::thread::sleep(Duration::from_millis(25));
        if step > 0 && step.is_multiple_of(10) {
            go_through(WorkerPhase::Save, step);
            page.saved(0, step);
        }
    }
    page.write(WorkerPhase::End, STEPS);
    Ok(Exit::Done)
}

/// Says 4 MB in its steps and then so in a file.
fn talk(dir: &Path) -> Result<Exit, LaunchError> {
    let world = World::from_env()?;
    die_with_parent(&world)?;
    let page = ProgressPage::from_env();
    for step in 0..STEPS {
        page.write(WorkerPhase::Compute, step);
        for line in 0..1000 {
            println!("out {step} {line} {}", "x".repeat(30));
            eprintln!("err {step} {line} {}", "x".repeat(30));
        }
    }
    write(dir, &format!("done-{}", world.rank), "")?;
    Ok(Exit::Done)
}

fn outlive(dir: &Path) -> Result<Exit, LaunchError> {
    let world = World::from_env()?;
    die_with_parent(&world)?;
    // A worker in a meeting does not hear SIGTERM.
    let (page, never) = (ProgressPage::from_env(), StopFlag::install()?);
    if let Source::Spare { .. } = world.source {
        std::thread::sleep(AT_MOST);
    }
    page.met(world.generation);
    let (program, hidden) = (dir.join("program"), dir.join("hidden"));
    for step in 0..STEPS {
        page.write(WorkerPhase::Reduce, step);
        if world.generation == 0 && world.rank == 1 && step == STEPS / 2 {
            fs::rename(&program, &hidden)
                .map_err(|source| LaunchError::Write { path: hidden.clone(), source })?;
            std::process::abort();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    if world.generation == 0 && page.wait_for_call(0, AT_MOST, &never).is_some() {
        std::thread::sleep(AT_MOST);
    }
    Ok(Exit::Done)
}

fn suffer(what: &str) {
    let start = Instant::now();
    match what {
        "stop" => drop(raise(Signal::SIGSTOP)),
        "spin" => while start.elapsed() < AT_MOST {},
        "sleep" => std::thread::sleep(AT_MOST),
        // Longer than two hangs may take to be seen.
        "nap" => std::thread::sleep(Duration::from_secs(6)),
        "abort" => std::process::abort(),
        "panic" => panic!("as the test wants"),
        // The first one only takes Rust's own handler away.
        "segv" => drop((raise(Signal::SIGSEGV), raise(Signal::SIGSEGV))),
        // A pipe that nobody writes to.
        path => drop(fs::read(path)),
    }
}

/// Waits until every rank has come to `step`.
fn meet(dir: &Path, world: &World, step: u64) -> Result<(), LaunchError> {
    let place = |rank| format!("step-{}-{rank}", world.generation);
    write(dir, &place(world.rank), &step.to_string())?;
    let has_come = |rank| {
        let text = fs::read_to_string(dir.join(place(rank))).unwrap_or_default();
        text.parse::<u64>().is_ok_and(|other| other >= step)
    };
    let start = Instant::now();
    while !(0..world.world_size).all(has_come) && start.elapsed() < AT_MOST {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn write(dir: &Path, name: &str, text: &str) -> Result<(), LaunchError> {
    let path: PathBuf = dir.join(name);
    fs::write(&path, text).map_err(|source| LaunchError::Write { path, source })
}
