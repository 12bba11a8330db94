//! AdamW over exactly the trainable parameters, in groups by decay and learning rate, with an optional average.

use std::collections::{BTreeMap, BTreeSet};

use checkpoint::TensorMap;
use tch::{Kind, Tensor, no_grad};

use crate::config::OptimConfig;
use crate::error::TrainError;
use crate::tensors::{to_host, to_torch};

const EPS: f64 = 1e-8;
const WORD_EMBEDDINGS: &str = "embeddings.word_embeddings.weight";
/// Steps between updates of the weights' moving average.
const AVERAGE_EVERY: u64 = 4;

/// AdamW with decoupled decay. Parameters keep their order of names, so ranks reduce the same buckets.
pub struct AdamW {
    config: OptimConfig,
    groups: Vec<Group>,
    step: u64,
    /// Exponential moving average of every parameter, by name.
    average: Option<BTreeMap<String, Tensor>>,
    /// The step that the average has seen last.
    averaged_at: u64,
}

struct Group {
    names: Vec<String>,
    parameters: Vec<Tensor>,
    first_moments: Vec<Tensor>,
    second_moments: Vec<Tensor>,
    weight_decay: f64,
    lr_ratio: f64,
}

impl AdamW {
    /// Groups `parameters`: matrices decay; LayerNorm gains, biases and the temperature do not (spec 5.4 without its
    /// slip on 0-dim tensors). Names in `pretrained` run at `pretrained_lr_ratio` of the learning rate, word embeddings at
    /// `word_embedding_lr_ratio` of that.
    #[must_use]
    pub fn new(
        parameters: &BTreeMap<String, Tensor>,
        pretrained: &BTreeSet<String>,
        config: &OptimConfig,
    ) -> Self {
        let mut groups: BTreeMap<(bool, bool, bool), Group> = BTreeMap::new();
        for (name, parameter) in parameters {
            let decays = parameter.dim() >= 2 && !name.ends_with(".bias");
            let is_pretrained = pretrained.contains(name);
            let is_words = name == WORD_EMBEDDINGS;
            let pretrained_ratio = if is_pretrained { config.pretrained_lr_ratio } else { 1.0 };
            let words_ratio = if is_words { config.word_embedding_lr_ratio } else { 1.0 };
            let group = groups.entry((decays, is_pretrained, is_words)).or_insert_with(|| Group {
                names: Vec::new(),
                parameters: Vec::new(),
                first_moments: Vec::new(),
                second_moments: Vec::new(),
                weight_decay: if decays { config.weight_decay } else { 0.0 },
                lr_ratio: pretrained_ratio * words_ratio,
            });
            group.names.push(name.clone());
            group.parameters.push(parameter.shallow_clone());
            group.first_moments.push(parameter.detach().zeros_like());
            group.second_moments.push(parameter.detach().zeros_like());
        }
        let average = config
            .ema_decay
            .map(|_| parameters.iter().map(|(name, p)| (name.clone(), p.detach().copy())).collect());
        let groups = groups.into_values().collect();
        Self { config: config.clone(), groups, step: 0, average, averaged_at: 0 }
    }

    /// Gradients of all parameters, in a fixed order; zeros where the loss did not reach one.
    #[must_use]
    pub fn gradients(&self) -> Vec<Tensor> {
        self.parameters()
            .map(|parameter| {
                let grad = parameter.grad();
                if grad.defined() {
                    return grad;
                }
                // A rank whose loss misses a parameter must still take part in the reduction.
                parameter.detach().zeros_like()
            })
            .collect()
    }

