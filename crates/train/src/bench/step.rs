//! One stage-1 step at the sizes of a config, on one rank of any number. Weights and inputs are random, so nothing needs
//! to be on this machine but the program.

use std::path::PathBuf;
use std::time::Instant;

use collectives::{GradientReducer, ProcessGroup, Reduction};
use launch::World;
use model::{Negatives, Stage1, Stage1Inputs, TextInput, VisionEncoder, Weights};
use monitor::Phase;
use monitor::memory::peak_rss_bytes;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use crate::config::Config;
use crate::error::TrainError;
use crate::optim::{self, AdamW};
use crate::plan::Plan;
use crate::reduction::in_order_of_gradients;
use crate::sizes;

/// Side of the square matrices whose product shows what the machine can do.
pub(super) const MATMUL_SIDE: i64 = 2048;
const MATMUL_REPEATS: i32 = 4;

/// What is measured.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// The run's TOML file.
    pub config: PathBuf,
    /// Values of it that are replaced.
    pub overrides: Vec<String>,
    /// Pairs of each rank in a step.
    pub pairs: usize,
    /// Steps that are timed, behind one that is not; at least one is.
    pub steps: usize,
}

/// Seconds of the parts of one step.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Parts {
    /// The frozen encoder.
    pub encode: f64,
    /// Q-Former and losses.
    pub forward: f64,
    /// Gradients, and their mean over ranks.
    pub backward: f64,
    /// The optimizer.
    pub update: f64,
}

impl Parts {
    pub fn total(self) -> f64 {
        self.encode + self.forward + self.backward + self.update
    }
}

/// What one rank measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    /// Device and dtypes, as a phrase.
    pub setting: String,
    pub parameters: i64,
    pub threads: i32,
    /// The core that this rank was kept on.
    pub core: Option<usize>,
    /// Of each timed step.
    pub steps: Vec<Parts>,
    /// Seconds of all timed steps in which gradients were under way.
    pub comm_seconds: f64,
    /// The part of them in which gradients were still computed.
    pub comm_hidden_seconds: f64,
    /// Largest resident memory so far.
    pub peak_rss_bytes: u64,
    /// What the device multiplies in the dtype of the trainable part; of a rank alone, others would disturb each other.
    pub matmul_gflops: Option<f64>,
}

/// Whether a rank keeps to one core, so that N ranks can be compared with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cores {
    /// All that there are.
    All,
    /// One for each rank, where the CPU computes.
    One,
}

/// A stage 1 of the config's sizes, with its encoder.
struct Bench {
    plan: Plan,
    group: Box<dyn ProcessGroup>,
    reducer: Box<dyn GradientReducer>,
    encoder: VisionEncoder,
    stage1: Stage1,
    optimizer: AdamW,
    pixels: Tensor,
    text: TextInput,
    parameters: i64,
}

/// Measures steps as one rank of `world`: one to warm up, then as many as `options` says.
pub(super) fn measure(options: &StepOptions, world: World, cores: Cores) -> Result<Measured, TrainError> {
    torch_bridge::keep_freed_memory();
    let mut config = Config::read(&options.config, &options.overrides)?;
    config.stage1.global_batch = options.pairs * world.world_size;
    config.stage1.micro_batch = None;
    let plan = Plan::new(config, world, &options.config)?;
    let mut core = None;
    if cores == Cores::One && !plan.device.is_cuda() {
        // Before the first thread is started: all of them are to stay there.
        core = launch::pin_to_core(plan.world.local_rank);
        tch::set_num_threads(1);
    }
    let mut bench = Bench::new(plan, options.pairs as i64)?;
    bench.step()?;
    bench.group.barrier()?;
    let mut measured = bench.nothing_measured(core);
    for _ in 0..options.steps.max(1) {
        let (parts, reduction) = bench.step()?;
        measured.steps.push(parts);
        measured.comm_seconds += reduction.busy_seconds;
        measured.comm_hidden_seconds += reduction.hidden_seconds();
    }
    measured.peak_rss_bytes = peak_rss_bytes().unwrap_or(0);
    measured.matmul_gflops = (bench.plan.world.world_size == 1).then(|| bench.matmul_gflops());
    Ok(measured)
}

