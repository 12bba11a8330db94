//! `prepared.json` and its like: what was made of what, so that a second preparation has nothing to do.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::PrepareError;
use super::fetch::sha256;
use super::package::{self, Package};
use super::shards::{self, Written};

/// Raised when the same packages give other shards than before.
const FORMAT: u32 = 1;

/// What is made at once, of its own packages.
pub struct Part {
    /// Name of its record inside the output folder.
    pub record: &'static str,
    /// What it is made of.
    pub packages: &'static [Package],
    /// Names of its sets.
    pub sets: Vec<&'static str>,
}

impl Part {
    /// The emoji, which are always made.
    pub fn emoji() -> Self {
        let sets = shards::SETS.iter().map(|set| set.name).collect();
        Self { record: "prepared.json", packages: &package::DATA, sets }
    }

    /// Tux Paint's stamps.
    pub fn tuxpaint() -> Self {
        let sets = shards::TUXPAINT_SETS.iter().map(|(name, _)| *name).collect();
        Self { record: "prepared_tuxpaint.json", packages: &[package::TUXPAINT], sets }
    }

    /// SHA-256 of each package, by file name.
    fn digests(&self) -> BTreeMap<String, String> {
        self.packages.iter().map(|package| (package.file.to_owned(), package.sha256.to_owned())).collect()
    }
}

/// What lies of a part in an output folder.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// SHA-256 of each package, by file name.
    packages: BTreeMap<String, String>,
    /// The sets, in the order of [`Part::sets`].
    sets: Vec<SetRecord>,
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
    pub fn take(part: &Part, out: &Path, written: &[Written]) -> Result<Self, PrepareError> {
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
        Ok(Self { format: FORMAT, packages: part.digests(), sets })
    }

    /// Writes the record, after everything that it tells of.
    pub fn write(&self, part: &Part, out: &Path) -> Result<(), PrepareError> {
        shards::replace(&out.join(part.record), |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            writeln!(file)
        })
    }

    /// The part's sets in `out` when they are all there, byte for byte, out of the packages of this version of blip2.
    pub fn find(part: &Part, out: &Path) -> Option<Vec<Written>> {
        let record: Self = serde_json::from_slice(&std::fs::read(out.join(part.record)).ok()?).ok()?;
        let is_current = record.format == FORMAT
            && record.packages == part.digests()
            && record.sets.len() == part.sets.len();
        if !is_current {
            return None;
        }
        part.sets.iter().zip(record.sets).map(|(name, found)| found.verified(name, out)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_holds_until_a_byte_changes() {
        let dir = tempfile::tempdir().unwrap();
        let part = Part::emoji();
        let written: Vec<Written> = part
            .sets
            .iter()
            .map(|name| {
                let path = dir.path().join(format!("{name}.tar"));
                std::fs::write(&path, name).unwrap();
                Written { name, shards: vec![path], samples: 1 }
            })
            .collect();
        assert_eq!(Record::find(&part, dir.path()), None);
        Record::take(&part, dir.path(), &written).unwrap().write(&part, dir.path()).unwrap();
        assert_eq!(Record::find(&part, dir.path()), Some(written));
        assert_eq!(Record::find(&Part::tuxpaint(), dir.path()), None);
        std::fs::write(dir.path().join("style.tar"), "other").unwrap();
        assert_eq!(Record::find(&part, dir.path()), None);
        std::fs::write(dir.path().join("style.tar"), "style").unwrap();
        assert!(Record::find(&part, dir.path()).is_some());
    }
}
