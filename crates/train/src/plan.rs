//! Every derived number of a run, made once from the config and the world.
//!
//! After this nothing divides a batch size and nothing re-checks the config.

use std::path::{Path, PathBuf};

use collectives::ReduceOptions;
use launch::World;
use monitor::Phase;
use tch::{Device, Kind};

use crate::config::{
    ComputeDtype, Config, ContrastiveAccumulation, DeviceChoice, FeatureConfig, HandOver, OptimConfig,
    Recovery, Sharding, StageConfig, default_encode_batch,
};
use crate::error::TrainError;

/// What this rank does, in numbers.
pub struct Plan {
    /// The config as written.
    pub config: Config,
    /// Who this rank is.
    pub world: World,
    /// Where tensors live.
    pub device: Device,
    /// Autocast dtype of the trainable part; `None` = fp32.
    pub autocast: Option<Kind>,
    /// Where features are kept, and how many views of each training picture.
    pub features: FeatureConfig,
    /// Dtype of the frozen encoder's matrix products.
    pub vision_kind: Kind,
    /// Dtype of the frozen language model's matrix products.
    pub language_kind: Kind,
    /// Representation learning.
    pub stage1: StagePlan,
    /// Generative learning on top of stage 1.
    pub stage2: StagePlan,
    /// The same from a fresh Q-Former, where the config asks for it.
    pub stage2_without_stage1: Option<StagePlan>,
    /// How gradients travel.
    pub reduce: ReduceOptions,
}

/// One phase of training, in numbers.
#[derive(Clone, Debug)]
pub struct StagePlan {
    /// Its name in metrics and checkpoints.
    pub phase: Phase,
    /// Optimizer steps.
    pub steps: u64,
    /// Pairs of all ranks in one optimizer step.
    pub global_batch: usize,
    /// Pairs of one rank in one forward.
    pub micro_batch: usize,
    /// Forwards in one optimizer step.
    pub grad_accum_steps: usize,
    /// Pairs that meet in one ITC pass.
    pub contrast_batch: usize,
    /// Forwards of a rank that one ITC pass is over: more than one where the contrast is cached.
    pub contrast_parts: usize,
    /// Learning rate by step.
    pub schedule: Schedule,
    /// AdamW.
    pub optim: OptimConfig,
    /// Steps between checkpoints.
    pub checkpoint_every_steps: u64,
    /// Checkpoints kept.
    pub keep_checkpoints: usize,
    /// Steps between validations; 0 = never.
    pub validate_every_steps: u64,
    /// Which step goes on.
    pub hand_over: HandOver,
    /// Where its checkpoints are.
    pub checkpoint_dir: PathBuf,
}

/// Linear warm-up from zero, then a cosine per step (paper section 3.4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Top of the warm-up.
    pub peak_lr: f64,
    /// End of the cosine.
    pub min_lr: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps in all.
    pub steps: u64,
}

impl Schedule {
    /// Learning rate of optimizer step `step` (from 0).
    #[must_use]
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak_lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let done = (step - self.warmup_steps) as f64;
        let whole = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * (done / whole).min(1.0)).cos());
        self.min_lr + (self.peak_lr - self.min_lr) * cosine
    }
}

