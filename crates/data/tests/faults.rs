//! Data faults of the matrix, D1 to D7, D9, D11: each with what must be counted.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Shard, global_batches, jpeg, keys, png, reasons, spec, write};
use data::{
    DataError, DecodeOptions, Index, Loader, LoaderSpec, SkipReason, Transform, TransformConfig, decode,
    write_index_files,
};
use proptest::prelude::*;

fn open(dir: &std::path::Path) -> Index {
    Index::open(&[dir.display().to_string()]).unwrap()
}

fn counted(pairs: &[(SkipReason, u64)]) -> BTreeMap<SkipReason, u64> {
    pairs.iter().copied().collect()
}

/// Offset of the first byte of the header of member `name`.
fn header_of(bytes: &[u8], name: &str) -> usize {
    (0..bytes.len()).step_by(512).find(|&at| bytes[at..].starts_with(name.as_bytes())).unwrap()
}

/// Eleven shards, ten of them broken in a way of their own, and what is to be counted.
fn broken_shards(dir: &std::path::Path) -> BTreeMap<SkipReason, u64> {
    let three = |prefix: &str| {
        let mut shard = Shard::new();
        shard.samples(prefix, 3);
        shard.bytes()
    };
    write(dir, "00-good.tar", &three("good"));
    write(dir, "01-zero.tar", b"");
    write(dir, "02-garbage.tar", &[0x5a; 5000]);
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(&three("gz")).unwrap();
    write(dir, "03-gz.tar", &zipped.finish().unwrap());
    // Cut inside a picture: that sample loses its picture and then has no caption either.
    let cut = three("cut");
    write(dir, "04-cut-member.tar", &cut[..header_of(&cut, "cut0002.png") + 520]);
    // Cut inside a header, after a picture: its caption is gone.
    let cut = three("hdr");
    write(dir, "05-cut-header.tar", &cut[..header_of(&cut, "hdr0002.txt") + 100]);
    // Cut between two samples: nothing but the end is missing.
    let cut = three("bound");
    write(dir, "06-cut-boundary.tar", &cut[..header_of(&cut, "bound0002.png")]);
    let mut checksum = three("sum");
    let at = header_of(&checksum, "sum0002.png") + 150;
    checksum[at] ^= 1;
    write(dir, "07-checksum.tar", &checksum);
    // A size field that leads out of the file.
    let mut shard = Shard::new();
    shard.samples("size", 2);
    let mut bytes = shard.bytes();
    bytes.truncate(bytes.len() - 1024);
    let mut header = tar::Header::new_gnu();
    header.set_path("size0002.png").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&[0; 2048]);
    write(dir, "08-size.tar", &bytes);
    // A link, a device, a folder: the first two are counted.
    let mut shard = Shard::new();
    for kind in [tar::EntryType::Symlink, tar::EntryType::Char, tar::EntryType::Directory] {
        let mut header = tar::Header::new_gnu();
        header.set_path("odd.png").unwrap();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        shard.raw(&header, b"");
    }
    shard.samples("links", 2);
    write(dir, "09-links.tar", &shard.bytes());
    write(dir, "10-nothing.tar", &Shard::new().bytes());
    counted(&[
        (SkipReason::ShardNotTar, 3),
        (SkipReason::MemberTruncated, 2),
        (SkipReason::ShardTruncated, 2),
        (SkipReason::CaptionMissing, 1),
        (SkipReason::ShardCorrupt, 1),
        (SkipReason::EntryUnsupported, 2),
    ])
}

#[test]
fn d1_broken_archives_are_counted_exactly_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let expected = broken_shards(dir.path());
    let index = Arc::new(open(dir.path()));
    assert_eq!(reasons(&index), expected);
    assert_eq!(index.len(), 3 + 2 + 2 + 2 + 2 + 2 + 2);
    // Out of index files the same, and at any world size and restart.
    write_index_files(&[dir.path().display().to_string()], true).unwrap();
    let again = open(dir.path());
    assert_eq!((reasons(&again), again.digest()), (expected, index.digest()));
    let spec = LoaderSpec { global_batch: 5, ..spec(index) };
    let one = global_batches(&spec, 1, 0, 6);
    assert_eq!(one, global_batches(&spec, 3, 0, 6));
    assert_eq!(one.0[2..], global_batches(&spec, 2, 10, 4).0);
}

