//! `text`: caption and question processors, WordPiece ids.

use data::{TextBatch, WordPiece};
use serde_json::Value;
use tch::Tensor;

use super::case::Case;
use super::sheet::{Row, Sheet};
use crate::error::TrainError;

/// Length of texts in LAVIS's retrieval, in tokens (`retrieval35_*`).
const RETRIEVAL_LENGTH: usize = 35;

/// Runs the case.
pub(super) fn compare(case: &Case) -> Result<Vec<Row>, TrainError> {
    const FILE: &str = "expected.json";
    let given: Value = case.json("inputs.json")?;
    let raw: Vec<String> = case.part("inputs.json", &given, &["captions"])?;
    let expected: Value = case.json(FILE)?;
    let theirs = |key: &str| -> Result<Vec<String>, TrainError> { case.part(FILE, &expected, &[key]) };
    let [max_words, few_words] =
        ["max_words", "prompt_max_words"].map(|key| case.value::<usize>("text", key));
    let (max_words, few_words) = (max_words?, few_words?);
    let prompt: String = case.value("text", "prompt")?;
    let each =
        |process: &dyn Fn(&str) -> String| raw.iter().map(|text| process(text)).collect::<Vec<String>>();

    let mut sheet = Sheet::open(case)?;
    let captions = each(&|text| data::blip_caption(text, max_words));
    sheet.push(Row::equal("caption_processed", &captions, &theirs("caption_processed")?));
    let prompted = each(&|text| format!("{prompt}{}", data::blip_caption(text, few_words)));
    sheet.push(Row::equal("caption_processed_prompt", &prompted, &theirs("caption_processed_prompt")?));
    let questions = each(&|text| data::caption::blip_question(text, few_words));
    sheet.push(Row::equal("question_processed", &questions, &theirs("question_processed")?));

    let vocabulary: String = case.value("text", "vocab_file")?;
    let tokenizer = WordPiece::from_vocab(&case.folder().join(vocabulary))?;
    let length: usize = case.value("text", "max_txt_len")?;
    let batch = tokenizer.encode(&captions, length)?;
    compare_ids(&mut sheet, &tokenizer, &batch);
    let retrieval = tokenizer.encode(&captions, RETRIEVAL_LENGTH)?;
    sheet.equal("retrieval35_input_ids", &tensor(&retrieval.ids, &retrieval));
    let unprocessed = tokenizer.encode(&raw, length)?;
    sheet.equal("raw_input_ids", &tensor(&unprocessed.ids, &unprocessed));
    sheet.equal("raw_attention_mask", &tensor(&unprocessed.mask, &unprocessed));
    let decoded: Vec<String> = batch.ids.chunks_exact(length).map(|row| tokenizer.decode(row)).collect();
    sheet.push(Row::equal("decoded_skip_special", &decoded, &theirs("decoded_skip_special")?));

    let special = tokenizer.special();
    for (key, ours) in [
        ("pad", Some(special.pad)),
        ("unk", Some(special.unk)),
        ("cls", Some(special.cls)),
        ("sep", Some(special.sep)),
        ("mask", special.mask),
        ("bos_dec", Some(special.bos)),
        ("len", i64::try_from(tokenizer.vocab_size()).ok()),
    ] {
        let theirs: Option<i64> = case.part(FILE, &expected, &["ids", key])?;
        sheet.push(Row::equal(&format!("ids.{key}"), &[ours], &[theirs]));
    }
    Ok(sheet.finish())
}

/// Ids, mask, and what the text is to a decoder: the first id replaced, and labels that are not shifted.
fn compare_ids(sheet: &mut Sheet, tokenizer: &WordPiece, batch: &TextBatch) {
    let special = tokenizer.special();
    sheet.equal("input_ids", &tensor(&batch.ids, batch));
    sheet.equal("attention_mask", &tensor(&batch.mask, batch));
    let mut read = batch.ids.clone();
    read.iter_mut().step_by(batch.cols).for_each(|id| *id = special.bos);
    sheet.equal("decoder_input_ids", &tensor(&read, batch));
    let labels = tensor(&read, batch).masked_fill(&tensor(&batch.mask, batch).eq(0), model::LmText::IGNORED);
    sheet.equal("lm_labels", &labels);
}

fn tensor(values: &[i64], batch: &TextBatch) -> Tensor {
    Tensor::from_slice(values).view([batch.rows as i64, batch.cols as i64])
}
