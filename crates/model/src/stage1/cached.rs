//! A contrast batch larger than what goes through the model at once (GradCache: Gao et al. 2021, arXiv 2101.06983).
//!
//! Accumulation takes negatives away from ITC. Here all parts are embedded first, without a graph; ITC over all of them
//! gives the gradient of each embedding; then part after part goes through the model with a graph, and its embeddings
//! carry the gradients that are known by then. ITM's negatives come from all parts as well. The numbers are those of the
//! large batch, for the memory of one part and one forward pass more of images and texts.

use collectives::{CommError, ProcessGroup};
use tch::{Kind, Tensor, no_grad};

use super::{Embedded, Hard, Stage1, Stage1Losses};
use crate::contrast::{Itc, contrast};
use crate::exchange::{Images, gather_texts};
use crate::inputs::{Stage1Inputs, TextInput};

/// ITC over all parts of all ranks, and what each part needs to know of the others. Rows lie part by part.
#[derive(Debug)]
pub struct CachedContrast {
    loss: Tensor,
    recall: Tensor,
    gradients: Gradients,
    /// Global indices of the images and the texts that were drawn for each part, `[B]` each.
    negatives: Vec<(Tensor, Tensor)>,
    /// All ranks' texts.
    texts: TextInput,
    /// What ITG's sum over this rank's parts is divided by.
    itg_tokens: f64,
}

/// Of ITC's loss.
#[derive(Debug)]
struct Gradients {
    /// `[K * B, Q, E]`.
    images: Tensor,
    /// `[K * B, E]`.
    texts: Tensor,
    /// Scalar.
    temperature: Tensor,
}

impl Stage1 {
    /// ITC over the K `parts` of this rank, all of B pairs, and those of the other ranks, which have as many.
    ///
    /// `seed(k)` is called before part k goes through the model: it sets the random numbers of dropout. Set the same ones
    /// before [`Stage1::part_losses`] of that part, which repeats this pass. Under autocast the two get regions of their
    /// own, as [`torch_bridge::autocast`] asks.
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn cached_contrast(
        &self,
        parts: &[Stage1Inputs],
        group: &dyn ProcessGroup,
        seed: &dyn Fn(usize),
    ) -> Result<CachedContrast, CommError> {
        let embed = |(k, part): (usize, &Stage1Inputs)| {
            seed(k);
            let found = no_grad(|| self.embed(&part.image, &part.text, true));
            (found.image_feats, found.text_feats)
        };
        let (images, texts): (Vec<Tensor>, Vec<Tensor>) = parts.iter().enumerate().map(embed).unzip();
        let images = Tensor::cat(&images, 0).set_requires_grad(true);
        let texts = Tensor::cat(&texts, 0).set_requires_grad(true);
        let concepts = parts.iter().map(|part| part.concepts.as_ref()).collect::<Option<Vec<_>>>();
        let concepts = concepts.map(|concepts| Tensor::cat(&concepts, 0));
        let itc = torch_bridge::autocast(group.device(), None, || {
            contrast(&images, &texts, concepts.as_ref(), &self.temperature, group)
        })?;
        let gradients = Gradients::of(&itc, &images, &texts, &self.temperature);
        let draw = |(k, part): (usize, &Stage1Inputs)| {
            let rows = part.image.size()[0];
            self.negatives(&part.negatives, &itc, k as i64 * rows)
        };
        let negatives = parts.iter().enumerate().map(draw).collect();
        let own = joined_texts(parts);
        let texts = gather_texts(&own, group)?;
        Ok(CachedContrast {
            itg_tokens: self.itg_tokens(&own, &texts, group.world_size()),
            loss: itc.loss.detach(),
            recall: itc.recall.detach(),
            negatives,
            gradients,
            texts,
        })
    }

