//! What the two stages read: frozen image features and token ids, on the device.

use tch::{Device, Kind, Tensor};

/// Padded token ids with their mask; `[CLS] ... [SEP]` and right padding for the Q-Former.
#[derive(Debug)]
pub struct TextInput {
    /// Token ids, `[B, T]`, int64.
    pub ids: Tensor,
    /// 1 = token, 0 = padding, `[B, T]`, int64.
    pub mask: Tensor,
}

impl TextInput {
    /// Pads `rows` on the right with `pad` to the longest.
    #[must_use]
    pub fn padded(rows: &[Vec<i64>], pad: i64) -> Self {
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        let shape = [rows.len() as i64, width as i64];
        let padded = |of: &dyn Fn(&[i64], usize) -> i64| {
            let flat: Vec<i64> = rows.iter().flat_map(|row| (0..width).map(|i| of(row, i))).collect();
            Tensor::from_slice(&flat).view(shape)
        };
        Self {
            ids: padded(&|row, i| row.get(i).copied().unwrap_or(pad)),
            mask: padded(&|row, i| i64::from(i < row.len())),
        }
    }

    /// The same on another device.
    #[must_use]
    pub fn to_device(&self, device: Device) -> Self {
        Self { ids: self.ids.to_device(device), mask: self.mask.to_device(device) }
    }

    /// Some rows, in the order of `rows` (`[R]`, int64).
    #[must_use]
    pub fn select(&self, rows: &Tensor) -> Self {
        Self { ids: self.ids.index_select(0, rows), mask: self.mask.index_select(0, rows) }
    }

    /// The texts of all `parts`, one below the other; all must be of one width.
    #[must_use]
    pub fn stack(parts: &[&Self]) -> Self {
        let ids: Vec<&Tensor> = parts.iter().map(|part| &part.ids).collect();
        let mask: Vec<&Tensor> = parts.iter().map(|part| &part.mask).collect();
        Self { ids: Tensor::cat(&ids, 0), mask: Tensor::cat(&mask, 0) }
    }

    /// The same texts, padded on the right with masked zeros to `width` tokens.
    #[must_use]
    pub fn widened(&self, width: i64) -> Self {
        let missing = [0, width - self.ids.size()[1]];
        Self { ids: self.ids.constant_pad_nd(missing), mask: self.mask.constant_pad_nd(missing) }
    }
}

impl Clone for TextInput {
    fn clone(&self) -> Self {
        Self { ids: self.ids.shallow_clone(), mask: self.mask.shallow_clone() }
    }
}

/// Texts as a language model is trained on them (spec 4.1, 4.2): the model reads the prefix and `ids` and is scored on
/// `labels`.
#[derive(Debug)]
pub struct LmText {
    /// What is read behind the image and before the text: an encoder's part of a T5's text. `[B, X]`, or no columns.
    pub prefix: TextInput,
    /// Token ids, right-padded, `[B, T]`, int64.
    pub ids: Tensor,
    /// 1 = token, 0 = padding, `[B, T]`, int64.
    pub mask: Tensor,
    /// `ids`, with [`LmText::IGNORED`] on the prompt and on padding, `[B, T]`, int64. Not shifted.
    pub labels: Tensor,
}

impl LmText {
    /// A label that is not scored.
    pub const IGNORED: i64 = -100;

    /// Masks the first `prompt_length` labels of each row and the padding.
    #[must_use]
    pub fn new(ids: Tensor, mask: Tensor, prompt_length: usize) -> Self {
        let labels = ids.masked_fill(&mask.eq(0), Self::IGNORED);
        let prompt = (prompt_length as i64).min(labels.size()[1]);
        let _ = labels.narrow(1, 0, prompt).fill_(Self::IGNORED);
        let none = || ids.narrow(1, 0, 0);
        Self { prefix: TextInput { ids: none(), mask: none() }, ids, mask, labels }
    }

    /// The same texts, to be said behind `prefix`.
    #[must_use]
    pub fn behind(self, prefix: TextInput) -> Self {
        Self { prefix, ..self }
    }

    /// Pads `rows` on the right with `pad` to the longest.
    #[must_use]
    pub fn padded(rows: &[Vec<i64>], prompt_length: usize, pad: i64) -> Self {
        let TextInput { ids, mask } = TextInput::padded(rows, pad);
        Self::new(ids, mask, prompt_length)
    }

    /// The same on another device.
    #[must_use]
    pub fn to_device(&self, device: Device) -> Self {
        Self {
            prefix: self.prefix.to_device(device),
            ids: self.ids.to_device(device),
            mask: self.mask.to_device(device),
            labels: self.labels.to_device(device),
        }
    }
}

impl Clone for LmText {
    fn clone(&self) -> Self {
        Self {
            prefix: self.prefix.clone(),
            ids: self.ids.shallow_clone(),
            mask: self.mask.shallow_clone(),
            labels: self.labels.shallow_clone(),
        }
    }
}

/// Where the hard negatives of ITM come from.
#[derive(Debug)]
pub enum Negatives {
    /// Drawn from the similarities by inverse distribution: `[2, B]` numbers in `[0, 1)`, float64. Row 0 draws an image
    /// for each text, row 1 a text for each image.
    Drawn {
        /// The numbers.
        uniforms: Tensor,
    },
    /// Given, as indices into the global batch (rank-major), `[B]` int64 each: for reference cases.
    Given {
        /// The image drawn for each text.
        images: Tensor,
        /// The text drawn for each image.
        texts: Tensor,
    },
}

/// One micro-batch of stage 1 on one rank.
#[derive(Debug)]
pub struct Stage1Inputs {
    /// Output of the frozen encoder, before its LayerNorm, `[B, P, V]`.
    pub image: Tensor,
    /// The captions, `[B, T]`.
    pub text: TextInput,
    /// Which concept each pair shows, `[B]`, int64: pairs of one concept are no negatives of each other (LAVIS's `image_id`).
    /// Without, each pair is a concept of its own.
    pub concepts: Option<Tensor>,
    /// Negatives of ITM.
    pub negatives: Negatives,
}

/// One micro-batch of stage 2 on one rank.
#[derive(Debug)]
pub struct Stage2Inputs {
    /// Output of the frozen encoder, before its LayerNorm, `[B, P, V]`.
    pub image: Tensor,
    /// The captions as the language model reads them.
    pub text: LmText,
}

/// Sum of a 0/1 mask, on the host.
pub(crate) fn count(mask: &Tensor) -> i64 {
    mask.sum(Kind::Int64).int64_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.view([-1])).expect("values")
    }

    #[test]
    fn prompt_and_padding_are_not_scored() {
        let text = LmText::padded(&[vec![5, 6, 7], vec![5, 8]], 1, 0);
        assert_eq!(text.ids.size(), [2, 3]);
        assert_eq!(values(&text.ids), [5, 6, 7, 5, 8, 0]);
        assert_eq!(values(&text.mask), [1, 1, 1, 1, 1, 0]);
        assert_eq!(values(&text.labels), [-100, 6, 7, -100, 8, -100]);
    }

    #[test]
    fn a_pad_token_inside_a_text_is_scored() {
        // The end of text is also the padding of many models: only the mask tells them apart.
        let text = LmText::padded(&[vec![3, 0], vec![4]], 0, 0);
        assert_eq!(values(&text.labels), [3, 0, 4, -100]);
    }
}
