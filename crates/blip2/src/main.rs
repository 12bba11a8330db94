//! `blip2`: the user's command. It links no libtorch, so it starts at once and runs where no GPU library is; what
//! needs tensors runs in `blip2-worker`, which lies beside it.

mod bench;
mod checkpoints;
mod cli;
mod error;
mod index;
mod prepare;
mod run;
mod tools;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use cli::{Bench, Ckpt, Cli, Command, Data};

fn main() -> ExitCode {
    let say = |line: &str| eprintln!("blip2: {line}");
    // For hours, to whoever reads it or does not.
    let keep_saying = |line: &str| launch::say(&format!("blip2: {line}"));
    let outcome = match Cli::parse().command {
        Command::Launch(args) => run::launch(&args.config, &args.options, &keep_saying),
        Command::Resume(args) => run::resume(&args.run_dir, &args.options, &keep_saying),
        Command::Plan(args) => run::plan(&args),
        Command::Verify(args) => run::verify(&args.cases, args.json),
        Command::Import(args) => run::import(&args),
        Command::Export(args) => run::export(&args),
        Command::Data(Data::Prepare(args)) => prepare::prepare(&args, &say),
        Command::Data(Data::Index(args)) => index::index(&args),
        Command::Data(Data::Make(args)) => tools::make(&args, &say),
        Command::Data(Data::Verify(args)) => tools::verify(&args, &say),
        Command::Data(Data::Stats(args)) => tools::stats(&args, &say),
        Command::Data(Data::Inspect(args)) => tools::inspect(&args, &say),
        Command::Bench(Bench::Loader(args)) => bench::loader(&args, &say),
        Command::Bench(Bench::Step(args)) => bench::step(&args),
        Command::Bench(Bench::Allreduce(args)) => bench::allreduce(&args),
        Command::Ckpt(Ckpt::List(args)) => checkpoints::list(&args.run_dir),
        Command::Ckpt(Ckpt::Verify(args)) => checkpoints::verify(&args.run_dir),
    };
    launch::last_words();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            say(&launch::with_causes(&error));
            error.exit().into()
        }
    }
}
