//! Captions of stage 1: what ITG taught the Q-Former to say, without a language model (spec 2.10).

use tch::{Tensor, no_grad};

use super::Stage1;
use crate::language::{self, GenerateOptions, Generated};

impl Stage1 {
    /// Texts about images (`[B, P, V]`, raw) in ids of the Q-Former's own vocabulary, behind `[DEC]`: for each image what
    /// the strategy returns, best first. `options` are such as [`GenerateOptions::check`] lets pass; no text is longer
    /// than the Q-Former has positions for.
    #[must_use]
    pub fn generate(&self, features: &Tensor, options: &GenerateOptions) -> Vec<Vec<Generated>> {
        no_grad(|| {
            let image = self.qformer.image_context(&self.image_norm.forward(features));
            let mut decoder = self.qformer.begin(&image);
            let max_new_tokens = options.max_new_tokens.min(self.qformer.longest_text());
            let start = self.config.qformer.text.map(|text| text.decoder_start_id);
            let said = vec![start.into_iter().collect(); features.size()[0] as usize];
            language::generate(&mut decoder, &said, &GenerateOptions { max_new_tokens, ..options.clone() })
        })
    }
}
