//! The two stages as the hub sees them: a micro-batch in, named losses out.

use std::collections::BTreeMap;

use collectives::{CommError, ProcessGroup};
use model::{
    CachedContrast, LmText, Negatives, Stage1, Stage1Inputs, Stage1Losses, Stage2, Stage2Inputs, TextInput,
};
use monitor::Phase;
use tch::{Kind, Tensor, nn};

use crate::pairs::MicroBatch;
use crate::texts::StageText;

/// Closed: the paper has two.
pub enum Stage {
    /// Representation learning: ITC, ITM, ITG.
    One(Stage1, nn::VarStore),
    /// Generative learning through the frozen language model.
    Two(Stage2, nn::VarStore),
}

/// The losses of one forward; `total` carries the graph.
pub struct StepLosses {
    /// What is differentiated.
    pub total: Tensor,
    /// Detached scalars; names that start with `loss` are losses, others metrics.
    pub named: Vec<(&'static str, Tensor)>,
}

/// The first of two passes over a step of stage 1 whose contrast is over all of its micro-batches.
pub struct ContrastAhead {
    parts: Vec<Stage1Inputs>,
    cached: CachedContrast,
}

impl Stage {
    /// One forward in training mode on raw `features` `[B, P, V]`: means over this micro-batch (stage 1: over all ranks' pairs that meet in ITC).
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn losses(
        &self,
        batch: &MicroBatch,
        features: &Tensor,
        group: &dyn ProcessGroup,
    ) -> Result<StepLosses, CommError> {
        match (self, &batch.text) {
            (Self::One(stage1, _), StageText::One(text)) => {
                let inputs = stage1_inputs(batch, text, features);
                Ok(stage1.losses(&inputs, group, true)?.into())
            }
            (Self::Two(stage2, _), StageText::Two(text)) => {
                let inputs = Stage2Inputs { image: features.shallow_clone(), text: text.clone() };
                let (total, _) = stage2.loss(&inputs, true);
                stage2.check_peers()?;
                Ok(StepLosses { named: vec![("loss", total.detach()), ("loss_lm", total.detach())], total })
            }
            _ => unreachable!("a stage is built with the tokenizer of its own texts"),
        }
    }

    /// ITC over all micro-batches of a step; `features` are those of each. Sets the seed of each one's dropout, which is to
    /// be set again for [`Stage::losses_behind`].
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn contrast_ahead(
        &self,
        batches: &[MicroBatch],
        features: &[Tensor],
        group: &dyn ProcessGroup,
    ) -> Result<ContrastAhead, CommError> {
        let Self::One(stage1, _) = self else { unreachable!("the plan caches no contrast of stage 2") };
        let inputs = |(batch, features): (&MicroBatch, &Tensor)| match &batch.text {
            StageText::One(text) => stage1_inputs(batch, text, features),
            StageText::Two(_) => unreachable!("a stage is built with the tokenizer of its own texts"),
        };
        let parts: Vec<Stage1Inputs> = batches.iter().zip(features).map(inputs).collect();
        let seed = |part: usize| tch::manual_seed(batches[part].dropout_seed);
        let cached = stage1.cached_contrast(&parts, group, &seed)?;
        Ok(ContrastAhead { parts, cached })
    }

    /// One forward in training mode of the step's micro-batch `part`, whose contrast was computed `ahead`.
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn losses_behind(
        &self,
        ahead: &ContrastAhead,
        part: usize,
        group: &dyn ProcessGroup,
    ) -> Result<StepLosses, CommError> {
        let Self::One(stage1, _) = self else { unreachable!("the plan caches no contrast of stage 2") };
        Ok(stage1.part_losses(&ahead.parts, part, &ahead.cached, group)?.into())
    }

    /// To be asked behind backward passes: whether all that they needed of other ranks has come.
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone: the gradients are of no use.
    pub fn check_peers(&self) -> Result<(), CommError> {
        match self {
            Self::One(..) => Ok(()),
            Self::Two(stage2, _) => stage2.check_peers(),
        }
    }

