//! Weights on their way out, one tensor at a time: safetensors in shards of bounded size, in a folder that appears
//! under its name only as a whole.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::durable::parent_of;
use crate::tensor::byte_len;
use crate::tensor_file::{encode_entries, file_order_of};
use crate::{CheckpointError, Dtype, HostTensor, Metadata};

/// Shards of Hugging Face's hub are about this large.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor that will be written: known by its name and sizes before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Its name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

impl Announced {
    /// Bytes of its elements.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] when they do not fit the machine.
    pub fn byte_len(&self) -> Result<u64, CheckpointError> {
        let len = byte_len(self.dtype, &self.shape);
        len.map(|len| len as u64)
            .ok_or_else(|| refuse(&self.name, format!("{:?} is out of reach", self.shape)))
    }

    /// Whether `tensor` is what was announced.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] when it is not.
    pub fn check(&self, tensor: &HostTensor) -> Result<(), CheckpointError> {
        if (tensor.dtype, &tensor.shape) == (self.dtype, &self.shape)
            && tensor.bytes.len() as u64 == self.byte_len()?
        {
            return Ok(());
        }
        let wanted = format!("{tensor:?} came where {} {:?} was announced", self.dtype.name(), self.shape);
        Err(refuse(&self.name, wanted))
    }
}

fn refuse(name: &str, reason: String) -> CheckpointError {
    CheckpointError::Tensor { name: name.to_owned(), reason }
}

/// Writes `model.safetensors`, or shards of at most `shard_bytes` (a larger tensor has one for itself) with
/// `model.safetensors.index.json`. `read` is asked once for each tensor of `plan`, by its place there.
///
/// # Errors
/// What `read` says; [`CheckpointError::Io`] when the disk fails; [`CheckpointError::Tensor`] when a tensor is not as
/// announced.
pub fn write_weights<E: From<CheckpointError>>(
    folder: &Path,
    plan: &[Announced],
    shard_bytes: u64,
    mut read: impl FnMut(usize) -> Result<HostTensor, E>,
) -> Result<(), E> {
    let shards = split(plan, shard_bytes)?;
    let name = |shard: usize| match shards.len() {
        1 => "model.safetensors".to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
    };
    let mut weight_map = Map::new();
    let mut total = 0;
    for (number, shard) in shards.iter().enumerate() {
        write_shard(&folder.join(name(number)), plan, shard, &mut read)?;
        for place in shard {
            weight_map.insert(plan[*place].name.clone(), name(number).into());
            total += plan[*place].byte_len()?;
        }
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": Value::Object(weight_map) });
        let text = format!("{index:#}\n");
        write_new(&folder.join("model.safetensors.index.json"), |file| file.write_all(text.as_bytes()))?;
    }
    Ok(())
}

/// Places in `plan`, in groups that fill a shard; one empty group for an empty plan.
fn split(plan: &[Announced], shard_bytes: u64) -> Result<Vec<Vec<usize>>, CheckpointError> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for (place, tensor) in plan.iter().enumerate() {
        let len = tensor.byte_len()?;
        if filled + len > shard_bytes && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += len;
        if let Some(shard) = shards.last_mut() {
            shard.push(place);
        }
    }
    Ok(shards)
}

fn write_shard<E: From<CheckpointError>>(
    path: &Path,
    plan: &[Announced],
    shard: &[usize],
    read: &mut impl FnMut(usize) -> Result<HostTensor, E>,
) -> Result<(), E> {
    let mut order = shard.to_vec();
    file_order_of(&mut order, |place| plan[*place].dtype);
    let entries = order.iter().map(|place| {
        let Announced { name, dtype, shape } = &plan[*place];
        (name.as_str(), *dtype, shape.as_slice())
    });
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    let header = encode_entries(entries, &metadata)?;
    let mut file = create(path)?;
    let failed = |path: &Path| CheckpointError::io("write", path);
    file.write_all(&header).map_err(failed(path))?;
    for place in order {
        let tensor = read(place)?;
        plan[place].check(&tensor)?;
        file.write_all(&tensor.bytes).map_err(failed(path))?;
    }
    Ok(finish(file, path)?)
}

/// A new file, whole on the disk when this returns.
///
/// # Errors
/// [`CheckpointError::Io`] when it exists or the disk fails.
pub(crate) fn write_new(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), CheckpointError> {
    let mut file = create(path)?;
    fill(&mut file).map_err(CheckpointError::io("write", path))?;
    finish(file, path)
}

fn create(path: &Path) -> Result<BufWriter<File>, CheckpointError> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    Ok(BufWriter::with_capacity(1 << 20, file.map_err(CheckpointError::io("create", path))?))
}

fn finish(file: BufWriter<File>, path: &Path) -> Result<(), CheckpointError> {
    let synced =
        file.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|file| file.sync_all());
    synced.map_err(CheckpointError::io("write", path))
}

/// Makes the folder `dest`, which must not exist, out of what `fill` writes into a hidden folder beside it. When `fill`
/// fails, nothing is left; what a killed call left is cleared by the next one for the same `dest`.
///
/// # Errors
/// What `fill` says, or [`CheckpointError::Io`] when the disk fails.
pub fn new_folder<E: From<CheckpointError>>(
    dest: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    new_file(dest, |temporary| {
        fs::create_dir_all(temporary).map_err(CheckpointError::io("create", temporary))?;
        fill(temporary)?;
        let synced = File::open(temporary).and_then(|dir| dir.sync_all());
        Ok(synced.map_err(CheckpointError::io("sync", temporary))?)
    })
}

/// As [`new_folder`], for a file that `fill` makes at the path it is given.
///
/// # Errors
/// As [`new_folder`].
pub fn new_file<E: From<CheckpointError>>(
    dest: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    clear_leftovers(dest);
    let temporary = partial(dest, &std::process::id().to_string());
    let outcome = fill(&temporary).and_then(|()| Ok(commit(&temporary, dest)?));
    if outcome.is_err() {
        remove(&temporary);
    }
    outcome
}

fn commit(temporary: &Path, dest: &Path) -> Result<(), CheckpointError> {
    fs::rename(temporary, dest).map_err(CheckpointError::io("rename to", dest))?;
    let synced = File::open(parent_of(dest)).and_then(|dir| dir.sync_all());
    synced.map_err(CheckpointError::io("sync", parent_of(dest)))
}

/// `.NAME.partial-SUFFIX` beside `dest`.
fn partial(dest: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(dest.file_name().unwrap_or_default());
    name.push(format!(".partial-{suffix}"));
    dest.with_file_name(name)
}

/// Deletes what calls for `dest` left whose process is gone.
fn clear_leftovers(dest: &Path) {
    let stem = partial(dest, "");
    let Some(stem) = stem.file_name().and_then(|name| name.to_str()) else { return };
    let Ok(entries) = fs::read_dir(parent_of(dest)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(stem)).map(str::to_owned);
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            remove(&entry.path());
        }
    }
}

/// Deletes what nobody needs; if it stays, it harms nobody, and there is another error to report.
fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}
