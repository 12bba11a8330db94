//! D4, D5, D6 and D12 of the matrix: what can be wrong with captions and pictures.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Shard, global_batches, jpeg, png, spec, write};
use data::{
    DecodeOptions, Index, Loader, LoaderSpec, SkipReason, Transform, TransformConfig, decode,
    write_index_files,
};
use proptest::prelude::*;

fn open(dir: &std::path::Path) -> Index {
    Index::open(&[dir.display().to_string()]).unwrap()
}

fn counted(pairs: &[(SkipReason, u64)]) -> BTreeMap<SkipReason, u64> {
    pairs.iter().copied().collect()
}

#[test]
fn d4_captions_are_texts_or_counted() {
    type Case<'a> = (&'a str, &'a str, &'a [u8], Result<&'a str, SkipReason>);
    let dir = tempfile::tempdir().unwrap();
    let cases: [Case<'_>; 13] = [
        ("utf8", "txt", &[0xff, 0xfe, 0x41], Err(SkipReason::CaptionNotUtf8)),
        ("bom", "txt", b"\xef\xbb\xbfa cat", Ok("a cat")),
        ("nul", "txt", b"a\0cat", Ok("a\0cat")),
        ("empty", "txt", b"", Err(SkipReason::CaptionEmpty)),
        ("space", "txt", b" \n\t ", Err(SkipReason::CaptionEmpty)),
        ("large", "txt", &[b'a'; (1 << 20) + 1], Err(SkipReason::CaptionTooLarge)),
        (
            "emoji",
            "txt",
            "\u{1f408}\u{200d}\u{2b1b} \u{5d7}\u{5ea}\u{5d5}\u{5dc}".as_bytes(),
            Ok("\u{1f408}\u{200d}\u{2b1b} \u{5d7}\u{5ea}\u{5d5}\u{5dc}"),
        ),
        ("json", "json", br#"{"caption": "a dog", "width": 3}"#, Ok("a dog")),
        ("list", "json", br#"["one", "two"]"#, Ok("one")),
        ("nocap", "json", br#"{"url": "x"}"#, Err(SkipReason::CaptionJsonInvalid)),
        ("broken", "json", br#"{"caption": "#, Err(SkipReason::CaptionJsonInvalid)),
        ("deep", "json", &[b'['; 100_000], Err(SkipReason::CaptionJsonInvalid)),
        ("mega", "txt", &[b'w'; 1 << 20], Ok("w")),
    ];
    let mut shard = Shard::new();
    for (key, kind, bytes, _) in &cases {
        shard.member(&format!("{key}.png"), &png(1)).member(&format!("{key}.{kind}"), bytes);
    }
    write(dir.path(), "0.tar", &shard.bytes());
    let index = Arc::new(open(dir.path()));
    for (sample, (key, _, _, expected)) in cases.iter().enumerate() {
        match (index.read_captions(sample), expected) {
            (Ok(found), Ok(start)) => assert!(found.captions[0].starts_with(start), "{key}"),
            (Err(error), Err(reason)) => assert_eq!(error.reason, *reason, "{key}"),
            (found, _) => panic!("{key}: {found:?}"),
        }
    }
    // Through the loader: one epoch counts each bad sample once, whatever the ranks.
    let spec = LoaderSpec { global_batch: 13, ..spec(index) };
    let (_, skipped) = global_batches(&spec, 1, 0, 1);
    assert_eq!(
        skipped,
        counted(&[
            (SkipReason::CaptionNotUtf8, 1),
            (SkipReason::CaptionEmpty, 2),
            (SkipReason::CaptionTooLarge, 1),
            (SkipReason::CaptionJsonInvalid, 3),
        ])
    );
    assert_eq!(global_batches(&spec, 4, 0, 1).1, skipped);
}

#[test]
fn one_of_the_first_captions_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let mut shard = Shard::new();
    shard.member("a.png", &png(1)).member("a.json", br#"["one", "two", "three", "four"]"#);
    write(dir.path(), "0.tar", &shard.bytes());
    let spec = LoaderSpec { first_captions: Some(2), ..spec(Arc::new(open(dir.path()))) };
    let mut loader = Loader::start(spec).unwrap();
    let mut texts: Vec<String> = (0..100).map(|_| loader.next_batch().unwrap().texts[0].clone()).collect();
    assert!(texts.iter().filter(|text| *text == "one").count().abs_diff(50) < 25);
    texts.sort();
    texts.dedup();
    assert_eq!(texts, ["one", "two"]);
}

/// A JPEG with `segment` behind its first marker.
fn with_segment(jpeg: &[u8], marker: u8, segment: &[u8]) -> Vec<u8> {
    let length = (segment.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, marker], &length, segment, &jpeg[2..]].concat()
}

fn encoded(format: turbojpeg::PixelFormat, progressive: bool) -> Vec<u8> {
    let mut compressor = turbojpeg::Compressor::new().unwrap();
    compressor.set_progressive(progressive).unwrap();
    match format {
        turbojpeg::PixelFormat::CMYK => compressor.set_colorspace(turbojpeg::Colorspace::CMYK).unwrap(),
        turbojpeg::PixelFormat::GRAY => compressor.set_colorspace(turbojpeg::Colorspace::Gray).unwrap(),
        _ => {}
    }
    let pixels = vec![100; 16 * 16 * format.size()];
    let image = turbojpeg::Image {
        pixels: pixels.as_slice(),
        width: 16,
        pitch: 16 * format.size(),
        height: 16,
        format,
    };
    compressor.compress_to_vec(image).unwrap()
}

fn png_of(color: image::ColorType, width: u32, height: u32) -> Vec<u8> {
    let raw = vec![120; (width * height) as usize * usize::from(color.bytes_per_pixel())];
    let mut bytes = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    image::ImageEncoder::write_image(encoder, &raw, width, height, color.into()).unwrap();
    bytes
}

#[test]
fn d5_pictures_are_decoded_or_refused_by_the_table() {
    type Case = (&'static str, Vec<u8>, Result<(usize, usize), SkipReason>);
    use turbojpeg::PixelFormat;
    let plain = jpeg(64, 48);
    // Orientation 6 in little-endian TIFF, and a colour profile of nonsense: both are ignored, as Pillow does.
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let profile = [b"ICC_PROFILE\0\x01\x01".as_slice(), &[7; 300]].concat();
    let cases: [Case; 15] = [
        ("plain", plain.clone(), Ok((64, 48))),
        ("truncated", plain[..plain.len() * 2 / 3].to_vec(), Err(SkipReason::ImageCorrupt)),
        ("html", b"<!doctype html><html>404</html>".to_vec(), Err(SkipReason::ImageFormatUnknown)),
        ("gif", b"GIF89a\x01\0\x01\0\0\0\0;".to_vec(), Err(SkipReason::ImageFormatUnknown)),
        ("empty", Vec::new(), Err(SkipReason::ImageFormatUnknown)),
        ("png named jpg", png(5), Ok((8, 6))),
        ("cmyk", encoded(PixelFormat::CMYK, false), Ok((16, 16))),
        ("gray", encoded(PixelFormat::GRAY, false), Ok((16, 16))),
        ("progressive", encoded(PixelFormat::RGB, true), Ok((16, 16))),
        ("exif", with_segment(&plain, 0xe1, exif), Ok((64, 48))),
        ("icc", with_segment(&plain, 0xe2, &profile), Ok((64, 48))),
        ("16 bit", png_of(image::ColorType::L16, 9, 7), Ok((9, 7))),
        ("rgba", png_of(image::ColorType::Rgba8, 9, 7), Ok((9, 7))),
        ("one pixel", png_of(image::ColorType::Rgb8, 1, 1), Ok((1, 1))),
        ("long", png_of(image::ColorType::Rgb8, 65_500, 1), Ok((65_500, 1))),
    ];
    let transform = Transform::new(TransformConfig { image_size: 32, ..TransformConfig::default() }).unwrap();
    for (name, bytes, expected) in &cases {
        let found = decode(bytes, &DecodeOptions::default());
        assert_eq!(
            found.as_ref().map(|image| (image.width, image.height)).map_err(|reason| *reason),
            *expected,
            "{name}"
        );
        if let Ok(image) = found {
            assert_eq!(transform.train(&image, 1, 2, 3).values.len(), 3 * 32 * 32, "{name}");
        }
    }
    let pixels = |bytes: &[u8]| decode(bytes, &DecodeOptions::default()).unwrap().rgb;
    assert_eq!(pixels(&cases[9].1), pixels(&plain));
    assert_eq!(pixels(&cases[10].1), pixels(&plain));
}

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn d6_bombs_are_refused_from_their_headers() {
    // 65535 x 65535 in the header of a tiny PNG; 20000 x 20000 in that of a JPEG; the same for WebP (VP8X).
    let mut big_png = png(1);
    big_png[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    let mut big_jpeg = jpeg(64, 48);
    let frame = big_jpeg.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
    big_jpeg[frame + 5..frame + 9].copy_from_slice(&[0x4e, 0x20, 0x4e, 0x20]);
    let mut big_webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
    big_webp.extend_from_slice(&[0x1f, 0x4e, 0, 0x1f, 0x4e, 0]);
    let before = peak_memory();
    for (name, bytes) in [("png", big_png), ("jpeg", big_jpeg), ("webp", big_webp)] {
        let started = Instant::now();
        let found = decode(&bytes, &DecodeOptions::default());
        let spent = started.elapsed();
        assert!(
            matches!(found, Err(SkipReason::ImageTooLarge | SkipReason::ImageCorrupt)),
            "{name}: {found:?}"
        );
        assert!(name == "webp" || found == Err(SkipReason::ImageTooLarge), "{name}: {found:?}");
        println!("{name}: refused in {spent:?}");
        assert!(spent <= Duration::from_millis(5), "{name}: {spent:?}");
    }
    let grown = peak_memory() - before;
    println!("memory grown by {} KiB", grown >> 10);
    assert!(grown <= 64 << 20, "{grown}");
}

#[test]
fn d6_an_archive_of_too_many_members_is_refused_by_name_in_bounded_memory() {
    use std::io::BufWriter;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.tar");
    let mut file = BufWriter::new(std::fs::File::create(&path).unwrap());
    let mut header = tar::Header::new_gnu();
    for number in 0..data::scan::MAX_MEMBERS + 1000 {
        let kind = if number % 2 == 0 { "png" } else { "txt" };
        header.set_path(format!("{:09}.{kind}", number / 2)).unwrap();
        header.set_size(0);
        header.set_cksum();
        file.write_all(header.as_bytes()).unwrap();
    }
    file.write_all(&[0; 1024]).unwrap();
    drop(file);
    let before = peak_memory();
    let error = Index::open(&[dir.path().display().to_string()]).unwrap_err();
    let grown = peak_memory() - before;
    println!("{} members: memory grown by {} KiB", data::scan::MAX_MEMBERS, grown >> 10);
    assert!(
        matches!(&error, data::DataError::ShardTooLarge { shard, .. } if shard.ends_with("0.tar")),
        "{error}"
    );
    assert!(grown <= 64 << 20, "{grown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn d12_captions_and_pictures_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = data::sample::parse_json(&bytes);
        let _ = data::sample::parse_text(&bytes);
        let _ = decode(&bytes, &DecodeOptions::default());
    }
}

/// A few bytes of `seed` changed, sometimes cut.
fn mutated(seed: &[u8], rng: &mut data::Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + rng.below(6) {
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] = rng.bits() as u8;
    }
    if rng.chance(0.2) {
        bytes.truncate(rng.below(bytes.len() as u64) as usize);
    }
    bytes
}

#[test]
fn long_d12_a_million_damaged_inputs_each() {
    use std::os::unix::fs::FileExt;
    let executions = 1_000_000;
    let mut rng = data::Rng::new(12, data::Stream::Subset, &[]);
    let file = tempfile::tempfile().unwrap();
    let mut shard = Shard::new();
    shard.samples("seed", 2).member(&"long/".repeat(60), b"x");
    let archive = shard.bytes();
    let dir = tempfile::tempdir().unwrap();
    let pattern = [common::write_shards(dir.path(), 1, 2)];
    write_index_files(&pattern, true).unwrap();
    let index_text = std::fs::read(dir.path().join("00000.tar.index")).unwrap();
    let pictures = [jpeg(16, 16), png(1), encoded(turbojpeg::PixelFormat::GRAY, true)];
    for number in 0..executions {
        let bytes = mutated(&archive, &mut rng);
        file.set_len(bytes.len() as u64).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        data::scan::scan(&file).unwrap();
        if let Ok(text) = String::from_utf8(mutated(&index_text, &mut rng)) {
            let _ = data::index_file::ShardIndex::decode(&text);
        }
        let bytes = mutated(&pictures[number % pictures.len()], &mut rng);
        let _ = decode(&bytes, &DecodeOptions { max_pixels: 100_000, ..DecodeOptions::default() });
        let _ = data::sample::parse_json(&mutated(br#"{"caption": ["a", "b"], "tags": ["c"]}"#, &mut rng));
    }
    println!("{executions} executions each of tar, index file, picture and caption");
}
