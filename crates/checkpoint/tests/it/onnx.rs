//! ONNX files written here field by field, whole and damaged.

use std::path::PathBuf;

use crate::common::onnx_file::{bytes, floats, int, model, node, number, tensor, whole};
use checkpoint::foreign::onnx::{Node, OnnxFile};
use checkpoint::{Dtype, HostTensor};
use proptest::prelude::*;

fn open(bytes: &[u8]) -> Result<OnnxFile, String> {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("a.onnx");
    std::fs::write(&path, bytes).unwrap();
    OnnxFile::open(&path).map_err(|error| error.to_string())
}

#[test]
fn tensors_and_nodes_come_out() {
    let mut file = open(&whole()).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["half", "onnx::MatMul_1"]);
    assert_eq!(file.info("half"), Some((Dtype::F16, &[][..])));
    let expected = HostTensor::from_f32(&[2, 3], &[0., 1., 2., 3., 4., 5.]).unwrap();
    assert_eq!(file.read("onnx::MatMul_1").unwrap(), Some(expected));
    assert_eq!(file.read("x").unwrap(), None);
    let inputs = vec!["x".to_owned(), "onnx::MatMul_1".to_owned()];
    let node = Node { op_type: "MatMul".to_owned(), inputs };
    assert_eq!(file.nodes().collect::<Vec<_>>(), [("/layer/MatMul", &node)]);
}

#[test]
fn packed_sizes_are_the_same_sizes() {
    let packed = bytes(1, &[number(2), number(3)].concat());
    let parts = [packed, int(2, 1), bytes(8, b"t"), bytes(9, &floats())].concat();
    let file = open(&model(&[bytes(5, &parts)])).unwrap();
    assert_eq!(file.info("t"), Some((Dtype::F32, &[2, 3][..])));
}

#[test]
fn what_is_not_read_is_refused_by_its_name() {
    let outside = [bytes(8, b"far"), int(2, 1), int(1, 6), int(14, 1), bytes(13, b"")].concat();
    let typed = [bytes(8, b"typed"), int(2, 1), int(1, 1), bytes(4, &1f32.to_le_bytes())].concat();
    let packed_too_far = [bytes(8, b"t"), int(2, 1), bytes(1, &[0x80])].concat();
    let far = [bytes(5, &packed_too_far), bytes(2, b"main")];
    let cases: [(Vec<u8>, &str); 12] = [
        (Vec::new(), "no graph"),
        (int(1, 7), "no graph"),
        ([model(&[]), model(&[])].concat(), "more than one graph"),
        (model(&[bytes(5, &outside)]), "far keeps values in field"),
        (model(&[bytes(5, &typed)]), "typed keeps values in field 4"),
        (model(&far), "past the end"),
        (model(&[tensor("t", 8, &[1], b"a")]), "of ONNX type 8"),
        (model(&[tensor("t", 1, &[7], &floats())]), "24 bytes for sizes [7]"),
        (model(&[tensor("t", 1, &[1 << 40, 1 << 40], &floats())]), "24 bytes for sizes"),
        (model(&[tensor("t", 1, &[6], &floats()), tensor("t", 1, &[6], &floats())]), "two tensors"),
        (model(&[node("n", "Add", &[]), node("n", "Add", &[])]), "two nodes"),
        (model(&[bytes(15, b"")]), "sparse"),
    ];
    for (file, word) in cases {
        let error = open(&file).unwrap_err();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_length_that_lies_is_refused_before_anything_is_allocated() {
    let graph = |len: u64| [number(7 << 3 | 2), number(len)].concat();
    for file in [graph(u64::MAX), graph(1 << 40), vec![0x3a, 0xff], vec![0xff; 11], vec![0x3b], vec![0x02]] {
        assert!(open(&file).is_err(), "{file:?}");
    }
    // The tensor's bytes may not reach out of the tensor, though the file goes on.
    let cut = [number(5 << 3 | 2), number(4), number(9 << 3 | 2), number(20), vec![0; 20]].concat();
    assert!(open(&model(&[cut])).unwrap_err().contains("past the end of its message"));
}

fn assert_fits(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(mut file) = open(bytes) {
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        for name in names {
            // The file is gone from its folder, but still open.
            let tensor = file.read(&name).unwrap().unwrap();
            prop_assert!(tensor.bytes.len() <= bytes.len());
            prop_assert_eq!(tensor.shape.iter().product::<usize>() * tensor.dtype.size(), tensor.bytes.len());
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        assert_fits(&bytes)?;
        // the same as a graph, as a node and as a tensor
        for field in [1, 5] {
            assert_fits(&model(&[self::bytes(field, &bytes)]))?;
        }
        assert_fits(&model(&[bytes]))?;
    }

    #[test]
    fn damaged_files_are_read_or_refused(
        cut in 0usize..300, flips in prop::collection::vec((0usize..300, any::<u8>()), 0..4),
    ) {
        let bytes = crate::common::damaged(whole(), cut, flips);
        assert_fits(&bytes)?;
    }
}
