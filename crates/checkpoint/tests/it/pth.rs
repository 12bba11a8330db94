//! `torch.save` files written here opcode by opcode, whole and damaged.

use std::path::PathBuf;

use crate::common::pth_file::{legacy, name, pickle, tensor, text, tuple, zipped};
use checkpoint::foreign::pth::PthFile;
use checkpoint::{Dtype, HostTensor};
use proptest::prelude::*;

fn open(bytes: &[u8]) -> Result<PthFile, String> {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("a.pth");
    std::fs::write(&path, bytes).unwrap();
    PthFile::open(&path).map_err(|error| error.to_string())
}

fn refusal(bytes: &[u8]) -> String {
    open(bytes).map(|file| file.names().map(str::to_owned).collect::<Vec<_>>()).unwrap_err()
}

#[test]
fn both_forms_give_the_same_views() {
    for (is_legacy, write) in [(false, zipped as fn(&[u8]) -> Vec<u8>), (true, legacy)] {
        let tensors = [
            ("plain", tensor("0", 0, &[2, 3], &[3, 1], is_legacy)),
            ("turned", tensor("0", 0, &[3, 2], &[1, 3], is_legacy)),
            ("tail", tensor("0", 4, &[2], &[1], is_legacy)),
        ];
        let mut file = open(&write(&pickle(&tensors))).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["model.plain", "model.tail", "model.turned"]);
        assert_eq!(file.info("model.turned"), Some((Dtype::F32, &[3, 2][..])));
        let mut read = |name: &str| file.read(name).unwrap().unwrap();
        assert_eq!(read("model.plain"), HostTensor::from_f32(&[2, 3], &[0., 1., 2., 3., 4., 5.]).unwrap());
        // A transposed view: its elements in row-major order are not those of the storage.
        assert_eq!(read("model.turned"), HostTensor::from_f32(&[3, 2], &[0., 3., 1., 4., 2., 5.]).unwrap());
        assert_eq!(read("model.tail"), HostTensor::from_f32(&[2], &[4., 5.]).unwrap());
        assert_eq!(file.read("epoch").unwrap(), None);
    }
}

#[test]
fn a_name_outside_the_list_is_refused_by_its_name() {
    let call = [name("os", "system"), tuple(&[text("true")]), b"R".to_vec()].concat();
    let error = refusal(&zipped(&pickle(&[("x", call)])));
    assert!(error.contains("os.system"), "{error}");
    let error = refusal(&zipped(b"\x80\x02ibuiltins\neval\n."));
    assert!(error.contains("opcode"), "{error}");
}

#[test]
fn a_view_may_not_reach_outside_its_storage() {
    for (offset, shape, stride) in
        [(1, &[2, 3][..], &[3, 1][..]), (0, &[2], &[6]), (7, &[0], &[1]), (0, &[i32::MAX, i32::MAX], &[0, 0])]
    {
        let error = refusal(&zipped(&pickle(&[("x", tensor("0", offset, shape, stride, false))])));
        assert!(error.contains("outside its storage"), "{offset} {shape:?} {stride:?}: {error}");
    }
    let error = refusal(&zipped(&pickle(&[("x", tensor("0", -1, &[1], &[1], false))])));
    assert!(error.contains("negative"), "{error}");
    let error = refusal(&zipped(&pickle(&[("x", tensor("1", 0, &[1], &[1], false))])));
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn a_million_nested_containers_cost_no_stack() {
    let depth = 1_000_000;
    let deep = [&b"\x80\x02"[..], &vec![b']'; depth], &vec![b'a'; depth - 1], b"."].concat();
    assert!(refusal(&zipped(&deep)).contains("nested too deeply"));
    // tuples of one that hold each other
    let deep = [&b"\x80\x02)"[..], &vec![0x85; depth], b"."].concat();
    assert!(refusal(&zipped(&deep)).contains("nested too deeply"));
}

#[test]
fn one_name_for_two_tensors_and_one_key_for_two_storages_are_refused() {
    let plain = || tensor("0", 0, &[2, 3], &[3, 1], false);
    let error = refusal(&zipped(&pickle(&[("x", plain()), ("x", plain())])));
    assert!(error.contains("two tensors are named model.x"), "{error}");
    let mut twice = legacy(&pickle(&[("x", tensor("0", 0, &[6], &[1], true))]));
    let keys = [&b"\x80\x02]"[..], &text("0"), b"a."].concat();
    let at = twice.windows(keys.len()).position(|window| window == keys).unwrap();
    let two = [&b"\x80\x02]("[..], &text("0"), &text("0"), b"e."].concat();
    twice.splice(at..at + keys.len(), two);
    twice.extend([&6u64.to_le_bytes()[..], &[0; 24]].concat());
    assert!(refusal(&twice).contains("listed twice"));
}

#[test]
fn what_is_no_torch_file_is_refused() {
    for bytes in [&b""[..], b"PK", b"GGUF", &legacy(b"")] {
        assert!(open(bytes).is_err());
    }
    // A dictionary that holds itself: the walk to the tensors ends.
    let error = refusal(&zipped(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."));
    assert!(error.contains("refer to themselves"), "{error}");
}

proptest! {
    #[test]
    fn damaged_files_are_read_or_refused(
        is_legacy: bool, cut in 0usize..1000, flips in prop::collection::vec((0usize..1000, any::<u8>()), 0..4),
    ) {
        let whole = pickle(&[("x", tensor("0", 0, &[3, 2], &[1, 3], is_legacy))]);
        let whole = if is_legacy { legacy(&whole) } else { zipped(&whole) };
        let bytes = crate::common::damaged(whole, cut, flips);
        if let Ok(file) = open(&bytes) {
            for name in file.names() {
                let (dtype, shape) = file.info(name).unwrap();
                let size = shape.iter().product::<usize>() * dtype.size();
                prop_assert!(size <= bytes.len(), "{} bytes out of {}", size, bytes.len());
            }
        }
    }
}
