//! Tokens out of anything that scores next tokens: greedy, beam search, nucleus sampling (transformers' contract).
//!
//! The search knows no model: a [`Decoder`] scores what may follow each of its rows and goes on with what was chosen.

mod beam;
mod rows;
mod rules;
mod sample;

use tch::Tensor;

/// Rows of tokens that can be continued.
pub trait Decoder {
    /// Scores (logits) of every token id behind each row, `[R, N]`, single precision.
    fn scores(&self) -> Tensor;

    /// Goes on with the rows `rows` of before (which may repeat; the others are forgotten), each with its token.
    fn advance(&mut self, rows: &[i64], tokens: &[i64]);
}

/// How to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// What is searched for.
    pub strategy: Strategy,
    /// A text ends here at the latest; its end of text counts.
    pub max_new_tokens: usize,
    /// No text ends before it has so many tokens.
    pub min_new_tokens: usize,
    /// Scores of ids that were said before are divided by it, negative ones multiplied (Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f64,
    /// Ids that end a text.
    pub end: Vec<i64>,
}

/// The closed set of searches.
#[derive(Clone, Debug, PartialEq)]
pub enum Strategy {
    /// The most probable token, each time.
    Greedy,
    /// The most probable text, as far as a few candidates tell.
    Beam(Beams),
    /// A random text.
    Nucleus(Nucleus),
}

/// Beam search.
#[derive(Clone, Debug, PartialEq)]
pub struct Beams {
    /// Candidates that are followed at once.
    pub num_beams: usize,
    /// A finished text's score is its log-probability over its length to this power: above 0 favours long ones.
    pub length_penalty: f64,
    /// When to look no further.
    pub early_stopping: EarlyStopping,
    /// The best so many of each item are returned.
    pub num_return_sequences: usize,
}

/// When a beam search with `num_beams` finished texts looks no further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// When the best unfinished text, at its present length, is no better than the worst finished one (`false`).
    #[default]
    Heuristic,
    /// At once (`true`).
    Immediate,
    /// When the best unfinished text cannot get better than the worst finished one at any length (`"never"`).
    Never,
}

/// Sampling (Holtzman et al. 2020).
#[derive(Clone, Debug, PartialEq)]
pub struct Nucleus {
    /// The smallest set of most probable tokens with at least this probability together is drawn from; 1 is off.
    pub top_p: f64,
    /// At most so many tokens are drawn from; 0 is off.
    pub top_k: usize,
    /// Scores are divided by it before all else.
    pub temperature: f64,
    /// Every draw is a function of this, of the row and of the position: neither the batch's size nor other rows matter.
    pub seed: u64,
    /// Texts of each item.
    pub num_return_sequences: usize,
}

/// One generated text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Its ids, without the end.
    pub ids: Vec<i64>,
    /// The id that ended it, if it ended.
    pub end: Option<i64>,
    /// Beam search: the log-probability over the length, with the length penalty.
    pub score: Option<f64>,
}

/// Options that mean nothing: the message names the key.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{key} = {value}: must be {wanted}")]
pub struct OptionsError {
    key: &'static str,
    value: String,
    wanted: &'static str,
}

impl GenerateOptions {
    /// Greedy, at most so many tokens.
    #[must_use]
    pub fn greedy(max_new_tokens: usize, end: &[i64]) -> Self {
        Self {
            strategy: Strategy::Greedy,
            max_new_tokens,
            min_new_tokens: 0,
            repetition_penalty: 1.0,
            end: end.to_vec(),
        }
    }

    /// Refuses what no search can be run with.
    ///
    /// # Errors
    /// [`OptionsError`] naming the first key that is out of range.
    pub fn check(&self) -> Result<(), OptionsError> {
        let must = |is_met: bool, key: &'static str, value: &dyn ToString, wanted: &'static str| match is_met
        {
            true => Ok(()),
            false => Err(OptionsError { key, value: value.to_string(), wanted }),
        };
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let penalty = self.repetition_penalty;
        must(positive(penalty), "repetition_penalty", &penalty, "above 0")?;
        match &self.strategy {
            Strategy::Greedy => Ok(()),
            Strategy::Beam(beams) => {
                let returned = beams.num_return_sequences;
                must(beams.num_beams > 0, "num_beams", &beams.num_beams, "at least 1")?;
                must(beams.length_penalty.is_finite(), "length_penalty", &beams.length_penalty, "a number")?;
                let in_range = (1..=beams.num_beams).contains(&returned);
                must(in_range, "num_return_sequences", &returned, "from 1 to num_beams")
            }
            Strategy::Nucleus(nucleus) => {
                let returned = nucleus.num_return_sequences;
                must(
                    nucleus.top_p > 0.0 && nucleus.top_p <= 1.0,
                    "top_p",
                    &nucleus.top_p,
                    "above 0, at most 1",
                )?;
                must(positive(nucleus.temperature), "temperature", &nucleus.temperature, "above 0")?;
                must(returned > 0, "num_return_sequences", &returned, "at least 1")
            }
        }
    }
}

/// Continues every row of `decoder`: for each of them the texts that the strategy returns, best first.
///
/// `said` has for each row the ids that the repetition penalty counts beside the generated ones. `options` are such as
/// [`GenerateOptions::check`] lets pass. A row without tokens to say (`max_new_tokens` 0) comes back empty.
pub fn generate(
    decoder: &mut dyn Decoder,
    said: &[Vec<i64>],
    options: &GenerateOptions,
) -> Vec<Vec<Generated>> {
    let _no_gradient = tch::no_grad_guard();
    match &options.strategy {
        Strategy::Greedy => rows::generate(decoder, said, options, 1, &mut |scores, _, _| {
            Vec::try_from(scores.argmax(-1, false)).expect("argmax gives a row of integers")
        }),
        Strategy::Nucleus(nucleus) => {
            let mut draw = |scores: &Tensor, rows: &[usize], step: usize| nucleus.draw(scores, rows, step);
            rows::generate(decoder, said, options, nucleus.num_return_sequences, &mut draw)
        }
        Strategy::Beam(beams) => beam::generate(decoder, said, options, beams),
    }
}

#[cfg(test)]
mod tests;
