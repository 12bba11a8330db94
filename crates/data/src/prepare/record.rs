//! `prepared.json`: what was made of what, so that a second preparation has nothing to do.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::PrepareError;
use super::fetch::sha256;
use super::package;
use super::shards::{self, Written};

/// Name of the record inside the output folder.
pub const RECORD: &str = "prepared.json";
/// Raised when the same packages give other shards than before.
const FORMAT: u32 = 1;

/// What lies in an output folder.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// SHA-256 of each package, by file name.
    packages: BTreeMap<String, String>,
    /// The sets, in the order of [`shards::SETS`].
    sets: Vec<SetRecord>,
    /// SHA-256 of the licence file.
    licences: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SetRecord {
    name: String,
    samples: usize,
    shards: Vec<ShardRecord>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ShardRecord {
    /// Path below the output folder.
    path: String,
    sha256: String,
}

impl Record {
    /// Takes the digests of what was written below `out`.
    pub fn take(out: &Path, written: &[Written], licences: &Path) -> Result<Self, PrepareError> {
        let digest = |path: &Path| sha256(path).map_err(PrepareError::io("read", path));
        let mut sets = Vec::new();
        for set in written {
            let mut shards = Vec::new();
            for path in &set.shards {
                let below = path.strip_prefix(out).unwrap_or(path);
                shards.push(ShardRecord { path: below.display().to_string(), sha256: digest(path)? });
            }
            sets.push(SetRecord { name: set.name.to_owned(), samples: set.samples, shards });
        }
        Ok(Self { format: FORMAT, packages: packages(), sets, licences: digest(licences)? })
    }

    /// Writes the record: the last file of a preparation.
    pub fn write(&self, out: &Path) -> Result<(), PrepareError> {
        shards::replace(&out.join(RECORD), |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            writeln!(file)
        })
    }

    /// The sets in `out` when they are all there, byte for byte, out of the packages of this version of blip2.
    pub fn find(out: &Path, licences: &Path) -> Option<Vec<Written>> {
        let record: Self = serde_json::from_slice(&std::fs::read(out.join(RECORD)).ok()?).ok()?;
        let is_current = record.format == FORMAT
            && record.packages == packages()
            && record.sets.len() == shards::SETS.len()
            && sha256(licences).is_ok_and(|found| found == record.licences);
        if !is_current {
            return None;
        }
        shards::SETS.iter().zip(record.sets).map(|(set, found)| found.verified(set.name, out)).collect()
    }
}

impl SetRecord {
    fn verified(self, name: &'static str, out: &Path) -> Option<Written> {
        let mut shards = Vec::new();
        for shard in &self.shards {
            let path = out.join(&shard.path);
            if sha256(&path).ok()? != shard.sha256 {
                return None;
            }
            shards.push(path);
        }
        (self.name == name).then_some(Written { name, shards, samples: self.samples })
    }
}

fn packages() -> BTreeMap<String, String> {
    package::DATA.iter().map(|package| (package.file.to_owned(), package.sha256.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_holds_until_a_byte_changes() {
        let dir = tempfile::tempdir().unwrap();
        let licences = dir.path().join("LICENCES.md");
        std::fs::write(&licences, "terms").unwrap();
        let written: Vec<Written> = shards::SETS
            .iter()
            .map(|set| {
                let path = dir.path().join(format!("{}.tar", set.name));
                std::fs::write(&path, set.name).unwrap();
                Written { name: set.name, shards: vec![path], samples: 1 }
            })
            .collect();
        assert_eq!(Record::find(dir.path(), &licences), None);
        Record::take(dir.path(), &written, &licences).unwrap().write(dir.path()).unwrap();
        assert_eq!(Record::find(dir.path(), &licences), Some(written));
        std::fs::write(dir.path().join("style.tar"), "other").unwrap();
        assert_eq!(Record::find(dir.path(), &licences), None);
        std::fs::write(dir.path().join("style.tar"), "style").unwrap();
        assert!(Record::find(dir.path(), &licences).is_some());
        std::fs::write(&licences, "other terms").unwrap();
        assert_eq!(Record::find(dir.path(), &licences), None);
    }
}