#[test]
fn d1_long_names_are_read_and_endless_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}{}", "folder/".repeat(40), "k".repeat(200));
    let huge = "h".repeat(64 << 10);
    let mut gnu = Shard::new();
    gnu.sample(&long).sample(&huge);
    write(dir.path(), "gnu.tar", &gnu.bytes());
    // PAX: the name stands in records of their own.
    let mut pax = tar::Builder::new(Vec::new());
    for (kind, bytes) in [("png", png(1)), ("txt", b"text".to_vec())] {
        let name = format!("pax/{}é.{kind}", "p".repeat(150));
        pax.append_pax_extensions([("path", name.as_bytes())]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("short").unwrap();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        pax.append(&header, &*bytes).unwrap();
    }
    write(dir.path(), "pax.tar", &pax.into_inner().unwrap());
    // A name of a megabyte is no name: what comes before it is kept.
    let mut endless = Shard::new();
    endless.sample("before").member(&format!("{}.png", "e".repeat(1 << 20)), b"x").sample("after");
    write(dir.path(), "zz-endless.tar", &endless.bytes());
    let index = open(dir.path());
    assert_eq!(keys(&index), [&*long, &huge, &format!("pax/{}é", "p".repeat(150)), "before"]);
    assert_eq!(reasons(&index), counted(&[(SkipReason::ShardCorrupt, 1)]));
    assert_eq!(index.read_captions(2).unwrap().captions, ["text"]);
}

#[test]
fn d1_a_size_in_pax_records_cannot_smuggle_members() {
    // The header says 0 bytes, the record 1024: whoever believes the header finds a member inside the contents.
    let mut hidden = tar::Header::new_ustar();
    hidden.set_path("evil.txt").unwrap();
    hidden.set_size(0);
    hidden.set_cksum();
    let mut contents = hidden.as_bytes().to_vec();
    contents.resize(1024, 0);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("size", b"1024".as_slice())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("000.jpg").unwrap();
    header.set_size(0);
    header.set_cksum();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&contents);
    let mut rest = Shard::new();
    rest.sample("good");
    bytes.extend_from_slice(&rest.bytes());
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "0.tar", &bytes);
    let index = open(dir.path());
    assert_eq!(keys(&index), ["good"]);
    assert_eq!(reasons(&index), counted(&[(SkipReason::CaptionMissing, 1)]));
}

#[test]
fn d2_names_are_keys_and_nothing_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["/abs/x", "..\\x", "<script>alert(1)</script>", "bell\u{7}\u{1b}[31m", "../../x"];
    let mut bytes = Vec::new();
    for name in names {
        for (kind, contents) in [("png", png(1)), ("txt", b"text".to_vec())] {
            let mut header = tar::Header::new_gnu();
            let full = format!("{name}.{kind}");
            header.as_old_mut().name[..full.len()].copy_from_slice(full.as_bytes());
            header.set_size(contents.len() as u64);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(&contents);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
    }
    bytes.resize(bytes.len() + 1024, 0);
    let pattern = write(dir.path(), "0.tar", &bytes);
    let index = Arc::new(Index::open(&[pattern]).unwrap());
    // A base name that starts with a dot is hidden, and no part of a sample.
    assert_eq!(keys(&index), [names[0], names[2], names[3], names[4]]);
    let transform =
        Arc::new(Transform::new(TransformConfig { image_size: 8, ..TransformConfig::default() }).unwrap());
    let spec = LoaderSpec { global_batch: 4, transform: Some(transform), ..spec(Arc::clone(&index)) };
    assert_eq!(Loader::start(spec).unwrap().next_batch().unwrap().len(), 4);
    let files: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["0.tar"]);
    let shown = index.sample_error(2, SkipReason::ImageCorrupt).to_string();
    assert!(shown.contains(r"bell\u{7}\u{1b}[31m") && !shown.contains('\u{1b}'), "{shown}");
}

