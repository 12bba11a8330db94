//! `torch.save` files, opcode by opcode.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;

/// GLOBAL.
pub fn name(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// BINUNICODE.
pub fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// BININT.
pub fn int(value: i32) -> Vec<u8> {
    [&b"J"[..], &value.to_le_bytes()].concat()
}

pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [&b"("[..], &items.concat(), b"t"].concat()
}

pub fn ints(values: &[i32]) -> Vec<u8> {
    tuple(&values.iter().copied().map(int).collect::<Vec<_>>())
}

/// `_rebuild_tensor_v2` of storage `key` of six floats.
pub fn tensor(key: &str, offset: i32, shape: &[i32], stride: &[i32], legacy: bool) -> Vec<u8> {
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
pub fn pickle(tensors: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let inner: Vec<u8> =
        tensors.iter().flat_map(|(key, tensor)| [text(key), tensor.clone()].concat()).collect();
    let dict = |items: &[u8]| [&b"}("[..], items, b"u"].concat();
    let outer = [text("model"), dict(&inner), text("epoch"), int(3)].concat();
    [&b"\x80\x02"[..], &dict(&outer), b"."].concat()
}

pub fn floats() -> Vec<u8> {
    (0..6).flat_map(|value| (value as f32).to_le_bytes()).collect()
}

pub fn zipped(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (entry, bytes) in [("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &floats())] {
        zip.start_file(entry, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub fn legacy(pickle: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let version = [&b"\x80\x02"[..], &int(1001), b"."].concat();
    let system = [&b"\x80\x02}"[..], &text("little_endian"), b"\x88s."].concat();
    let keys = [&b"\x80\x02]"[..], &text("0"), b"a."].concat();
    [&magic[..], &version, &system, pickle, &keys, &6u64.to_le_bytes(), &floats()].concat()
}
