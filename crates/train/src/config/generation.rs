//! How captions are searched for.

use model::language::{Beams, EarlyStopping, GenerateOptions, Strategy};
use serde::{Deserialize, Serialize};

/// How captions of held-out pictures are searched for; the names are transformers'. The defaults are greedy.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationConfig {
    /// Candidates that are followed at once; 1 is greedy (LAVIS: 5).
    pub num_beams: usize,
    /// Of beams: a finished caption's score is its log-probability over its length to this power.
    pub length_penalty: f64,
    /// Scores of ids that were said before are divided by it; 1 is off.
    pub repetition_penalty: f64,
    /// No caption ends before it has so many tokens (LAVIS: 8 for COCO).
    pub min_new_tokens: usize,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self { num_beams: 1, length_penalty: 1.0, repetition_penalty: 1.0, min_new_tokens: 0 }
    }
}

impl GenerationConfig {
    /// As the search takes them: at most `max_new_tokens` tokens, up to one of `end`.
    pub fn options(&self, max_new_tokens: usize, end: &[i64]) -> GenerateOptions {
        let strategy = match self.num_beams {
            1 => Strategy::Greedy,
            num_beams => Strategy::Beam(Beams {
                num_beams,
                length_penalty: self.length_penalty,
                early_stopping: EarlyStopping::default(),
                num_return_sequences: 1,
            }),
        };
        GenerateOptions {
            strategy,
            min_new_tokens: self.min_new_tokens,
            repetition_penalty: self.repetition_penalty,
            ..GenerateOptions::greedy(max_new_tokens, end)
        }
    }
}
