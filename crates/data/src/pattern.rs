//! From what the config says to a list of shards: brace patterns, wildcards, folders, list files, plain paths, URLs.

use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::index_file::SUFFIX;
use crate::location::{Location, redacted};

/// More shards than this in one pattern is a slip of the keyboard.
pub const MAX_SHARDS: usize = 1_000_000;

/// A closing brace without an opening one.
const UNOPENED: &str = "a } closes nothing";

/// All shards that `patterns` name, in the order given.
///
/// `train-{000000..000002}.tar` counts with leading zeros, `{a,b}` lists; groups may stand side by side. `*`, `?` and
/// `[0-9]` stand for what is there, sorted by name (local files only). A folder gives its `*.tar` sorted by name; a `.txt` file gives the pattern of each of its lines (`#` starts a comment).
/// What may be a URL says [`Location::parse`].
pub fn shards(patterns: &[String]) -> Result<Vec<Location>, DataError> {
    let mut found = Vec::new();
    for pattern in patterns {
        if Path::new(pattern).extension().is_some_and(|extension| extension == "txt") {
            for line in list(pattern)? {
                add(&line, &mut found)?;
            }
        } else {
            add(pattern, &mut found)?;
        }
    }
    Ok(found)
}

/// Adds what one pattern names; a list inside a list is not followed.
fn add(pattern: &str, found: &mut Vec<Location>) -> Result<(), DataError> {
    if Path::new(pattern).is_dir() {
        found.extend(folder(pattern)?.into_iter().map(Location::Local));
        return Ok(());
    }
    let problem = |problem: String| DataError::Pattern { pattern: redacted(pattern), problem };
    for name in expand(pattern).map_err(problem)? {
        match Location::parse(&name).map_err(problem)? {
            Location::Local(path) if name.contains(['*', '?', '[']) && !path.exists() => {
                found.extend(matching(&name).map_err(problem)?.into_iter().map(Location::Local));
            }
            location => found.push(location),
        }
    }
    Ok(())
}

/// The files that a wildcard stands for; the index files beside them are no shards.
fn matching(wildcard: &str) -> Result<Vec<PathBuf>, String> {
    let paths = glob::glob(wildcard).map_err(|error| error.to_string())?;
    let mut paths: Vec<PathBuf> = paths.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    paths.retain(|path| !path.as_os_str().as_encoded_bytes().ends_with(SUFFIX.as_bytes()));
    match paths.is_empty() {
        true => Err("no file is called so".to_owned()),
        false => Ok(paths),
    }
}

/// The lines of a list file that hold a pattern; relative paths are taken from where the program runs.
fn list(path: &str) -> Result<Vec<String>, DataError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| DataError::Unreadable { shard: path.to_owned(), source })?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if lines.is_empty() {
        let problem = "the list names no shard".to_owned();
        return Err(DataError::Pattern { pattern: path.to_owned(), problem });
    }
    Ok(lines)
}

fn folder(pattern: &str) -> Result<Vec<PathBuf>, DataError> {
    let unreadable = |source| DataError::Unreadable { shard: pattern.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(pattern).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            found.push(path);
        }
    }
    if found.is_empty() {
        let problem = "the folder holds no .tar file".to_owned();
        return Err(DataError::Pattern { pattern: pattern.to_owned(), problem });
    }
    found.sort();
    Ok(found)
}

/// Expands the brace groups of `pattern`, the first group varying slowest. The error says what is wrong.
pub fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let mut names = vec![String::new()];
    let mut rest = pattern;
    while let Some(open) = rest.find('{') {
        let (literal, group) = rest.split_at(open);
        if literal.contains('}') {
            return Err(UNOPENED.into());
        }
        let close = group.find('}').ok_or("a { is not closed")?;
        let choices = choices(&group[1..close])?;
        if names.len().saturating_mul(choices.len()) > MAX_SHARDS {
            return Err(format!("it names more than {MAX_SHARDS} shards"));
        }
        names = names
            .iter()
            .flat_map(|name| choices.iter().map(move |choice| format!("{name}{literal}{choice}")))
            .collect();
        rest = &group[close + 1..];
    }
    if rest.contains('}') {
        return Err(UNOPENED.into());
    }
    Ok(names.into_iter().map(|name| name + rest).collect())
}

