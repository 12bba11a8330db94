//! The zip that `torch.save` writes, for programs that read nothing else: `{"model": state dict}`.
//!
//! Entries are stored and aligned as torch's own are, and a tensor that is tied to another one shares its storage.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use zip::ZipWriter;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;

use crate::{Announced, CheckpointError, Dtype, HostTensor};

/// Where torch lets storages start, in bytes.
const ALIGNMENT: u16 = 64;
/// Entries above this need zip's 64-bit sizes.
const LARGE_BYTES: u64 = 1 << 31;
/// Folder inside the zip; torch takes any.
const TOP: &str = "archive";

/// Writes a new file at `path`. `names`: each tensor of the state dict, with the place in `storages` of its elements.
/// `read` is asked once for each storage, in order.
///
/// # Errors
/// What `read` says; [`CheckpointError::Io`] when the file exists or the disk fails; [`CheckpointError::Tensor`] when
/// a tensor is not as announced.
pub fn write_pth<E: From<CheckpointError>>(
    path: &Path,
    storages: &[Announced],
    names: &[(String, usize)],
    mut read: impl FnMut(usize) -> Result<HostTensor, E>,
) -> Result<(), E> {
    let file = OpenOptions::new().write(true).read(true).create_new(true).open(path);
    let file = file.map_err(CheckpointError::io("create", path))?;
    let mut zip = Zip { writer: ZipWriter::new(BufWriter::with_capacity(1 << 20, file)), path };
    zip.entry("data.pkl", &pickle(storages, names))?;
    zip.entry("byteorder", b"little")?;
    for (place, storage) in storages.iter().enumerate() {
        let tensor = read(place)?;
        storage.check(&tensor)?;
        zip.entry(&format!("data/{place}"), &tensor.bytes)?;
    }
    zip.entry("version", b"3\n")?;
    Ok(zip.finish()?)
}

struct Zip<'a> {
    writer: ZipWriter<BufWriter<File>>,
    path: &'a Path,
}

impl Zip<'_> {
    fn entry(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let options = SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .large_file(bytes.len() as u64 >= LARGE_BYTES)
            .with_alignment(ALIGNMENT);
        let begun = self.writer.start_file(format!("{TOP}/{name}"), options);
        begun.map_err(|error| self.failed(error))?;
        self.writer.write_all(bytes).map_err(CheckpointError::io("write", self.path))
    }

    fn finish(self) -> Result<(), CheckpointError> {
        let path = self.path;
        let to_io = |error: ZipError| io::Error::other(error);
        let file = self.writer.finish().map_err(to_io);
        let file = file.and_then(|file| file.into_inner().map_err(io::IntoInnerError::into_error));
        file.and_then(|file| file.sync_all()).map_err(CheckpointError::io("write", path))
    }

    fn failed(&self, error: ZipError) -> CheckpointError {
        CheckpointError::Io {
            action: "write",
            path: self.path.to_path_buf(),
            source: io::Error::other(error),
        }
    }
}

/// Protocol 2, without a memo: every opcode is one that torch's own `weights_only` reader knows.
fn pickle(storages: &[Announced], names: &[(String, usize)]) -> Vec<u8> {
    let mut out = b"\x80\x02}".to_vec();
    text(&mut out, "model");
    out.extend_from_slice(b"ccollections\nOrderedDict\n)R(");
    for (name, place) in names {
        text(&mut out, name);
        tensor(&mut out, *place, &storages[*place]);
    }
    out.extend_from_slice(b"us.");
    out
}

/// `_rebuild_tensor_v2(storage, 0, sizes, strides, False, OrderedDict())`.
fn tensor(out: &mut Vec<u8>, place: usize, storage: &Announced) {
    let numel: usize = storage.shape.iter().product();
    out.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(out, "storage");
    out.extend_from_slice(format!("ctorch\n{}\n", storage_class(storage.dtype)).as_bytes());
    text(out, &place.to_string());
    text(out, "cpu");
    int(out, numel as u64);
    out.extend_from_slice(b"tQK\x00(");
    storage.shape.iter().for_each(|size| int(out, *size as u64));
    out.extend_from_slice(b"t(");
    let mut stride = numel;
    for size in &storage.shape {
        stride /= (*size).max(1);
        int(out, stride as u64);
    }
    out.extend_from_slice(b"t\x89ccollections\nOrderedDict\n)RtR");
}

fn text(out: &mut Vec<u8>, text: &str) {
    #[expect(clippy::cast_possible_truncation, reason = "names of tensors are short")]
    let len = text.len() as u32;
    out.push(b'X');
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// BININT, or LONG1 of eight bytes where that is too narrow.
fn int(out: &mut Vec<u8>, value: u64) {
    match i32::try_from(value) {
        Ok(value) => {
            out.push(b'J');
            out.extend_from_slice(&value.to_le_bytes());
        }
        Err(_) => {
            out.extend_from_slice(b"\x8a\x08");
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}

const fn storage_class(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I16 => "ShortStorage",
        Dtype::I8 => "CharStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::Bool => "BoolStorage",
    }
}
