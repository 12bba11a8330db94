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

/// The zeros of Unicode 14 (Python 3.11); nine digits follow each.
const ZEROS: &[u32] = &[
    0x30, 0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6, 0xE50,
    0xED0, 0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40,
    0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30, 0x11066,
    0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x11730, 0x118E0, 0x11950,
    0x11C50, 0x11D50, 0x11DA0, 0x16A60, 0x16AC0, 0x16B50, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6,
    0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0,
];

/// One question with its prediction and the annotators' answers (ten in VQAv2).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VqaQuestion {
    /// What the model said.
    pub prediction: String,
    /// What people said.
    pub answers: Vec<VqaAnswer>,
    /// Such as `what color`.
    pub question_type: String,
    /// `yes/no`, `number` or `other`.
    pub answer_type: String,
}

/// The entry of one annotator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VqaAnswer {
    /// What was said.
    pub text: String,
    /// All else that the entry holds (the annotator's number, as a rule), in any form: entries that are equal as a whole
    /// are left out together.
    pub rest: String,
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

/// Accuracy of one prediction, 0 to 1: each annotator is left out once, with all whose entries are equal to theirs, and
/// the answer is right by a third for each of the others who gave it, at most in full; the mean over annotators.
pub fn vqa_accuracy(prediction: &str, answers: &[VqaAnswer]) -> f64 {
    let prediction = normalise_answer(prediction);
    let disagree = answers.iter().any(|answer| answer.text != answers[0].text);
    let given =
        |answer: &VqaAnswer| if disagree { normalise_punctuation(&answer.text) } else { answer.text.clone() };
    let entries: Vec<(String, &str)> =
        answers.iter().map(|answer| (given(answer), answer.rest.as_str())).collect();
    let without = |left_out: &(String, &str)| {
        let hits = entries.iter().filter(|entry| *entry != left_out && entry.0 == prediction).count();
        (hits as f64 / FULL_AGREEMENT).min(1.0)
    };
    mean(&entries.iter().map(without).collect::<Vec<_>>())
}

/// All rules, as a prediction gets them: punctuation, lower case, digits for number words, no articles, apostrophes.
pub fn normalise_answer(text: &str) -> String {
    let text = normalise_punctuation(text.replace(['\n', '\t'], " ").trim_matches(is_blank)).to_lowercase();
    let words =
        text.split(is_blank).map(with_digits).filter(|word| !["", "a", "an", "the"].contains(&word.as_str()));
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
    let next_is_digit = |rest: &str| rest.chars().next().is_some_and(is_digit);
    text.match_indices(',').any(|(at, _)| text[..at].ends_with(is_digit) && next_is_digit(&text[at + 1..]))
}

/// A blank as Python's `strip` and `split` see it: four separators of ASCII as well.
fn is_blank(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// `\d` in Python: digits of all scripts.
fn is_digit(character: char) -> bool {
    let code = u32::from(character);
    ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&code))
}

fn without_full_stops(text: &str) -> String {
    let mut removed = 0;
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_removed = character == '.'
            && removed < MOST_STOPS_REMOVED
            && !characters.peek().copied().is_some_and(is_digit);
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

    fn answer(text: &str, number: usize) -> VqaAnswer {
        VqaAnswer { text: text.to_owned(), rest: number.to_string() }
    }

    #[test]
    fn quirks_of_the_script() {
        assert_eq!(normalise_answer("The U.S.A., of course!"), "usa of course");
        assert_eq!(normalise_answer("1,000 red-ish"), "1000 redish");
        assert_eq!(normalise_answer("couldntve"), "couldntve");
        assert_eq!(normalise_answer("couldn'tve, Somebody'd"), "couldn't've somebodyd");
        assert_eq!(normalise_answer(&".".repeat(33)), ".");
        let agreed: Vec<VqaAnswer> = (0..10).map(|number| answer("T-shirt", number)).collect();
        assert_eq!(vqa_accuracy("t-shirt", &agreed), 0.0, "agreed answers stay as they are");
        assert_eq!(vqa_accuracy("yes", &[]), 0.0);
    }

    #[test]
    fn digits_and_blanks_are_pythons() {
        assert_eq!(normalise_punctuation("1.１ .٣ 5. .²"), "1.１ .٣ 5 ²");
        assert_eq!(normalise_punctuation("1,٤ a-b"), "1٤ ab");
        assert_eq!(normalise_answer("\u{1c}two\u{1f}dogs"), "2 dogs");
    }

    #[test]
    fn equal_entries_are_left_out_together() {
        let numbered: Vec<VqaAnswer> = (0..10).map(|i| answer(if i < 7 { "yes" } else { "no" }, i)).collect();
        let alike: Vec<VqaAnswer> = numbered.iter().map(|one| answer(&one.text, 0)).collect();
        assert!((vqa_accuracy("yes", &numbered) - 1.0).abs() < 1e-12);
        assert!(
            (vqa_accuracy("yes", &alike) - 0.3).abs() < 1e-12,
            "right only without the three who said no"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_normalised(text in "[ -~\\PC]{0,40}") {
            let normal = normalise_answer(&text);
            prop_assert!(!normal.contains("  ") && normal.trim() == normal);
            let accuracy = vqa_accuracy(&text, &[answer(&text, 1), answer("x", 2)]);
            prop_assert!((0.0..=1.0).contains(&accuracy));
        }
    }
}
