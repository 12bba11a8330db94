//! BLIP-2 for one device: inputs in, losses or tokens out.
//!
//! Nothing here knows a rank, a clock, a tokenizer or an optimizer; what must cross ranks goes through the
//! [`collectives::ProcessGroup`] that is given as an argument (Li et al. 2023, arXiv 2301.12597).
//!
//! Letters in shape comments: B batch, Q query tokens, P image tokens, T text tokens, D hidden size of the Q-Former,
//! V width of the image encoder, E width of the contrastive space, H heads, K head size, W ranks.

mod contrast;
mod count;
mod dropout;
mod exchange;
mod inputs;
pub mod language;
mod layers;
mod negatives;
mod qformer;
mod stage1;
mod stage2;
pub mod vision;
mod weights;

pub use count::stage2_parameters;
pub use inputs::{LmText, Negatives, Stage1Inputs, Stage2Inputs, TextInput};
pub use language::{LanguageConfig, LanguageModel};
pub use negatives::{NegativeWeighting, negative_weights};
pub use qformer::{ImageContext, Packing, Qformer, QformerConfig, TextBranchConfig, init_from_bert};
pub use stage1::{
    CachedContrast, EncodedImages, ItgWeighting, Stage1, Stage1Config, Stage1Losses, Stage1Trace,
};
pub use stage2::{Prompt, Stage2, Stage2Trace};
pub use vision::{VisionConfig, VisionEncoder};
pub use weights::{Weights, WeightsError};
