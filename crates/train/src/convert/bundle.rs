//! What an export starts from: a run, one checkpoint, or a folder that an import made, with the frozen models beside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::{HashedSource, MANIFEST, WeightSource};
use model::VisionConfig;
use model::vision::VitConfig;
use serde::Deserialize;
use serde_json::Value;

use super::bridge::{self, BridgeSizes, StageKind};
use super::import::{MODEL, RECORD};
use super::tensors::{Infos, Planned, Problems, Recipe, Tensors, below};
use super::vision::{self, Vision, VisionFamily};
use super::{Export, language, say_left_out, unusable};
use crate::checkpoints::AVERAGE;
use crate::config;
use crate::error::TrainError;
use crate::frozen::differ;
use crate::names::LanguageFamily;
use crate::sizes::read_json;

/// What of a run's config, or of `model.toml`, an export needs.
#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    data: Data,
}

#[derive(Deserialize)]
struct Model {
    vision: Option<config::VisionConfig>,
    qformer: config::QformerConfig,
    language: Option<config::LanguageConfig>,
}

#[derive(Default, Deserialize)]
struct Data {
    transform: Option<data::TransformConfig>,
}

/// Everything that is needed, opened and checked.
pub(super) struct Bundle {
    /// For messages.
    pub path: PathBuf,
    pub stage: StageKind,
    pub sizes: BridgeSizes,
    /// The BERT that the Q-Former started from.
    pub bert: config::BertSizes,
    /// Folder of the Q-Former's vocabulary.
    pub qformer_folder: PathBuf,
    pub dropout: f64,
    /// The id that an imported model had for its image tokens.
    pub image_token_index: Option<i64>,
    pub transform: Option<data::TransformConfig>,
    pub bridge: Part,
    pub vision: Option<VisionPart>,
    pub language: Option<LanguagePart>,
}

/// Tensors of one model, planned.
pub(super) struct Part {
    pub source: Box<dyn Tensors>,
    pub planned: Vec<Planned>,
}

pub(super) struct VisionPart {
    pub family: VisionFamily,
    pub vit: VitConfig,
    pub tensors: Part,
}

pub(super) struct LanguagePart {
    pub folder: PathBuf,
    pub family: LanguageFamily,
    /// Its `config.json`.
    pub config: Value,
    pub tensors: Part,
}

/// The trained part as it lies on the disk.
struct Found {
    /// Files with its tensors.
    files: Vec<PathBuf>,
    text: String,
    /// Where relative component folders are looked for, for an import.
    home: Option<PathBuf>,
    /// Digests of the frozen models that it was trained beside.
    frozen: BTreeMap<String, String>,
}

/// Finds the trained part and the frozen models and compares all of them with their sizes.
///
/// # Errors
/// [`TrainError::Weights`] listing all that does not fit, or naming what is not there.
pub(super) fn open(export: &Export, say: &dyn Fn(&str)) -> Result<Bundle, TrainError> {
    let found = find(&export.source, say)?;
    let file: File = toml::from_str(&found.text)
        .map_err(|error| unusable(&export.source, format!("its config cannot be read: {error}")))?;
    let mut problems = Problems::default();
    let bridge = trained(&found, &export.source, say)?;
    let Some(sizes) = bridge::sizes(&bridge.planned) else {
        return Err(unusable(&export.source, "holds no trained Q-Former"));
    };
    bridge::check(&bridge.planned, &sizes, false, |name| name.to_owned(), &mut problems);
    let home = |folder: &Path| match &found.home {
        Some(home) => home.join(folder.file_name().unwrap_or_default()),
        None => folder.to_owned(),
    };
    let qformer_folder = home(&file.model.qformer.init);
    let stage = bridge::stage(&bridge.planned);
    let vision = open_vision(export, &file.model, &home, &found.frozen, &mut problems, say)?;
    let language = match stage {
        StageKind::One => None,
        StageKind::Two => open_language(export, &file.model, &home, &found.frozen, &mut problems, say)?,
    };
    problems.finish(&export.source)?;
    check_widths(&export.source, &sizes, vision.as_ref(), language.as_ref())?;
    Ok(Bundle {
        path: export.source.clone(),
        stage,
        sizes,
        bert: bert_sizes(&file.model.qformer, &qformer_folder)?,
        dropout: file.model.qformer.dropout,
        image_token_index: image_token(&qformer_folder),
        qformer_folder,
        transform: file.data.transform,
        bridge,
        vision,
        language,
    })
}

