//! A whole run in a temporary folder: pictures, captions, three tiny models with random weights, a config, and the real
//! programs `blip2` and `blip2-worker` on them.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "every test program uses some of these; a panic is a failed test"
)]

mod chaos;
mod config;
mod course;
pub mod hosts;
pub mod nodes;
mod page;
mod pictures;
mod process;
pub mod slurm;
mod weights;

pub use chaos::{Chaos, Scenario, Trial};
pub use course::{Course, course, first_gradients, records};
pub use page::{Page, Place};
pub use pictures::{Picture, SHAPES, pictures, write_shard};
pub use process::{Ended, Launch, Running, blip2};
pub use weights::write_flan;

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

/// Training pictures, in two shards.
pub const TRAIN_PICTURES: usize = 48;
/// Pictures of each of the splits `val` (which selects) and `held_out`.
pub const SPLIT_PICTURES: usize = 12;

/// A folder in which `config.toml` can be launched. All its paths are relative to the folder.
pub struct TinyWorld {
    dir: TempDir,
}

impl TinyWorld {
    pub fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(world.path("shards")).unwrap();
        let pictures = pictures();
        let (train, rest) = pictures.split_at(TRAIN_PICTURES);
        for (shard, part) in train.chunks(TRAIN_PICTURES / 2).enumerate() {
            write_shard(&world.path(&format!("shards/train-{shard:06}.tar")), part);
        }
        for (name, part) in ["val", "held_out"].into_iter().zip(rest.chunks(SPLIT_PICTURES)) {
            write_shard(&world.path(&format!("shards/{name}.tar")), part);
        }
        weights::write(&world.path("weights"));
        fs::write(world.path("config.toml"), config::CONFIG).unwrap();
        world
    }

    /// Training captions of one, two and three words.
    pub fn use_captions_of_all_lengths(&self) {
        let mut pictures = pictures();
        for (number, picture) in pictures.iter_mut().enumerate() {
            let words: Vec<&str> = picture.caption.split(' ').collect();
            picture.caption = words[number % 3..].join(" ");
        }
        for (shard, part) in pictures[..TRAIN_PICTURES].chunks(TRAIN_PICTURES / 2).enumerate() {
            write_shard(&self.path(&format!("shards/train-{shard:06}.tar")), part);
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Two ranks, no second chance, run folder `run`: to be changed as a test needs it.
    pub fn run<'a>(&'a self, run: &'a str) -> Launch<'a> {
        Launch { world: self, config: "config.toml", run, ranks: 2, max_restarts: 0, sets: &[] }
    }
}