#[test]
fn d3_missing_halves_and_duplicates_are_counted_and_the_first_wins() {
    let dir = tempfile::tempdir().unwrap();
    let mut shard = Shard::new();
    shard
        .member("a.png", &png(1))
        .member("b.txt", b"no picture")
        .member("c.png", &png(2)) // c and d interleave
        .member("d.png", &png(3))
        .member("c.txt", b"first c")
        .member("d.txt", b"a d")
        .member("c.txt", b"second c")
        .member("c.png", &png(9))
        .member("no_kind", b"ignored")
        .member("d.cls", b"ignored");
    write(dir.path(), "0.tar", &shard.bytes());
    let mut shard = Shard::new();
    shard.member("d.png", &png(4)).member("d.txt", b"another d").sample("e");
    write(dir.path(), "1.tar", &shard.bytes());
    let index = open(dir.path());
    assert_eq!(keys(&index), ["c", "d", "e"]);
    assert_eq!(
        reasons(&index),
        counted(&[
            (SkipReason::CaptionMissing, 1),
            (SkipReason::ImageMissing, 1),
            (SkipReason::DuplicateKey, 2)
        ])
    );
    assert_eq!(index.problems().seen, 6);
    assert_eq!(index.read_captions(0).unwrap().captions, ["first c"]);
    assert_eq!(index.read_image(0).unwrap(), png(2));
    assert_eq!(index.read_captions(1).unwrap().captions, ["a d"]);
    // Members that lie apart and together read as the same bytes.
    let mut buffer = Vec::new();
    for sample in 0..3 {
        let raw = index.read_raw(sample, &mut buffer).unwrap();
        assert_eq!(raw.image, index.read_image(sample).unwrap());
        assert_eq!(
            raw.text.map(<[u8]>::to_vec),
            index.read_captions(sample).ok().map(|text| text.captions[0].clone().into_bytes())
        );
    }
}

#[test]
fn d3_sets_in_folders_of_their_own_may_share_keys() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &other] {
        let mut shard = Shard::new();
        shard.samples("0000", 3);
        write(dir.path(), "00000.tar", &shard.bytes());
    }
    let sets = [&one, &other].map(|dir| vec![dir.path().display().to_string()]);
    let index = Index::open_sets(&sets, None).unwrap();
    assert_eq!((index.len(), index.problems().total()), (6, 0));
    assert_eq!(index.sets(), [0..1, 1..2]);
    assert_eq!(index.shard_sizes(1), [3]);
}

