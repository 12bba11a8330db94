//! Members of a tar, and of an npm package: a gzipped tar, every path below `package/`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use super::error::PrepareError;

/// No file of these packages that is used comes near this size.
const MAX_MEMBER_BYTES: u64 = 32 << 20;

/// Files by their path below a folder.
pub type Members = BTreeMap<String, Vec<u8>>;

/// The files of the npm package at `path` that `wanted` accepts, by their path below `package/`.
pub fn read(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Members, PrepareError> {
    let file = File::open(path).map_err(PrepareError::io("open", path))?;
    members(&mut GzDecoder::new(file), "package/", path, wanted)
}

/// The files of a tar below `folder` that `wanted` accepts, by their path below it; `path` is for errors.
pub fn members(
    tar: &mut dyn Read,
    folder: &str,
    path: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<Members, PrepareError> {
    let damaged = |error: std::io::Error| PrepareError::Package {
        path: path.to_path_buf(),
        problem: format!("it cannot be unpacked: {error}"),
    };
    let mut members = Members::new();
    for entry in tar::Archive::new(tar).entries().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let full = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(name) = full.strip_prefix(folder).filter(|name| wanted(name)) else { continue };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let mut bytes = Vec::new();
        entry.take(MAX_MEMBER_BYTES + 1).read_to_end(&mut bytes).map_err(damaged)?;
        if bytes.len() as u64 > MAX_MEMBER_BYTES {
            let problem = format!("{name} exceeds {MAX_MEMBER_BYTES} bytes");
            return Err(PrepareError::Package { path: path.to_path_buf(), problem });
        }
        members.insert(name.to_owned(), bytes);
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_wanted_files_below_package_come_out() {
        let mut builder = tar::Builder::new(Vec::new());
        for name in ["package/en/data.json", "package/de/data.json", "other/en/data.json"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, &b"[]"[..]).unwrap();
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&builder.into_inner().unwrap()).unwrap();
        let bytes = gzip.finish().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tgz");
        std::fs::write(&path, &bytes).unwrap();
        let members = read(&path, |name| name.starts_with("en/")).unwrap();
        assert_eq!(members, BTreeMap::from([("en/data.json".to_owned(), b"[]".to_vec())]));
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(read(&path, |_| true), Err(PrepareError::Package { .. })));
    }
}