    /// The losses of part `part`, in training mode: their mean over parts, and the gradients of that mean, are those of one
    /// pass over all parts. ITC is the same in each part, and its gradient is the part's share of it.
    ///
    /// Every rank asks for the same part at the same time.
    ///
    /// # Errors
    /// [`CommError`] when a peer is gone.
    pub fn part_losses(
        &self,
        parts: &[Stage1Inputs],
        part: usize,
        cached: &CachedContrast,
        group: &dyn ProcessGroup,
    ) -> Result<Stage1Losses, CommError> {
        let (inputs, count) = (&parts[part], parts.len());
        let own = self.embed(&inputs.image, &inputs.text, true);
        let itc = torch_bridge::autocast(group.device(), None, || {
            let carried = self.carried(&own, &cached.gradients, (part, count));
            &carried - carried.detach() + &cached.loss
        });
        let raw: Vec<&Tensor> = parts.iter().map(|part| &part.image).collect();
        let at_hand = Images { parts: &raw, at_hand: part };
        let (neg_images, neg_texts) = &cached.negatives[part];
        let hard = Hard {
            images: self.with_hard_images(&own.images, &at_hand, neg_images, group)?,
            texts: cached.texts.select(neg_texts),
        };
        let itm = self.itm(&inputs.text, &hard, true);
        let itg = self.itg(&inputs.text, &own.cache, true).sum() * (count as f64 / cached.itg_tokens);
        Ok(Stage1Losses {
            total: &itc + &itm.loss + &itg,
            itc,
            itm: itm.loss,
            itg,
            itm_accuracy: itm.accuracy,
            i2t_recall: cached.recall.shallow_clone(),
            temperature: self.temperature.detach().copy(),
        })
    }

    /// A number without meaning whose gradients, averaged over all parts, are `known`.
    fn carried(&self, own: &Embedded, known: &Gradients, (part, count): (usize, usize)) -> Tensor {
        let through = |feats: &Tensor, gradient: &Tensor| {
            (feats * rows_of(gradient, (part, count))).sum(Kind::Float) * count as f64
        };
        through(&own.image_feats, &known.images)
            + through(&own.text_feats, &known.texts)
            + &self.temperature * &known.temperature
    }
}

impl Gradients {
    /// With respect to three leaves; nothing is added to their own gradients.
    fn of(itc: &Itc, images: &Tensor, texts: &Tensor, temperature: &Tensor) -> Self {
        let found = Tensor::run_backward(&[&itc.loss], &[images, texts, temperature], false, false);
        let [images, texts, temperature] = found.try_into().expect("a gradient for each of three leaves");
        Self { images, texts, temperature }
    }
}

/// Part `part` of `count` of them.
fn rows_of(tensor: &Tensor, (part, count): (usize, usize)) -> Tensor {
    let rows = tensor.size()[0] / count as i64;
    tensor.narrow(0, part as i64 * rows, rows)
}

