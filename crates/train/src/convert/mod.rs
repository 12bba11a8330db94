//! Weights travel: other programs' files into folders that a run can name, and what was trained into theirs.
//!
//! Both ways are planned from headers alone. Whatever is missing, unexpected or misshapen is told in one message before
//! a tensor is read; then tensors pass through one at a time, and the result appears under its name as a whole.

mod bert;
mod bridge;
mod bundle;
mod composition;
mod hf;
mod hf_json;
mod import;
mod language;
mod lavis;
mod parts;
mod recognise;
mod tensors;
mod vision;

use std::path::{Path, PathBuf};

use crate::error::TrainError;

/// Whose form an export takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A folder that `from_pretrained` of transformers opens.
    HuggingFace,
    /// The `.pth` that LAVIS's runner writes: what is trained, and the copies that tied weights leave.
    Lavis,
    /// As `Lavis`, with the frozen models: LAVIS's whole `state_dict()`.
    LavisWhole,
}

/// What an export is made of and how.
#[derive(Clone, Debug)]
pub struct Export {
    /// A run folder, a checkpoint, or a folder that [`import`] made.
    pub source: PathBuf,
    /// What is made; must not exist.
    pub dest: PathBuf,
    /// Whose form.
    pub form: Form,
    /// Folder of the frozen image encoder, instead of the one that the run names.
    pub vision: Option<PathBuf>,
    /// Folder of the frozen language model, instead of the one that the run names.
    pub language: Option<PathBuf>,
    /// Bytes of one shard of a Hugging Face folder.
    pub shard_bytes: u64,
}

/// Makes the folder `dest` out of other programs' weights. `sizes`: a `config.json` (Hugging Face's) for what a file of
/// tensors alone does not tell, such as the number of heads. `say` gets a line for each thing worth knowing.
///
/// # Errors
/// [`TrainError::Weights`] for weights that are of no model we have, listing every name; [`TrainError::Checkpoint`] for
/// files that are damaged or hostile, and for the disk.
pub fn import(
    source: &Path,
    dest: &Path,
    sizes: Option<&Path>,
    say: &dyn Fn(&str),
) -> Result<(), TrainError> {
    refuse_existing(dest)?;
    import::import(source, dest, sizes, say)
}

/// Makes `export.dest` out of a run or a checkpoint. `say` gets a line for each thing worth knowing.
///
/// # Errors
/// As [`import`].
pub fn export(export: &Export, say: &dyn Fn(&str)) -> Result<(), TrainError> {
    refuse_existing(&export.dest)?;
    let bundle = bundle::open(export, say)?;
    match export.form {
        Form::HuggingFace => hf::write(bundle, &export.dest, export.shard_bytes, say),
        Form::Lavis => lavis::write(bundle, &export.dest, false, say),
        Form::LavisWhole => lavis::write(bundle, &export.dest, true, say),
    }
}

fn refuse_existing(dest: &Path) -> Result<(), TrainError> {
    match dest.symlink_metadata() {
        Ok(_) => Err(unusable(dest, "is there already; name another place, or delete it")),
        Err(_) => Ok(()),
    }
}

/// Weights that cannot be used as they are.
fn unusable(path: &Path, detail: impl Into<String>) -> TrainError {
    TrainError::Weights { path: path.to_owned(), detail: detail.into() }
}

/// Says what is left out, if anything: a few names and how many.
fn say_left_out(names: &[String], why: &str, say: &dyn Fn(&str)) {
    const SHOWN: usize = 4;
    let Some(shown) = names.get(..names.len().min(SHOWN)).filter(|shown| !shown.is_empty()) else { return };
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    say(&format!("left out, {why}: {}{more}", shown.join(", ")));
}
