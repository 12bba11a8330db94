//! Predictions become figures: retrieval recalls, caption scores, VQA accuracy. Plain numbers in, plain numbers out.
//!
//! What is counted follows the scripts that the field reports with, so that figures can be put beside published ones:
//! pycocoevalcap 1.2 (captions), LAVIS 1.0.2 (retrieval, VQA). METEOR is left out: it is a Java program with a
//! 60 MB paraphrase table, and its figure adds nothing to CIDEr here.

mod bleu;
mod captions;
mod cider;
mod ngram;
mod recall;
mod rouge;
mod tokenize;
mod vqa;

pub use bleu::{Bleu, bleu};
pub use captions::{CaptionFigures, caption_figures, captions};
pub use cider::cider;
pub use recall::{Recalls, diagonal_recalls, retrieval_recalls};
pub use rouge::rouge_l;
pub use tokenize::{Tokens, tokenize, tokenize_as_one_text};
pub use vqa::{
    VqaAnswer, VqaFigures, VqaQuestion, normalise_answer, normalise_punctuation, vqa, vqa_accuracy,
};