/// Tells apart the three kinds of folder.
fn find(path: &Path, say: &dyn Fn(&str)) -> Result<Found, TrainError> {
    let read = |file: PathBuf| {
        fs::read_to_string(&file).map_err(|source| TrainError::Read { path: file.clone(), source })
    };
    if path.join(MANIFEST).is_file() {
        let manifest = checkpoint::verify(path)?;
        return Ok(Found {
            files: vec![path.join("model.safetensors"), path.join("optimizer.safetensors")],
            text: read(path.join("config.toml"))?,
            home: None,
            frozen: manifest.frozen,
        });
    }
    if path.join(RECORD).is_file() && path.join(MODEL).is_file() {
        return Ok(Found {
            files: vec![path.join("bridge").join("model.safetensors")],
            text: read(path.join(MODEL))?,
            home: Some(path.to_owned()),
            frozen: BTreeMap::new(),
        });
    }
    for phase in ["stage2", "stage1"] {
        if let Some(folder) = newest(&path.join("checkpoints").join(phase), say)? {
            say(&format!("taking {}", folder.display()));
            return find(&folder, say);
        }
    }
    Err(unusable(path, "is no run folder, no checkpoint, and no whole BLIP-2 that `blip2 import` made"))
}

/// The checkpoint that a phase hands over: the pinned one, else the newest; damaged ones are passed over.
fn newest(phase: &Path, say: &dyn Fn(&str)) -> Result<Option<PathBuf>, TrainError> {
    let pinned = checkpoint::pinned(phase)?;
    let listed = checkpoint::list(phase)?;
    let order = pinned.into_iter().chain(listed.into_iter().rev());
    let mut problems = Vec::new();
    for candidate in order {
        match checkpoint::verify(&candidate.path) {
            Ok(_) => return Ok(Some(candidate.path)),
            Err(error) => {
                say(&format!("passed over: {error}"));
                problems.push(error.to_string());
            }
        }
    }
    match problems.is_empty() {
        true => Ok(None),
        false => Err(unusable(phase, format!("holds no checkpoint that is whole: {}", problems.join("; ")))),
    }
}

/// The trained part, averaged where an average is kept.
fn trained(found: &Found, path: &Path, say: &dyn Fn(&str)) -> Result<Part, TrainError> {
    let [model, beside @ ..] = found.files.as_slice() else { return Err(unusable(path, "names no files")) };
    let own = Tensors::infos(&WeightSource::of_files(path, std::slice::from_ref(model))?);
    let averages = match beside {
        [optimizer] => Tensors::infos(&WeightSource::of_files(path, std::slice::from_ref(optimizer))?),
        _ => Infos::new(),
    };
    let is_averaged = averages.keys().any(|name| name.starts_with(AVERAGE));
    if is_averaged {
        say("weights are their moving average, as in evaluation");
    }
    // moments share the parameters' names: only the files that are needed are joined, and only averages stand beside
    let mut planned = Vec::new();
    for (name, info) in own {
        let average = format!("{AVERAGE}{name}");
        let from = if averages.contains_key(&average) { average } else { name.clone() };
        planned.push(Planned { name, info, recipe: Recipe::Copy(from) });
    }
    let files = if is_averaged { found.files.as_slice() } else { std::slice::from_ref(model) };
    Ok(Part { source: Box::new(WeightSource::of_files(path, files)?), planned })
}

fn open_vision(
    export: &Export,
    model: &Model,
    home: &dyn Fn(&Path) -> PathBuf,
    frozen: &BTreeMap<String, String>,
    problems: &mut Problems,
    say: &dyn Fn(&str),
) -> Result<Option<VisionPart>, TrainError> {
    let configured = model.vision.as_ref();
    let folder = export.vision.clone().or_else(|| configured.map(|vision| home(&vision.weights)));
    let Some(folder) = folder else { return Ok(None) };
    let source = open_frozen(&folder, "vision", frozen, say)?;
    let infos = Tensors::infos(&source);
    let prefixes = ["visual_encoder.", "vision_model.", "visual.", ""];
    let prefix = prefixes.into_iter().find(|prefix| vision::family(&below(&infos, prefix).0).is_some());
    let (inside, mut others) = below(&infos, prefix.unwrap_or(""));
    let layers =
        configured.and_then(|vision| VisionFamily::of(&vision.architecture)).map(|(_, vit)| vit.layers);
    let mut encoder =
        vision::into_ours(&inside, prefix.unwrap_or(""), layers.and_then(|layers| layers.try_into().ok()));
    let Some(family) = encoder.family else { return Ok(None) };
    others.append(&mut encoder.left_out);
    say_left_out(&others, "the image encoder does not run it", say);
    let Some(vit) = vit_of(configured.map(|vision| &vision.architecture), family, &encoder, &folder) else {
        return Err(unusable(&folder, "its config.json does not tell its heads, or tensors are missing"));
    };
    resize_positions(&mut encoder, family, &vit);
    vision::check(&encoder, &vit, |name| format!("{}: {name}", folder.display()), problems);
    let tensors = Part { source: Box::new(source), planned: encoder.planned };
    Ok(Some(VisionPart { family, vit, tensors }))
}

/// Sizes as configured, else as the tensors and the folder's own `config.json` tell.
fn vit_of(
    architecture: Option<&VisionConfig>,
    family: VisionFamily,
    encoder: &Vision,
    folder: &Path,
) -> Option<VitConfig> {
    match architecture.and_then(VisionFamily::of) {
        Some((configured, vit)) if configured == family => Some(vit.clone()),
        _ => {
            let config: Option<Value> = read_json(&folder.join("config.json")).ok();
            vision::sizes(family, &encoder.planned, config.as_ref())
        }
    }
}

