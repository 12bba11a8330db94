//! D5 of the matrix, for JPEG alone: what one picture leaves behind for the next of its thread, and what libjpeg merely
//! warns of.

use data::{DecodeOptions, Decoded, SkipReason, Transform, TransformConfig, decode};
use proptest::prelude::*;
use turbojpeg::{Compressor, Image, PixelFormat};

type Outcome = Result<Decoded, SkipReason>;

/// What a decoder says that has seen nothing before.
fn fresh(bytes: &[u8]) -> Outcome {
    let bytes = bytes.to_vec();
    std::thread::spawn(move || decode(&bytes, &DecodeOptions::default())).join().unwrap()
}

/// What the decoder of this thread says, of whole pictures and of views for training, which are decoded in another way.
fn here(bytes: &[u8]) -> Outcome {
    let config = TransformConfig { image_size: 8, max_pixels: 1_000_000, ..TransformConfig::default() };
    let transform = Transform::new(config).unwrap();
    let whole = decode(bytes, &transform.decode_options());
    for sample in 0..4 {
        let mut view = vec![0.0; 3 * 8 * 8];
        let said = transform.train_file(bytes, 1, sample, 0, &mut view).map(|()| view);
        let expected = whole.as_ref().map(|whole| transform.train(whole, 1, sample, 0).values);
        assert!(said.as_ref() == expected.as_ref().map_err(|reason| *reason), "{said:?} for {expected:?}");
    }
    whole
}

/// A picture with something in it.
fn jpeg(width: usize, height: usize, set: impl Fn(&mut Compressor) -> turbojpeg::Result<()>) -> Vec<u8> {
    let pixels: Vec<u8> = (0..width * height * 3).map(|at| (at * at / 7 + at / 3 % width) as u8).collect();
    let format = PixelFormat::RGB;
    let mut compressor = Compressor::new().unwrap();
    set(&mut compressor).unwrap();
    compressor
        .compress_to_vec(Image { pixels: &pixels[..], width, pitch: width * 3, height, format })
        .unwrap()
}

fn plain(width: usize, height: usize) -> Vec<u8> {
    jpeg(width, height, |_| Ok(()))
}

/// Where the first marker `code` stands.
fn marker(bytes: &[u8], code: u8) -> usize {
    bytes.windows(2).position(|two| two == [0xff, code]).unwrap()
}

/// `bytes` with `more` before what stands `at`.
fn with(bytes: &[u8], at: usize, more: &[u8]) -> Vec<u8> {
    [&bytes[..at], more, &bytes[at..]].concat()
}

/// `bytes` without the segments of marker `code`.
fn without(bytes: &[u8], code: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let scan = |bytes: &[u8]| marker(bytes, 0xda);
    while let Some(at) = bytes[..scan(&bytes)].windows(2).position(|two| two == [0xff, code]) {
        let length = usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
        bytes.drain(at..at + 2 + length);
    }
    bytes
}

/// Headers that are broken in every way that libjpeg tells apart.
fn broken(whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let changed = |at: usize, value: u8| {
        let mut bytes = whole.to_vec();
        bytes[at] = value;
        bytes
    };
    let (frame, scan) = (marker(whole, 0xc0), marker(whole, 0xda));
    let (tables, quantisers) = (marker(whole, 0xc4), marker(whole, 0xdb));
    vec![
        ("cut behind the frame", whole[..frame + 19].to_vec()),
        ("cut in the frame", whole[..frame + 9].to_vec()),
        ("cut before the scan", whole[..scan].to_vec()),
        ("cut in the scan's header", whole[..scan + 5].to_vec()),
        ("cut in the scan", whole[..scan + 40].to_vec()),
        ("frame of no rows", changed(frame + 6, 0)),
        ("frame of wrong length", changed(frame + 3, 8)),
        ("frame with many components", changed(frame + 9, 9)),
        ("two frames", with(whole, scan, &whole[frame..frame + 19])),
        ("lossless frame without its tables", changed(frame + 1, 0xc3)),
        ("Huffman table of a number too large", changed(tables + 4, 0x1f)),
        ("Huffman table with too many codes", changed(tables + 5, 0xff)),
        ("quantiser of a number too large", changed(quantisers + 4, 0x0f)),
        ("scan of other components", changed(scan + 5, 77)),
        ("two starts", with(whole, 2, &[0xff, 0xd8])),
        ("start before the scan", with(whole, scan, &[0xff, 0xd8])),
        ("unknown marker", with(whole, scan, &[0xff, 0x02, 0, 2])),
        ("restart interval of wrong length", with(whole, scan, &[0xff, 0xdd, 0, 3, 1])),
        ("no Huffman tables", without(whole, 0xc4)),
        ("no quantisers", without(whole, 0xdb)),
        ("stray bytes before the scan", with(whole, scan, b"stray")),
        ("unknown JFIF revision", changed(marker(whole, 0xe0) + 9, 7)),
    ]
}