    /// Trainable parameters by name; frozen ones hold no gradient and are not in here.
    #[must_use]
    pub fn trainable(&self) -> BTreeMap<String, Tensor> {
        let (Self::One(_, store) | Self::Two(_, store)) = self;
        store.variables().into_iter().filter(|(_, variable)| variable.requires_grad()).collect()
    }
}

fn stage1_inputs(batch: &MicroBatch, text: &TextInput, features: &Tensor) -> Stage1Inputs {
    Stage1Inputs {
        image: features.shallow_clone(),
        text: text.clone(),
        concepts: batch.concepts.as_ref().map(Tensor::shallow_clone),
        negatives: Negatives::Drawn { uniforms: batch.uniforms.shallow_clone() },
    }
}

impl From<Stage1Losses> for StepLosses {
    fn from(losses: Stage1Losses) -> Self {
        let named = vec![
            ("loss", losses.total.detach()),
            ("loss_itc", losses.itc.detach()),
            ("loss_itm", losses.itm.detach()),
            ("loss_itg", losses.itg.detach()),
            ("itm_accuracy", losses.itm_accuracy),
            ("itc_recall", losses.i2t_recall),
            ("temperature", losses.temperature),
        ];
        Self { named, total: losses.total }
    }
}

impl StepLosses {
    /// A part of the step's losses, see [`weights`].
    #[must_use]
    pub fn weighted(self, weight: f64) -> Self {
        let named = self.named.into_iter().map(|(name, value)| (name, value * weight)).collect();
        Self { total: self.total * weight, named }
    }
}

/// What each micro-batch of a step weighs on this rank, so that the weighted losses, summed over micro-batches and averaged
/// over ranks, are the mean over all pairs (stage 1) or all scored tokens (stage 2) of the step: neither the number of
/// ranks nor the size of a micro-batch changes the gradient.
///
/// # Errors
/// [`CommError`] when a peer is gone.
pub fn weights(batches: &[MicroBatch], group: &dyn ProcessGroup) -> Result<Vec<f64>, CommError> {
    let counts: Vec<f64> = batches.iter().map(|batch| scored(&batch.text)).collect();
    let mut all = Tensor::from_slice(&[counts.iter().sum::<f64>()]).to_device(group.device());
    group.all_reduce_sum(&mut all)?;
    let mean = all.double_value(&[0]).max(1.0) / group.world_size() as f64;
    Ok(counts.into_iter().map(|count| count / mean).collect())
}

/// What the loss of a micro-batch is a mean over: pairs, or tokens of the language model.
fn scored(text: &StageText) -> f64 {
    match text {
        StageText::One(text) => text.ids.size()[0] as f64,
        StageText::Two(text) => text.labels.ne(LmText::IGNORED).sum(Kind::Int64).double_value(&[]),
    }
}

/// Names a phase in random numbers. The control without stage 1 draws what stage 2 draws: it is to differ in stage 1 alone.
#[must_use]
pub fn random_name(phase: Phase) -> u64 {
    match phase {
        Phase::Stage2WithoutStage1 => Phase::Stage2 as u64,
        other => other as u64,
    }
}

#[cfg(test)]
mod tests {
    use collectives::SoloGroup;
    use tch::Device;

    use super::*;
    use crate::pairs::Image;

    fn batch(rows: &[Vec<i64>]) -> MicroBatch {
        let text = StageText::Two(LmText::padded(rows, 1, 0));
        let nothing = || Tensor::zeros([0], (Kind::Float, Device::Cpu));
        let image = Image::Features(nothing());
        MicroBatch { image, text, concepts: None, uniforms: nothing(), dropout_seed: 0 }
    }

    #[test]
    fn micro_batches_weigh_by_their_scored_tokens() {
        // The first token is the prompt: 3 + 1 and 2 + 0 tokens are scored.
        let batches = [batch(&[vec![9, 1, 2, 3], vec![9, 4]]), batch(&[vec![9, 5, 6], vec![9]])];
        assert_eq!(weights(&batches, &SoloGroup::new(Device::Cpu)).expect("alone"), [4.0 / 6.0, 2.0 / 6.0]);
    }

    #[test]
    fn the_control_draws_what_stage_2_draws() {
        assert_eq!(random_name(Phase::Stage2WithoutStage1), random_name(Phase::Stage2));
        assert_ne!(random_name(Phase::Stage1), random_name(Phase::Stage2));
    }
}
