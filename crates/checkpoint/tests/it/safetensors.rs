//! Safetensors headers that lie.

use checkpoint::TensorFile;
use proptest::prelude::*;

/// A file of this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![1; data]].concat()
}

fn open(bytes: &[u8]) -> Result<TensorFile, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    std::fs::write(&path, bytes).unwrap();
    TensorFile::open(&path).map_err(|error| error.to_string())
}

fn entry(name: &str, shape: &str, from: u64, to: u64) -> String {
    format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
}

#[test]
fn what_lies_is_refused_by_its_name() {
    let two = |one: String, other: String| format!("{{{one},{other}}}");
    let cases = [
        (file(&two(entry("a", "[2]", 0, 8), entry("b", "[2]", 4, 12)), 12), "tensor b"),
        (file(&two(entry("a", "[2]", 0, 8), entry("b", "[1]", 12, 16)), 16), "tensor b"),
        (file(&two(entry("a", "[1]", 0, 4), entry("a", "[1]", 4, 8)), 8), "named twice"),
        (file(&format!("{{{}}}", entry("a", "[4]", 0, 16)), 8), "behind the file"),
        (file(&format!("{{{}}}", entry("a", "[1]", 0, 4)), 8), "belong to no tensor"),
        (file(&format!("{{{}}}", entry("a", "[4294967296,4294967296]", 0, 4)), 4), "claims bytes"),
        (file(&format!("{{{}}}", entry("a", "[1]", 0, u64::MAX)), 4), "claims bytes"),
        (file(&format!("{{{}}}", entry("a", &"[".repeat(5000), 0, 4)), 4), "header is not"),
        (file("{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1), "type F8_E4M3"),
        (u64::MAX.to_le_bytes().to_vec(), "header of 18446744073709551615 bytes"),
        (50_000_000_u64.to_le_bytes().to_vec(), "header of 50000000 bytes"),
        (vec![1, 2, 3], "too few"),
    ];
    for (bytes, part) in cases {
        let error = open(&bytes).err().unwrap_or_default();
        assert!(error.contains(part), "{part}: {error:?}");
    }
}

proptest! {
    #[test]
    fn damaged_files_are_read_or_refused(
        which in 0usize..2, cut in 0usize..400, flips in prop::collection::vec((0usize..400, any::<u8>()), 0..4),
    ) {
        let bytes = crate::common::damaged(crate::common::files::safetensors().swap_remove(which), cut, flips);
        if let Ok(mut file) = open(&bytes) {
            let names: Vec<String> = file.header().tensors.keys().cloned().collect();
            for name in names {
                let tensor = file.read(&name).unwrap().unwrap();
                prop_assert!(tensor.bytes.len() <= bytes.len());
            }
        }
    }
}