impl Plan {
    /// Checks the config against this world and derives every number.
    ///
    /// # Errors
    /// [`TrainError::Config`] naming the key that cannot be met and the remedy.
    pub fn new(config: Config, world: World, path: &Path) -> Result<Self, TrainError> {
        config.check().map_err(|detail| TrainError::Config { path: path.to_owned(), detail })?;
        let device = device(&config, &world, path)?;
        refuse_to_part_for_one(&config, &world, path)?;
        refuse_to_regroup_there(&config, &world, device, path)?;
        let kind = kind(config.run.compute_dtype, fast_kind(device));
        // Frozen: half precision costs nothing (paper section 3.4), where the hardware multiplies it fast.
        let vision_kind = self::kind(config.model.vision.dtype, kind);
        let language_kind = self::kind(config.model.language.dtype, kind);
        let autocast = (kind != Kind::Float).then_some(kind);
        let stage = |phase, stage: &StageConfig, key: &str| {
            StagePlan::new(phase, stage, key, &config.run.dir, world.world_size)
                .map_err(|detail| TrainError::Config { path: path.to_owned(), detail })
        };
        let stage1 = stage(Phase::Stage1, &config.stage1, "stage1")?;
        if stage1.grad_accum_steps > stage1.contrast_parts {
            return Err(TrainError::Config {
                path: path.to_owned(),
                detail: format!(
                    "stage1: global_batch {} in micro-batches of {} on {} ranks would accumulate, which takes \
                     negatives away from ITC; leave out stage1.micro_batch, lower stage1.global_batch, or set \
                     stage1.contrastive_accumulation = \"cached\"",
                    stage1.global_batch, stage1.micro_batch, world.world_size
                ),
            });
        }
        let stage2 = stage(Phase::Stage2, &config.stage2, "stage2")?;
        let stage2_without_stage1 = match config.evaluation.without_stage1 {
            true => Some(stage(Phase::Stage2WithoutStage1, &config.stage2, "stage2")?),
            false => None,
        };
        let features = features(&config);
        let reduce = ReduceOptions {
            bucket_bytes: (config.distributed.bucket_mib * f64::from(1 << 20)) as usize,
            dtype: config.distributed.gradient_dtype,
        };
        Ok(Self {
            features,
            reduce,
            config,
            world,
            device,
            autocast,
            vision_kind,
            language_kind,
            stage1,
            stage2,
            stage2_without_stage1,
        })
    }

    /// This rank outlives the loss of another.
    #[must_use]
    pub fn regroups(&self) -> bool {
        self.config.distributed.recovery == Recovery::Regroup && self.world.world_size > 1
    }

    /// The lines that `blip2 plan` and the start of a run print.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!(
            "run {} in {}: {} rank(s) on {:?}, forward in {}; frozen image encoder in {:?}, language model in {:?}",
            self.config.run.name,
            self.config.run.dir.display(),
            self.world.world_size,
            self.device,
            self.autocast.map_or("fp32".into(), |kind| format!("{kind:?} autocast")),
            self.vision_kind,
            self.language_kind,
        );
        for stage in [Some(&self.stage1), Some(&self.stage2), self.stage2_without_stage1.as_ref()]
            .into_iter()
            .flatten()
        {
            text += &format!(
                "\n  {}: {} steps x {} pairs ({} per rank x {} ranks x {} micro-steps), contrast batch {}{}, \
                 peak lr {:e}, warm-up {} steps",
                stage.phase.name(),
                stage.steps,
                stage.global_batch,
                stage.micro_batch,
                self.world.world_size,
                stage.grad_accum_steps,
                stage.contrast_batch,
                if stage.contrast_parts > 1 { " (cached: embeddings first, gradients second)" } else { "" },
                stage.schedule.peak_lr,
                stage.schedule.warmup_steps,
            );
        }
        text
    }
}

impl StagePlan {
    fn new(phase: Phase, c: &StageConfig, key: &str, dir: &Path, world_size: usize) -> Result<Self, String> {
        if (c.steps == 0 && c.from.is_none()) || c.checkpoint_every_steps == 0 {
            return Err(format!(
                "{key}.steps and {key}.checkpoint_every_steps must be at least 1; only weights that {key}.from names \
                 may be taken without a step"
            ));
        }
        if c.steps > 0 && c.optim.warmup_steps > c.steps {
            return Err(format!(
                "{key}.optim.warmup_steps = {} is longer than {key}.steps = {}",
                c.optim.warmup_steps, c.steps
            ));
        }
        if c.keep_checkpoints == 0 {
            return Err(format!("{key}.keep_checkpoints must be at least 1"));
        }
        let micro_batch = c.micro_batch.unwrap_or(c.global_batch / world_size);
        let pairs_per_pass = micro_batch * world_size;
        if pairs_per_pass == 0 || !c.global_batch.is_multiple_of(pairs_per_pass) {
            return Err(format!(
                "{key}.global_batch = {} is no multiple of {micro_batch} pairs x {world_size} ranks; \
                 change {key}.global_batch, {key}.micro_batch or the number of ranks",
                c.global_batch
            ));
        }
        let grad_accum_steps = c.global_batch / pairs_per_pass;
        let contrast_parts = match c.contrastive_accumulation {
            ContrastiveAccumulation::None => 1,
            ContrastiveAccumulation::Cached => grad_accum_steps,
        };
        let contrast_batch = pairs_per_pass * contrast_parts;
        if phase == Phase::Stage1 && contrast_batch < 2 {
            return Err(format!("{key}.global_batch must be at least 2: a single pair has no negatives"));
        }
        Ok(Self {
            phase,
            steps: c.steps,
            global_batch: c.global_batch,
            micro_batch,
            grad_accum_steps,
            contrast_batch,
            contrast_parts,
            schedule: Schedule {
                peak_lr: c.optim.peak_lr,
                min_lr: c.optim.min_lr,
                warmup_steps: c.optim.warmup_steps,
                steps: c.steps,
            },
            optim: c.optim.clone(),
            checkpoint_every_steps: c.checkpoint_every_steps,
            keep_checkpoints: c.keep_checkpoints,
            validate_every_steps: c.validate_every_steps,
            hand_over: c.hand_over,
            checkpoint_dir: dir.join("checkpoints").join(phase.name()),
        })
    }
}

