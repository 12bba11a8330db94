//! A folder that `from_pretrained` of transformers opens: stage 2 as `Blip2ForConditionalGeneration`, stage 1 as
//! `Blip2ForImageTextRetrieval`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::{Dtype, write_durably};
use serde_json::Value;

use super::bridge::{StageKind, is_extra};
use super::bundle::{Bundle, LanguagePart, Part, VisionPart};
use super::composition::Composition;
use super::hf_json::{self, Tokenizer};
use super::import::{pretty, vocabularies};
use super::tensors::{Planned, Recipe, Tensors};
use super::vision::VisionFamily;
use super::{language, unusable};
use crate::error::TrainError;
use crate::names::LanguageFamily;

/// What transformers has no place for, beside what it reads.
pub(super) const EXTRAS: &str = "blip2_extras";

/// Writes the folder `dest`.
///
/// # Errors
/// [`TrainError::Weights`] when transformers has no such model, or something it needs is not there.
pub(super) fn write(
    bundle: Bundle,
    dest: &Path,
    shard_bytes: u64,
    say: &dyn Fn(&str),
) -> Result<(), TrainError> {
    let Bundle { path, stage, .. } = &bundle;
    let (path, stage) = (path.clone(), *stage);
    let encoder = match &bundle.vision {
        Some(encoder) if encoder.family == VisionFamily::Eva => encoder.vit.clone(),
        Some(_) => return Err(no_encoder(&path, "CLIP's")),
        None => return Err(no_encoder(&path, "neither that nor named with --vision")),
    };
    let mut language = bundle.language;
    let text = match (&mut language, stage) {
        (Some(language), StageKind::Two) => Some(text_model(language, bundle.image_token_index, say)?),
        (None, StageKind::Two) => {
            return Err(unusable(&path, "its language model is not known; name it with --language"));
        }
        (_, StageKind::One) => None,
    };
    let facts = hf_json::Facts {
        sizes: &bundle.sizes,
        bert: &bundle.bert,
        dropout: bundle.dropout,
        vit: &encoder,
        transform: bundle.transform.as_ref(),
    };
    let mut files = json_files(&facts, stage, text.as_ref(), &bundle.qformer_folder)?;
    let copied = match (&language, stage) {
        (Some(language), StageKind::Two) => vocabularies(&language.folder),
        _ => vocabularies(&bundle.qformer_folder),
    };
    let (mut model, mut extras) = compose(bundle.bridge, bundle.vision, language, stage);
    let announced = model.announced();
    files.insert("config.json", pretty(&hf_json::config(&facts, text.as_ref(), dtype(&announced))));
    checkpoint::new_folder(dest, |folder| {
        model.write(folder, shard_bytes, say)?;
        write_extras(&mut extras, folder, say)?;
        for (name, bytes) in &files {
            write_durably(&folder.join(name), bytes)?;
        }
        copy_others(&copied, folder)
    })?;
    say(&format!("wrote {}: {} tensors", dest.display(), announced.len()));
    Ok(())
}

fn no_encoder(path: &Path, which: &str) -> TrainError {
    let detail = format!(
        "the BLIP-2 of transformers has EVA's image encoder alone, and this one's is {which}; --to lavis takes what is \
         trained"
    );
    unusable(path, detail)
}

/// The trained part in two: what transformers reads, with the frozen models, and what it has no place for.
fn compose(
    bridge: Part,
    encoder: Option<VisionPart>,
    language: Option<LanguagePart>,
    stage: StageKind,
) -> (Composition, Composition) {
    let is_ours = |name: &str| match stage {
        StageKind::One => !is_extra(name),
        StageKind::Two => {
            let starts = |prefix: &&str| name.starts_with(prefix);
            let is_text =
                ["embeddings.", "vision_projection.", "text_projection.", "itm_head."].iter().any(starts);
            let in_layer = name.contains(".intermediate.") || is_text_output(name);
            !is_extra(name) && !is_text && !in_layer
        }
    };
    let (trained, rest): (Vec<Planned>, Vec<Planned>) =
        bridge.planned.into_iter().partition(|planned| is_ours(&planned.name));
    let source = std::rc::Rc::new(std::cell::RefCell::new(bridge.source));
    let (mut model, mut extras) = (Composition::default(), Composition::default());
    model.add(Box::new(Shared(std::rc::Rc::clone(&source))), trained, "");
    extras.add(Box::new(Shared(source)), rest, "");
    if let Some(VisionPart { tensors: Part { source, planned }, .. }) = encoder {
        model.add(source, planned, "vision_model.");
    }
    if let Some(LanguagePart { tensors: Part { source, planned }, .. }) = language {
        model.add(source, planned, "language_model.");
    }
    (model, extras)
}

/// The text branch's second half: `qformer.encoder.layer.N.output.*`.
fn is_text_output(name: &str) -> bool {
    let rest = name.strip_prefix("qformer.encoder.layer.").and_then(|rest| rest.split_once('.'));
    rest.is_some_and(|(_, part)| part.starts_with("output."))
}

/// One source for two compositions.
struct Shared(std::rc::Rc<std::cell::RefCell<Box<dyn Tensors>>>);

impl Tensors for Shared {
    fn infos(&self) -> super::tensors::Infos {
        self.0.borrow().infos()
    }

    fn read(&mut self, name: &str) -> Result<checkpoint::HostTensor, TrainError> {
        self.0.borrow_mut().read(name)
    }
}

