//! Shards for tests, good and bad.
#![allow(dead_code, reason = "each test program uses its own part")]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

pub mod server;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use data::{Index, Loader, LoaderSpec, Order, SkipReason};

/// Bytes of a small PNG whose first pixel is `shade`.
pub fn png(shade: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image::RgbImage::from_pixel(8, 6, image::Rgb([shade, 40, 200]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

/// Bytes of a JPEG with something in it.
pub fn jpeg(width: usize, height: usize) -> Vec<u8> {
    let pixels: Vec<u8> =
        (0..width * height * 3).map(|at| ((at / 3 % width) * 255 / width + at % 3 * 9) as u8).collect();
    let image = turbojpeg::Image {
        pixels: pixels.as_slice(),
        width,
        pitch: width * 3,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2).unwrap().to_vec()
}

/// A shard in the making.
pub struct Shard(tar::Builder<Vec<u8>>);

impl Shard {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn member(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        self.0.append_data(&mut header, name, bytes).unwrap();
        self
    }

    /// A header as it is, for what the builder would refuse.
    pub fn raw(&mut self, header: &tar::Header, bytes: &[u8]) -> &mut Self {
        self.0.append(header, bytes).unwrap();
        self
    }

    pub fn sample(&mut self, key: &str) -> &mut Self {
        self.member(&format!("{key}.png"), &png(key.len() as u8))
            .member(&format!("{key}.txt"), format!("a {key}").as_bytes())
    }

    pub fn samples(&mut self, prefix: &str, count: usize) -> &mut Self {
        for number in 0..count {
            self.sample(&format!("{prefix}{number:04}"));
        }
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Writes `bytes` as `dir/name`, gives the path as a pattern.
pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

/// `shards` shards of `samples` samples each.
pub fn write_shards(dir: &Path, shards: usize, samples: usize) -> String {
    for number in 0..shards {
        let mut shard = Shard::new();
        shard.samples(&format!("{number:05}"), samples);
        write(dir, &format!("{number:05}.tar"), &shard.bytes());
    }
    dir.display().to_string()
}

/// Reasons counted over all shards.
pub fn reasons(index: &Index) -> BTreeMap<SkipReason, u64> {
    index.problems().by_reason()
}

/// Keys in index order.
pub fn keys(index: &Index) -> Vec<&str> {
    (0..index.len()).map(|number| index.entry(number).key).collect()
}

/// A loader's spec over `index` in blocks of three shards, tolerant, without pixels.
pub fn spec(index: Arc<Index>) -> LoaderSpec {
    let order = Arc::new(Order::in_blocks(11, &index.shard_sizes(0), 3));
    LoaderSpec { workers: 2, max_skipped_ratio: 1.0, ..LoaderSpec::new(index, order, 11) }
}

/// What one global batch of all ranks held: (drawn, shown, epoch), in order.
pub type Global = Vec<(usize, usize, u64)>;

/// `batches` global batches from `position` on, put together from `world_size` ranks; skips counted over them.
pub fn global_batches(
    spec: &LoaderSpec,
    world_size: usize,
    position: u64,
    batches: usize,
) -> (Vec<Global>, BTreeMap<SkipReason, u64>) {
    let mut joined = vec![Global::new(); batches];
    let mut skipped = BTreeMap::new();
    for rank in 0..world_size {
        let spec = LoaderSpec { rank, world_size, start_position: position, ..spec.clone() };
        let mut loader = Loader::start(spec).unwrap();
        for joined in &mut joined {
            let batch = loader.next_batch().unwrap();
            assert_eq!(batch.len(), batch.keys.len());
            for row in 0..batch.len() {
                joined.push((batch.drawn[row], batch.samples[row], batch.epochs[row]));
            }
        }
        for (reason, count) in loader.counters().by_reason() {
            *skipped.entry(reason).or_default() += count;
        }
    }
    (joined, skipped)
}