#[test]
fn d4_captions_are_texts_or_counted() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, &str, &[u8], Result<&str, SkipReason>); 13] = [
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
    use turbojpeg::PixelFormat;
    let plain = jpeg(64, 48);
    // Orientation 6 in little-endian TIFF, and a colour profile of nonsense: both are ignored, as Pillow does.
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let profile = [b"ICC_PROFILE\0\x01\x01".as_slice(), &[7; 300]].concat();
    let cases: [(&str, Vec<u8>, Result<(usize, usize), SkipReason>); 15] = [
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
fn d6_an_archive_of_too_many_members_ends_early_in_bounded_memory() {
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
    let index = open(dir.path());
    let grown = peak_memory() - before;
    println!("{} members: memory grown by {} KiB", data::scan::MAX_MEMBERS, grown >> 10);
    assert_eq!(index.len(), data::scan::MAX_MEMBERS / 2);
    assert_eq!(reasons(&index), counted(&[(SkipReason::ShardTooLarge, 1)]));
    assert!(grown <= 64 << 20, "{grown}");
}

#[test]
fn d7_any_number_of_ranks_batches_and_samples_makes_the_same_steps() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = data::Rng::new(7, data::Stream::Subset, &[]);
    for trial in 0..100 {
        let samples = 1 + rng.below(20) as usize;
        let shards = 1 + rng.below(3) as usize;
        let world_size = 1 + rng.below(6) as usize;
        let global_batch = world_size + rng.below(30) as usize;
        let folder = dir.path().join(trial.to_string());
        std::fs::create_dir(&folder).unwrap();
        let pattern = common::write_shards(&folder, shards, samples);
        let index = Arc::new(Index::open(&[pattern]).unwrap());
        let spec = LoaderSpec { global_batch, workers: 1, ..spec(index) };
        let (joined, _) = global_batches(&spec, world_size, 0, 4);
        assert!(joined.iter().all(|batch| batch.len() == global_batch), "{trial}");
        let drawn: Vec<usize> = joined.iter().flatten().map(|row| row.0).collect();
        let order: Vec<usize> = spec.order.slice(0, 4 * global_batch).iter().map(|at| at.index).collect();
        assert_eq!(drawn, order, "{trial}");
    }
    let index = Arc::new(Index::open(&[dir.path().join("0").display().to_string()]).unwrap());
    let error = Loader::start(LoaderSpec { global_batch: 2, world_size: 3, ..spec(index) }).unwrap_err();
    assert!(error.to_string().contains("global_batch"), "{error}");
}

/// `total` samples, of which every `step`-th holds no picture.
fn with_bad_samples(dir: &std::path::Path, name: &str, total: usize, step: usize) -> String {
    let picture = jpeg(160, 120);
    let mut shard = Shard::new();
    for number in 0..total {
        let bytes = if number % step == 0 { &b"not a picture"[..] } else { &picture };
        shard
            .member(&format!("{name}{number:05}.jpg"), bytes)
            .member(&format!("{name}{number:05}.txt"), b"text");
    }
    write(dir, &format!("{name}.tar"), &shard.bytes())
}

#[test]
fn d9_too_many_bad_samples_end_the_run_and_name_the_shard() {
    let dir = tempfile::tempdir().unwrap();
    let good = with_bad_samples(dir.path(), "good", 200, 1000);
    let bad = with_bad_samples(dir.path(), "bad", 100, 1);
    let transform =
        Arc::new(Transform::new(TransformConfig { image_size: 32, ..TransformConfig::default() }).unwrap());
    let index = Arc::new(Index::open(&[good, bad]).unwrap());
    let spec =
        LoaderSpec { global_batch: 30, transform: Some(transform), max_skipped_ratio: 0.05, ..spec(index) };
    let mut loader = Loader::start(spec.clone()).unwrap();
    let error = (0..20).find_map(|_| loader.next_batch().err()).unwrap();
    assert!(matches!(error, DataError::TooManySkipped { limit: 0.05, .. }), "{error}");
    assert!(error.to_string().contains("bad.tar: image_format_unknown"), "{error}");
    // Borne, every batch keeps its size and the counts are exact: 101 bad samples an epoch.
    let spec = LoaderSpec { max_skipped_ratio: 0.5, ..spec };
    for world_size in [1, 3] {
        let (joined, skipped) = global_batches(&spec, world_size, 0, 10);
        assert!(joined.iter().all(|batch| batch.len() == 30));
        assert_eq!(skipped, counted(&[(SkipReason::ImageFormatUnknown, 101)]));
        assert_eq!(joined.iter().flatten().filter(|row| row.0 != row.1).count(), 101);
    }
}

#[test]
fn d9_no_good_sample_at_all_is_the_same_error() {
    let dir = tempfile::tempdir().unwrap();
    let bad = with_bad_samples(dir.path(), "bad", 40, 1);
    let transform = Arc::new(Transform::new(TransformConfig::default()).unwrap());
    let index = Arc::new(Index::open(&[bad]).unwrap());
    let mut loader = Loader::start(LoaderSpec { transform: Some(transform), ..spec(index) }).unwrap();
    let error = loader.next_batch().unwrap_err();
    assert!(matches!(error, DataError::TooManySkipped { .. }), "{error}");
}

#[test]
fn long_d9_one_percent_of_bad_samples_costs_at_most_two_percent() {
    let dir = tempfile::tempdir().unwrap();
    let transform = Arc::new(Transform::new(TransformConfig::default()).unwrap());
    let loader = |pattern: String| {
        let index = Arc::new(Index::open(&[pattern]).unwrap());
        let transform = Some(Arc::clone(&transform));
        LoaderSpec { global_batch: 100, transform, workers: 1, ..spec(index) }
    };
    let clean = loader(with_bad_samples(dir.path(), "clean", 1000, 10_000));
    let dirty = loader(with_bad_samples(dir.path(), "dirty", 1000, 100));
    // CPU time of the whole process, so that a busy machine does not count; the best of several rounds.
    let cpu = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let round = |spec: &LoaderSpec| {
        let started = cpu();
        global_batches(spec, 1, 0, 30);
        cpu() - started
    };
    let best = |spec: &LoaderSpec| (0..5).map(|_| round(spec)).min().unwrap() as f64;
    let (clean, dirty) = (best(&clean), best(&dirty));
    println!("1 % bad samples: {:.1} % of the clean CPU time", 100.0 * dirty / clean);
    assert!(dirty <= 1.02 * clean + 1.0, "{dirty} {clean}");
}

#[test]
fn d11_what_is_no_shard_is_refused_and_no_secret_is_shown() {
    for (pattern, part) in [
        ("pipe:rm -rf x", "not run"),
        ("file:///etc/passwd", "plain path"),
        ("http://169.254.169.254/latest/0.tar", "link-local"),
        ("http://[fe80::1]/0.tar", "link-local"),
        ("http://[::ffff:169.254.169.254]/0.tar", "link-local"),
        ("https://user:SECRET@host/0.tar?sig=SECRET", "password"),
        ("ftp://host/0.tar?sig=SECRET", "not one of"),
        ("https://host/folder/?sig=SECRET", "cannot be listed"),
        ("https://host/0.tar?sig=SECRET", "cache"),
    ] {
        let error = Index::open(&[pattern.to_owned()]).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("SECRET"), "{pattern}: {error}");
    }
}

