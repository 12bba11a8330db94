//! The pictures of a folder, each with the caption file beside it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ToolError;
use super::annotations::Record;
use crate::sample::{MAX_CAPTION_BYTES, parse_json, parse_text};

const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// All pictures below `dir`, sorted by path, links not followed; captions out of the `.txt` or `.json` of the same
/// name, as in a shard.
pub fn pictures(dir: &Path) -> Result<Vec<Record>, ToolError> {
    let mut paths = Vec::new();
    walk(dir, &mut paths)?;
    paths.sort();
    if paths.is_empty() {
        let problem = "no .jpg, .jpeg, .png or .webp is below it".to_owned();
        return Err(ToolError::Nothing { path: dir.to_owned(), problem });
    }
    Ok(paths.iter().map(|path| record(dir, path)).collect())
}

fn walk(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<(), ToolError> {
    for entry in fs::read_dir(dir).map_err(ToolError::reading(dir))? {
        let entry = entry.map_err(ToolError::reading(dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(ToolError::reading(&path))?;
        let extension =
            path.extension().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
        if kind.is_dir() {
            walk(&path, paths)?;
        } else if kind.is_file() && EXTENSIONS.contains(&extension.as_str()) {
            paths.push(path);
        }
    }
    Ok(())
}

/// Captions that cannot be read are none: they are counted where captions are missed.
fn record(dir: &Path, path: &Path) -> Record {
    let small = |extension: &str| {
        let beside = path.with_extension(extension);
        let size = fs::metadata(&beside).ok()?.len();
        if size > MAX_CAPTION_BYTES { None } else { fs::read(beside).ok() }
    };
    let json = small("json");
    let mut captions = json.as_deref().and_then(|bytes| parse_json(bytes).ok()).unwrap_or_default().captions;
    if captions.is_empty() {
        captions = small("txt").and_then(|bytes| parse_text(&bytes).ok()).into_iter().collect();
    }
    let mut rest: Map<String, Value> =
        json.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    rest.remove("caption");
    let image = path.strip_prefix(dir).unwrap_or(path).to_string_lossy().into_owned();
    Record { image, captions, rest }
}
