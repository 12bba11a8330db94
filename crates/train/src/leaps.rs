//! Steps whose loss or gradient leaps: one bad batch can undo hours, and is found before it is taken.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Steps that a leap is told by.
const WINDOW: usize = 128;
/// A leap lies so many standard deviations above the mean of the window,
const DEVIATIONS: f64 = 6.0;
/// and is so many times the mean: a loss that barely moves has a deviation near zero.
const TIMES: f64 = 2.0;

/// The last losses and gradient norms. Part of the state: a resumed run decides as the uninterrupted one does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Leaps {
    loss: VecDeque<f64>,
    grad_norm: VecDeque<f64>,
}

impl Leaps {
    /// True where one of the two, both finite, leaps above what the last steps had. Learns from them.
    pub fn seen(&mut self, loss: f64, grad_norm: f64) -> bool {
        let loss = leaps(&mut self.loss, loss);
        let grad_norm = leaps(&mut self.grad_norm, grad_norm);
        loss || grad_norm
    }
}

/// No leap before the window is full: the first steps of a phase move far.
fn leaps(window: &mut VecDeque<f64>, value: f64) -> bool {
    let count = window.len() as f64;
    let mean = window.iter().sum::<f64>() / count;
    let deviation = (window.iter().map(|seen| (seen - mean).powi(2)).sum::<f64>() / count).sqrt();
    let limit = match window.len() {
        WINDOW => (mean + DEVIATIONS * deviation).max(TIMES * mean),
        _ => f64::INFINITY,
    };
    let leaps = value > limit;
    // Cut, so that one leap does not hide the next; not down to the limit, so that a level that stays is learnt soon.
    window.push_back(value.min(TIMES * limit));
    if window.len() > WINDOW {
        window.pop_front();
    }
    leaps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise of a tenth around 2.
    fn usual(step: u64) -> f64 {
        2.0 + 0.2 * (data::Rng::new(1, data::Stream::Dropout, &[step]).uniform() - 0.5)
    }

    fn after(steps: u64) -> Leaps {
        let mut leaps = Leaps::default();
        for step in 0..steps {
            assert!(!leaps.seen(usual(step), 1.0), "step {step} is as all others");
        }
        leaps
    }

    #[test]
    fn fifty_times_the_usual_is_a_leap_of_either() {
        assert!(after(128).seen(100.0, 1.0));
        assert!(after(128).seen(2.0, 50.0));
        assert!(!after(128).seen(2.5, 1.0), "many deviations, and yet no leap");
        assert!(!after(127).seen(100.0, 50.0), "the window is not full");
    }

    #[test]
    fn a_single_leap_is_forgotten_and_a_lasting_one_learnt() {
        let mut leaps = after(200);
        assert!(leaps.seen(100.0, 1.0));
        assert!(!leaps.seen(2.0, 1.0));
        assert!(leaps.seen(100.0, 1.0), "one leap does not hide the next");
        let refused = (0..40).take_while(|_| leaps.seen(100.0, 1.0)).count();
        assert!(refused < 19, "{refused} steps, of 20 that make a run go back");
    }

    #[test]
    fn a_window_that_was_written_down_decides_alike() {
        let mut kept = after(150);
        let text = serde_json::to_string(&kept).unwrap();
        let mut read: Leaps = serde_json::from_str(&text).unwrap();
        assert_eq!(read, kept);
        assert_eq!(read.seen(3.9, 1.9), kept.seen(3.9, 1.9));
        assert_eq!(read, kept);
    }
}