/// What one brace group stands for: `a..b` counts up, `x,y,z` lists.
fn choices(group: &str) -> Result<Vec<String>, String> {
    if group.contains('{') {
        return Err("a { inside braces".into());
    }
    let Some((first, last)) = group.split_once("..") else {
        return Ok(group.split(',').map(str::to_owned).collect());
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse::<u64>().ok() } else { None }
    };
    let (Some(from), Some(to)) = (number(first), number(last)) else {
        return Err(format!("{{{group}}} is not a range of numbers"));
    };
    if from > to {
        return Err(format!("{{{group}}} counts down"));
    }
    if to - from >= MAX_SHARDS as u64 {
        return Err(format!("it names more than {MAX_SHARDS} shards"));
    }
    // As in bash: a leading zero at either end pads all numbers to the longer of the two.
    let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    Ok((from..=to).map(|value| format!("{value:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_lists_and_products() {
        assert_eq!(expand("t-{008..010}.tar").unwrap(), ["t-008.tar", "t-009.tar", "t-010.tar"]);
        assert_eq!(expand("{8..10}").unwrap(), ["8", "9", "10"]);
        assert_eq!(expand("{a,b}-{0..1}").unwrap(), ["a-0", "a-1", "b-0", "b-1"]);
        assert_eq!(expand("plain.tar").unwrap(), ["plain.tar"]);
    }

    #[test]
    fn wildcards_stand_for_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b-1.tar", "a-2.tar", "a-1.tar", "a-1.tar.index", "a-3.txt", "odd[1].tar"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let named = |pattern: &str| -> Vec<String> {
            let found = shards(&[dir.path().join(pattern).display().to_string()]).unwrap();
            let name = |location: &Location| location.to_string().rsplit('/').next().unwrap().to_owned();
            found.iter().map(name).collect()
        };
        assert_eq!(named("*.tar"), ["a-1.tar", "a-2.tar", "b-1.tar", "odd[1].tar"]);
        assert_eq!(named("{b,a}-[12].tar"), ["b-1.tar", "a-1.tar", "a-2.tar"]);
        assert_eq!(named("a-1*"), ["a-1.tar"], "an index file is no shard");
        assert_eq!(named("odd[1].tar"), ["odd[1].tar"], "a file of that very name");
        let none = shards(&[dir.path().join("c-?.tar").display().to_string()]).unwrap_err();
        assert!(none.to_string().contains("no file is called so"), "{none}");
    }

    #[test]
    fn slips_are_named() {
        for (pattern, part) in [
            ("a{1..2", "not closed"),
            ("a}b", "closes nothing"),
            ("}{1..2}", "closes nothing"),
            ("{2..1}", "counts down"),
            ("{a..b}", "not a range"),
            ("{0..99999999}", "more than"),
            ("{0..9999}{0..9999}", "more than"),
            ("{{1..2}}", "inside"),
        ] {
            let error = expand(pattern).unwrap_err();
            assert!(error.contains(part), "{pattern}: {error}");
        }
    }

    #[test]
    fn a_list_file_names_patterns() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("shards.txt");
        std::fs::write(&list, "# two sets\na-{0..1}.tar\n\nhttp://h/b.tar # mirror\n").unwrap();
        let found = shards(&[list.display().to_string()]).unwrap();
        let names: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a-0.tar", "a-1.tar", "http://h/b.tar"]);
    }

    proptest! {
        #[test]
        fn any_text_expands_or_is_refused(pattern in "[{}.,a0-9]{0,24}") {
            if let Ok(names) = expand(&pattern) {
                prop_assert!(!names.is_empty() && names.len() <= MAX_SHARDS);
                let whole = names.iter().all(|name| !name.contains(['{', '}']));
                prop_assert!(whole);
            }
        }

        #[test]
        fn a_range_counts_each_number_once(from in 0u64..2000, count in 1u64..50, width in 4usize..8) {
            let pattern = format!("s-{{{from:0width$}..{:0width$}}}.tar", from + count - 1);
            let expected: Vec<String> = (from..from + count).map(|at| format!("s-{at:0width$}.tar")).collect();
            prop_assert_eq!(expand(&pattern).unwrap(), expected);
        }
    }
}
