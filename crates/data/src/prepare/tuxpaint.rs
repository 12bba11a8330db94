//! Tux Paint's stamps: photographs and drawings of single things, each with a sentence.

use std::path::Path;

use super::deb;
use super::error::PrepareError;
use super::family::{self, Split};
use super::tarball::Members;

/// Where the stamps lie in the package.
const FOLDER: &str = "./usr/share/tuxpaint/stamps/";
/// 158 letters, digits and hands that spell: a caption such as "The letter B." is text, not a thing.
const ALPHABETS: &str = "symbols/alphabets/";

/// One picture with its sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Below the stamps' folder, without `.png`.
    pub path: String,
    /// First line of its text, English.
    pub caption: String,
    /// By [`family::family`] of the caption: the same rule as for emoji, so no concept is on two sides.
    pub split: Split,
    /// PNG, as packaged.
    pub picture: Vec<u8>,
}

impl Stamp {
    /// Key of its sample: the path in one word. A full stop would end the key.
    pub fn key(&self) -> String {
        format!("tuxpaint-{}", self.path.replace(['/', '.'], "-"))
    }
}

/// The stamps of a `tuxpaint-stamps-default` package: every `X.png` beside an `X.txt` whose first line says something,
/// outside [`ALPHABETS`], in the order of their paths.
///
/// Version 2022.06.04-1 gives 627 with 577 captions: 522 to train on, 35 to watch, 70 (63 captions) of unseen
/// concepts. Drawings that exist as SVG only are left out.
///
/// # Errors
/// [`PrepareError::UnpackerMissing`] without `dpkg-deb`, [`PrepareError::Package`] for another or a damaged file.
pub fn read(package: &Path) -> Result<Vec<Stamp>, PrepareError> {
    let is_wanted =
        |name: &str| !name.starts_with(ALPHABETS) && (name.ends_with(".png") || name.ends_with(".txt"));
    let stamps = stamps(deb::read(package, FOLDER, is_wanted)?);
    if stamps.is_empty() {
        let problem = format!("it holds no stamps in {FOLDER}");
        return Err(PrepareError::Package { path: package.to_path_buf(), problem });
    }
    Ok(stamps)
}

/// Pairs pictures and texts.
fn stamps(mut members: Members) -> Vec<Stamp> {
    let paths: Vec<String> =
        members.keys().filter_map(|name| name.strip_suffix(".png")).map(str::to_owned).collect();
    let pair = |path: String| {
        let caption = caption(members.get(&format!("{path}.txt"))?)?;
        let picture = members.remove(&format!("{path}.png"))?;
        let split = Split::of(&family::family(&caption));
        Some(Stamp { path, caption, split, picture })
    };
    paths.into_iter().filter_map(pair).collect()
}

/// The first line; the others are translations.
fn caption(text: &[u8]) -> Option<String> {
    let line = text.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn members(files: &[(&str, &[u8])]) -> Members {
        files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect()
    }

    #[test]
    fn a_stamp_is_a_picture_beside_an_english_line() {
        let found = stamps(members(&[
            ("food/pear.png", b"pear"),
            ("food/pear.txt", b"A yellow pear. \nde.utf8=Eine Birne.\n"),
            ("food/apple_2.5.png", b"apple"),
            ("food/apple_2.5.txt", "A “Fuji” apple.".as_bytes()),
            ("food/alone.png", b"?"),
            ("food/text.txt", b"A drawing as SVG only."),
            ("food/empty.png", b"?"),
            ("food/empty.txt", b"\nde.utf8=Nichts."),
            ("food/latin1.png", b"?"),
            ("food/latin1.txt", b"caf\xe9"),
        ]));
        let expected = [
            ("tuxpaint-food-apple_2-5", "A “Fuji” apple.", &b"apple"[..]),
            ("tuxpaint-food-pear", "A yellow pear.", b"pear"),
        ];
        let told: Vec<(String, &str, &[u8])> =
            found.iter().map(|stamp| (stamp.key(), stamp.caption.as_str(), &*stamp.picture)).collect();
        assert_eq!(told, expected.map(|(key, caption, picture)| (key.to_owned(), caption, picture)));
        assert_eq!(found[1].split, Split::of("yellow pear"));
    }

    proptest! {
        #[test]
        fn any_files_give_whole_stamps(
            files in prop::collection::btree_map(
                "[ab/.]{0,4}\\.(png|txt)", prop::collection::vec(any::<u8>(), 0..20), 0..12,
            ),
        ) {
            let found = stamps(files.clone());
            for stamp in &found {
                prop_assert!(!stamp.caption.is_empty() && !stamp.caption.contains('\n'));
                prop_assert_eq!(&stamp.picture, &files[&format!("{}.png", stamp.path)]);
                prop_assert!(!stamp.key().contains(['.', '/']));
            }
            let paths: BTreeSet<&str> = found.iter().map(|stamp| stamp.path.as_str()).collect();
            prop_assert_eq!(paths.len(), found.len());
        }
    }
}