impl Bench {
    fn new(plan: Plan, pairs: i64) -> Result<Self, TrainError> {
        let device = plan.device;
        let group = collectives::connect(&plan.world, device)?;
        let seed = plan.config.run.seed.cast_signed();
        tch::manual_seed(seed);
        let vision = &plan.config.model.vision.architecture;
        let encoder = VisionEncoder::new(vision, &mut Weights::random(), plan.vision_kind, device);
        let store = nn::VarStore::new(device);
        let config = sizes::planned_stage1(&plan.config)?;
        let stage1 = Stage1::new(&store.root(), &config);
        let named = store.variables().into_iter().collect();
        let optimizer = AdamW::new(&named, &Default::default(), &plan.stage1.optim);
        let reducer = group.reducer(&in_order_of_gradients(named), plan.reduce)?;
        // Ranks have equal weights and pairs of their own.
        tch::manual_seed(seed.wrapping_add(1 + plan.world.rank as i64));
        let side = plan.config.data.transform.image_size as i64;
        let tokens = plan.config.data.max_text_tokens as i64;
        let words = config.qformer.text.map_or(2, |text| text.vocab_size);
        let ids = Tensor::randint_low(1, words, [pairs, tokens], (Kind::Int64, device));
        Ok(Self {
            group,
            reducer,
            encoder,
            stage1,
            optimizer,
            pixels: Tensor::randn([pairs, 3, side, side], (Kind::Float, device)),
            text: TextInput { mask: ids.ones_like(), ids },
            parameters: config.parameters(),
            plan,
        })
    }

    fn step(&mut self) -> Result<(Parts, Reduction), TrainError> {
        let device = self.plan.device;
        let mut clock = Clock::start(device);
        let image = self.encoder.forward(&self.pixels);
        let encode = clock.lap();
        let uniforms = Tensor::rand([2, self.pixels.size()[0]], (Kind::Double, device));
        let negatives = Negatives::Drawn { uniforms };
        let inputs = Stage1Inputs { image, text: self.text.clone(), concepts: None, negatives };
        let losses = torch_bridge::autocast(device, self.plan.autocast, || {
            self.stage1.losses(&inputs, self.group.as_ref(), true)
        })?;
        let forward = clock.lap();
        let reduction = self.reducer.reduce(&losses.total, &|| ())?;
        let backward = clock.lap();
        let gradients = self.optimizer.gradients();
        let divisor = optim::divisor(optim::norm(&gradients, 1.0), 1.0, self.plan.stage1.optim.max_grad_norm);
        self.optimizer.step(&gradients, 1e-5, divisor);
        drop(gradients);
        self.optimizer.drop_gradients();
        Ok((Parts { encode, forward, backward, update: clock.lap() }, reduction))
    }

    fn kind(&self) -> Kind {
        self.plan.autocast.unwrap_or(Kind::Float)
    }

    fn nothing_measured(&self, core: Option<usize>) -> Measured {
        let phase = Phase::Stage1.name();
        let (device, kind, vision) = (self.plan.device, self.kind(), self.plan.vision_kind);
        Measured {
            setting: format!("{phase} on {device:?}, trainable part in {kind:?}, encoder in {vision:?}"),
            parameters: self.parameters,
            threads: tch::get_num_threads(),
            core,
            steps: Vec::new(),
            comm_seconds: 0.0,
            comm_hidden_seconds: 0.0,
            peak_rss_bytes: 0,
            matmul_gflops: None,
        }
    }

    fn matmul_gflops(&self) -> f64 {
        let matrix = Tensor::randn([MATMUL_SIDE, MATMUL_SIDE], (Kind::Float, self.plan.device));
        let matrix = matrix.to_kind(self.kind());
        let _warm_up = matrix.matmul(&matrix);
        let mut clock = Clock::start(self.plan.device);
        for _ in 0..MATMUL_REPEATS {
            let _product = matrix.matmul(&matrix);
        }
        let flops = 2.0 * (MATMUL_SIDE as f64).powi(3) * f64::from(MATMUL_REPEATS);
        1e-9 * flops / clock.lap()
    }
}

/// Laps that wait for the device.
struct Clock {
    device: tch::Device,
    last: Instant,
}

impl Clock {
    fn start(device: tch::Device) -> Self {
        let mut clock = Self { device, last: Instant::now() };
        clock.lap();
        clock
    }

    /// Seconds since the last lap.
    fn lap(&mut self) -> f64 {
        if let tch::Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        self.last = now;
        seconds
    }
}
