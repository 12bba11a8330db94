//! Dynamic loss scaling for fp16 (Micikevicius et al. 2018): small gradients are kept from becoming zero.
//!
//! Constants are those of PyTorch's `GradScaler`. All ranks see the same status each step, so they scale alike.

use serde::{Deserialize, Serialize};
use tch::Kind;

const INITIAL: f64 = 65536.0;
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
/// Finite steps in a row behind which a larger scale is tried.
const GROWTH_INTERVAL: u64 = 2000;

/// What the loss is multiplied by before the backward pass, and the gradient divided by after it. Only fp16 needs one:
/// bf16 has the range of fp32.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    factor: f64,
    finite_in_a_row: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: INITIAL, finite_in_a_row: 0 }
    }
}

impl LossScale {
    /// The factor of this step under `autocast`.
    #[must_use]
    pub fn factor(&self, autocast: Option<Kind>) -> f64 {
        match autocast {
            Some(Kind::Half) => self.factor,
            _ => 1.0,
        }
    }

    /// Learns from a step.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            *self = Self { factor: self.factor * BACKOFF, finite_in_a_row: 0 };
            return;
        }
        self.finite_in_a_row += 1;
        if self.finite_in_a_row == GROWTH_INTERVAL {
            *self = Self { factor: self.factor * GROWTH, finite_in_a_row: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fp16_is_scaled() {
        let scale = LossScale::default();
        let factors = [None, Some(Kind::BFloat16), Some(Kind::Half)].map(|kind| scale.factor(kind));
        assert_eq!(factors, [1.0, 1.0, 65536.0]);
    }

    #[test]
    fn an_overflow_halves_the_scale_and_2000_finite_steps_double_it() {
        let mut scale = LossScale::default();
        scale.update(false);
        assert_eq!(scale.factor(Some(Kind::Half)), 32768.0);
        (0..1999).for_each(|_| scale.update(true));
        assert_eq!(scale.factor(Some(Kind::Half)), 32768.0);
        scale.update(true);
        assert_eq!(scale.factor(Some(Kind::Half)), 65536.0);
        // An overflow starts the count again.
        (0..1999).for_each(|_| scale.update(true));
        scale.update(false);
        (0..1999).for_each(|_| scale.update(true));
        assert_eq!(scale.factor(Some(Kind::Half)), 32768.0);
    }
}
