//! Captions out of the Q-Former itself: text that sees the queries, token by token (spec 2.10).

use tch::nn::Module;
use tch::{Kind, Tensor};

use super::tokens::Layout;
use super::{ImageContext, Packing, Pass, Qformer, QueryCache};
use crate::language::Decoder;

/// A batch of texts that the Q-Former goes on with. See [`Qformer::begin`].
pub(crate) struct TextContinuation<'a> {
    qformer: &'a Qformer,
    past: QueryCache,
    /// Position of the next token.
    position: i64,
    /// `[R, D]`: the state that predicts each row's next token.
    last: Tensor,
}

impl Qformer {
    /// Looks at images and reads `[DEC]` behind them.
    pub(crate) fn begin(&self, image: &ImageContext) -> TextContinuation<'_> {
        let (_, past) = self.encode_queries(image, false);
        let mut begun =
            TextContinuation { qformer: self, past, position: 0, last: self.query_tokens.shallow_clone() };
        begun.last = begun.read(&vec![self.text_branch().decoder_start_id; image.images as usize]);
        begun
    }

    /// The most tokens that fit behind `[DEC]`.
    pub(crate) fn longest_text(&self) -> usize {
        self.text_branch().position_embeddings.ws.size()[0] as usize
    }
}

impl TextContinuation<'_> {
    /// One more token in each row, which sees everything before it: no mask is needed.
    fn read(&mut self, tokens: &[i64]) -> Tensor {
        let qformer = self.qformer;
        let text = qformer.text_branch();
        let rows = tokens.len() as i64;
        let device = qformer.query_tokens.device();
        let ids = Tensor::from_slice(tokens).to_device(device).unsqueeze(1);
        let packing = Packing::new(&ids.ones_like());
        let position = Tensor::from_slice(&[self.position]).to_device(device);
        let words = text.word_embeddings.forward(&packing.pack(&ids));
        let x = qformer.layernorm.forward(&(words + text.position_embeddings.forward(&position)));
        let layout = Layout::with_text(0, &packing);
        let pass = Pass { layout: &layout, mask: None, train: false };
        let (states, own) = qformer.run(x, &pass, None, Some(&self.past), false);
        for (past, own) in self.past.0.iter_mut().zip(&own) {
            *past = past.followed_by(own);
        }
        self.position += 1;
        states.narrow(0, 0, rows)
    }
}

impl Decoder for TextContinuation<'_> {
    fn scores(&self) -> Tensor {
        let _no_gradient = tch::no_grad_guard();
        self.qformer.lm_logits(&self.last).to_kind(Kind::Float)
    }

    fn advance(&mut self, rows: &[i64], tokens: &[i64]) {
        let _no_gradient = tch::no_grad_guard();
        if !rows.iter().copied().eq(0..self.last.size()[0]) {
            let rows = Tensor::from_slice(rows).to_device(self.last.device());
            self.past.0.iter_mut().for_each(|past| *past = past.select(&rows));
        }
        self.last = self.read(tokens);
    }
}
