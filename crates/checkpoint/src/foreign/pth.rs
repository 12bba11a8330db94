//! `torch.save` files: the zip of torch 1.6 and later, and the pickle sequence before it.
//!
//! A tensor in such a file is a view: a storage, an offset, sizes and strides. The strides are honoured (weights
//! converted from TensorFlow come out transposed without them). Names of nested dictionaries are joined with dots,
//! so a LAVIS file gives `model.visual_encoder...`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

use super::overlap::first_overlap;
use super::pickle::{self, Node, Pickle, Storage, Value, View};
use super::scan::Scan;
use crate::tensor::byte_len;
use crate::{CheckpointError, Dtype, HostTensor, TensorMap};

/// The first pickle of a legacy file: torch's magic number 0x1950a86a20f9469cfc6c.
const LEGACY_MAGIC: [u8; 15] =
    [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
/// The only version that legacy files were written with.
const LEGACY_VERSION: i64 = 1001;
/// Bytes of a zip's `data.pkl`, which is read whole.
const MAX_PICKLE_BYTES: u64 = 256 << 20;
/// Dictionaries inside dictionaries.
const MAX_DEPTH: usize = 32;
/// Bytes of a tensor's joined name.
const MAX_TENSOR_NAME: usize = 1024;
/// Entries met on the walk to the tensors; containers may share, so a small file could hold a very long walk.
const MAX_ENTRIES: usize = 2_000_000;
/// [`PthFile::read_all`] gives at most this many times the file's size (tied weights are read once for each name).
const MAX_SHARING: u64 = 8;

/// A `torch.save` file whose table of contents is read and checked; tensors are read one by one.
#[derive(Debug)]
pub struct PthFile {
    file: File,
    path: PathBuf,
    len: u64,
    tensors: BTreeMap<String, Place>,
}

/// Where one tensor's elements lie.
#[derive(Debug)]
struct Place {
    dtype: Dtype,
    shape: Vec<usize>,
    /// In elements, outermost first.
    stride: Vec<usize>,
    /// Byte offset of the first element in the file.
    start: u64,
    /// Bytes from the first element to the end of the last.
    span: usize,
}

impl PthFile {
    /// Opens a `.pth`, `.pt` or `.bin` file and finds its tensors without reading them.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when it cannot be read; [`CheckpointError::Malformed`] when it is neither form, is
    /// cut off, or holds anything but numbers, strings, containers and plain tensors (the error names it).
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let mut file = File::open(path).map_err(CheckpointError::io("open", path))?;
        let len = file.metadata().map_err(CheckpointError::io("read", path))?.len();
        let mut head = Vec::new();
        let read = (&mut file).take(LEGACY_MAGIC.len() as u64).read_to_end(&mut head);
        read.and_then(|_| file.rewind()).map_err(CheckpointError::io("read", path))?;
        let (pickle, storages) = if head == LEGACY_MAGIC {
            open_legacy(&file, path, len)?
        } else if head.starts_with(b"PK") {
            open_zip(&file, path)?
        } else {
            return Err(CheckpointError::malformed(path, "neither a zip nor a legacy torch.save file"));
        };
        let tensors =
            places(&pickle, &storages).map_err(|reason| CheckpointError::malformed(path, reason))?;
        Ok(Self { file, path: path.to_path_buf(), len, tensors })
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type and sizes of a tensor; `None` when the file has none of this name.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.tensors.get(name).map(|place| (place.dtype, place.shape.as_slice()))
    }

    /// Reads one tensor, row-major; `None` when the file has none of this name.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the disk fails.
    pub fn read(&mut self, name: &str) -> Result<Option<HostTensor>, CheckpointError> {
        let Some(place) = self.tensors.get(name) else { return Ok(None) };
        let mut bytes = vec![0; place.span];
        let read =
            self.file.seek(SeekFrom::Start(place.start)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(CheckpointError::io("read", &self.path))?;
        if !is_row_major(&place.shape, &place.stride) {
            bytes = gather(&bytes, place);
        }
        Ok(Some(HostTensor { dtype: place.dtype, shape: place.shape.clone(), bytes }))
    }

    /// Reads every tensor.
    ///
    /// # Errors
    /// As [`PthFile::read`]; [`CheckpointError::Malformed`] when the tensors share bytes so often that they would
    /// fill many times the file's size.
    pub fn read_all(&mut self) -> Result<TensorMap, CheckpointError> {
        let total: u64 = self.tensors.values().map(|place| place.byte_len() as u64).sum();
        if total > self.len.saturating_mul(MAX_SHARING) {
            let reason = format!("its tensors share storage so often that they hold {total} bytes in all");
            return Err(CheckpointError::malformed(&self.path, reason));
        }
        let names: Vec<String> = self.tensors.keys().cloned().collect();
        let mut tensors = TensorMap::new();
        for name in names {
            if let Some(tensor) = self.read(&name)? {
                tensors.insert(name, tensor);
            }
        }
        Ok(tensors)
    }
}

impl Place {
    fn byte_len(&self) -> usize {
        byte_len(self.dtype, &self.shape).unwrap_or(usize::MAX)
    }
}

/// Byte offset and element count of each storage, by key.
type Storages = HashMap<String, (u64, u64)>;

/// Five pickles (magic, version, system, object, storage keys), then each storage: a count, then its elements.
fn open_legacy(file: &File, path: &Path, len: u64) -> Result<(Pickle, Storages), CheckpointError> {
    let mut scan = Scan::new(BufReader::new(file), path, len);
    scan.skip(LEGACY_MAGIC.len() as u64)?;
    if !matches!(pickle::load(&mut scan)?.root, Value::Int(LEGACY_VERSION)) {
        return Err(scan.malformed(format!("its version is not {LEGACY_VERSION}")));
    }
    let system = pickle::load(&mut scan)?;
    if !says_little_endian(&system) {
        return Err(scan.malformed("it was written on a big-endian machine"));
    }
    let object = pickle::load(&mut scan)?;
    let widths: HashMap<&str, usize> = object.storages.iter().map(|s| (&*s.key, s.dtype.size())).collect();
    let mut storages = Storages::new();
    for key in
        storage_keys(&pickle::load(&mut scan)?).ok_or_else(|| scan.malformed("no list of storage keys"))?
    {
        let Some(width) = widths.get(key.as_str()) else {
            return Err(scan.malformed(format!("storage {key} is listed and never used")));
        };
        let numel = scan.u64()?;
        let start = scan.pos();
        let bytes =
            numel.checked_mul(*width as u64).ok_or_else(|| scan.malformed("a storage is too large"))?;
        scan.skip(bytes)?;
        if storages.insert(key, (start, numel)).is_some() {
            return Err(scan.malformed("a storage is listed twice"));
        }
    }
    Ok((object, storages))
}

fn says_little_endian(system: &Pickle) -> bool {
    let Value::Node(root) = system.root else { return false };
    let Some(Node::Dict(entries)) = system.nodes.get(root) else { return false };
    entries.iter().any(|(key, value)| {
        matches!((key, value), (Value::Text(key), Value::Bool(true)) if &**key == "little_endian")
    })
}

fn storage_keys(pickle: &Pickle) -> Option<Vec<String>> {
    let Value::Node(root) = pickle.root else { return None };
    let Some(Node::List(keys)) = pickle.nodes.get(root) else { return None };
    let text = |key: &Value| if let Value::Text(text) = key { Some(text.to_string()) } else { None };
    keys.iter().map(text).collect()
}

/// A zip of `NAME/data.pkl` and `NAME/data/KEY`, all stored uncompressed.
fn open_zip(file: &File, path: &Path) -> Result<(Pickle, Storages), CheckpointError> {
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|error| zip_error(path, error))?;
    let is_pickle = |name: &&str| name.strip_suffix("/data.pkl").is_some_and(|top| !top.contains('/'));
    let Some(name) = zip.file_names().find(is_pickle).map(str::to_owned) else {
        return Err(CheckpointError::malformed(path, "a zip without data.pkl: not a torch.save file"));
    };
    let top = name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
    if let Some(order) = read_entry(&mut zip, path, &format!("{top}byteorder"), 16)?
        && order != b"little"
    {
        return Err(CheckpointError::malformed(path, "it was written on a big-endian machine"));
    }
    let bytes = read_entry(&mut zip, path, &name, MAX_PICKLE_BYTES)?.unwrap_or_default();
    let len = bytes.len() as u64;
    let object = pickle::load(&mut Scan::new(Cursor::new(bytes), path, len))?;
    let mut storages = Storages::new();
    for storage in &object.storages {
        if !storages.contains_key(&*storage.key) {
            let place = stored_entry(&mut zip, path, &top, storage)?;
            storages.insert(storage.key.to_string(), place);
        }
    }
    let widths: HashMap<&str, u64> =
        object.storages.iter().map(|storage| (&*storage.key, storage.dtype.size() as u64)).collect();
    let ranges = storages.iter().map(|(key, (start, numel))| {
        let width = widths.get(key.as_str()).copied().unwrap_or(1);
        (*start, numel.saturating_mul(width), key.as_str())
    });
    match first_overlap(ranges) {
        Some((one, other)) => {
            Err(CheckpointError::malformed(path, format!("storages {one} and {other} claim the same bytes")))
        }
        None => Ok((object, storages)),
    }
}