#[test]
fn a_shard_that_changes_under_a_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pattern = common::write_shards(dir.path(), 1, 5);
    let index = Arc::new(Index::open(&[pattern]).unwrap());
    common::write_shards(dir.path(), 1, 6);
    let error = Loader::start(spec(index)).unwrap().next_batch().unwrap_err();
    assert!(matches!(error, DataError::ShardChanged { .. }), "{error}");
}

#[test]
fn an_index_file_that_no_longer_fits_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let pattern = [common::write_shards(dir.path(), 3, 4)];
    let written = write_index_files(&pattern, false).unwrap();
    assert_eq!((written.made, written.index.len()), (3, 12));
    assert_eq!(write_index_files(&pattern, false).unwrap().made, 0);
    assert_eq!(write_index_files(&pattern, true).unwrap().made, 3);
    // Another shard under the old name.
    let mut shard = Shard::new();
    shard.samples("new", 7);
    write(dir.path(), "00001.tar", &shard.bytes());
    assert_eq!(Index::open(&pattern).unwrap().len(), 15);
    assert_eq!(write_index_files(&pattern, true).unwrap().made, 1);
    // A damaged index file.
    std::fs::write(dir.path().join("00002.tar.index"), "{}").unwrap();
    assert_eq!(Index::open(&pattern).unwrap().len(), 15);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn d12_captions_and_pictures_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = data::sample::parse_json(&bytes);
        let _ = data::sample::parse_text(bytes.clone());
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