    /// Every trainable parameter, in a fixed order.
    pub fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        self.groups.iter().flat_map(|group| &group.parameters)
    }

    /// Drops all gradients.
    pub fn drop_gradients(&mut self) {
        for group in &self.groups {
            torch_bridge::drop_gradients(&group.parameters);
        }
    }

    /// One update with learning rate `lr` from `gradients` (as [`AdamW::gradients`] orders them), each divided by
    /// `grad_divisor`.
    pub fn step(&mut self, gradients: &[Tensor], lr: f64, grad_divisor: f64) {
        self.step += 1;
        let mut rest = gradients;
        for group in &mut self.groups {
            let (own, others) = rest.split_at(group.parameters.len());
            rest = others;
            let hyper = torch_bridge::AdamWStep {
                step: self.step,
                lr: lr * group.lr_ratio,
                beta1: self.config.betas.0,
                beta2: self.config.betas.1,
                eps: EPS,
                weight_decay: group.weight_decay,
                grad_divisor,
            };
            torch_bridge::fused_adamw(
                &group.parameters,
                own,
                &group.first_moments,
                &group.second_moments,
                &hyper,
            );
        }
        // A pass over all weights each step is time without gain.
        if self.step.is_multiple_of(AVERAGE_EVERY) {
            self.update_average();
        }
    }

    /// The average takes in the weights as they are now, by a power of the decay: one for each step since the last time.
    /// Early steps weigh more (the usual warm-up `(1 + t) / (10 + t)`), so the average forgets the initialisation.
    ///
    /// Each call but the first of a step does nothing. To resume exactly, it is called where the course of the run says so,
    /// never where an interruption does.
    pub fn update_average(&mut self) {
        let (Some(average), Some(decay)) = (&mut self.average, self.config.ema_decay) else { return };
        let steps = self.step - self.averaged_at;
        if steps == 0 {
            return;
        }
        self.averaged_at = self.step;
        let decay = decay.powi(steps as i32).min((1.0 + self.step as f64) / (10.0 + self.step as f64));
        no_grad(|| {
            for group in &self.groups {
                for (name, parameter) in group.names.iter().zip(&group.parameters) {
                    if let Some(kept) = average.get_mut(name) {
                        let _ = kept.lerp_(&parameter.detach(), 1.0 - decay);
                    }
                }
            }
        });
    }

    /// Runs `work` with the averaged weights in place of the raw ones (the raw ones where no average is kept).
    pub fn with_average<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.update_average();
        self.swap_average();
        let result = work();
        self.swap_average();
        result
    }

    fn swap_average(&mut self) {
        let Some(average) = &mut self.average else { return };
        no_grad(|| {
            for group in &mut self.groups {
                for (name, parameter) in group.names.iter().zip(&mut group.parameters) {
                    if let Some(kept) = average.get_mut(name) {
                        let raw = parameter.detach().copy();
                        parameter.detach().copy_(kept);
                        kept.copy_(&raw);
                    }
                }
            }
        });
    }

    /// Moments and average, in a fixed order: with [`AdamW::steps`] all that it holds beside the parameters.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let moments =
            self.groups.iter().flat_map(|group| group.first_moments.iter().chain(&group.second_moments));
        moments.chain(self.average.iter().flat_map(BTreeMap::values))
    }

    /// Updates done, and how many of them the average has seen.
    #[must_use]
    pub fn steps(&self) -> (u64, u64) {
        (self.step, self.averaged_at)
    }

    /// Takes back what [`AdamW::steps`] gave.
    pub fn set_steps(&mut self, (step, averaged_at): (u64, u64)) {
        (self.step, self.averaged_at) = (step, averaged_at);
    }

    /// Moments, step and average, for a checkpoint.
    #[must_use]
    pub fn snapshot(&self) -> TensorMap {
        let mut map = TensorMap::new();
        for (key, step) in [("step", self.step), ("averaged_at", self.averaged_at)] {
            map.insert(key.into(), to_host(&Tensor::from_slice(&[step as i64])));
        }
        for group in &self.groups {
            for (i, name) in group.names.iter().enumerate() {
                map.insert(format!("exp_avg.{name}"), to_host(&group.first_moments[i]));
                map.insert(format!("exp_avg_sq.{name}"), to_host(&group.second_moments[i]));
            }
        }
        for (name, kept) in self.average.iter().flatten() {
            map.insert(format!("average.{name}"), to_host(kept));
        }
        map
    }

    /// Takes back what [`AdamW::snapshot`] gave.
    ///
    /// # Errors
    /// [`TrainError::Weights`] naming the first moment that the checkpoint lacks.
    pub fn restore(&mut self, map: &TensorMap) -> Result<(), TrainError> {
        let find = |key: String| {
            map.get(&key).map(to_torch).ok_or_else(|| TrainError::Weights {
                path: "optimizer.safetensors".into(),
                detail: format!(
                    "{key} is missing: the checkpoint belongs to another model or optimizer config"
                ),
            })
        };
        self.step = find("step".into())?.int64_value(&[0]) as u64;
        self.averaged_at = find("averaged_at".into())?.int64_value(&[0]) as u64;
        for group in &mut self.groups {
            for (i, name) in group.names.iter().enumerate() {
                group.first_moments[i].copy_(&find(format!("exp_avg.{name}"))?);
                group.second_moments[i].copy_(&find(format!("exp_avg_sq.{name}"))?);
            }
        }
        for (name, kept) in self.average.iter_mut().flatten() {
            kept.copy_(&find(format!("average.{name}"))?);
        }
        Ok(())
    }
}