/// The bytes of a small entry; `None` when there is none of this name.
fn read_entry(
    zip: &mut ZipArchive<BufReader<&File>>,
    path: &Path,
    name: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, CheckpointError> {
    let entry = match zip.by_name(name) {
        Ok(entry) => entry,
        Err(ZipError::FileNotFound) => return Ok(None),
        Err(error) => return Err(zip_error(path, error)),
    };
    let mut bytes = Vec::new(); // grows with what is there, not with what the header says
    let read = entry.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| CheckpointError::malformed(path, format!("{name}: {error}")))?;
    if bytes.len() as u64 > limit {
        return Err(CheckpointError::malformed(path, format!("{name} exceeds {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// Where a storage's elements lie in the zip.
fn stored_entry(
    zip: &mut ZipArchive<BufReader<&File>>,
    path: &Path,
    top: &str,
    storage: &Storage,
) -> Result<(u64, u64), CheckpointError> {
    let name = format!("{top}data/{}", storage.key);
    let refuse = |reason: &str| CheckpointError::malformed(path, format!("{name}: {reason}"));
    let index = zip.index_for_name(&name).ok_or_else(|| refuse("the storage is missing"))?;
    let entry = zip.by_index_raw(index).map_err(|error| zip_error(path, error))?;
    if entry.compression() != zip::CompressionMethod::Stored || entry.encrypted() {
        return Err(refuse("the storage is compressed or encrypted, which torch.save never does"));
    }
    if storage.numel.checked_mul(storage.dtype.size() as u64) != Some(entry.size()) {
        return Err(refuse("the storage's size is not what data.pkl says"));
    }
    Ok((entry.data_start(), storage.numel))
}

fn zip_error(path: &Path, error: ZipError) -> CheckpointError {
    match error {
        ZipError::Io(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
            CheckpointError::Io { action: "read", path: path.to_path_buf(), source }
        }
        other => CheckpointError::malformed(path, format!("broken zip: {other}")),
    }
}

/// Walks the object to its tensors and checks each against its storage.
fn places(pickle: &Pickle, storages: &Storages) -> Result<BTreeMap<String, Place>, String> {
    let mut walk = Walk { pickle, storages, found: BTreeMap::new(), entries: 0 };
    walk.visit(&pickle.root, "", 0)?;
    Ok(walk.found)
}

struct Walk<'a> {
    pickle: &'a Pickle,
    storages: &'a Storages,
    found: BTreeMap<String, Place>,
    entries: usize,
}

impl Walk<'_> {
    fn visit(&mut self, value: &Value, name: &str, depth: usize) -> Result<(), String> {
        self.entries += 1;
        if depth > MAX_DEPTH || self.entries > MAX_ENTRIES || name.len() > MAX_TENSOR_NAME {
            return Err("its containers are nested too deeply, too many, or refer to themselves".to_owned());
        }
        match *value {
            Value::Tensor(index) => self.tensor(index, name),
            Value::Node(index) => self.container(index, name, depth + 1),
            _ => Ok(()), // epoch counts, settings: no tensor in them
        }
    }

    fn container(&mut self, index: usize, prefix: &str, depth: usize) -> Result<(), String> {
        let inside = |name: &dyn std::fmt::Display| match prefix {
            "" => name.to_string(),
            _ => format!("{prefix}.{name}"),
        };
        match self.pickle.nodes.get(index) {
            Some(Node::Tuple(items) | Node::List(items)) => {
                items.iter().enumerate().try_for_each(|(n, item)| self.visit(item, &inside(&n), depth))
            }
            Some(Node::Dict(entries)) => entries.iter().try_for_each(|(key, value)| match key {
                Value::Text(key) => self.visit(value, &inside(key), depth),
                Value::Int(key) => self.visit(value, &inside(key), depth),
                _ if matches!(value, Value::Node(_) | Value::Tensor(_)) => {
                    Err(format!("a key of {prefix} is neither text nor an integer"))
                }
                _ => Ok(()),
            }),
            None => Err("a container is missing".to_owned()),
        }
    }

    fn tensor(&mut self, index: usize, name: &str) -> Result<(), String> {
        let view = self.pickle.tensors.get(index).ok_or("a tensor is missing")?;
        let place = self.place(view).map_err(|reason| format!("tensor {name}: {reason}"))?;
        match self.found.insert(name.to_owned(), place) {
            Some(_) => Err(format!("two tensors are named {name}")),
            None => Ok(()),
        }
    }

    /// Checks a view against its storage: every element inside, and no more of them than the storage has.
    fn place(&self, view: &View) -> Result<Place, &'static str> {
        const OUTSIDE: &str = "its sizes and strides reach outside its storage";
        let storage = self.pickle.storages.get(view.storage).ok_or("its storage is missing")?;
        let (start, numel) = *self.storages.get(&*storage.key).ok_or("its storage is not in the file")?;
        if storage.numel != numel {
            return Err("its storage has another size than the pickle says");
        }
        let in_usize = |sizes: &[u64]| -> Result<Vec<usize>, &'static str> {
            sizes.iter().map(|size| usize::try_from(*size).map_err(|_| OUTSIDE)).collect()
        };
        let (shape, stride) = (in_usize(&view.shape)?, in_usize(&view.stride)?);
        let count = shape.iter().try_fold(1_u64, |product, size| product.checked_mul(*size as u64));
        let count = count.filter(|count| *count <= numel).ok_or(OUTSIDE)?;
        let reach = |last: u64, (size, stride): (&u64, &u64)| {
            size.checked_sub(1)
                .and_then(|steps| steps.checked_mul(*stride))
                .and_then(|far| last.checked_add(far))
        };
        let span = match count {
            0 => 0,
            _ => view.shape.iter().zip(&view.stride).try_fold(1, reach).ok_or(OUTSIDE)?,
        };
        let end = view.offset.checked_add(span).ok_or(OUTSIDE)?;
        if end > numel {
            return Err(OUTSIDE);
        }
        let width = storage.dtype.size() as u64; // in bytes nothing overflows: the storage lies in the file
        let span = usize::try_from(span * width).map_err(|_| OUTSIDE)?;
        Ok(Place { dtype: storage.dtype, shape, stride, start: start + view.offset * width, span })
    }
}

/// Whether the elements lie one after the other in row-major order.
fn is_row_major(shape: &[usize], stride: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(stride).rev().all(|(size, stride)| {
        let fits = *size == 1 || *stride == expected;
        expected *= size;
        fits
    }) || shape.contains(&0)
}

/// Copies a strided view into row-major order. `bytes` starts at the view's first element.
fn gather(bytes: &[u8], place: &Place) -> Vec<u8> {
    let width = place.dtype.size();
    let mut out = Vec::with_capacity(place.byte_len());
    let mut index = vec![0; place.shape.len()];
    let mut at = 0; // of the element at `index`, in elements
    loop {
        out.extend_from_slice(&bytes[at * width..(at + 1) * width]);
        let mut axis = place.shape.len();
        loop {
            if axis == 0 {
                return out;
            }
            axis -= 1;
            index[axis] += 1;
            at += place.stride[axis];
            if index[axis] < place.shape[axis] {
                break;
            }
            at -= place.stride[axis] * place.shape[axis];
            index[axis] = 0;
        }
    }
}
