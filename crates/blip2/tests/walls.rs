//! The table of rooms in ARCHITECTURE.md, held against the manifests, the lock file and the sources.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Crates that bind libtorch.
const LIBTORCH: [&str; 2] = ["tch", "torch-sys"];
/// The one room that may hold unchecked code.
const UNCHECKED: &str = "torch-bridge";

/// A row of the table.
#[derive(Debug)]
struct Room {
    may_use: BTreeSet<String>,
    libtorch: bool,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Words in backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Cells of the table's rows: name, responsibility, may use, libtorch.
fn rows(document: &str) -> Vec<[String; 4]> {
    let table =
        document.split("\n## ").find(|section| section.starts_with("Rooms")).expect("a section `## Rooms`");
    let cells = |line: &str| -> Option<[String; 4]> {
        let inner = line.strip_prefix("| `")?.strip_suffix(" |")?;
        let cells: Vec<String> = inner.split(" | ").map(str::to_owned).collect();
        cells.try_into().ok()
    };
    table.lines().filter_map(cells).collect()
}

/// The table, with its two phrases spelt out.
fn rooms() -> BTreeMap<String, Room> {
    let rows = rows(&fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap());
    let name = |row: &[String; 4]| row[0].trim_end_matches('`').to_owned();
    let libtorch = |row: &[String; 4]| match row[3].as_str() {
        "yes" => true,
        "no" => false,
        other => panic!("{other:?} in the column `libtorch`"),
    };
    let others = |row: &[String; 4], keep: &dyn Fn(&[String; 4]) -> bool| -> BTreeSet<String> {
        rows.iter().filter(|other| name(other) != name(row) && keep(other)).map(name).collect()
    };
    rows.iter()
        .map(|row| {
            let may_use = match row[2].as_str() {
                "–" => BTreeSet::new(),
                "all of them" => others(row, &|other| name(other) != "blip2"),
                "the crates without libtorch" => others(row, &|other| !libtorch(other)),
                listed => quoted(listed),
            };
            (name(row), Room { may_use, libtorch: libtorch(row) })
        })
        .collect()
}

fn manifests() -> BTreeMap<String, Table> {
    let folders =
        fs::read_dir(root().join("crates")).unwrap().flatten().filter(|entry| entry.path().is_dir());
    folders
        .map(|entry| {
            let text = fs::read_to_string(entry.path().join("Cargo.toml")).unwrap();
            (entry.file_name().into_string().unwrap(), toml::from_str(&text).unwrap())
        })
        .collect()
}

/// Tables of what the crate itself is made of.
const BUILT_IN: [&str; 2] = ["dependencies", "build-dependencies"];
/// The table of what only its tests use.
const TESTED_WITH: [&str; 1] = ["dev-dependencies"];

/// Names in the given tables of a manifest, those of targets too.
fn dependencies(manifest: &Table, tables: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, value) in manifest {
        match value {
            Value::Table(table) if tables.contains(&key.as_str()) => {
                found.extend(table.iter().map(|(name, value)| package_name(name, value)));
            }
            Value::Table(targets) if key == "target" => {
                for target in targets.values().filter_map(Value::as_table) {
                    found.extend(dependencies(target, tables));
                }
            }
            _ => {}
        }
    }
    found
}

/// A dependency may be renamed.
fn package_name(name: &str, value: &Value) -> String {
    value.get("package").and_then(Value::as_str).unwrap_or(name).to_owned()
}

/// Packages of the lock file with the packages each uses.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let lock: Table = toml::from_str(&fs::read_to_string(root().join("Cargo.lock")).unwrap()).unwrap();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let names = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        // "name", or "name version" where there are several.
        let names =
            names.filter_map(Value::as_str).filter_map(|text| text.split(' ').next()).map(str::to_owned);
        uses.entry(package["name"].as_str().unwrap().to_owned()).or_default().extend(names);
    }
    uses
}

/// Everything that `package` uses, however far away.
fn closure(package: &str, uses: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![package.to_owned()];
    while let Some(next) = open.pop() {
        for used in uses.get(&next).into_iter().flatten() {
            if found.insert(used.clone()) {
                open.push(used.clone());
            }
        }
    }
    found
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether a line of Rust opens unchecked code or switches the lint against it off. The words are put together here,
/// so that this file does not find itself.
fn is_unchecked(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let word = concat!("un", "safe");
    let opens = code.match_indices(word).any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].trim_start();
        let whole = !before.is_some_and(is_part) && !code[at + word.len()..].starts_with(is_part);
        whole && ["{", "(", "fn ", "impl", "extern", "trait"].iter().any(|start| after.starts_with(start))
    });
    opens || code.contains(concat!("un", "safe_code"))
}

