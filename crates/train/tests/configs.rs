//! Every file in `configs/` is a run that parses, and `docs/configs.md` names the keys that there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use train::Config;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn configs() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("configs")).expect("configs/");
    entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect()
}

/// Keys in the first column of the tables of `docs/configs.md`.
fn documented() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("docs/configs.md")).expect("docs/configs.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.map(str::to_owned).collect()
}

/// Dotted paths of all values below `value`; the elements of an array of tables share the name `key[]`.
fn leaves(value: &toml::Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, inner) in table {
                let separator = if path.is_empty() { "" } else { "." };
                leaves(inner, &format!("{path}{separator}{key}"), found);
            }
        }
        toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
            for item in items {
                leaves(item, &format!("{path}[]"), found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// The keys of a config once its defaults are written out.
fn resolved(path: &Path) -> BTreeSet<String> {
    let text = Config::read(path, &[]).and_then(|config| config.to_toml()).expect("a config");
    let mut found = BTreeSet::new();
    leaves(&toml::Value::Table(toml::from_str(&text).expect("TOML")), "", &mut found);
    found
}

#[test]
fn each_config_parses_and_reads_back_as_it_was_understood() {
    let configs = configs();
    assert!(configs.len() >= 2, "{configs:?}");
    for path in configs {
        let config = Config::read(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        let text = config.to_toml().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("config.toml");
        std::fs::write(&copy, &text).unwrap();
        assert_eq!(Config::read(&copy, &[]).unwrap().to_toml().unwrap(), text, "{}", path.display());
    }
}

#[test]
fn each_config_says_its_command_and_keeps_its_own_run_folder() {
    let mut folders = BTreeSet::new();
    for path in configs() {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(text.contains(&format!("blip2 launch configs/{name}")), "{name}: its head names no command");
        let config = Config::read(&path, &[]).unwrap();
        assert!(
            folders.insert(config.run.dir.clone()),
            "{name}: {} is another config's",
            config.run.dir.display()
        );
    }
}

#[test]
fn each_key_is_documented() {
    let documented = documented();
    // A row may describe a whole table, or the tables of an array that is empty here.
    let is_there = |key: &String| {
        documented.iter().any(|row| {
            row == key || key.starts_with(&format!("{row}.")) || row.starts_with(&format!("{key}[]."))
        })
    };
    for path in configs() {
        let missing: Vec<String> = resolved(&path).into_iter().filter(|key| !is_there(key)).collect();
        assert!(missing.is_empty(), "docs/configs.md lacks {missing:?}");
    }
}

#[test]
fn each_documented_key_exists() {
    let path = root().join("configs/quickstart.toml");
    for key in documented() {
        let assignment = match key.split_once("[].") {
            Some((array, key)) => format!("{array}=[{{{key}=\"?\"}}]"),
            None => format!("{key}=\"?\""),
        };
        // A value of the wrong type is refused too, but then the key was known.
        if let Err(error) = Config::read(&path, &[assignment]) {
            assert!(!error.to_string().contains("unknown field"), "docs/configs.md names {key}: {error}");
        }
    }
}
