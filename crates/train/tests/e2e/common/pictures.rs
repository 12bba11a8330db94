//! Coloured shapes on white, 32 x 32, with captions such as "small red circle".

use std::fs::File;
use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};

const SIDE: u32 = 32;

pub const SIZES: [&str; 2] = ["small", "big"];
pub const COLOURS: [(&str, [u8; 3]); 6] = [
    ("red", [220, 30, 30]),
    ("green", [30, 160, 60]),
    ("blue", [40, 70, 220]),
    ("yellow", [230, 200, 20]),
    ("violet", [140, 40, 180]),
    ("black", [20, 20, 20]),
];
pub const SHAPES: [&str; 6] = ["circle", "square", "diamond", "ring", "cross", "stripe"];
/// Another word for each shape.
pub const TAGS: [&str; 6] = ["disc", "box", "lozenge", "loop", "plus", "bar"];

/// One sample of a shard.
#[derive(Clone)]
pub struct Picture {
    pub key: String,
    pub png: Vec<u8>,
    pub caption: String,
    pub tag: &'static str,
}

/// All 72 of them, in an order in which every colour and shape comes early.
pub fn pictures() -> Vec<Picture> {
    let count = SIZES.len() * COLOURS.len() * SHAPES.len();
    // 31 and 72 have no common divisor, so that every number comes once.
    (0..count).map(|i| picture(i * 31 % count)).collect()
}

fn picture(number: usize) -> Picture {
    let (shape, rest) = (number % SHAPES.len(), number / SHAPES.len());
    let ((colour, rgb), size) = (COLOURS[rest % COLOURS.len()], rest / COLOURS.len());
    let radius = [7, 13][size];
    let image = RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let centred = |v: u32| (2 * v as i32 + 1 - SIDE as i32) / 2;
        if covers(shape, centred(x), centred(y), radius) { Rgb(rgb) } else { Rgb([255; 3]) }
    });
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).unwrap();
    Picture {
        key: format!("{number:03}"),
        png: png.into_inner(),
        caption: format!("{} {colour} {}", SIZES[size], SHAPES[shape]),
        tag: TAGS[shape],
    }
}

fn covers(shape: usize, x: i32, y: i32, radius: i32) -> bool {
    let distance = x * x + y * y;
    match SHAPES[shape] {
        "circle" => distance <= radius * radius,
        "square" => x.abs().max(y.abs()) <= radius,
        "diamond" => x.abs() + y.abs() <= radius,
        "ring" => (radius * radius / 2..=radius * radius).contains(&distance),
        "cross" => x.abs().min(y.abs()) <= 2 && x.abs().max(y.abs()) <= radius,
        _ => y.abs() <= radius / 3,
    }
}

/// A WebDataset shard: `key.png` and `key.json` for each picture.
pub fn write_shard(path: &Path, pictures: &[Picture]) {
    let mut tar = tar::Builder::new(File::create(path).unwrap());
    let mut add = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    for (number, picture) in pictures.iter().enumerate() {
        // Twelve of each shard are said to be one picture; nobody asks, unless a config does.
        let json =
            serde_json::json!({ "caption": picture.caption, "tags": [picture.tag], "image_id": number / 12 });
        add(format!("{}.png", picture.key), &picture.png);
        add(format!("{}.json", picture.key), json.to_string().as_bytes());
    }
    tar.finish().unwrap();
}