/// Padded to the longest.
fn joined_texts(parts: &[Stage1Inputs]) -> TextInput {
    let width = parts.iter().map(|part| part.text.ids.size()[1]).max().unwrap_or(0);
    let wide: Vec<TextInput> = parts.iter().map(|part| part.text.widened(width)).collect();
    TextInput::stack(&wide.iter().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use collectives::SoloGroup;
    use tch::{Device, nn};

    use super::*;
    use crate::inputs::Negatives;
    use crate::negatives::NegativeWeighting;
    use crate::qformer::{QformerConfig, TextBranchConfig};
    use crate::stage1::{ItgWeighting, Stage1Config};

    const WORDS: i64 = 40;
    const PARTS: usize = 3;
    /// Pairs of a part.
    const PAIRS: i64 = 4;

    fn model(gradient_checkpointing: bool) -> (nn::VarStore, Stage1) {
        let text =
            TextBranchConfig { vocab_size: WORDS, max_position_embeddings: 10, decoder_start_id: WORDS - 1 };
        let qformer = QformerConfig {
            hidden_size: 24,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            intermediate_size: 48,
            cross_attention_freq: 2,
            num_query_tokens: 5,
            encoder_hidden_size: 16,
            layer_norm_eps: 1e-12,
            dropout: 0.3,
            gradient_checkpointing,
            text: Some(text),
        };
        let config = Stage1Config {
            qformer,
            projection_size: 8,
            negative_weighting: NegativeWeighting::default(),
            itg_weighting: ItgWeighting::GlobalTokens,
        };
        tch::manual_seed(1);
        let store = nn::VarStore::new(Device::Cpu);
        let stage1 = Stage1::new(&store.root(), &config);
        (store, stage1)
    }

    fn parts() -> Vec<Stage1Inputs> {
        tch::manual_seed(2);
        let part = |_| {
            let ids = Tensor::randint_low(1, WORDS, [PAIRS, 6], (Kind::Int64, Device::Cpu));
            Stage1Inputs {
                image: Tensor::randn([PAIRS, 9, 16], (Kind::Float, Device::Cpu)),
                text: TextInput { mask: ids.ones_like(), ids },
                concepts: None,
                negatives: Negatives::Drawn {
                    uniforms: Tensor::rand([2, PAIRS], (Kind::Double, Device::Cpu)),
                },
            }
        };
        (0..PARTS).map(part).collect()
    }

    fn seed(part: usize) {
        tch::manual_seed(100 + part as i64);
    }

    #[test]
    fn the_second_pass_embeds_bit_for_bit_what_the_first_did() {
        let part = parts().remove(0);
        for recomputed in [false, true] {
            let (_store, stage1) = model(recomputed);
            for dtype in [None, Some(Kind::BFloat16)] {
                let embedded = |number: usize| {
                    seed(number);
                    torch_bridge::autocast(Device::Cpu, dtype, || {
                        let found = stage1.embed(&part.image, &part.text, true);
                        (found.image_feats, found.text_feats)
                    })
                };
                let first = no_grad(|| embedded(0));
                let (second, other) = (embedded(0), embedded(1));
                assert!(second.0.requires_grad() && !first.0.requires_grad());
                assert_eq!(first, second, "recomputed: {recomputed}, {dtype:?}");
                assert_ne!(first.0, other.0, "dropout is on");
            }
        }
    }

    /// Parameters that ITC alone reaches.
    fn of_itc(store: &nn::VarStore) -> Vec<(&'static str, Tensor)> {
        let names = ["vision_projection.weight", "text_projection.weight", "temperature"];
        names.map(|name| (name, store.variables()[name].grad())).into()
    }

    /// All parts in one graph, which is what the cache saves.
    fn in_one_graph(parts: &[Stage1Inputs]) -> Vec<(&'static str, Tensor)> {
        let (store, stage1) = model(false);
        let embed = |(k, part): (usize, &Stage1Inputs)| {
            seed(k);
            let found = stage1.embed(&part.image, &part.text, true);
            (found.image_feats, found.text_feats)
        };
        let (images, texts): (Vec<Tensor>, Vec<Tensor>) = parts.iter().enumerate().map(embed).unzip();
        let group = SoloGroup::new(Device::Cpu);
        let (images, texts) = (Tensor::cat(&images, 0), Tensor::cat(&texts, 0));
        contrast(&images, &texts, None, &stage1.temperature, &group).expect("alone").loss.backward();
        of_itc(&store)
    }

    #[test]
    fn with_dropout_the_gradients_are_those_of_one_graph_over_all_parts() {
        let parts = parts();
        let one = in_one_graph(&parts);
        let cached = |second: &dyn Fn(usize)| {
            let (store, stage1) = model(false);
            let group = SoloGroup::new(Device::Cpu);
            let cached = stage1.cached_contrast(&parts, &group, &seed).expect("alone");
            for part in 0..PARTS {
                second(part);
                let losses = stage1.part_losses(&parts, part, &cached, &group).expect("alone");
                (losses.total / PARTS as f64).backward();
            }
            of_itc(&store)
        };
        let apart = |found: &[(&'static str, Tensor)]| {
            let relative = |(one, other): (&(&str, Tensor), &(&str, Tensor))| {
                ((&one.1 - &other.1).abs().max() / one.1.abs().max()).double_value(&[])
            };
            one.iter().zip(found).map(relative).fold(0.0, f64::max)
        };
        let same = apart(&cached(&seed));
        assert!(same < 1e-5, "{same:e}");
        let others = apart(&cached(&|part| seed(part + 1)));
        assert!(others > 1e-2, "other random numbers the second time are another gradient: {others:e}");
    }
}
