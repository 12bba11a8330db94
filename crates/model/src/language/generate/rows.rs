//! Searches in which no row knows of another: one token after the other until the end.

use tch::Tensor;

use super::rules::Rules;
use super::{Decoder, GenerateOptions, Generated};

/// Chooses a token for each row of scores `[R, N]`; the rows have these numbers in the whole batch, and so many tokens.
type Choose<'a> = &'a mut dyn FnMut(&Tensor, &[usize], usize) -> Vec<i64>;

/// `copies` texts for each row of the decoder. Finished rows leave the batch.
pub(super) fn generate(
    decoder: &mut dyn Decoder,
    said: &[Vec<i64>],
    options: &GenerateOptions,
    copies: usize,
    choose: Choose<'_>,
) -> Vec<Vec<Generated>> {
    let mut scores = decoder.scores();
    let items = scores.size()[0] as usize;
    // The decoder's row of each text, and the text's number.
    let mut sources: Vec<i64> = (0..items * copies).map(|text| (text / copies) as i64).collect();
    let mut texts: Vec<usize> = (0..sources.len()).collect();
    let mut rules = Rules::new(options, said, &scores);
    if copies > 1 {
        rules.repeat(&sources);
        scores = scores.index_select(0, &Tensor::from_slice(&sources).to_device(scores.device()));
    }
    let mut done = vec![Generated { ids: Vec::new(), end: None, score: None }; texts.len()];
    for step in 0..options.max_new_tokens {
        let chosen = choose(&rules.apply(scores), &texts, step);
        let (mut kept, mut tokens) = (Vec::new(), Vec::new());
        for (i, &token) in chosen.iter().enumerate() {
            let text = &mut done[texts[i]];
            if options.end.contains(&token) {
                text.end = Some(token);
            } else {
                text.ids.push(token);
                kept.push(i);
                tokens.push(token);
            }
        }
        if kept.is_empty() || step + 1 == options.max_new_tokens {
            break;
        }
        let rows: Vec<i64> = kept.iter().map(|&i| i as i64).collect();
        rules.advance(&rows, &tokens);
        decoder.advance(&kept.iter().map(|&i| sources[i]).collect::<Vec<_>>(), &tokens);
        texts = kept.iter().map(|&i| texts[i]).collect();
        sources = (0..texts.len() as i64).collect();
        scores = decoder.scores();
    }
    done.chunks(copies).map(<[Generated]>::to_vec).collect()
}
