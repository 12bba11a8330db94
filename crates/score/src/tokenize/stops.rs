//! Full stops that belong to their word.

use super::shapes::run;
use super::{is_apostrophe, is_separator, lower};

/// Abbreviations, in any case.
const ABBREVIATIONS: &str = "adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd \
    brig bros calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs ed.d elec ens \
    esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt \
    ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph \
    ph.d plc ppte pptes ppty pptys pres prof profs pte ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc \
    sgt spc sq sr st ste supt supts sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo";

/// Abbreviations that begin with a capital: in lower case they are words, or no abbreviations.
const CAPITAL: &str = "ark az del ill la mass miss ore pa tex wash";

/// Abbreviations where a number follows.
const BEFORE_NUMBER: [&str; 9] = ["art", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop"];

/// Words that begin a sentence.
const STARTERS: &str = "a about according additionally after an as at but earlier he her here however if in it \
    last many more mr. ms. now once one other our she since so some such that the their then there these they this \
    we what when while yet you";

/// True where the full stop between `word`, as it is written, and `after` is part of the word: in abbreviations and
/// acronyms, and before a comma, a colon or a semicolon.
pub(super) fn belongs_to(word: &str, after: &[char]) -> bool {
    let lower = word.to_lowercase();
    let is_one_of = |words: &str| words.split_ascii_whitespace().any(|known| known == lower);
    let is_letter = |part: &str| part.len() == 1 && part.bytes().all(|byte| byte.is_ascii_alphabetic());
    if is_letter(word) {
        return !begins_sentence(after);
    }
    word.split('.').all(is_letter)
        || is_one_of(ABBREVIATIONS)
        || (word.starts_with(char::is_uppercase) && is_one_of(CAPITAL))
        || (BEFORE_NUMBER.contains(&lower.as_str()) && begins_with_number(after))
        || (is_plain(word) && matches!(after.first(), Some(',' | ';' | ':' | '、')))
}

/// Neither a fraction nor an address, nor a number with separators, nor a word with an apostrophe but `o'clock` and such.
fn is_plain(word: &str) -> bool {
    let is_number =
        word.chars().all(|c| c.is_ascii_digit() || is_separator(c)) && word.contains(is_separator);
    let is_elided = |part: &str| match part.find(is_apostrophe) {
        Some(at) => at == 1 && part.starts_with(['d', 'D', 'l', 'L', 'o', 'O']),
        None => true,
    };
    !is_number
        && !word.contains(['/', '@'])
        && word.ends_with(char::is_alphanumeric)
        && word.split('-').all(is_elided)
}

/// A digit, right behind the stop or behind one blank.
fn begins_with_number(after: &[char]) -> bool {
    let after = match after {
        [blank, rest @ ..] if blank.is_whitespace() => rest,
        _ => after,
    };
    after.first().is_some_and(char::is_ascii_digit)
}

/// Blanks, a word that begins a sentence, with a capital or in capitals, and a blank behind it.
fn begins_sentence(after: &[char]) -> bool {
    let blanks = run(after, char::is_whitespace);
    let length = run(&after[blanks..], |c| c.is_alphabetic() || c == '.');
    let word = &after[blanks..blanks + length];
    let is_capital = word.first().is_some_and(|first| first.is_uppercase())
        && (word.iter().all(|c| !c.is_lowercase()) || word[1..].iter().all(|c| !c.is_uppercase()));
    let is_whole = after.get(blanks + length).is_some_and(|c| c.is_whitespace());
    let small = lower(word);
    is_capital && is_whole && STARTERS.split_ascii_whitespace().any(|starter| starter == small)
}
