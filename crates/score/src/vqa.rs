//! VQA accuracy with the normalisation of the official script, in the variant of LAVIS 1.0.2.
//!
//! The quirks are the variant's: an annotated answer gets the punctuation rules only where the annotators disagree, and
//! never the digit and article rules; a predicted answer gets both; at most 32 full stops are removed from a string.

use std::collections::BTreeMap;

/// Right answers by other annotators from which an answer counts in full.
const FULL_AGREEMENT: f64 = 3.0;
/// The script passes a flag where its regular expression takes a count, and the flag's value is 32.
const MOST_STOPS_REMOVED: usize = 32;

/// Marks that are removed or become blanks, in the script's order.
const MARKS: &[char] = &[
    ';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!',
];

const NUMBERS: [&str; 11] =
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

/// Contractions whose apostrophe is put back: a word that is one of these short of one apostrophe becomes it.
const CONTRACTIONS: &str = "'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't \
    hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't \
    mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've \
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've \
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've \
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've \
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're \
    you've";

/// One question with its prediction and the annotators' answers (ten in VQAv2).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VqaQuestion {
    /// What the model said.
    pub prediction: String,
    /// What people said.
    pub answers: Vec<String>,
    /// Such as `what color`.
    pub question_type: String,
    /// `yes/no`, `number` or `other`.
    pub answer_type: String,
}

/// Accuracies, 0 to 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VqaFigures {
    /// Mean over questions.
    pub overall: f64,
    /// Mean by question type.
    pub by_question_type: BTreeMap<String, f64>,
    /// Mean by answer type.
    pub by_answer_type: BTreeMap<String, f64>,
}

/// Accuracy over questions, all together and by type.
pub fn vqa(questions: &[VqaQuestion]) -> VqaFigures {
    let accuracies: Vec<f64> = questions.iter().map(|q| vqa_accuracy(&q.prediction, &q.answers)).collect();
    let by = |kind: fn(&VqaQuestion) -> &String| -> BTreeMap<String, f64> {
        let mut groups: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (question, accuracy) in questions.iter().zip(&accuracies) {
            groups.entry(kind(question).clone()).or_default().push(*accuracy);
        }
        groups.into_iter().map(|(name, values)| (name, mean(&values))).collect()
    };
    VqaFigures {
        overall: mean(&accuracies),
        by_question_type: by(|question| &question.question_type),
        by_answer_type: by(|question| &question.answer_type),
    }
}

/// Accuracy of one prediction, 0 to 1: each annotator is left out once, and the answer is right by a third for each of
/// the others who gave it, at most in full; the mean over annotators.
pub fn vqa_accuracy(prediction: &str, answers: &[String]) -> f64 {
    let prediction = normalise_answer(prediction);
    let disagree = answers.iter().any(|answer| *answer != answers[0]);
    let given = |answer: &String| if disagree { normalise_punctuation(answer) } else { answer.clone() };
    let hits: Vec<bool> = answers.iter().map(|answer| given(answer) == prediction).collect();
    let all = hits.iter().filter(|hit| **hit).count();
    let without_one = |hit: &bool| ((all - usize::from(*hit)) as f64 / FULL_AGREEMENT).min(1.0);
    mean(&hits.iter().map(without_one).collect::<Vec<_>>())
}

/// All rules, as a prediction gets them: punctuation, lower case, digits for number words, no articles, apostrophes.
pub fn normalise_answer(text: &str) -> String {
    let text = normalise_punctuation(text.replace(['\n', '\t'], " ").trim()).to_lowercase();
    let words =
        text.split_whitespace().map(with_digits).filter(|word| !["a", "an", "the"].contains(&word.as_str()));
    words.map(with_apostrophe).collect::<Vec<_>>().join(" ")
}

/// The punctuation rules alone. A mark becomes a blank, or nothing where the text has it beside a blank; a comma between
/// digits makes all marks nothing. Full stops go unless a digit follows.
pub fn normalise_punctuation(text: &str) -> String {
    let removes_all = has_comma_between_digits(text);
    let mut out = text.to_owned();
    for &mark in MARKS {
        let is_beside_blank = text.contains(&format!("{mark} ")) || text.contains(&format!(" {mark}"));
        out = out.replace(mark, if is_beside_blank || removes_all { "" } else { " " });
    }
    without_full_stops(&out)
}

fn has_comma_between_digits(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit();
    text.as_bytes().windows(3).any(|w| is_digit(w[0]) && w[1] == b',' && is_digit(w[2]))
}

fn without_full_stops(text: &str) -> String {
    let mut removed = 0;
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_removed = character == '.'
            && removed < MOST_STOPS_REMOVED
            && !characters.peek().is_some_and(char::is_ascii_digit);
        if is_removed {
            removed += 1;
        } else {
            out.push(character);
        }
    }
    out
}

fn with_digits(word: &str) -> String {
    match NUMBERS.iter().position(|number| *number == word) {
        Some(value) => value.to_string(),
        None if word == "none" => "0".to_owned(),
        None => word.to_owned(),
    }
}

fn with_apostrophe(word: String) -> String {
    if word == "somebody'd" {
        return "somebodyd".to_owned(); // the script's table has this one the wrong way round
    }
    let mut contractions = CONTRACTIONS.split_ascii_whitespace();
    contractions.find(|whole| lacks_one_apostrophe(&word, whole)).map_or(word.clone(), str::to_owned)
}

fn lacks_one_apostrophe(word: &str, whole: &str) -> bool {
    word.len() + 1 == whole.len()
        && whole
            .match_indices('\'')
            .any(|(at, _)| word.starts_with(&whole[..at]) && word.ends_with(&whole[at + 1..]))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quirks_of_the_script() {
        assert_eq!(normalise_answer("The U.S.A., of course!"), "usa of course");
        assert_eq!(normalise_answer("1,000 red-ish"), "1000 redish");
        assert_eq!(normalise_answer("couldntve"), "couldntve");
        assert_eq!(normalise_answer("couldn'tve, Somebody'd"), "couldn't've somebodyd");
        assert_eq!(normalise_answer(&".".repeat(33)), ".");
        let agreed = vec!["T-shirt".to_owned(); 10];
        assert_eq!(vqa_accuracy("t-shirt", &agreed), 0.0, "agreed answers stay as they are");
        assert_eq!(vqa_accuracy("yes", &[]), 0.0);
    }

    proptest! {
        #[test]
        fn any_text_is_normalised(text in "[ -~\\PC]{0,40}") {
            let normal = normalise_answer(&text);
            prop_assert!(!normal.contains("  ") && normal.trim() == normal);
            let accuracy = vqa_accuracy(&text, &[text.clone(), "x".to_owned()]);
            prop_assert!((0.0..=1.0).contains(&accuracy));
        }
    }
}
