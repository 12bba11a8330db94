//! What changes scores before a token is chosen: the repetition penalty, then the shortest length.

use tch::{Kind, Tensor};

use super::GenerateOptions;

/// The rules of one search, and what they have to remember of its rows.
pub(super) struct Rules<'a> {
    options: &'a GenerateOptions,
    /// `[R, N]`, true = said before; `None` without a penalty.
    said: Option<Tensor>,
    generated: usize,
}

impl<'a> Rules<'a> {
    /// Before the first token; `scores` `[R, N]` has a row for each of `said`.
    pub fn new(options: &'a GenerateOptions, said: &[Vec<i64>], scores: &Tensor) -> Self {
        let is_on = (options.repetition_penalty - 1.0).abs() > f64::EPSILON;
        let said = is_on.then(|| {
            let vocabulary = scores.size()[1];
            let mut flat = vec![false; scores.numel()];
            for (row, ids) in said.iter().enumerate() {
                // An image's placeholder may have an id behind the last word.
                for &id in ids.iter().filter(|id| (0..vocabulary).contains(*id)) {
                    flat[row * vocabulary as usize + id as usize] = true;
                }
            }
            Tensor::from_slice(&flat).view([-1, vocabulary]).to_device(scores.device())
        });
        Self { options, said, generated: 0 }
    }

    /// `scores` `[R, N]` as the rules have them.
    pub fn apply(&self, scores: Tensor) -> Tensor {
        let penalised = match &self.said {
            Some(said) => {
                let penalty = self.options.repetition_penalty;
                let lowered = (&scores * penalty).where_self(&scores.lt(0.0), &(&scores / penalty));
                lowered.where_self(said, &scores)
            }
            None => scores,
        };
        if self.generated >= self.options.min_new_tokens || self.options.end.is_empty() {
            return penalised;
        }
        let end = Tensor::from_slice(&self.options.end).to_device(penalised.device());
        penalised.index_fill(1, &end, f64::NEG_INFINITY)
    }

    /// The decoder went on.
    pub fn advance(&mut self, rows: &[i64], tokens: &[i64]) {
        self.generated += 1;
        self.said = self.said.take().map(|said| {
            let rows = Tensor::from_slice(rows).to_device(said.device());
            let tokens = Tensor::from_slice(tokens).to_device(said.device()).unsqueeze(1);
            said.index_select(0, &rows).scatter_value(1, &tokens, 1)
        });
    }

    /// Rows repeat before the first token: `rows` of the present ones.
    pub fn repeat(&mut self, rows: &[i64]) {
        let select = |said: Tensor| said.index_select(0, &Tensor::from_slice(rows).to_device(said.device()));
        self.said = self.said.take().map(select);
    }
}

/// `[R, N]` single precision on the host.
pub(super) fn to_host(values: &Tensor) -> Vec<f32> {
    let flat = values.to_kind(Kind::Float).to_device(tch::Device::Cpu).contiguous().view([-1]);
    Vec::try_from(flat).expect("one dimension of single precision")
}
