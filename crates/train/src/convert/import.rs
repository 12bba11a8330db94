//! Other programs' weights into folders of ours: `model.safetensors`, `config.json` and vocabularies.
//!
//! | what comes | what is made in DEST |
//! |---|---|
//! | a whole BLIP-2 (LAVIS, Hugging Face) | `bridge/`, `vision/` and `language/` where they are in it, `model.toml` |
//! | an image encoder, a BERT, a language model, a GGUF | DEST itself is the folder that a config names |
//!
//! `import.json` says where it came from and what was left out.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::{HostTensor, WeightSource, write_durably};
use serde_json::{Value, json};

use super::composition::Composition;
use super::hf::EXTRAS;
use super::parts::{self, Component, Source};
use super::recognise::{Content, recognise};
use super::tensors::{Tensors, below};
use super::{bert, say_left_out, unusable};
use crate::error::TrainError;
use crate::sizes::read_json;

/// The record of an import, and the mark of its folder.
pub(super) const RECORD: &str = "import.json";
/// What an export reads of a whole BLIP-2: a `[model]` table.
pub(super) const MODEL: &str = "model.toml";

/// Vocabularies that travel beside weights, by the names that programs look for.
pub(super) const VOCABULARIES: [&str; 9] = [
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
];

/// As [`super::import`], for a `dest` that is free.
pub(super) fn import(
    path: &Path,
    dest: &Path,
    sizes: Option<&Path>,
    say: &dyn Fn(&str),
) -> Result<(), TrainError> {
    let mut weights = open(path)?;
    let all = Tensors::infos(&weights);
    let Some((content, prefix)) = recognise(&all, weights.format()) else {
        let some: Vec<&str> = all.keys().take(5).map(String::as_str).collect();
        let detail =
            format!("is of no model that we know; it holds {} tensors: {}", all.len(), some.join(", "));
        return Err(unusable(path, detail));
    };
    let beside = path.join("config.json");
    let config = match sizes {
        Some(sizes) => Some(read_json(sizes)?),
        None if path.is_dir() && beside.is_file() => Some(read_json(&beside)?),
        None => None,
    };
    let (infos, others) = below(&all, &prefix);
    let source = Source { path, infos, prefix, config };
    let mut parts = match content {
        Content::Lavis => parts::lavis(&source)?,
        Content::HuggingFace => parts::hugging_face(&source)?,
        Content::Vision => parts::image_encoder(&source)?,
        Content::Bert => bert::parts(&source),
        Content::Language => parts::language_model(&source)?,
        Content::Gguf => parts::gguf(&source, &weights)?,
    };
    parts.left_out.extend(others);
    parts.problems.finish(path)?;
    say(&format!("{}: {}", path.display(), describe(content)));
    say_left_out(&parts.left_out, "not needed", say);
    parts.notes.iter().for_each(|note| say(note));
    check_copies(&mut weights, &parts.copies, path)?;
    let record = json!({
        "source": path.display().to_string(),
        "content": describe(content),
        "left_out": parts.left_out,
    });
    checkpoint::new_folder(dest, |folder| {
        for (name, component) in parts.components {
            write_component(&folder.join(name), component, path, say)?;
        }
        if let Some(model) = &parts.model {
            let text = model_toml(model, dest).map_err(|error| unusable(path, error.to_string()))?;
            write_durably(&folder.join(MODEL), text.as_bytes())?;
        }
        Ok::<_, TrainError>(write_durably(&folder.join(RECORD), &pretty(&record))?)
    })?;
    say(&format!("wrote {}", dest.display()));
    Ok(())
}

/// The weights, with what an export of ours laid beside where they are a Hugging Face folder of its making.
fn open(path: &Path) -> Result<WeightSource, TrainError> {
    let (weights, extras) = (WeightSource::open(path)?, path.join(EXTRAS).join("model.safetensors"));
    Ok(if extras.is_file() { weights.with(&extras)? } else { weights })
}

fn describe(content: Content) -> &'static str {
    match content {
        Content::Lavis => "a BLIP-2 of LAVIS",
        Content::HuggingFace => "a BLIP-2 of Hugging Face",
        Content::Vision => "an image encoder",
        Content::Bert => "a BERT",
        Content::Language => "a language model",
        Content::Gguf => "a Llama in llama.cpp's form",
    }
}

pub(super) fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

fn write_component(
    folder: &Path,
    component: Component,
    source: &Path,
    say: &dyn Fn(&str),
) -> Result<(), TrainError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| TrainError::Write { path, source }
    };
    fs::create_dir_all(folder).map_err(io(folder))?;
    let mut composition = Composition::default();
    composition.add(Box::new(open(source)?), component.planned, "");
    // one file: what a run reads
    composition.write(folder, u64::MAX, say)?;
    for (name, bytes) in component.files {
        write_durably(&folder.join(name), &bytes)?;
    }
    for from in component.copied {
        let to = folder.join(from.file_name().unwrap_or_default());
        fs::copy(&from, &to).map_err(io(&to))?;
    }
    Ok(())
}

/// Tied copies are copies: where one differs, this is a model that we do not have.
fn check_copies(
    source: &mut WeightSource,
    copies: &[(String, String)],
    path: &Path,
) -> Result<(), TrainError> {
    // by digest, so that never two of these widest tensors are in memory
    let mut digest = |name: &str| -> Result<_, TrainError> {
        let HostTensor { dtype, shape, bytes } = Tensors::read(source, name)?;
        Ok((dtype, shape, blake3::hash(&bytes)))
    };
    for (copy, original) in copies {
        if digest(copy)? != digest(original)? {
            return Err(unusable(path, format!("{copy} must be a copy of {original}, and is not")));
        }
    }
    Ok(())
}

/// Files of a folder that say how text becomes ids.
pub(super) fn vocabularies(folder: &Path) -> Vec<PathBuf> {
    VOCABULARIES.iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect()
}

/// The `[model]` table, with the component folders below `dest`.
fn model_toml(model: &Value, dest: &Path) -> Result<String, toml::ser::Error> {
    let mut model = model.clone();
    for (part, key) in [("vision", "weights"), ("language", "weights"), ("qformer", "init")] {
        if let Some(folder) = model[part][key].as_str().map(|folder| dest.join(folder)) {
            model[part][key] = folder.display().to_string().into();
        }
    }
    let head = "# What `blip2 export` reads of this folder. In a run, name the folder as stage1.from or stage2.from, vision/ and\n\
         # language/ as below, and a BERT as model.qformer.init: its vocabulary is needed (docs/weights.md).\n";
    Ok(format!("{head}{}", toml::to_string(&json!({ "model": model }))?))
}
