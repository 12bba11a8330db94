//! The emoji that exist in all three styles, with their texts and pictures.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::PrepareError;
use super::family::{self, Split};
use super::tarball;

/// emojibase's group of flags: a caption that names a country is no picture a small model can learn.
const FLAGS: u32 = 9;
/// The file in `emoji-datasource-google` that names the pictures.
const PICTURE_NAMES: &str = "emoji.json";
/// The file in `emojibase-data` that holds the texts.
const TEXTS: &str = "en/data.json";

/// A drawing style: one package of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Style {
    /// Noto Emoji.
    Google,
    /// Twemoji.
    Twitter,
    /// Fluent Emoji 3D: never trained on.
    Fluent,
}

impl Style {
    /// Stable name, the first part of a sample's key.
    pub fn name(self) -> &'static str {
        match self {
            Self::Google => "google",
            Self::Twitter => "twitter",
            Self::Fluent => "fluent",
        }
    }

    /// Extension of its pictures.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Google | Self::Twitter => "png",
            Self::Fluent => "webp",
        }
    }

    /// Folder of its pictures inside the package, with the final slash.
    fn folder(self) -> &'static str {
        match self {
            Self::Google => "img/google/64/",
            Self::Twitter => "img/twitter/64/",
            Self::Fluent => "assets/",
        }
    }
}

/// One concept to be learnt: a line of `items.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Code points in hex, joined by `-`.
    pub hexcode: String,
    /// Unicode's English short name.
    pub caption: String,
    /// See [`family::family`].
    pub family: String,
    /// emojibase's group.
    pub group: u32,
    /// See [`Split::of`].
    pub split: Split,
}

/// An item with everything that goes into the shards.
#[derive(Debug)]
pub struct Emoji {
    /// Concept, caption and split.
    pub item: Item,
    /// Synonyms and categories; never the caption itself.
    pub tags: Vec<String>,
    /// Picture bytes in each style, as packaged.
    pub pictures: BTreeMap<Style, Vec<u8>>,
}

impl Emoji {
    /// Key of its sample in `style`: style and code points without variation selectors.
    pub fn key(&self, style: Style) -> String {
        format!("{}-{}", style.name(), code_points(&self.item.hexcode))
    }
}

/// The verified files of the four packages.
pub struct Sources<'a> {
    /// `emoji-datasource-google`
    pub google: &'a Path,
    /// `emoji-datasource-twitter`
    pub twitter: &'a Path,
    /// `@lobehub/fluent-emoji-3d`
    pub fluent: &'a Path,
    /// `emojibase-data`
    pub emojibase: &'a Path,
}

/// All emoji that have a group other than flags and a picture in all three styles, in emojibase's order.
///
/// Keys of the packages are compared in lower case without `fe0f`; `emoji.json`'s `unified` and `non_qualified` both
/// count. (1599 with the pinned versions, see `tests/golden/quickstart/items.jsonl`.)
pub fn read(sources: &Sources<'_>) -> Result<Vec<Emoji>, PrepareError> {
    let mut google = tarball::read(sources.google, |name| {
        name == PICTURE_NAMES || name.starts_with(Style::Google.folder())
    })?;
    let mut twitter = tarball::read(sources.twitter, |name| name.starts_with(Style::Twitter.folder()))?;
    let fluent = tarball::read(sources.fluent, |name| name.starts_with(Style::Fluent.folder()))?;
    let texts = tarball::read(sources.emojibase, |name| name == TEXTS)?;
    let names = picture_names(parse(sources.google, &google, PICTURE_NAMES)?);
    let entries: Vec<Entry> = parse(sources.emojibase, &texts, TEXTS)?;
    let mut fluent: HashMap<String, Vec<u8>> = fluent
        .into_iter()
        .filter_map(|(name, bytes)| {
            let stem = name.strip_prefix(Style::Fluent.folder())?.strip_suffix(".webp")?;
            Some((code_points(stem), bytes))
        })
        .collect();
    let mut emoji = Vec::new();
    for entry in entries {
        let key = code_points(&entry.hexcode);
        let Some(group) = entry.group.filter(|group| *group != FLAGS) else { continue };
        let Some(image) = names.get(&key) else { continue };
        let Some(fluent) = fluent.remove(&key) else { continue };
        let mut pictures = BTreeMap::from([(Style::Fluent, fluent)]);
        for (style, path, members) in
            [(Style::Google, sources.google, &mut google), (Style::Twitter, sources.twitter, &mut twitter)]
        {
            let name = format!("{}{image}", style.folder());
            let bytes = members.remove(&name).ok_or_else(|| missing(path, &name))?;
            pictures.insert(style, bytes);
        }
        emoji.push(entry.into_emoji(group, pictures));
    }
    Ok(emoji)
}

