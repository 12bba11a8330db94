//! Shards become batches on the host, in an order that is a pure function and resumes exactly.
//!
//! One noun per stage, one file per noun; data only moves forward:
//!
//! ```text
//! shards (tar) --index--> SampleEntry --sample--> Sample --decode--> Decoded --transform--> Pixels
//!                              |                    |---caption----> text --tokenizer--> TextBatch
//!          order (seed, epoch, position) decides which               '--------- loader --> Batch
//! ```
//!
//! A bad sample is a value ([`SampleError`]), not an exception: it is counted by shard and reason and replaced by
//! the next good one, so that every rank keeps its batch size. [`DataError`] is for what ends a run.
//!
//! Nothing here touches a device, reads a clock or the environment, or knows more of ranks than two numbers.

pub mod augment;
pub mod batch;
pub mod caption;
pub mod counters;
pub mod decode;
pub mod error;
pub mod index;
pub mod loader;
pub mod order;
mod ordered;
pub mod pattern;
pub mod prepare;
pub mod resize;
pub mod rng;
pub mod sample;
pub mod tokenizer;
pub mod transform;

pub use batch::{Batch, Cursor};
pub use caption::{MAX_WORDS, TextPolicy, blip_caption};
pub use counters::Counters;
pub use decode::{Alpha, DecodeOptions, Decoded, decode};
pub use error::{DataError, SampleError, SkipReason};
pub use index::{Index, SampleEntry};
pub use loader::{Loader, LoaderSpec, View, decode_all};
pub use order::{Order, SampleRef, rank_slice};
pub use rng::{Rng, Stream};
pub use sample::{Captions, Sample};
pub use tokenizer::{LmFraming, LmTokenizer, TextBatch, Tokenizer, WordPiece};
pub use transform::{Pixels, Transform, TransformConfig};
