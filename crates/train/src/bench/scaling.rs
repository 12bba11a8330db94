//! `blip2-worker bench-step`: one rank beside N ranks, each with as many pairs and on a core of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use launch::World;
use serde::Serialize;

use super::step::{Cores, MATMUL_SIDE, Measured, Parts, StepOptions, measure};
use super::{median, read_json, write_json};
use crate::error::TrainError;
use crate::ranks;

/// Hidden subcommand of `blip2-worker` that [`step_rank`] is behind.
const SUBCOMMAND: &str = "bench-step-rank";

/// What a world of some size does in a step: medians over steps, each as long as its slowest rank's.
#[derive(Debug, Serialize)]
struct Figures {
    ranks: usize,
    pairs_per_second: f64,
    step_seconds: f64,
    encode_seconds: f64,
    forward_seconds: f64,
    backward_seconds: f64,
    update_seconds: f64,
    /// Of the largest rank.
    peak_memory_bytes: u64,
}

/// N ranks beside one.
#[derive(Debug, Serialize)]
struct Scaling {
    all_ranks: Figures,
    /// Pairs a second of N ranks, as a share of N times those of one.
    weak_scaling: f64,
    /// Seconds of a step in which gradients were under way, mean over ranks.
    comm_seconds: f64,
    comm_hidden_seconds: f64,
    /// The part of the communication that the backward pass hid; absent where nothing was under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    comm_hidden_share: Option<f64>,
}

/// The whole measurement; with `--json` the last line.
#[derive(Debug, Serialize)]
struct Report {
    setting: String,
    trainable_parameters: i64,
    pairs_per_rank: usize,
    steps: usize,
    /// Cores that this program may use.
    cores: usize,
    threads_per_rank: i32,
    one_rank: Figures,
    #[serde(flatten)]
    scaling: Option<Scaling>,
    matmul_gflops: f64,
}

/// Measures stage-1 steps: on one rank in this process with all cores for `ranks` = 1, else on one rank and on `ranks`
/// ranks, each on one core. Text; with `json` its last line is an object.
///
/// # Errors
/// [`TrainError::Config`] for a config that cannot run, [`TrainError::Read`] where it names sizes in files that are not
/// there, [`TrainError::Ranks`] where ranks do not end well.
pub fn step(options: &StepOptions, ranks: usize, json: bool) -> Result<String, TrainError> {
    let (one, many) = match ranks {
        0 | 1 => (vec![measure(options, World::single(), Cores::All)?], None),
        _ => (on_ranks(options, 1)?, Some(on_ranks(options, ranks)?)),
    };
    let report = Report::new(options, &one, many.as_deref());
    let mut text = report.text();
    if json {
        text += &format!("\n{}", serde_json::json!(report));
    }
    Ok(text)
}

/// One rank of [`step`]: leaves what it measured in the folder `out`. Started through the launcher.
///
/// # Errors
/// As [`step`]; [`TrainError::Peer`] when another rank is gone.
pub fn step_rank(options: &StepOptions, out: &Path) -> Result<(), TrainError> {
    let world = World::from_env()?;
    launch::die_with_parent(&world)?;
    let path = file_of(out, world.rank);
    write_json(&path, &measure(options, world, Cores::One)?)
}

fn file_of(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("rank-{rank}.json"))
}

fn on_ranks(options: &StepOptions, nproc: usize) -> Result<Vec<Measured>, TrainError> {
    let folder = ranks::folder()?;
    let mut args: Vec<OsString> = vec![SUBCOMMAND.into(), "--out".into(), folder.path().into()];
    for (name, count) in [("--pairs", options.pairs), ("--steps", options.steps)] {
        args.extend([name.into(), count.to_string().into()]);
    }
    args.extend(options.overrides.iter().flat_map(|set| ["--set".into(), set.into()]));
    args.extend(["--".into(), options.config.clone().into()]);
    ranks::run(args, nproc, folder.path())?;
    (0..nproc).map(|rank| read_json(&file_of(folder.path(), rank))).collect()
}

impl Figures {
    fn new(ranks: &[Measured], pairs: usize) -> Self {
        let steps = ranks.iter().map(|rank| rank.steps.len()).min().unwrap_or(0);
        let of = |part: fn(Parts) -> f64| {
            let slowest = |step: usize| ranks.iter().map(|rank| part(rank.steps[step])).fold(0.0, f64::max);
            median((0..steps).map(slowest))
        };
        let step_seconds = of(Parts::total);
        Self {
            ranks: ranks.len(),
            pairs_per_second: (pairs * ranks.len()) as f64 / step_seconds,
            step_seconds,
            encode_seconds: of(|parts| parts.encode),
            forward_seconds: of(|parts| parts.forward),
            backward_seconds: of(|parts| parts.backward),
            update_seconds: of(|parts| parts.update),
            peak_memory_bytes: ranks.iter().map(|rank| rank.peak_rss_bytes).max().unwrap_or(0),
        }
    }