fn write_extras(extras: &mut Composition, folder: &Path, say: &dyn Fn(&str)) -> Result<(), TrainError> {
    if extras.is_empty() {
        return Ok(());
    }
    // a folder for the writer, a file for the reader
    let inner = folder.join(EXTRAS);
    fs::create_dir(&inner).map_err(|source| TrainError::Write { path: inner.clone(), source })?;
    extras.write(&inner, u64::MAX, say)?;
    let names: Vec<String> = extras.names().into_iter().map(|(name, _)| name).collect();
    super::say_left_out(
        &names,
        &format!("transformers has no place for it; it is in {EXTRAS}/model.safetensors"),
        say,
    );
    Ok(())
}

/// The type that transformers loads everything in: what holds all of it.
fn dtype(announced: &[checkpoint::Announced]) -> &'static str {
    let all = |dtype: Dtype| announced.iter().all(|tensor| tensor.dtype == dtype);
    match () {
        () if all(Dtype::BF16) => "bfloat16",
        () if all(Dtype::F16) => "float16",
        () => "float32",
    }
}

/// The language model as its half of the config says it.
pub(super) struct Text {
    pub config: Value,
    pub image_token: i64,
    pub tokenizer: Option<Tokenizer>,
    pub folder: PathBuf,
    pub family: LanguageFamily,
}

/// Finds a token for the image's places. transformers overwrites its embedding, but it must have one.
fn text_model(
    language: &mut LanguagePart,
    kept: Option<i64>,
    say: &dyn Fn(&str),
) -> Result<Text, TrainError> {
    let table = language::embeddings(language.family);
    let rows = language.tensors.planned.iter().find(|planned| planned.name == table);
    let rows = rows.and_then(|planned| planned.info.shape.first()).map_or(0, |rows| *rows as i64);
    let mut tokenizer = Tokenizer::read(&language.folder.join("tokenizer.json"))?;
    let named = tokenizer.as_ref().and_then(Tokenizer::image_token);
    let free = tokenizer.as_ref().map(Tokenizer::size);
    let image_token = kept.or(named).or(free).filter(|id| *id < rows).unwrap_or(rows);
    let mut config = hf_json::text_config(&language.config);
    end_as_captions_end(&mut config, language)?;
    if image_token == rows {
        let row = hf_json::seldom_token(&config);
        say(&format!(
            "every row of the language model's {rows} embeddings is a word: one more, a copy of row {row}, is for <image>"
        ));
        for planned in &mut language.tensors.planned {
            if let (true, Recipe::Copy(of)) =
                (planned.name == table || planned.name == "lm_head.weight", &planned.recipe)
            {
                planned.recipe = Recipe::RepeatRow { of: of.clone(), row };
                planned.info.shape[0] += 1;
            }
        }
        config["vocab_size"] = (rows + 1).into();
    }
    if let Some(tokenizer) = &mut tokenizer {
        tokenizer.add("<image>", image_token);
    }
    Ok(Text { config, image_token, tokenizer, folder: language.folder.clone(), family: language.family })
}

/// Texts end where our captions end, and have the beginning without which transformers generates nothing.
fn end_as_captions_end(config: &mut Value, language: &LanguagePart) -> Result<(), TrainError> {
    let has_tokenizer = !data::LmTokenizer::files(&language.folder).is_empty();
    if language.family == LanguageFamily::Opt && has_tokenizer {
        let tokenizer = data::LmTokenizer::from_folder(&language.folder)?;
        if let Some(newline) = crate::texts::newline(&tokenizer)? {
            config["eos_token_id"] = newline.into();
        }
    }
    if config["bos_token_id"].is_null() {
        config["bos_token_id"] = config["eos_token_id"].clone();
    }
    Ok(())
}

/// Everything but `config.json` that is made and not copied.
fn json_files(
    facts: &hf_json::Facts<'_>,
    stage: StageKind,
    text: Option<&Text>,
    qformer_folder: &Path,
) -> Result<BTreeMap<&'static str, Vec<u8>>, TrainError> {
    let mut files = BTreeMap::from([
        ("preprocessor_config.json", pretty(&hf_json::preprocessor(facts))),
        ("processor_config.json", pretty(&hf_json::processor(facts, stage))),
    ]);
    match text {
        Some(text) => {
            files.insert("generation_config.json", pretty(&hf_json::generation(text)));
            if let Some(tokenizer) = &text.tokenizer {
                files.insert("tokenizer.json", pretty(&tokenizer.json));
                if !text.folder.join("tokenizer_config.json").is_file() {
                    files
                        .insert("tokenizer_config.json", pretty(&hf_json::tokenizer_config(text, tokenizer)));
                }
            }
        }
        None => {
            let decoder_start = facts.sizes.text.map_or(0, |[words, _]| words as i64 - 1);
            if let Some(mut tokenizer) = Tokenizer::read(&qformer_folder.join("tokenizer.json"))? {
                tokenizer.add("[DEC]", decoder_start);
                files.insert("tokenizer.json", pretty(&tokenizer.json));
            }
            files.insert("tokenizer_config.json", pretty(&hf_json::bert_tokenizer_config(decoder_start)));
        }
    }
    Ok(files)
}

/// Copies vocabularies; what was made anew stays as it was made.
fn copy_others(copied: &[PathBuf], folder: &Path) -> Result<(), TrainError> {
    for from in copied {
        let to = folder.join(from.file_name().unwrap_or_default());
        if !to.exists() {
            fs::copy(from, &to).map_err(|source| TrainError::Write { path: to, source })?;
        }
    }
    Ok(())
}
