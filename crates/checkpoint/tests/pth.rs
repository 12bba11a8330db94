//! `torch.save` files written here opcode by opcode, whole and damaged.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::io::{Cursor, Write};
use std::path::PathBuf;

use checkpoint::foreign::pth::PthFile;
use checkpoint::{Dtype, HostTensor};
use proptest::prelude::*;
use zip::write::SimpleFileOptions;

/// GLOBAL.
fn name(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// BINUNICODE.
fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// BININT.
fn int(value: i32) -> Vec<u8> {
    [&b"J"[..], &value.to_le_bytes()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [&b"("[..], &items.concat(), b"t"].concat()
}

fn ints(values: &[i32]) -> Vec<u8> {
    tuple(&values.iter().copied().map(int).collect::<Vec<_>>())
}

/// `_rebuild_tensor_v2` of storage `key` of six floats.
fn tensor(key: &str, offset: i32, shape: &[i32], stride: &[i32], legacy: bool) -> Vec<u8> {
    let mut id = vec![text("storage"), name("torch", "FloatStorage"), text(key), text("cpu"), int(6)];
    if legacy {
        id.push(b"N".to_vec());
    }
    let storage = [tuple(&id), b"Q".to_vec()].concat();
    let hooks = [name("collections", "OrderedDict"), b")R".to_vec()].concat();
    let arguments = [storage, int(offset), ints(shape), ints(stride), b"\x89".to_vec(), hooks];
    [name("torch._utils", "_rebuild_tensor_v2"), tuple(&arguments), b"R".to_vec()].concat()
}

/// A pickle of `{"model": {KEY: TENSOR, ...}, "epoch": 3}`.
fn pickle(tensors: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let inner: Vec<u8> =
        tensors.iter().flat_map(|(key, tensor)| [text(key), tensor.clone()].concat()).collect();
    let dict = |items: &[u8]| [&b"}("[..], items, b"u"].concat();
    let outer = [text("model"), dict(&inner), text("epoch"), int(3)].concat();
    [&b"\x80\x02"[..], &dict(&outer), b"."].concat()
}

fn floats() -> Vec<u8> {
    (0..6).flat_map(|value| (value as f32).to_le_bytes()).collect()
}

fn zipped(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (entry, bytes) in [("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &floats())] {
        zip.start_file(entry, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn legacy(pickle: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let version = [&b"\x80\x02"[..], &int(1001), b"."].concat();
    let system = [&b"\x80\x02}"[..], &text("little_endian"), b"\x88s."].concat();
    let keys = [&b"\x80\x02]"[..], &text("0"), b"a."].concat();
    [&magic[..], &version, &system, pickle, &keys, &6u64.to_le_bytes(), &floats()].concat()
}

fn open(bytes: &[u8]) -> Result<PthFile, String> {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("a.pth");
    std::fs::write(&path, bytes).unwrap();
    PthFile::open(&path).map_err(|error| error.to_string())
}

fn refusal(bytes: &[u8]) -> String {
    open(bytes).map(|file| file.names().map(str::to_owned).collect::<Vec<_>>()).unwrap_err()
}

#[test]
fn both_forms_give_the_same_views() {
    for (is_legacy, write) in [(false, zipped as fn(&[u8]) -> Vec<u8>), (true, legacy)] {
        let tensors = [
            ("plain", tensor("0", 0, &[2, 3], &[3, 1], is_legacy)),
            ("turned", tensor("0", 0, &[3, 2], &[1, 3], is_legacy)),
            ("tail", tensor("0", 4, &[2], &[1], is_legacy)),
        ];
        let mut file = open(&write(&pickle(&tensors))).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["model.plain", "model.tail", "model.turned"]);
        assert_eq!(file.info("model.turned"), Some((Dtype::F32, &[3, 2][..])));
        let mut read = |name: &str| file.read(name).unwrap().unwrap();
        assert_eq!(read("model.plain"), HostTensor::from_f32(&[2, 3], &[0., 1., 2., 3., 4., 5.]).unwrap());
        // A transposed view: its elements in row-major order are not those of the storage.
        assert_eq!(read("model.turned"), HostTensor::from_f32(&[3, 2], &[0., 3., 1., 4., 2., 5.]).unwrap());
        assert_eq!(read("model.tail"), HostTensor::from_f32(&[2], &[4., 5.]).unwrap());
        assert_eq!(file.read("epoch").unwrap(), None);
    }
}

#[test]
fn a_name_outside_the_list_is_refused_by_its_name() {
    let call = [name("os", "system"), tuple(&[text("true")]), b"R".to_vec()].concat();
    let error = refusal(&zipped(&pickle(&[("x", call)])));
    assert!(error.contains("os.system"), "{error}");
    let error = refusal(&zipped(b"\x80\x02ibuiltins\neval\n."));
    assert!(error.contains("opcode"), "{error}");
}

#[test]
fn a_view_may_not_reach_outside_its_storage() {
    for (offset, shape, stride) in
        [(1, &[2, 3][..], &[3, 1][..]), (0, &[2], &[6]), (7, &[0], &[1]), (0, &[i32::MAX, i32::MAX], &[0, 0])]
    {
        let error = refusal(&zipped(&pickle(&[("x", tensor("0", offset, shape, stride, false))])));
        assert!(error.contains("outside its storage"), "{offset} {shape:?} {stride:?}: {error}");
    }
    let error = refusal(&zipped(&pickle(&[("x", tensor("0", -1, &[1], &[1], false))])));
    assert!(error.contains("negative"), "{error}");
    let error = refusal(&zipped(&pickle(&[("x", tensor("1", 0, &[1], &[1], false))])));
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn what_is_no_torch_file_is_refused() {
    for bytes in [&b""[..], b"PK", b"GGUF", &legacy(b"")] {
        assert!(open(bytes).is_err());
    }
    // A dictionary that holds itself: the walk to the tensors ends.
    let error = refusal(&zipped(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."));
    assert!(error.contains("refer to themselves"), "{error}");
}

proptest! {
    #[test]
    fn damaged_files_are_read_or_refused(
        is_legacy: bool, cut in 0usize..1000, flips in prop::collection::vec((0usize..1000, any::<u8>()), 0..4),
    ) {
        let whole = pickle(&[("x", tensor("0", 0, &[3, 2], &[1, 3], is_legacy))]);
        let whole = if is_legacy { legacy(&whole) } else { zipped(&whole) };
        let bytes = common::damaged(whole, cut, flips);
        if let Ok(file) = open(&bytes) {
            for name in file.names() {
                let (dtype, shape) = file.info(name).unwrap();
                let size = shape.iter().product::<usize>() * dtype.size();
                prop_assert!(size <= bytes.len(), "{} bytes out of {}", size, bytes.len());
            }
        }
    }
}
