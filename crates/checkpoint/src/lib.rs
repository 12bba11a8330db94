//! Host tensors made durable, whole, verified, findable.
//!
//! A training run owns a folder of checkpoints ([`Store`]); each checkpoint is a folder `step-00000100/` whose
//! `manifest.json` holds a BLAKE3 digest for every 4 MiB of every file. A folder appears under its final name only
//! once all of it is on the disk, is verified before one tensor of it is used, and is never deleted before a newer
//! one is committed. This crate knows names, shapes and bytes; it does not know what a parameter means.

mod digest;
mod disk;
mod durable;
mod error;
mod folder;
pub mod foreign;
mod hashed;
mod manifest;
pub mod quickstart;
mod sharded;
mod source;
mod store;
mod tensor;
mod tensor_file;
mod writer;

pub use digest::{CHUNK_BYTES, FileDigest};
pub use durable::write_durably;
pub use error::CheckpointError;
pub use folder::{Snapshot, load, verify};
pub use hashed::HashedSource;
pub use manifest::{FORMAT, MANIFEST, Manifest};
pub use sharded::{Announced, SHARD_BYTES, new_file, new_folder, write_weights};
pub use source::{WeightFormat, WeightSource};
pub use store::{Listed, Loaded, Store, latest_valid, list, pinned};
pub use tensor::{Dtype, HostTensor, TensorMap};
pub use tensor_file::{
    Header, Metadata, TensorFile, TensorInfo, read_header, read_safetensors, write_safetensors,
};
pub use writer::{Saved, Writer};
