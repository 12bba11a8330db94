//! GGUF files written here field by field, whole and damaged.

use std::path::PathBuf;

use crate::common::gguf_file::{gguf, line, setting, text, whole};
use checkpoint::foreign::gguf::{GgufFile, Setting};
use checkpoint::{Dtype, HostTensor};
use proptest::prelude::*;

fn open(bytes: &[u8]) -> Result<GgufFile, String> {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("a.gguf");
    std::fs::write(&path, bytes).unwrap();
    GgufFile::open(&path).map_err(|error| error.to_string())
}

#[test]
fn settings_and_tensors_come_out() {
    let mut file = open(&whole()).unwrap();
    assert_eq!(file.text("name").unwrap(), "tiny");
    assert_eq!((file.int("heads").unwrap(), file.float("eps").unwrap()), (9, 0.5));
    assert_eq!(file.settings()["types"], Setting::Ints(vec![7, -1]));
    assert!(file.int("name").unwrap_err().to_string().contains("another type"));
    assert_eq!(file.shape("plain"), Some(&[2, 3][..]));
    let plain = file.read("plain").unwrap().unwrap();
    assert_eq!(plain, HostTensor::from_f32(&[2, 3], &[0., 1., 2., 3., 4., 5.]).unwrap());
    let quantised = file.read("quantised").unwrap().unwrap();
    assert_eq!((quantised.dtype, &quantised.shape[..]), (Dtype::F32, &[1, 32][..]));
    assert_eq!(quantised.to_f32_vec(), (0..32).map(|value| value as f32).collect::<Vec<_>>());
    assert_eq!(file.read("other").unwrap(), None);
}

#[test]
fn what_cannot_be_read_is_refused_by_its_name() {
    for (bytes, part) in [
        (gguf(&[], &[line("w", &[32], 12, 0)], &[0; 64]), "tensor w is of quantised ggml type 12"),
        (gguf(&[], &[line("w", &[33], 8, 0)], &[0; 64]), "tensor w cannot have sizes"),
        (gguf(&[], &[line("w", &[64], 0, 0)], &[0; 64]), "tensor w reaches past the end"),
        (gguf(&[], &[line("w", &[u64::MAX, u64::MAX], 0, 0)], &[]), "tensor w"),
        (
            gguf(&[], &[line("a", &[8], 0, 0), line("b", &[8], 0, 0)], &[0; 64]),
            "a and b claim the same bytes",
        ),
        (gguf(&[], &[line("a", &[8], 0, 0), line("a", &[8], 0, 32)], &[0; 64]), "two tensors are named a"),
        (gguf(&[setting("a", 99, &[])], &[], &[]), "unknown type 99"),
        (b"GGML0000".to_vec(), "no GGUF file"),
    ] {
        let error = open(&bytes).err().unwrap_or_default();
        assert!(error.contains(part), "{part}: {error:?}");
    }
}

proptest! {
    #[test]
    fn damaged_files_are_read_or_refused(
        cut in 0usize..400, flips in prop::collection::vec((0usize..400, any::<u8>()), 0..4),
    ) {
        let bytes = crate::common::damaged(whole(), cut, flips);
        if let Ok(mut file) = open(&bytes) {
            let names: Vec<String> = file.names().map(str::to_owned).collect();
            for name in names {
                // A quantised byte gives at most four bytes and a bit.
                let tensor = file.read(&name).unwrap().unwrap();
                prop_assert!(tensor.bytes.len() <= 8 * bytes.len());
            }
        }
    }
}

/// The settings of a llama of one layer, with `more`.
fn llama(more: &[Vec<u8>]) -> Vec<u8> {
    let int = |key: &str, value: u32| setting(key, 4, &value.to_le_bytes());
    let mut settings = vec![
        setting("general.architecture", 8, &text("llama")),
        int("llama.embedding_length", 32),
        int("llama.attention.head_count", 2),
        int("llama.feed_forward_length", 64),
        int("llama.context_length", 128),
        int("llama.block_count", 1),
        int("llama.vocab_size", 2),
        int("tokenizer.ggml.bos_token_id", 0),
        int("tokenizer.ggml.eos_token_id", 1),
        setting("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()),
    ];
    settings.extend_from_slice(more);
    gguf(&settings, &[line("token_embd.weight", &[32, 2], 0, 0)], &[0; 256])
}

#[test]
fn scaled_rotary_positions_are_refused_and_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let config = |name: &str, more: &[Vec<u8>]| {
        let path = dir.path().join(name);
        std::fs::write(&path, llama(more)).unwrap();
        checkpoint::foreign::llama::config(&GgufFile::open(&path).unwrap(), "float32")
    };
    let kind = |kind: &str| setting("llama.rope.scaling.type", 8, &text(kind));
    assert_eq!(config("plain.gguf", &[]).unwrap()["hidden_size"], 32);
    assert!(config("none.gguf", &[kind("none")]).is_ok());
    let error = config("linear.gguf", &[kind("linear")]).unwrap_err().to_string();
    assert!(error.contains("llama.rope.scaling"), "{error}");
}
