//! `blip2-worker`: one rank of a run, and everything else that needs tensors. `blip2` starts it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use train::TrainError;
use train::bench::{self, StepOptions};
use train::convert::{self, Export, Form};

#[derive(Parser)]
#[command(
    name = "blip2-worker",
    version,
    about = "one rank of a blip2 run; started by `blip2 launch`, torchrun or srun"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train, evaluate and report, as one rank of the world in the environment.
    Train(RunArgs),
    /// Print the run folder of a config, or what is wrong with it.
    RunDir(RunArgs),
    /// Print the derived numbers of a run without starting it.
    Plan {
        #[command(flatten)]
        run: RunArgs,
        /// Ranks in all.
        #[arg(long, default_value_t = 1)]
        world_size: usize,
    },
    /// Time and memory of a stage-1 step at the sizes of a config, with random weights and inputs, on one rank and on
    /// several.
    BenchStep {
        #[command(flatten)]
        step: StepArgs,
        /// Ranks beside the one, each on one core; 1 measures one rank on all cores and nothing else.
        #[arg(long, default_value_t = 2)]
        ranks: usize,
        /// End with one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// How fast ranks of this machine sum over Gloo.
    BenchAllreduce {
        /// How many.
        #[arg(long, default_value_t = 2)]
        ranks: usize,
        /// End with one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compare numerics with reference cases.
    Verify {
        /// Folders of cases.
        #[arg(required = true)]
        cases: Vec<PathBuf>,
        /// One JSON object a case instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Make folders that a run can name out of other programs' weights.
    Import {
        /// A `.pth`, `.safetensors` or GGUF file, or a Hugging Face folder.
        source: PathBuf,
        /// The folder to make.
        dest: PathBuf,
        /// A `config.json` for sizes that the tensors do not tell.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Make other programs' weights out of a run or a checkpoint.
    Export {
        /// A run folder, a checkpoint, or what `import` made.
        source: PathBuf,
        /// The folder or file to make.
        dest: PathBuf,
        /// Whose form.
        #[arg(long)]
        to: ExportTo,
        /// With `--to lavis`: the frozen models too.
        #[arg(long)]
        whole: bool,
        /// Folder of the frozen image encoder, if not the run's.
        #[arg(long)]
        vision: Option<PathBuf>,
        /// Folder of the frozen language model, if not the run's.
        #[arg(long)]
        language: Option<PathBuf>,
        /// Bytes of one shard.
        #[arg(long, default_value_t = checkpoint::SHARD_BYTES)]
        shard_bytes: u64,
    },
    /// One rank of `bench-step`, which starts it.
    #[command(hide = true)]
    BenchStepRank {
        #[command(flatten)]
        step: StepArgs,
        /// Folder for what this rank measured.
        #[arg(long)]
        out: PathBuf,
    },
    /// One rank of `bench-allreduce`, which starts it.
    #[command(hide = true)]
    BenchAllreduceRank {
        /// Folder for what rank 0 measured.
        out: PathBuf,
    },
    /// One rank of a case with several ranks; `verify` starts it.
    #[command(hide = true)]
    VerifyRank {
        /// Folder of the case.
        case: PathBuf,
        /// Folder for what this rank found.
        out: PathBuf,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ExportTo {
    /// A folder for transformers.
    Hf,
    /// A `.pth` for LAVIS.
    Lavis,
}

#[derive(clap::Args)]
struct RunArgs {
    /// The run's TOML file.
    config: PathBuf,
    /// Replace a value of the config: `--set stage1.steps=100`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(clap::Args)]
struct StepArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Pairs of each rank in a step.
    #[arg(long, default_value_t = 2)]
    pairs: usize,
    /// Steps that are timed, behind one that is not.
    #[arg(long, default_value_t = 3)]
    steps: usize,
}

impl StepArgs {
    fn options(self) -> StepOptions {
        let RunArgs { config, overrides } = self.run;
        StepOptions { config, overrides, pairs: self.pairs, steps: self.steps }
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Train(args) => train::train(&args.config, &args.overrides),
        Command::RunDir(args) => {
            train::run_dir(&args.config, &args.overrides).map(|dir| println!("{}", dir.display()))
        }
        Command::Plan { run, world_size } => {
            train::describe(&run.config, &run.overrides, world_size).map(|text| println!("{text}"))
        }
        Command::BenchStep { step, ranks, json } => {
            bench::step(&step.options(), ranks, json).map(|text| println!("{text}"))
        }
        Command::BenchAllreduce { ranks, json } => {
            bench::allreduce(ranks, json).map(|text| println!("{text}"))
        }
        Command::BenchStepRank { step, out } => bench::step_rank(&step.options(), &out),
        Command::BenchAllreduceRank { out } => bench::allreduce_rank(&out),
        Command::Verify { cases, json } => train::verify::verify(&cases, json),
        Command::Import { source, dest, config } => {
            convert::import(&source, &dest, config.as_deref(), &|line| eprintln!("blip2: {line}"))
        }
        Command::Export { source, dest, to, whole, vision, language, shard_bytes } => {
            let form = match (to, whole) {
                (ExportTo::Hf, _) => Form::HuggingFace,
                (ExportTo::Lavis, false) => Form::Lavis,
                (ExportTo::Lavis, true) => Form::LavisWhole,
            };
            let export = Export { source, dest, form, vision, language, shard_bytes };
            convert::export(&export, &|line| eprintln!("blip2: {line}"))
        }
        Command::VerifyRank { case, out } => train::verify::verify_rank(&case, &out),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blip2: {}", launch::with_causes(&error));
            match error {
                TrainError::Verify(_) => ExitCode::FAILURE,
                other => other.exit().into(),
            }
        }
    }
}
