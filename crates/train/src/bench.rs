//! `blip2-worker bench-step`: what one stage-1 step costs at the sizes of a config. Weights and inputs are random, so nothing
//! needs to be on this machine but the program.

use std::path::Path;
use std::time::Instant;

use collectives::SoloGroup;
use launch::World;
use model::{Negatives, Stage1, Stage1Inputs, TextInput, VisionEncoder, Weights};
use monitor::Phase;
use monitor::memory::peak_rss_bytes;
use tch::{Kind, Tensor, nn};

use crate::config::Config;
use crate::error::TrainError;
use crate::optim::{AdamW, clip};
use crate::plan::Plan;
use crate::sizes;

/// Side of the square matrices whose product shows what the machine can do.
const MATMUL_SIDE: i64 = 2048;
const MATMUL_REPEATS: i32 = 4;

/// Seconds of the parts of one step.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    encode: f64,
    forward: f64,
    backward: f64,
    update: f64,
}

impl Parts {
    fn total(self) -> f64 {
        self.encode + self.forward + self.backward + self.update
    }
}

/// A stage 1 of the config's sizes, with its encoder.
struct Bench {
    plan: Plan,
    encoder: VisionEncoder,
    stage1: Stage1,
    optimizer: AdamW,
    pixels: Tensor,
    text: TextInput,
    parameters: i64,
}

/// Measures stage-1 steps of `pairs` pairs in this process: one to warm up, then `steps`; their mean, as text.
///
/// # Errors
/// [`TrainError::Config`] for a config that cannot run, [`TrainError::Read`] where it names sizes in files that are not there.
pub fn step(path: &Path, overrides: &[String], pairs: usize, steps: usize) -> Result<String, TrainError> {
    torch_bridge::keep_freed_memory();
    let mut config = Config::read(path, overrides)?;
    config.stage1.global_batch = pairs;
    config.stage1.micro_batch = None;
    let mut bench = Bench::new(Plan::new(config, World::single(), path)?, pairs as i64)?;
    bench.measured()?;
    let mut sum = Parts::default();
    for _ in 0..steps {
        let one = bench.measured()?;
        sum.encode += one.encode;
        sum.forward += one.forward;
        sum.backward += one.backward;
        sum.update += one.update;
    }
    Ok(bench.report(sum, pairs, steps.max(1)))
}

impl Bench {
    fn new(plan: Plan, pairs: i64) -> Result<Self, TrainError> {
        let device = plan.device;
        tch::manual_seed(plan.config.run.seed.cast_signed());
        let vision = &plan.config.model.vision.architecture;
        let encoder = VisionEncoder::new(vision, &mut Weights::random(), plan.vision_kind, device);
        let store = nn::VarStore::new(device);
        let config = sizes::planned_stage1(&plan.config)?;
        let stage1 = Stage1::new(&store.root(), &config);
        let named = store.variables().into_iter().collect();
        let optimizer = AdamW::new(&named, &Default::default(), &plan.stage1.optim);
        let side = plan.config.data.transform.image_size as i64;
        let tokens = plan.config.data.max_text_tokens as i64;
        let words = config.qformer.text.map_or(2, |text| text.vocab_size);
        let ids = Tensor::randint_low(1, words, [pairs, tokens], (Kind::Int64, device));
        Ok(Self {
            encoder,
            stage1,
            optimizer,
            pixels: Tensor::randn([pairs, 3, side, side], (Kind::Float, device)),
            text: TextInput { mask: ids.ones_like(), ids },
            parameters: config.parameters(),
            plan,
        })
    }

    fn measured(&mut self) -> Result<Parts, TrainError> {
        let device = self.plan.device;
        let mut clock = Clock::start(device);
        let image = self.encoder.forward(&self.pixels);
        let encode = clock.lap();
        let uniforms = Tensor::rand([2, self.pixels.size()[0]], (Kind::Double, device));
        let negatives = Negatives::Drawn { uniforms };
        let inputs = Stage1Inputs { image, text: self.text.clone(), concepts: None, negatives };
        let group = SoloGroup::new(device);
        let losses =
            torch_bridge::autocast(device, self.plan.autocast, || self.stage1.losses(&inputs, &group, true))?;
        let forward = clock.lap();
        losses.total.backward();
        let backward = clock.lap();
        let gradients = self.optimizer.gradients();
        let (_, divisor) = clip(&gradients, 1.0, self.plan.stage1.optim.max_grad_norm);
        self.optimizer.step(&gradients, 1e-5, divisor);
        drop(gradients);
        self.optimizer.drop_gradients();
        Ok(Parts { encode, forward, backward, update: clock.lap() })
    }

    fn report(&self, sum: Parts, pairs: usize, steps: usize) -> String {
        let per_step = |seconds: f64| seconds / steps as f64;
        let kind = self.plan.autocast.unwrap_or(Kind::Float);
        format!(
            "{}: one step of {pairs} pairs on {:?}, {} threads, trainable part in {kind:?}, encoder in {:?}\n  \
             {} trainable parameters, random weights and inputs\n  \
             {:.2} s a step, {:.2} pairs/s: encode {:.2} s, forward {:.2} s, backward {:.2} s, update {:.2} s\n  \
             peak memory {:.2} GiB\n  \
             limit: matrix products of {MATMUL_SIDE} x {MATMUL_SIDE} here run at {:.0} GFLOP/s in {kind:?}",
            Phase::Stage1.name(),
            self.plan.device,
            tch::get_num_threads(),
            self.plan.vision_kind,
            crate::grouped(self.parameters),
            per_step(sum.total()),
            pairs as f64 / per_step(sum.total()),
            per_step(sum.encode),
            per_step(sum.forward),
            per_step(sum.backward),
            per_step(sum.update),
            peak_rss_bytes().unwrap_or(0) as f64 / f64::from(1 << 30),
            self.matmul_gflops(kind),
        )
    }

    fn matmul_gflops(&self, kind: Kind) -> f64 {
        let matrix = Tensor::randn([MATMUL_SIDE, MATMUL_SIDE], (Kind::Float, self.plan.device)).to_kind(kind);
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
