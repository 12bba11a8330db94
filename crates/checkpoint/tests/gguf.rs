//! GGUF files written here field by field, whole and damaged.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::PathBuf;

use checkpoint::foreign::gguf::{GgufFile, Setting};
use checkpoint::{Dtype, HostTensor};
use proptest::prelude::*;

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn setting(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

/// A line of the table of tensors; `sizes` innermost first, as in the file.
fn line(name: &str, sizes: &[u64], kind: u32, start: u64) -> Vec<u8> {
    let mut bytes = [&text(name)[..], &(sizes.len() as u32).to_le_bytes()].concat();
    sizes.iter().for_each(|size| bytes.extend_from_slice(&size.to_le_bytes()));
    [&bytes[..], &kind.to_le_bytes(), &start.to_le_bytes()].concat()
}

fn gguf(settings: &[Vec<u8>], lines: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    let counts = [lines.len() as u64, settings.len() as u64].map(u64::to_le_bytes).concat();
    let mut bytes =
        [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &settings.concat(), &lines.concat()].concat();
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    [&bytes[..], data].concat()
}

/// One plain and one Q8_0 tensor.
fn whole() -> Vec<u8> {
    let list =
        [&5u32.to_le_bytes()[..], &2u64.to_le_bytes(), &7i32.to_le_bytes(), &(-1i32).to_le_bytes()].concat();
    let settings = [
        setting("name", 8, &text("tiny")),
        setting("heads", 4, &9u32.to_le_bytes()),
        setting("eps", 6, &0.5f32.to_le_bytes()),
        setting("types", 9, &list),
    ];
    let lines = [line("plain", &[3, 2], 0, 0), line("quantised", &[32, 1], 8, 32)];
    let mut data: Vec<u8> = (0..6).flat_map(|value| (value as f32).to_le_bytes()).collect();
    data.resize(32, 0);
    data.extend_from_slice(&[0x00, 0x3c]); // 1.0 in 16 bits
    data.extend(0..32u8);
    gguf(&settings, &lines, &data)
}

fn open(bytes: &[u8]) -> Result<GgufFile, String> {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("a.gguf");
    std::fs::write(&path, bytes).unwrap();
    GgufFile::open(&path).map_err(|error| error.to_string())
}

#[test]
fn settings_and_tensors_come_out() {
    let mut file = open(&whole()).unwrap();
    assert_eq!(file.text("name").unwrap(), "tiny");
    assert_eq!((file.int("heads").unwrap(), file.float("eps").unwrap()), (9, 0.5));
    assert_eq!(file.settings()["types"], Setting::Ints(vec![7, -1]));
    assert!(file.int("name").unwrap_err().to_string().contains("another type"));
    assert_eq!(file.shape("plain"), Some(&[2, 3][..]));
    let plain = file.read("plain").unwrap().unwrap();
    assert_eq!(plain, HostTensor::from_f32(&[2, 3], &[0., 1., 2., 3., 4., 5.]).unwrap());
    let quantised = file.read("quantised").unwrap().unwrap();
    assert_eq!((quantised.dtype, &quantised.shape[..]), (Dtype::F32, &[1, 32][..]));
    assert_eq!(quantised.to_f32_vec(), (0..32).map(|value| value as f32).collect::<Vec<_>>());
    assert_eq!(file.read("other").unwrap(), None);
}

#[test]
fn what_cannot_be_read_is_refused_by_its_name() {
    for (bytes, part) in [
        (gguf(&[], &[line("w", &[32], 12, 0)], &[0; 64]), "tensor w is of quantised ggml type 12"),
        (gguf(&[], &[line("w", &[33], 8, 0)], &[0; 64]), "tensor w cannot have sizes"),
        (gguf(&[], &[line("w", &[64], 0, 0)], &[0; 64]), "tensor w reaches past the end"),
        (gguf(&[], &[line("w", &[u64::MAX, u64::MAX], 0, 0)], &[]), "tensor w"),
        (gguf(&[setting("a", 99, &[])], &[], &[]), "unknown type 99"),
        (b"GGML0000".to_vec(), "no GGUF file"),
    ] {
        let error = open(&bytes).err().unwrap_or_default();
        assert!(error.contains(part), "{part}: {error:?}");
    }
}

proptest! {
    #[test]
    fn damaged_files_are_read_or_refused(
        cut in 0usize..400, flips in prop::collection::vec((0usize..400, any::<u8>()), 0..4),
    ) {
        let bytes = common::damaged(whole(), cut, flips);
        if let Ok(mut file) = open(&bytes) {
            let names: Vec<String> = file.names().map(str::to_owned).collect();
            for name in names {
                // A quantised byte gives at most four bytes and a bit.
                let tensor = file.read(&name).unwrap().unwrap();
                prop_assert!(tensor.bytes.len() <= 8 * bytes.len());
            }
        }
    }
}
