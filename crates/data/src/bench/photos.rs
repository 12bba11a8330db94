//! Shards to measure with: made up, but as large and as busy as photographs, and the same on every machine.

use std::io;
use std::path::{Path, PathBuf};

use crate::rng::{Rng, Stream};
use crate::tools::shard::ShardWriter;

const SHARDS: usize = 4;
const PHOTOS: usize = 64;
const SMALL_SAMPLES: usize = 10_000;
const WIDTH: usize = 500;
const HEIGHT: usize = 375;
/// Part of the shards' names: a change of what is in them makes new ones.
const VERSION: &str = "v1";

/// Shards of 500x375 JPEGs (quality 90, colours at half resolution) with captions, in `dir`; made when absent.
pub fn photo_shards(dir: &Path, say: &dyn Fn(&str)) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir)?;
    let mut paths = Vec::new();
    for shard in 0..SHARDS {
        let path = dir.join(format!("photos-{VERSION}-{shard:03}.tar"));
        if !path.is_file() {
            say(&format!("making {}", path.display()));
            let mut writer = ShardWriter::create(&path)?;
            for photo in 0..PHOTOS {
                let number = shard * PHOTOS + photo;
                let key = format!("{number:06}");
                writer.add(&format!("{key}.jpg"), &jpeg(&pixels(number as u64))?)?;
                writer.add(&format!("{key}.txt"), caption(number).as_bytes())?;
            }
            writer.finish()?;
        }
        paths.push(path);
    }
    Ok(paths)
}

/// A shard of samples of one kilobyte. Their pictures are noise and decode to nothing: it is for reading only.
pub fn small_shard(dir: &Path) -> io::Result<PathBuf> {
    let path = dir.join(format!("small-{VERSION}.tar"));
    if !path.is_file() {
        let mut writer = ShardWriter::create(&path)?;
        let mut rng = Rng::new(1, Stream::Subset, &[]);
        for number in 0..SMALL_SAMPLES {
            let bytes: Vec<u8> = (0..1000 / 8).flat_map(|_| rng.bits().to_le_bytes()).collect();
            writer.add(&format!("{number:06}.jpg"), &bytes)?;
            writer.add(&format!("{number:06}.txt"), caption(number).as_bytes())?;
        }
        writer.finish()?;
    }
    Ok(path)
}

fn caption(number: usize) -> String {
    format!("A made-up picture, number {number}, with hills of colour and some grain.")
}

fn jpeg(pixels: &[u8]) -> io::Result<Vec<u8>> {
    let format = turbojpeg::PixelFormat::RGB;
    let image = turbojpeg::Image { pixels, width: WIDTH, pitch: WIDTH * 3, height: HEIGHT, format };
    turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2)
        .map(|bytes| bytes.to_vec())
        .map_err(io::Error::other)
}

/// Noise in octaves: the finer, the weaker, as in photographs. Brightness has more of it than colour. How much weaker
/// differs from picture to picture, so that files have 34 to 55 KB, as photographs of this size and quality have.
fn pixels(number: u64) -> Vec<u8> {
    let mut planes = [vec![0.0f32; WIDTH * HEIGHT], vec![0.0; WIDTH * HEIGHT], vec![0.0; WIDTH * HEIGHT]];
    let decay = Rng::new(number, Stream::Subset, &[]).uniform_in(0.68, 0.80) as f32;
    for (plane, values) in planes.iter_mut().enumerate() {
        let (octaves, strength) = if plane == 0 { (8, 80.0) } else { (4, 40.0) };
        for octave in 0..octaves {
            let mut rng = Rng::new(number, Stream::Subset, &[plane as u64, octave]);
            add_octave(values, 256 >> octave, strength * decay.powi(octave as i32), &mut rng);
        }
    }
    let [light, blue, red] = &planes;
    let channels = light
        .iter()
        .zip(blue)
        .zip(red)
        .flat_map(|((light, blue), red)| [light + red, light - 0.3 * red - 0.3 * blue, light + blue]);
    channels.map(|value| (value + 128.0).clamp(0.0, 255.0) as u8).collect()
}

/// Adds random heights on a grid of `cell` pixels, joined by straight lines.
fn add_octave(values: &mut [f32], cell: usize, strength: f32, rng: &mut Rng) {
    let (columns, rows) = (WIDTH / cell + 2, HEIGHT / cell + 2);
    let heights: Vec<f32> =
        (0..columns * rows).map(|_| (rng.uniform_in(-1.0, 1.0) as f32) * strength).collect();
    for (row, line) in values.chunks_exact_mut(WIDTH).enumerate() {
        let (above, down) = (row / cell * columns, (row % cell) as f32 / cell as f32);
        for (column, value) in line.iter_mut().enumerate() {
            let (left, right) = (column / cell, (column % cell) as f32 / cell as f32);
            let across = |start: usize| heights[start] * (1.0 - right) + heights[start + 1] * right;
            *value += across(above + left) * (1.0 - down) + across(above + columns + left) * down;
        }
    }
}