/// One entry of `en/data.json`.
#[derive(Deserialize)]
struct Entry {
    label: String,
    hexcode: String,
    group: Option<u32>,
    #[serde(default)]
    tags: Vec<String>,
}

impl Entry {
    fn into_emoji(self, group: u32, pictures: BTreeMap<Style, Vec<u8>>) -> Emoji {
        let family = family::family(&self.label);
        let split = Split::of(&family);
        let tags = self.tags.into_iter().filter(|tag| !tag.eq_ignore_ascii_case(&self.label)).collect();
        Emoji {
            item: Item { hexcode: self.hexcode, caption: self.label, family, group, split },
            tags,
            pictures,
        }
    }
}

/// One entry of `emoji.json`.
#[derive(Deserialize)]
struct PictureName {
    unified: String,
    non_qualified: Option<String>,
    image: String,
    has_img_google: bool,
    has_img_twitter: bool,
}

/// File names of pictures that Google and Twitter both have, by code points.
fn picture_names(entries: Vec<PictureName>) -> HashMap<String, String> {
    let mut names = HashMap::new();
    for entry in entries.into_iter().filter(|entry| entry.has_img_google && entry.has_img_twitter) {
        for code in [Some(entry.unified), entry.non_qualified].into_iter().flatten() {
            names.entry(code_points(&code)).or_insert_with(|| entry.image.clone());
        }
    }
    names
}

/// Lower case, without variation selector 16.
fn code_points(hexcode: &str) -> String {
    let lower = hexcode.to_lowercase();
    lower.split('-').filter(|code| *code != "fe0f").collect::<Vec<_>>().join("-")
}

fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    members: &BTreeMap<String, Vec<u8>>,
    name: &str,
) -> Result<T, PrepareError> {
    let bytes = members.get(name).ok_or_else(|| missing(path, name))?;
    serde_json::from_slice(bytes).map_err(|error| PrepareError::Package {
        path: path.to_path_buf(),
        problem: format!("{name}: {error}"),
    })
}

fn missing(path: &Path, name: &str) -> PrepareError {
    PrepareError::Package { path: path.to_path_buf(), problem: format!("it holds no {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variation_selectors_make_no_difference() {
        assert_eq!(code_points("0023-FE0F-20E3"), "0023-20e3");
        assert_eq!(code_points("1F468-200D-2695-FE0F"), "1f468-200d-2695");
        assert_eq!(code_points("1F34E"), "1f34e");
    }

    #[test]
    fn pictures_count_only_when_both_styles_have_them() {
        let entries: Vec<PictureName> = serde_json::from_str(
            r#"[{"unified": "00A9-FE0F", "non_qualified": "00A9", "image": "00a9-fe0f.png", "name": "COPYRIGHT",
                 "has_img_google": true, "has_img_twitter": true},
                {"unified": "1F34E", "non_qualified": null, "image": "1f34e.png",
                 "has_img_google": true, "has_img_twitter": false}]"#,
        )
        .unwrap();
        let names = picture_names(entries);
        assert_eq!(names, HashMap::from([("00a9".to_owned(), "00a9-fe0f.png".to_owned())]));
    }

    #[test]
    fn a_tag_never_repeats_the_caption() {
        let entry: Entry = serde_json::from_str(
            r#"{"label": "Red apple", "hexcode": "1F34E", "group": 4, "tags": ["fruit", "red apple", "ripe"]}"#,
        )
        .unwrap();
        let emoji = entry.into_emoji(4, BTreeMap::new());
        assert_eq!(emoji.tags, ["fruit", "ripe"]);
        assert_eq!(
            (emoji.item.family.as_str(), emoji.key(Style::Twitter)),
            ("red apple", "twitter-1f34e".into())
        );
    }
}