/// Positions of another grid are resized, as the encoder does when it is loaded.
fn resize_positions(encoder: &mut Vision, family: VisionFamily, vit: &VitConfig) {
    let name = match family {
        VisionFamily::Eva => "embeddings.position_embedding",
        VisionFamily::Clip => "embeddings.position_embedding.weight",
    };
    let grid = vit.img_size / vit.patch_size.max(1);
    let Ok(wanted) = usize::try_from(1 + grid * grid) else { return };
    let Some(positions) = encoder.planned.iter_mut().find(|planned| planned.name == name) else { return };
    let at = positions.info.shape.len().saturating_sub(2);
    let Some(rows) = positions.info.shape.get(at).copied() else { return };
    let is_square = rows > 1 && (rows - 1).isqrt().pow(2) == rows - 1;
    if let (Recipe::Copy(of), true, true) = (&positions.recipe, is_square, rows != wanted) {
        let align_corners = family == VisionFamily::Clip;
        positions.recipe = Recipe::Resized { of: of.clone(), grid, align_corners };
        positions.info.shape[at] = wanted;
        positions.info.dtype = checkpoint::Dtype::F32;
    }
}

fn open_language(
    export: &Export,
    model: &Model,
    home: &dyn Fn(&Path) -> PathBuf,
    frozen: &BTreeMap<String, String>,
    problems: &mut Problems,
    say: &dyn Fn(&str),
) -> Result<Option<LanguagePart>, TrainError> {
    let configured = model.language.as_ref().map(|language| home(&language.weights));
    let Some(folder) = export.language.clone().or(configured) else { return Ok(None) };
    let config: Value = read_json(&folder.join("config.json"))?;
    let Some(family) = language::family(&config) else {
        let detail =
            format!("model_type {} is no language model that we have (opt, t5, llama)", config["model_type"]);
        return Err(unusable(&folder, detail));
    };
    let source = open_frozen(&folder, "language", frozen, say)?;
    let infos = Tensors::infos(&source);
    let is_tied = language::is_tied(&config, family, &infos);
    let found = language::into_ours(&infos, "", family, is_tied);
    super::parts::compare_language(
        &folder,
        &found.planned,
        (&config, family, is_tied),
        "language_model.",
        problems,
    )?;
    let mut config = config;
    config["tie_word_embeddings"] = is_tied.into();
    let tensors = Part { source: Box::new(source), planned: found.planned };
    Ok(Some(LanguagePart { folder, family, config, tensors }))
}

/// A frozen model is the one that was trained beside, by its digest.
fn open_frozen(
    folder: &Path,
    model: &str,
    frozen: &BTreeMap<String, String>,
    say: &dyn Fn(&str),
) -> Result<WeightSource, TrainError> {
    if !folder.exists() {
        let detail = format!(
            "is not here; run from the folder that the run was launched in, or name the folder with --{model}"
        );
        return Err(unusable(folder, detail));
    }
    if let Some(then) = frozen.get(model) {
        say(&format!("comparing {} with what was trained beside", folder.display()));
        let now = HashedSource::new(WeightSource::open(folder)?).digest()?;
        if differ(then, &now) {
            return Err(unusable(
                folder,
                format!("is not the {model} model that these weights were trained beside"),
            ));
        }
    }
    Ok(WeightSource::open(folder)?)
}

fn check_widths(
    path: &Path,
    sizes: &BridgeSizes,
    vision: Option<&VisionPart>,
    language: Option<&LanguagePart>,
) -> Result<(), TrainError> {
    if let Some(vision) = vision
        && vision.vit.width != sizes.encoder_hidden_size as i64
    {
        let detail = format!(
            "reads image features {} wide, the image encoder's are {}",
            sizes.encoder_hidden_size, vision.vit.width
        );
        return Err(unusable(path, detail));
    }
    if let (Some(language), Some(width)) = (language, sizes.language_width) {
        let table = language::embeddings(language.family);
        let found = language.tensors.planned.iter().find(|planned| planned.name == table);
        let found = found.and_then(|planned| planned.info.shape.last().copied());
        if found != Some(width) {
            let detail = format!("projects to {width}, the language model's embeddings are {found:?} wide");
            return Err(unusable(path, detail));
        }
    }
    Ok(())
}

fn bert_sizes(qformer: &config::QformerConfig, folder: &Path) -> Result<config::BertSizes, TrainError> {
    let path = folder.join("config.json");
    match qformer.bert {
        Some(given) if !path.exists() => Ok(given),
        _ => crate::sizes::bert_file(&path),
    }
}

fn image_token(folder: &Path) -> Option<i64> {
    let config: Value = read_json(&folder.join("config.json")).ok()?;
    config["image_token_index"].as_i64()
}
