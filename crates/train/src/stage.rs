//! The two stages as the hub sees them: a micro-batch in, named losses out.

use std::collections::BTreeMap;

use collectives::{CommError, ProcessGroup};
use model::{Negatives, Stage1, Stage1Inputs, Stage2, Stage2Inputs};
use tch::{Tensor, nn};

use crate::pairs::{MicroBatch, StageText};

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

impl Stage {
    /// One forward in training mode.
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn losses(&self, batch: &MicroBatch, group: &dyn ProcessGroup) -> Result<StepLosses, CommError> {
        match (self, &batch.text) {
            (Self::One(stage1, _), StageText::One(text)) => {
                let inputs = Stage1Inputs {
                    image: batch.features.shallow_clone(),
                    text: text.clone(),
                    negatives: Negatives::Drawn { uniforms: batch.uniforms.shallow_clone() },
                };
                let losses = stage1.losses(&inputs, group, true)?;
                Ok(StepLosses {
                    named: vec![
                        ("loss", losses.total.detach()),
                        ("loss_itc", losses.itc.detach()),
                        ("loss_itm", losses.itm.detach()),
                        ("loss_itg", losses.itg.detach()),
                        ("itm_accuracy", losses.itm_accuracy),
                        ("itc_recall", losses.i2t_recall),
                        ("temperature", losses.temperature),
                    ],
                    total: losses.total,
                })
            }
            (Self::Two(stage2, _), StageText::Two(text)) => {
                let inputs = Stage2Inputs { image: batch.features.shallow_clone(), text: text.clone() };
                let (loss, tokens) = stage2.loss(&inputs, true);
                let total = weighted_by_tokens(&loss, tokens, group)?;
                Ok(StepLosses { named: vec![("loss", total.detach()), ("loss_lm", total.detach())], total })
            }
            _ => unreachable!("a stage is built with the tokenizer of its own texts"),
        }
    }

    /// Trainable parameters by name; frozen ones hold no gradient and are not in here.
    #[must_use]
    pub fn trainable(&self) -> BTreeMap<String, Tensor> {
        let (Self::One(_, store) | Self::Two(_, store)) = self;
        store.variables().into_iter().filter(|(_, variable)| variable.requires_grad()).collect()
    }
}

/// Weights a rank's mean by its share of all ranks' tokens, so that N ranks equal one rank with N times the batch.
fn weighted_by_tokens(loss: &Tensor, tokens: i64, group: &dyn ProcessGroup) -> Result<Tensor, CommError> {
    let mut all = Tensor::from_slice(&[tokens as f64]).to_device(group.device());
    group.all_reduce_sum(&mut all)?;
    let share = tokens as f64 * group.world_size() as f64 / all.double_value(&[0]).max(1.0);
    Ok(loss * share)
}
