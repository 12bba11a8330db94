//! Commands that run in workers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use launch::{Detected, Exit, LaunchSpec, Patience, StopSignals};

use crate::cli::{ExportArgs, ExportTo, ImportArgs, LaunchOptions, PlanArgs};
use crate::error::CommandError;
use crate::worker::{Worker, config_args};

/// Asks a worker for the run folder, so that a wrong config ends here and not in N processes, then starts the run.
pub fn launch(config: &Path, options: &LaunchOptions, say: &dyn Fn(&str)) -> Result<ExitCode, CommandError> {
    let signals = StopSignals::install()?;
    let worker = Worker::beside_this_program()?;
    match run_dir(&worker, config, options, &signals)? {
        Ok(run_dir) => start(&worker, config, run_dir, options, &signals, say),
        Err(code) => Ok(code),
    }
}

/// As [`launch`], with the config that the run wrote beside itself.
pub fn resume(run_dir: &Path, options: &LaunchOptions, say: &dyn Fn(&str)) -> Result<ExitCode, CommandError> {
    let config = run_dir.join("config.toml");
    if !config.is_file() {
        let detail = "it holds no config.toml; name the run.dir of a config that was launched".into();
        return Err(CommandError::NoRun { path: run_dir.to_owned(), detail });
    }
    let signals = StopSignals::install()?;
    let worker = Worker::beside_this_program()?;
    let named = match self::run_dir(&worker, &config, options, &signals)? {
        Ok(named) => named,
        Err(code) => return Ok(code),
    };
    if !is_same_folder(&named, run_dir) {
        let detail = format!(
            "its config.toml names {} as the run folder; resume from the working directory it was launched in, or \
             launch the config with --set run.dir=...",
            named.display()
        );
        return Err(CommandError::NoRun { path: run_dir.to_owned(), detail });
    }
    start(&worker, &config, named, options, &signals, say)
}

/// Every derived number of a run, for as many workers as a launch with the same options would start.
pub fn plan(args: &PlanArgs) -> Result<ExitCode, CommandError> {
    let world_size = args.nproc_per_node.resolve()? * args.nnodes.get();
    let mut worker_args = config_args("plan", &args.config, &args.overrides);
    worker_args.splice(1..1, ["--world-size".into(), world_size.to_string().into()]);
    Worker::beside_this_program()?.run("the plan", &worker_args)
}

/// Numerics against reference cases.
pub fn verify(cases: &[PathBuf], json: bool) -> Result<ExitCode, CommandError> {
    let mut args: Vec<OsString> = vec!["verify".into()];
    args.extend(json.then(|| "--json".into()));
    args.push("--".into());
    args.extend(cases.iter().map(OsString::from));
    Worker::beside_this_program()?.run("a comparison", &args)
}

/// Other programs' weights into folders of ours.
pub fn import(args: &ImportArgs) -> Result<ExitCode, CommandError> {
    let mut worker_args: Vec<OsString> = vec!["import".into()];
    worker_args.extend(option("--config", args.config.as_deref()));
    worker_args.extend(["--".into(), args.source.clone().into(), args.dest.clone().into()]);
    Worker::beside_this_program()?.run("an import", &worker_args)
}

/// What was trained into other programs' files.
pub fn export(args: &ExportArgs) -> Result<ExitCode, CommandError> {
    let to = if args.to == ExportTo::Hf { "hf" } else { "lavis" };
    let mut worker_args: Vec<OsString> = vec!["export".into(), "--to".into(), to.into()];
    worker_args.extend(args.whole.then(|| "--whole".into()));
    worker_args.extend(option("--vision", args.vision.as_deref()));
    worker_args.extend(option("--language", args.language.as_deref()));
    if let Some(bytes) = args.shard_bytes {
        worker_args.extend(["--shard-bytes".into(), bytes.to_string().into()]);
    }
    worker_args.extend(["--".into(), args.source.clone().into(), args.dest.clone().into()]);
    Worker::beside_this_program()?.run("an export", &worker_args)
}

fn option(name: &'static str, value: Option<&Path>) -> impl Iterator<Item = OsString> {
    value.map(|value| [name.into(), value.into()]).into_iter().flatten()
}

fn run_dir(
    worker: &Worker,
    config: &Path,
    options: &LaunchOptions,
    signals: &StopSignals,
) -> Result<Result<PathBuf, ExitCode>, CommandError> {
    let answer = worker.ask("the run folder", &config_args("run-dir", config, &options.overrides));
    match signals.received() {
        // Ctrl-C ends the worker as well. Nothing was begun, so nothing is lost.
        Some(_) => Ok(Err(Exit::Stopped.into())),
        None => Ok(answer?.map(PathBuf::from)),
    }
}

fn start(
    worker: &Worker,
    config: &Path,
    run_dir: PathBuf,
    options: &LaunchOptions,
    signals: &StopSignals,
    say: &dyn Fn(&str),
) -> Result<ExitCode, CommandError> {
    let Detected { nodes, nproc, max_restarts, taken } =
        launch::detect(options.node_flags(), &launch::variable)?;
    taken.iter().for_each(|line| say(line));
    let spec = LaunchSpec {
        worker: worker.path().to_owned(),
        args: config_args("train", config, &options.overrides),
        nproc: nproc.resolve()?,
        run_dir,
        max_restarts,
        nodes,
        patience: Patience::default(),
    };
    if options.dry_run {
        print!("{}", launch::dry_run(&spec));
        return Ok(ExitCode::SUCCESS);
    }
    Ok(launch::launch_unless(signals, &spec, say)?.into())
}

fn is_same_folder(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
