//! Whole files of every kind, for mutation.

use checkpoint::{Dtype, HostTensor, TensorMap, write_safetensors};

use super::{gguf_file, onnx_file, pth_file};

fn pickles(is_legacy: bool) -> Vec<Vec<u8>> {
    let tensor =
        |offset, shape: &[i32], stride: &[i32]| pth_file::tensor("0", offset, shape, stride, is_legacy);
    let one = pth_file::pickle(&[("a", tensor(0, &[2, 3], &[3, 1])), ("b", tensor(4, &[2], &[1]))]);
    let turned =
        pth_file::pickle(&[("turned", tensor(0, &[3, 2], &[1, 3])), ("none", tensor(6, &[0], &[1]))]);
    vec![one, turned]
}

pub fn pth_zips() -> Vec<Vec<u8>> {
    pickles(false).iter().map(|pickle| pth_file::zipped(pickle)).collect()
}

pub fn pth_legacies() -> Vec<Vec<u8>> {
    pickles(true).iter().map(|pickle| pth_file::legacy(pickle)).collect()
}

pub fn ggufs() -> Vec<Vec<u8>> {
    use gguf_file::{gguf, line, setting, text};
    let lines = [line("q4_0", &[32, 2], 2, 0), line("q4_1", &[32], 3, 64), line("bf16", &[2, 2], 30, 96)];
    let architecture = setting("general.architecture", 8, &text("llama"));
    vec![gguf_file::whole(), gguf(&[architecture], &lines, &[1; 128])]
}

pub fn onnxes() -> Vec<Vec<u8>> {
    vec![onnx_file::whole(), onnx_file::model(&[onnx_file::tensor("t", 1, &[6], &onnx_file::floats())])]
}

pub fn safetensors() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let tensors = TensorMap::from([
        ("wide".to_owned(), HostTensor::from_i64(&[2], &[1, 2]).unwrap()),
        ("half".to_owned(), HostTensor::new(Dtype::BF16, vec![3, 1], vec![7; 6]).unwrap()),
        ("none".to_owned(), HostTensor::from_f32(&[0, 4], &[]).unwrap()),
    ]);
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    write_safetensors(&path, &tensors, &metadata).unwrap();
    let whole = std::fs::read(&path).unwrap();
    write_safetensors(&path, &TensorMap::new(), &metadata).unwrap();
    vec![whole, std::fs::read(&path).unwrap()]
}

pub fn all() -> Vec<Vec<u8>> {
    [pth_zips(), pth_legacies(), ggufs(), safetensors()].concat()
}