    fn row(&self) -> String {
        format!(
            "\n  {:5} {:9.2} {:9.3} {:8.3} {:8.3} {:9.3} {:8.3} {:11.2} GiB",
            self.ranks,
            self.pairs_per_second,
            self.step_seconds,
            self.encode_seconds,
            self.forward_seconds,
            self.backward_seconds,
            self.update_seconds,
            self.peak_memory_bytes as f64 / f64::from(1 << 30),
        )
    }
}

impl Scaling {
    fn new(one: &Figures, ranks: &[Measured], pairs: usize) -> Self {
        let all_ranks = Figures::new(ranks, pairs);
        let steps: usize = ranks.iter().map(|rank| rank.steps.len()).sum();
        let mean = |of: fn(&Measured) -> f64| ranks.iter().map(of).sum::<f64>() / steps as f64;
        let comm_seconds = mean(|rank| rank.comm_seconds);
        let comm_hidden_seconds = mean(|rank| rank.comm_hidden_seconds);
        Self {
            weak_scaling: all_ranks.pairs_per_second / (ranks.len() as f64 * one.pairs_per_second),
            all_ranks,
            comm_seconds,
            comm_hidden_seconds,
            comm_hidden_share: (comm_seconds > 0.0).then(|| comm_hidden_seconds / comm_seconds),
        }
    }

    fn text(&self, cores: usize) -> String {
        let ranks = self.all_ranks.ranks;
        let mut text = self.all_ranks.row();
        text += &format!(
            "\n  weak scaling: {ranks} ranks do {:.1} % of {ranks} times what one does",
            100.0 * self.weak_scaling
        );
        if ranks > cores {
            text += &format!("; they share {cores} core(s), so this says nothing of a machine with enough");
        }
        text += &format!("\n  gradients under way {:.3} s a step", self.comm_seconds);
        if let Some(share) = self.comm_hidden_share {
            text += &format!(", {:.0} % of it hidden by the backward pass", 100.0 * share);
        }
        text
    }
}

impl Report {
    fn new(options: &StepOptions, one: &[Measured], many: Option<&[Measured]>) -> Self {
        let one_rank = Figures::new(one, options.pairs);
        let first = &one[0];
        Self {
            setting: first.setting.clone(),
            trainable_parameters: first.parameters,
            pairs_per_rank: options.pairs,
            steps: first.steps.len(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads_per_rank: first.threads,
            scaling: many.map(|ranks| Scaling::new(&one_rank, ranks, options.pairs)),
            one_rank,
            matmul_gflops: first.matmul_gflops.unwrap_or(f64::NAN),
        }
    }

    fn text(&self) -> String {
        let kept = match self.scaling {
            Some(_) if self.threads_per_rank == 1 => "each rank on a core of its own".to_owned(),
            _ => format!("{} threads a rank", self.threads_per_rank),
        };
        let mut text = format!(
            "{}\n  {} trainable parameters, random weights and inputs; {} pairs a rank, {kept}; medians of {} steps\n  \
             ranks   pairs/s  s a step   encode  forward  backward   update  memory of one",
            self.setting,
            crate::grouped(self.trainable_parameters),
            self.pairs_per_rank,
            self.steps,
        );
        text += &self.one_rank.row();
        if let Some(scaling) = &self.scaling {
            text += &scaling.text(self.cores);
        }
        text + &format!(
            "\n  limit: matrix products of {MATMUL_SIDE} x {MATMUL_SIDE} run at {:.0} GFLOP/s on one rank",
            self.matmul_gflops
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(totals: &[f64]) -> Measured {
        Measured {
            setting: "stage1".into(),
            parameters: 1,
            threads: 1,
            core: Some(0),
            steps: totals.iter().map(|&backward| Parts { backward, ..Parts::default() }).collect(),
            comm_seconds: 0.5 * totals.len() as f64,
            comm_hidden_seconds: 0.4 * totals.len() as f64,
            peak_rss_bytes: 1,
            matmul_gflops: None,
        }
    }

    #[test]
    fn a_step_is_as_long_as_its_slowest_rank_and_perfect_scaling_is_one() {
        let one = Figures::new(&[rank(&[1.0, 1.0, 9.0])], 4);
        assert_eq!((one.step_seconds, one.pairs_per_second), (1.0, 4.0));
        let two = Scaling::new(&one, &[rank(&[1.0, 0.5, 1.0]), rank(&[0.5, 1.0, 1.0])], 4);
        assert_eq!((two.all_ranks.step_seconds, two.weak_scaling), (1.0, 1.0));
        let slow = Scaling::new(&one, &[rank(&[2.0]), rank(&[1.0])], 4);
        assert_eq!(slow.weak_scaling, 0.5);
        assert_eq!(slow.comm_hidden_share, Some(0.8));
    }
}