/// # Errors
/// [`TrainError::Config`] where weights are to be held in parts and nobody is there to hold the others.
fn refuse_to_part_for_one(config: &Config, world: &World, path: &Path) -> Result<(), TrainError> {
    if config.distributed.sharding == Sharding::None || world.world_size > 1 {
        return Ok(());
    }
    let detail = "distributed.sharding = \"frozen\" parts the language model over ranks, and here is one; start more \
                  (--nproc-per-node), or leave it out";
    Err(TrainError::Config { path: path.to_owned(), detail: detail.into() })
}

/// # Errors
/// [`TrainError::Config`] where ranks that outlive another could not meet again.
fn refuse_to_regroup_there(
    config: &Config,
    world: &World,
    device: Device,
    path: &Path,
) -> Result<(), TrainError> {
    let one_node = world.local_world_size == world.world_size;
    if config.distributed.recovery == Recovery::Restart || (device == Device::Cpu && one_node) {
        return Ok(());
    }
    let detail = "distributed.recovery = \"regroup\" is for the CPUs of one node; leave it out, or set run.device = \"cpu\" and \
                  launch on one node";
    Err(TrainError::Config { path: path.to_owned(), detail: detail.into() })
}

/// As the config says; a run without a cache keeps the features of its evaluation alone.
fn features(config: &Config) -> FeatureConfig {
    config.data.features.clone().unwrap_or_else(|| FeatureConfig {
        dir: config.run.dir.join("features"),
        views: 0,
        batch: default_encode_batch(),
    })
}

fn device(config: &Config, world: &World, path: &Path) -> Result<Device, TrainError> {
    let gpus = tch::Cuda::device_count().max(0) as usize;
    match config.run.device {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto if gpus == 0 => Ok(Device::Cpu),
        DeviceChoice::Cuda if gpus == 0 => Err(TrainError::Config {
            path: path.to_owned(),
            detail:
                "run.device = \"cuda\", but libtorch sees no GPU; use \"auto\", or run scripts/setup --cuda"
                    .into(),
        }),
        _ if world.local_rank >= gpus => Err(TrainError::Config {
            path: path.to_owned(),
            detail: format!(
                "{} ranks on this machine, but {gpus} GPU(s); pass --nproc-per-node {gpus}",
                world.local_world_size
            ),
        }),
        _ => Ok(Device::Cuda(world.local_rank)),
    }
}

/// What the hardware multiplies fastest without loss of range.
fn fast_kind(device: Device) -> Kind {
    match device.is_cuda() || torch_bridge::cpu_has_fast_bf16() {
        true => Kind::BFloat16,
        false => Kind::Float,
    }
}

fn kind(choice: ComputeDtype, auto: Kind) -> Kind {
    match choice {
        ComputeDtype::Auto => auto,
        ComputeDtype::Fp32 => Kind::Float,
        ComputeDtype::Bf16 => Kind::BFloat16,
        ComputeDtype::Fp16 => Kind::Half,
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn warms_up_linearly_and_ends_at_min_lr() {
        let schedule = Schedule { peak_lr: 1.0, min_lr: 0.1, warmup_steps: 4, steps: 104 };
        assert_eq!(schedule.lr(0), 0.25);
        assert_eq!(schedule.lr(3), 1.0);
        assert!((schedule.lr(54) - 0.55).abs() < 1e-12, "half way down the cosine");
        assert!((schedule.lr(104) - 0.1).abs() < 1e-12);
    }
}
