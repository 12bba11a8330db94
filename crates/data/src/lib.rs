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
//! a good one, so that every rank keeps its batch size. [`DataError`] is for what ends a run.
//!
//! Nothing here touches a device or reads the environment, or knows more of ranks than two numbers; only downloads
//! ([`remote`]) look at a clock.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use data::{Index, Loader, LoaderSpec, Order, Transform, TransformConfig};
//!
//! # let dir = tempfile::tempdir()?;
//! # let mut shard = tar::Builder::new(std::fs::File::create(dir.path().join("0.tar"))?);
//! # let mut png = std::io::Cursor::new(Vec::new());
//! # image::RgbImage::new(32, 24).write_to(&mut png, image::ImageFormat::Png)?;
//! # for (name, bytes) in [("a.png", png.get_ref().as_slice()), ("a.txt", b"A cat."), ("b.png", png.get_ref()), ("b.txt", b"A dog.")] {
//! #     let mut header = tar::Header::new_gnu();
//! #     header.set_size(bytes.len() as u64);
//! #     shard.append_data(&mut header, name, bytes)?;
//! # }
//! # shard.finish()?;
//! # let shards = dir.path().display().to_string();
//! let index = Arc::new(Index::open(&[shards])?);
//! let order = Arc::new(Order::in_blocks(1, &index.shard_sizes(0), 16));
//! let spec = LoaderSpec {
//!     global_batch: 2,
//!     transform: Some(Arc::new(Transform::new(TransformConfig::default())?)),
//!     ..LoaderSpec::new(index, order, 1)
//! };
//! let mut loader = Loader::start(spec.clone())?;
//! let first = loader.next_batch()?;
//! assert_eq!(first.pixels.as_ref().map(|pixels| pixels.len()), Some(2 * 3 * 224 * 224));
//! let second = loader.next_batch()?;
//!
//! // Resumed, with another number of threads: the same second batch.
//! let mut resumed = Loader::start(LoaderSpec { start_position: first.cursor.position, workers: 3, ..spec })?;
//! assert_eq!(resumed.next_batch()?, second);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod augment;
pub mod batch;
pub mod bench;
mod blocks;
pub mod caption;
pub mod counters;
pub mod decode;
mod entries;
pub mod error;
pub mod index;
pub mod index_file;
mod kernel;
pub mod lm_tokenizer;
pub mod loader;
mod local;
pub mod location;
mod mixture;
mod open_shards;
pub mod order;
mod ordered;
pub mod pattern;
mod prefetch;
pub mod prefix;
pub mod prepare;
mod recent;
pub mod remote;
pub mod resize;
pub mod rng;
pub mod room;
pub mod sample;
pub mod scan;
mod share;
pub mod source;
mod stand_in;
pub mod tokenizer;
pub mod tools;
pub mod transform;
#[cfg(target_arch = "x86_64")]
mod wide;

pub use batch::{Batch, Cursor};
pub use caption::{MAX_WORDS, TextPolicy, blip_caption};
pub use counters::Counters;
pub use decode::{Alpha, DecodeOptions, Decoded, decode, decode_into};
pub use error::{DataError, SampleError, SkipReason};
pub use index::{Index, SampleEntry, write_index_files};
pub use lm_tokenizer::LmTokenizer;
pub use loader::{Loader, LoaderSpec};
pub use location::Location;
pub use mixture::{Drawn, MixtureSet, Share, Unit};
pub use order::{Order, SampleRef, rank_slice};
pub use prefix::{PrefixSplit, TwoParts};
pub use remote::RemoteOptions;
pub use rng::{Rng, Stream};
pub use sample::{Captions, Sample};
pub use tokenizer::{TextBatch, WordPiece};
pub use transform::{Pixels, Transform, TransformConfig};
