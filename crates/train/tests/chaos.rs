//! `scripts/chaos`: faults at random moments of a tiny run, counted and timed.
//!
//! A program of its own (`harness = false`), because it takes arguments; `e2e::chaos` runs a few of each in CI.

#[path = "e2e/common/mod.rs"]
mod common;

use std::process::ExitCode;

use clap::Parser;
use common::{Chaos, Scenario, Trial};

#[derive(Parser)]
#[command(
    name = "chaos",
    about = "disturb a tiny run again and again and compare it with one that nobody disturbed"
)]
struct Arguments {
    /// p1: kill -9 of a rank; p2: of two or three; p3: of the launcher; p4: SIGSTOP of a rank; p5: a stop signal; p10: kill
    /// -9 of a rank between the updates of two.
    #[arg(long)]
    scenario: String,
    /// What becomes of the other ranks: restart or regroup.
    #[arg(long, default_value = "restart")]
    recovery: String,
    /// Trials.
    #[arg(long, default_value_t = 10)]
    n: usize,
    /// The same seed strikes at the same steps.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// End with a line of JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Arguments { scenario, recovery, n, seed, json } = Arguments::parse();
    let Some(chosen) = Scenario::named(&scenario) else {
        eprintln!("chaos: there is no scenario {scenario:?}; there are p1, p2, p3, p4, p5 and p10");
        return ExitCode::from(78);
    };
    let mut chaos = match recovery.as_str() {
        "restart" => Chaos::new(seed),
        "regroup" => Chaos::regrouping(seed),
        _ => {
            eprintln!("chaos: there is no recovery {recovery:?}; there are restart and regroup");
            return ExitCode::from(78);
        }
    };
    let trials: Vec<Trial> = (1..=n)
        .map(|number| {
            let trial = chaos.trial(chosen);
            let Trial { phase, step, rank, recovered, exact, seconds, .. } = &trial;
            println!(
                "trial {number}: rank {rank} at step {step} of {phase}: recovered {recovered}, exact {exact}, {seconds:.2} s"
            );
            if !trial.detail.is_empty() {
                println!("{}", trial.detail);
            }
            trial
        })
        .collect();
    summary(&scenario, &recovery, seed, &trials, json)
}

fn summary(scenario: &str, recovery: &str, seed: u64, trials: &[Trial], json: bool) -> ExitCode {
    let count = |is: fn(&Trial) -> bool| trials.iter().filter(|trial| is(trial)).count();
    let (n, recovered, exact) = (trials.len(), count(|trial| trial.recovered), count(|trial| trial.exact));
    let mut seconds: Vec<f64> = trials.iter().map(|trial| trial.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let place = (q * seconds.len() as f64).ceil() as usize;
        seconds.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
    };
    let (p50, p99) = (quantile(0.5), quantile(0.99));
    println!(
        "{exact} passed, {} failed; {recovered} of {n} recovered, p50 {p50:.2} s, p99 {p99:.2} s",
        n - exact
    );
    if json {
        let figures = serde_json::json!({
            "scenario": scenario, "recovery": recovery, "seed": seed, "n": n, "recovered": recovered, "exact": exact, "p50_s": p50, "p99_s": p99,
        });
        println!("{figures}");
    }
    if exact == n { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
