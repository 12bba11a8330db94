//! A `.pth` as LAVIS's runner writes it: `{"model": state dict}`.

use std::path::Path;

use checkpoint::Dtype;

use super::bridge::{StageKind, is_extra};
use super::bundle::{Bundle, LanguagePart, Part, VisionPart};
use super::composition::Composition;
use super::tensors::{Info, Infos, Planned, Problems, Recipe, Renamed};
use super::{language, unusable, vision};
use crate::error::TrainError;
use crate::names::{BUFFER, LanguageFamily, lavis_copies, to_lavis_beside};

/// Writes `dest`; with `whole`, the frozen models too.
///
/// # Errors
/// [`TrainError::Weights`] when LAVIS has no name for something.
pub(super) fn write(bundle: Bundle, dest: &Path, whole: bool, say: &dyn Fn(&str)) -> Result<(), TrainError> {
    let family = bundle.language.as_ref().map(|language| language.family);
    let Some(family) = family.or((bundle.stage == StageKind::One).then_some(LanguageFamily::Opt)) else {
        let detail =
            "LAVIS names the language model in every parameter of stage 2; name its folder with --language";
        return Err(unusable(&bundle.path, detail));
    };
    if bundle.stage == StageKind::One && !bundle.bridge.planned.iter().any(|planned| is_extra(&planned.name))
    {
        say(
            "not here, and so not in the file: temp and Qformer.cls.predictions.*; a stage 1 that starts from it has fresh ones",
        );
    }
    let mut problems = Problems::default();
    let mut composition = Composition::default();
    let Part { source, planned } = bundle.bridge;
    let mut renamed = Vec::new();
    for planned in planned {
        match to_lavis_beside(&planned.name, family) {
            Some(name) => renamed.push(Planned { name, ..planned }),
            None => problems.unexpected(planned.name),
        }
    }
    let positions = usize::try_from(bundle.bert.max_position_embeddings).unwrap_or(0);
    let info = Info { dtype: Dtype::I64, shape: vec![1, positions] };
    renamed.push(Planned { name: BUFFER.to_owned(), info, recipe: Recipe::Positions(positions) });
    problems.finish(&bundle.path)?;
    composition.add(source, renamed, "");
    match (bundle.vision, whole) {
        (Some(encoder), true) => add_vision(&mut composition, encoder),
        (None, true) => {
            return Err(unusable(
                &bundle.path,
                "LAVIS has EVA's and CLIP's image encoders; this one is neither",
            ));
        }
        (_, false) => {
            say("the frozen image encoder stays out, as in LAVIS's own checkpoints; --whole takes it along")
        }
    }
    let table = bundle.language.and_then(|language| add_language(&mut composition, language, whole));
    let names = with_copies(&composition, table.as_deref(), whole);
    checkpoint::new_file(dest, |path| composition.write_pth(path, &names, say))?;
    say(&format!("wrote {}: {} names", dest.display(), names.len()));
    Ok(())
}

fn add_vision(composition: &mut Composition, encoder: VisionPart) {
    let VisionPart { family, tensors: Part { source, planned }, .. } = encoder;
    let ours: Infos = planned.iter().map(|planned| (planned.name.clone(), planned.info.clone())).collect();
    let renamed = Renamed::new(source, planned);
    composition.add(Box::new(renamed), vision::into_lavis(family, &ours), "visual_encoder.");
}

/// Adds the language model, or only the table that LAVIS keeps copies of; returns that table's name.
fn add_language(composition: &mut Composition, language: LanguagePart, whole: bool) -> Option<String> {
    let table = language::embeddings(language.family);
    let prefix = language.family.prefix();
    let has_copies = match language.family {
        LanguageFamily::Opt => language.config["tie_word_embeddings"] == true,
        LanguageFamily::T5 => true,
        LanguageFamily::Llama => false,
    };
    let Part { source, mut planned } = language.tensors;
    if !whole {
        planned.retain(|planned| has_copies && planned.name == table);
    }
    composition.add(source, planned, prefix);
    Some(format!("{prefix}{table}"))
}

/// Every name with the place of its elements: tied copies share those of their originals. Of a frozen table that stays
/// out, the copies alone are named, as LAVIS does.
fn with_copies(composition: &Composition, table: Option<&str>, whole: bool) -> Vec<(String, usize)> {
    let mut names = composition.names();
    let copies: Vec<(String, usize)> = lavis_copies(|name| composition.place(name).is_some())
        .filter(|(copy, _)| composition.place(copy).is_none())
        .filter_map(|(copy, of)| Some((copy.to_owned(), composition.place(of)?)))
        .collect();
    names.extend(copies);
    if let (Some(table), false) = (table, whole) {
        names.retain(|(name, _)| name != table);
    }
    names.sort();
    names
}
