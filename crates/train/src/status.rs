//! One small all-reduce a step, so that every decision is the same on all ranks.

use std::collections::BTreeMap;

use collectives::{CommError, ProcessGroup};
use tch::{Kind, Tensor};

use crate::stage::StepLosses;

/// What the ranks agree on after a step: losses averaged over ranks, and whether to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Losses by name, over all micro-batches and ranks (see [`crate::stage::weights`]).
    pub losses: BTreeMap<String, f64>,
    /// Other figures by name, over all micro-batches and ranks.
    pub metrics: BTreeMap<String, f64>,
    /// Norm of the averaged gradient, mean over ranks: they may differ in its last bits.
    pub grad_norm: f64,
    /// Every rank's losses and the gradient are finite.
    pub finite: bool,
    /// Some rank was asked to stop.
    pub stop: bool,
    /// Samples that this step's batches were to hold and could not, of all ranks.
    pub left_out: u64,
}

impl Status {
    /// This rank's view.
    #[must_use]
    pub fn of(losses: &[StepLosses], grad_norm: f64, stop: bool, left_out: u64) -> Self {
        let named = summed(losses);
        let finite = grad_norm.is_finite() && named.values().all(|value| value.is_finite());
        let (losses, metrics) = named.into_iter().partition(|(name, _)| name.starts_with("loss"));
        Self { losses, metrics, grad_norm, finite, stop, left_out }
    }

    /// All ranks' view.
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn all_reduce(mut self, group: &dyn ProcessGroup) -> Result<Self, CommError> {
        let world_size = group.world_size() as f64;
        let flag = |flag: bool| f64::from(u8::from(flag));
        let mut packed = vec![flag(self.stop), flag(!self.finite), self.left_out as f64];
        // What is not finite on one rank is not finite in the mean, and so in the log.
        packed.extend(self.losses.values().chain(self.metrics.values()).chain([&self.grad_norm]));
        let mut packed = Tensor::from_slice(&packed).to_device(group.device());
        group.all_reduce_sum(&mut packed)?;
        let summed: Vec<f64> = Vec::try_from(&packed.to_device(tch::Device::Cpu)).unwrap_or_default();
        let mut rest = summed.into_iter();
        self.stop = rest.next().unwrap_or(0.0) > 0.0;
        self.finite = rest.next().unwrap_or(1.0) == 0.0;
        self.left_out = rest.next().unwrap_or(0.0) as u64;
        let values = self.losses.values_mut().chain(self.metrics.values_mut());
        for value in values.chain([&mut self.grad_norm]) {
            *value = rest.next().unwrap_or(f64::NAN) / world_size;
        }
        Ok(self)
    }
}

/// The weighted losses of all micro-batches, as plain numbers.
fn summed(losses: &[StepLosses]) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for (name, value) in losses.iter().flat_map(|losses| &losses.named) {
        *sums.entry((*name).to_owned()).or_default() += value.to_kind(Kind::Double).double_value(&[]);
    }
    sums
}