#[test]
fn a_broken_picture_changes_none_that_follow_it() {
    let first = jpeg(64, 48, |compressor| compressor.set_progressive(true));
    let (second, third) = (plain(40, 24), jpeg(24, 40, |compressor| compressor.set_optimize(true)));
    let goods = [&second, &third, &first].map(|bytes| (bytes, fresh(bytes).unwrap()));
    for (what, bytes) in broken(&plain(64, 48)) {
        here(&first).unwrap();
        assert_eq!(here(&bytes), fresh(&bytes), "{what}, after a good one");
        for (good, expected) in &goods {
            let _ = here(&bytes);
            assert_eq!(here(good).as_ref(), Ok(expected), "after {what}");
        }
    }
}

#[test]
fn tables_are_a_pictures_own() {
    // Without tables of its own a picture has the standard ones (motion JPEG), never those of the one before.
    let whole = plain(64, 48);
    let borrower = without(&whole, 0xc4);
    here(&jpeg(64, 48, |compressor| compressor.set_optimize(true))).unwrap();
    assert_eq!(here(&borrower), fresh(&whole));
    here(&whole).unwrap();
    assert_eq!(here(&without(&whole, 0xdb)), Err(SkipReason::ImageCorrupt));
}

/// What Pillow 13 (libjpeg-turbo 3.2) gives for the same bytes is written beside each.
#[test]
fn what_libjpeg_merely_warns_of_is_borne_where_every_pixel_is_there() {
    let adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07";
    let profile = b"\xff\xe2\0\x11ICC_PROFILE\0\x05\x02a";
    for (kind, whole) in [
        ("plain", plain(64, 48)),
        ("progressive", jpeg(64, 48, |compressor| compressor.set_progressive(true))),
    ] {
        let expected = fresh(&whole);
        let frame = marker(&whole, if kind == "plain" { 0xc0 } else { 0xc2 });
        let (scan, end, jfif) = (marker(&whole, 0xda), whole.len() - 2, marker(&whole, 0xe0));
        let mut revision = whole.clone();
        revision[jfif + 9] = 7;
        let no_jfif = [&whole[..2], adobe, &whole[jfif + 18..]].concat();
        let everything =
            with(&with(&revision, scan, b"stray\xff\0\0"), frame, &[&profile[..], b"\0\0"].concat());
        for (what, bytes) in [
            ("stray bytes before the frame", with(&whole, frame, b"stray")), // whole
            ("stray bytes before the scan", with(&whole, scan, b"stray")),   // whole
            ("stray bytes before the end", with(&whole, end, b"stray")),     // whole
            ("zeros before the end", with(&whole, end, &[0; 9])),            // whole
            ("bytes behind the end", with(&whole, end + 2, b"stray")),       // whole
            ("unknown revision of JFIF", revision.clone()),                  // whole
            ("broken colour profile", with(&whole, frame, profile)),         // whole
            ("unknown transform of Adobe", with(&whole, frame, adobe)),      // whole
            ("the same without JFIF", no_jfif),                              // whole
            ("several of these", with(&everything, everything.len() - 2, b"stray")), // whole
        ] {
            assert_eq!(here(&bytes), expected, "{kind}: {what}");
        }
        let half = scan + (whole.len() - scan) / 2;
        let ended = |start: &[u8], more: &[u8]| [start, more, b"\xff\xd9"].concat();
        let stray = with(&whole, scan, b"stray");
        for (what, bytes) in [
            ("no end", whole[..end].to_vec()),               // "truncated"
            ("half", whole[..half].to_vec()),                // "truncated"
            ("half and an end", ended(&whole[..half], b"")), // grey below
            ("half, stray bytes and an end", ended(&whole[..half], b"stray")), // garbage below
            ("stray bytes, then half", stray[..half + 5].to_vec()), // "truncated"
            ("stray bytes, then half and an end", ended(&stray[..half + 5], b"")), // grey below
        ] {
            assert_eq!(here(&bytes), Err(SkipReason::ImageCorrupt), "{kind}: {what}");
        }
        if kind == "progressive" {
            // Of these libjpeg tells the stray bytes alone, whether the scans behind them are whole or not.
            let scans = scan + 2..end;
            let codes = |code: u8| {
                scans.clone().filter(|&at| whole[at..at + 2] == [0xff, code]).collect::<Vec<usize>>()
            };
            let places = [codes(0xc4), codes(0xda)].concat();
            assert!(places.len() > 6, "several scans");
            // Pillow: whole.
            for &at in &places {
                assert_eq!(here(&with(&whole, at, b"stray")), expected, "between scans, at {at}");
            }
            let stray = with(&whole, codes(0xc4)[0], b"stray");
            for bytes in [stray[..stray.len() - 20].to_vec(), ended(&stray[..stray.len() - 20], b"")] {
                assert_eq!(here(&bytes), Err(SkipReason::ImageCorrupt));
            }
        }
    }
}

proptest! {
    #[test]
    fn any_damage_to_one_picture_leaves_the_next_alone(
        flips in prop::collection::vec((0usize..4000, any::<u8>()), 1..8), cut in 1usize..4000, progressive: bool,
    ) {
        let mut damaged = jpeg(33, 47, |compressor| compressor.set_progressive(progressive));
        for (at, value) in flips {
            let at = at % damaged.len();
            damaged[at] = value;
        }
        damaged.truncate(cut.max(3));
        let good = plain(20, 36);
        let _ = here(&damaged);
        prop_assert_eq!(here(&good), fresh(&good));
    }
}