#[test]
fn the_table_names_every_crate_and_no_other() {
    let rooms: BTreeSet<String> = rooms().into_keys().collect();
    let crates: BTreeSet<String> = manifests().into_keys().collect();
    assert_eq!(rooms, crates);
    for (folder, manifest) in manifests() {
        assert_eq!(manifest["package"]["name"].as_str(), Some(folder.as_str()), "folder name is crate name");
    }
}

#[test]
fn crates_use_only_what_the_table_allows() {
    let rooms = rooms();
    let names: BTreeSet<String> = rooms.keys().cloned().collect();
    // Tests may read a reference file with a room on the ground; nothing of that is in the crate.
    let ground: BTreeSet<String> = rooms
        .iter()
        .filter(|(_, room)| room.may_use.is_empty() && !room.libtorch)
        .map(|(name, _)| name.clone())
        .collect();
    for (name, manifest) in manifests() {
        let allowed = &rooms[&name].may_use;
        let in_tests: BTreeSet<String> = allowed.union(&ground).cloned().collect();
        for (tables, allowed) in [(&BUILT_IN[..], allowed), (&TESTED_WITH[..], &in_tests)] {
            let used: BTreeSet<String> =
                dependencies(&manifest, tables).intersection(&names).cloned().collect();
            let forbidden: Vec<_> = used.difference(allowed).collect();
            assert!(
                forbidden.is_empty(),
                "{name} must not use {forbidden:?}; see the table in ARCHITECTURE.md"
            );
        }
    }
}

#[test]
fn dependencies_are_found_in_every_table_and_under_every_name() {
    let manifest: Table = toml::from_str(
        "[dependencies]\na = '1'\nb = { package = 'train', path = '../train' }\n\
         [build-dependencies]\nc = '1'\n[dev-dependencies]\nd = '1'\n\
         [target.'cfg(unix)'.dependencies]\nmodel.workspace = true\n",
    )
    .unwrap();
    assert_eq!(dependencies(&manifest, &BUILT_IN), set(&["a", "c", "model", "train"]));
    assert_eq!(dependencies(&manifest, &TESTED_WITH), set(&["d"]));
}

#[test]
fn the_arrows_of_the_table_point_down() {
    let rooms = rooms();
    let uses: BTreeMap<String, BTreeSet<String>> =
        rooms.iter().map(|(name, room)| (name.clone(), room.may_use.clone())).collect();
    for (name, room) in &rooms {
        let below = closure(name, &uses);
        assert!(!below.contains(name), "{name} would use itself");
        for top in ["train", "blip2"] {
            assert!(!below.contains(top), "nobody uses {top}, but {name} would");
        }
        let heavy: Vec<_> = below.iter().filter(|used| rooms[*used].libtorch).collect();
        assert!(room.libtorch || heavy.is_empty(), "{name} is to be free of libtorch, but may use {heavy:?}");
    }
    assert_eq!(rooms["collectives"].may_use, set(&["launch", "torch-bridge"]), "the table was read");
}

#[test]
fn libtorch_stays_out_of_the_crates_that_are_free_of_it() {
    let uses = locked();
    for (name, room) in rooms() {
        let found: Vec<_> =
            LIBTORCH.into_iter().filter(|used| closure(&name, &uses).contains(*used)).collect();
        assert_eq!(!found.is_empty(), room.libtorch, "{name} uses {found:?}");
    }
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    for (name, manifest) in manifests() {
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool);
        assert_eq!(lints, Some(true), "{name} needs [lints] workspace = true");
        assert_eq!(manifest["lints"].as_table().unwrap().len(), 1, "{name} must not loosen lints");
    }
}

#[test]
fn unchecked_code_is_in_one_room() {
    let unchecked = |lines: &[String]| lines.iter().map(|line| is_unchecked(line)).collect::<Vec<_>>();
    let word = concat!("un", "safe");
    let samples = ["{ x }", " { x }", " fn f()", " impl Send", "(no_mangle)", "ty", "_x {", "; // fn "];
    let lines: Vec<String> = samples.iter().map(|rest| format!("    {word}{rest}")).collect();
    assert_eq!(unchecked(&lines), [true, true, true, true, true, false, false, false]);
    assert!(is_unchecked(&format!("#![allow({word}_code)]")) && !is_unchecked(&format!("// {word} {{")));

    let mut files = Vec::new();
    sources(&root().join("crates"), &mut files);
    assert!(files.len() > 20, "the sources were found");
    let home = root().join("crates").join(UNCHECKED);
    for path in files.iter().filter(|path| !path.starts_with(&home)) {
        let text = fs::read_to_string(path).unwrap();
        for (number, line) in text.lines().enumerate() {
            assert!(!is_unchecked(line), "{}:{}: {line}", path.display(), number + 1);
        }
    }
}