/// The joint norm of `gradients` once they are divided by `scale`, summed in a fixed order.
pub fn norm(gradients: &[Tensor], scale: f64) -> f64 {
    no_grad(|| {
        let norms: Vec<Tensor> = gradients.iter().map(|g| g.norm().to_kind(Kind::Double)).collect();
        Tensor::stack(&norms, 0).norm().double_value(&[]) / scale
    })
}

/// What to divide gradients by, `scale` among it, so that their joint norm is at most `max_norm`. `norm` is the one that all
/// ranks agree on: one of its own, other in the last bit on another kind of processor, would part a rank from the rest.
pub fn divisor(norm: f64, scale: f64, max_norm: Option<f64>) -> f64 {
    scale * max_norm.map_or(1.0, |limit| ((norm + 1e-6) / limit).max(1.0))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn config() -> OptimConfig {
        OptimConfig {
            peak_lr: 1.0,
            min_lr: 1.0,
            warmup_steps: 0,
            weight_decay: 0.0,
            betas: (0.9, 0.98),
            max_grad_norm: None,
            pretrained_lr_ratio: 1.0,
            word_embedding_lr_ratio: 1.0,
            ema_decay: Some(0.5),
        }
    }

    #[test]
    fn what_was_pretrained_moves_more_slowly_and_words_need_not_move() {
        let zero = || Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let names = [WORD_EMBEDDINGS, "new", "pretrained"];
        let parameters = BTreeMap::from(names.map(|name| (name.to_owned(), zero())));
        let pretrained = BTreeSet::from([WORD_EMBEDDINGS.to_owned(), "pretrained".to_owned()]);
        let moved = |word_embedding_lr_ratio| {
            let config = OptimConfig { pretrained_lr_ratio: 0.5, word_embedding_lr_ratio, ..config() };
            let mut optimizer = AdamW::new(&parameters, &pretrained, &config);
            let before: Vec<f64> = parameters.values().map(|p| p.double_value(&[0, 0])).collect();
            let ones: Vec<Tensor> = parameters.values().map(Tensor::ones_like).collect();
            optimizer.step(&ones, 1.0, 1.0);
            let after = parameters.values().map(|p| p.double_value(&[0, 0]));
            after.zip(before).map(|(after, before)| before - after).collect::<Vec<f64>>()
        };
        // Adam's first step is the learning rate.
        for (words, expected) in [(0.0, [0.0, 1.0, 0.5]), (0.5, [0.25, 1.0, 0.5])] {
            let close =
                moved(words).iter().zip(expected).all(|(moved, wanted)| (moved - wanted).abs() < 1e-5);
            assert!(close, "words x {words}");
        }
    }

    fn average_after(steps: u64, looks: &[u64]) -> f64 {
        let weight = Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let parameters = BTreeMap::from([("w".to_owned(), weight.shallow_clone())]);
        let mut optimizer = AdamW::new(&parameters, &BTreeSet::new(), &config());
        for step in 1..=steps {
            optimizer.step(&[weight.ones_like()], 1.0, 1.0);
            looks.iter().filter(|&&look| look == step).for_each(|_| optimizer.with_average(|| ()));
        }
        optimizer.update_average();
        optimizer.with_average(|| weight.double_value(&[0, 0]))
    }

    #[test]
    fn the_average_has_seen_the_last_step_whatever_their_number() {
        // Adam with equal gradients moves by the learning rate: the weight is -1, -2, -3 after so many steps.
        for steps in 1..=3 {
            let decay = 0.5f64.powi(steps as i32).min((1.0 + steps as f64) / (10.0 + steps as f64));
            let wanted = -(steps as f64) * (1.0 - decay);
            assert!((average_after(steps, &[]) - wanted).abs() < 1e-3, "{steps}");
        }
    }

    #[test]
    fn looking_twice_at_a_step_changes_nothing() {
        assert_eq!(average_after(6, &[5]), average_after(6, &[5, 5]));
        assert!((average_after(8, &[]) - average_after(8, &[4, 8])).abs() < 1e-12);
    }
}
