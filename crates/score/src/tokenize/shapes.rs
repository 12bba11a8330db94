//! The shapes that a token may have where it begins with a letter or a digit. The longest one counts, as in the lexer
//! that is followed here, so that `1.5-2.5` is `1.5-2` and `.5`, and `5:30pm` is `5:30` and `pm`.

pub(super) use super::phone::phone;
use super::{CLITICS, is_apostrophe, is_separator, is_word, lower};

/// Endings of file names. They matter where a part begins with a digit (`1.txt`, `v1.0.x`); others need none (`dog.cat`).
const FILE_TYPES: &str = "bat bmp c cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov pdf php pl png ppt ps \
    py sql tar txt wav x xml zip";

/// Words with an apostrophe that no rule covers.
const WITH_APOSTROPHE: [&str; 10] =
    ["c'est", "c'mon", "cap'n", "e'er", "ev'ry", "li'l", "nat'l", "nor'easter", "o'er", "s'mores"];

/// Words that keep the apostrophe behind them. One letter, because `d'amour` is two words in lower case or one.
const BEFORE_APOSTROPHE: [&str; 6] = ["d", "dunkin", "j", "l", "ol", "somethin"];

/// Length of the longest token that `text` begins with, in characters; 0 where it begins with none of these.
pub(super) fn longest(text: &[char]) -> usize {
    let shapes = [
        hyphenated,
        joined,
        slashed,
        number,
        fraction,
        date,
        phone,
        dotted,
        file_name,
        capitals,
        currency,
        language,
        address,
        name,
        between_vowels,
        known,
    ];
    shapes.iter().map(|shape| shape(text)).max().unwrap_or(0)
}

/// Digits, and separators with digits behind them. It may begin with a separator.
pub(super) fn number(text: &[char]) -> usize {
    let mut end = digits(text);
    while text.get(end).copied().is_some_and(is_separator) && digits(&text[end + 1..]) > 0 {
        end += 1 + digits(&text[end + 1..]);
    }
    end
}

pub(super) fn digits(text: &[char]) -> usize {
    run(text, |c| c.is_ascii_digit())
}

/// How many characters at the beginning are such.
pub(super) fn run(text: &[char], is: impl Fn(char) -> bool) -> usize {
    text.iter().take_while(|c| is(**c)).count()
}

pub(super) fn is_letter(character: char) -> bool {
    is_word(character) && character.is_alphabetic()
}

fn is_alphanumeric(character: char) -> bool {
    is_word(character) && character != '_'
}

/// What stands between the apostrophe at the beginning and the end of its word; `None` where it is a clitic (`'ll`).
pub(super) fn behind_apostrophe(text: &[char]) -> Option<usize> {
    let (first, rest) = text.split_first()?;
    let length = run(rest, is_alphanumeric);
    let behind = lower(&rest[..length]);
    (is_apostrophe(*first) && !CLITICS.contains(&behind.as_str())).then_some(length)
}

/// `black-and-white`, `under_score`, with `o'`, `d'` or `l'` before a part: `o'clock`.
fn hyphenated(text: &[char]) -> usize {
    let part = |text: &[char]| {
        let is_elided = matches!(text.first(), Some('d' | 'D' | 'o' | 'O' | 'l' | 'L'));
        match behind_apostrophe(text.get(1..).unwrap_or_default()) {
            Some(length) if is_elided && length > 1 => length + 2,
            _ => run(text, is_alphanumeric),
        }
    };
    chain(text, part, |c| matches!(c, '-' | '_'))
}

/// Parts with one divider between each two.
fn chain(text: &[char], part: impl Fn(&[char]) -> usize, divides: impl Fn(char) -> bool) -> usize {
    let mut end = part(text);
    while end > 0 && text.get(end).copied().is_some_and(&divides) {
        match part(&text[end + 1..]) {
            0 => break,
            more => end += 1 + more,
        }
    }
    end
}

/// `3.5-inch`, `1,000-2`, `U.S.-based`, `non-U.S.`: full stops and commas before the first hyphen.
fn joined(text: &[char]) -> usize {
    if !text.first().is_some_and(char::is_ascii_alphanumeric) {
        return 0;
    }
    let mut end = run(text, |c| c.is_ascii_alphanumeric() || matches!(c, '.' | ','));
    let mut longest = 0;
    while text.get(end) == Some(&'-') {
        let rest = &text[end + 1..];
        match acronym(rest).max(run(rest, |c| c.is_ascii_alphanumeric())) {
            0 => break,
            more => end += 1 + more,
        }
        longest = end;
    }
    longest
}

/// `U.S.`, of two letters at least, and its full stops.
fn acronym(text: &[char]) -> usize {
    let letters =
        text.chunks_exact(2).take_while(|pair| pair[0].is_ascii_alphabetic() && pair[1] == '.').count();
    if letters > 1 { 2 * letters } else { 0 }
}

/// `and/or`, `1/4-mile`: two or three parts, each with up to two words behind hyphens.
fn slashed(text: &[char]) -> usize {
    let part = |text: &[char]| {
        let mut end = run(text, |c| c.is_ascii_alphanumeric());
        for _ in 0..2 {
            let more = text.get(end + 1..).map_or(0, |rest| run(rest, |c| c.is_ascii_alphabetic()));
            if end > 0 && more > 0 && text[end] == '-' {
                end += 1 + more;
            }
        }
        end
    };
    let mut end = part(text);
    let mut longest = 0;
    for _ in 0..2 {
        let more = text.get(end + 1..).map_or(0, part);
        if end == 0 || more == 0 || text[end] != '/' {
            break;
        }
        end += 1 + more;
        longest = end;
    }
    longest
}

/// `1/2`, `1-1/2`, `1 1/2`: up to four digits each.
fn fraction(text: &[char]) -> usize {
    let slashed = |text: &[char]| {
        let above = digits(text);
        let below = text.get(above + 1..).map_or(0, digits).min(4);
        if (1..=4).contains(&above) && below > 0 && text[above] == '/' { above + 1 + below } else { 0 }
    };
    let whole = digits(text);
    let behind = match text.get(whole) {
        Some(' ' | '\u{a0}' | '-') if (1..=4).contains(&whole) => slashed(&text[whole + 1..]),
        _ => 0,
    };
    if behind > 0 { whole + 1 + behind } else { slashed(text) }
}

/// `12/25/2010`, `9/11-2001`.
fn date(text: &[char]) -> usize {
    let (mut end, mut part) = (0, digits(text));
    for _ in 0..2 {
        end += part;
        if !(1..=2).contains(&part) || !matches!(text.get(end), Some('/' | '-')) {
            return 0;
        }
        end += 1;
        part = digits(&text[end..]);
    }
    if part < 2 { 0 } else { end + part.min(4) }
}

/// `street.A`, `yes!no`: words without a blank between them.
fn dotted(text: &[char]) -> usize {
    let part = |text: &[char]| match text.first() {
        Some(first) if is_letter(*first) => run(text, is_alphanumeric),
        _ => 0,
    };
    chain(text, part, |c| matches!(c, '.' | '!' | '?'))
}

/// `1.txt`, before a blank or the end of a sentence.
fn file_name(text: &[char]) -> usize {
    let length = run(text, |c| is_alphanumeric(c) || c == '.');
    let end = length - usize::from(text[..length].ends_with(&['.']));
    let behind = text.get(end).copied().unwrap_or(' ');
    let name = lower(&text[..end]);
    let is_name = name.rsplit_once('.').is_some_and(|(name, kind)| {
        name.split('.').all(|part| !part.is_empty())
            && FILE_TYPES.split_ascii_whitespace().any(|known| known == kind)
    });
    if is_name && (behind.is_whitespace() || matches!(behind, '.' | ',' | '?' | '!')) { end } else { 0 }
}

/// `AT&T`, `R+D`.
fn capitals(text: &[char]) -> usize {
    let part = |text: &[char]| run(text, |c| c.is_ascii_uppercase());
    let mut end = part(text);
    let mut longest = 0;
    while end > 0 {
        end += match &text[end..] {
            ['&', 'a', 'm', 'p', ';', ..] => 5,
            ['&' | '+', ..] => 1,
            _ => break,
        };
        match part(&text[end..]) {
            0 => break,
            more => end += more,
        }
        longest = end;
    }
    longest
}

/// `US$`.
fn currency(text: &[char]) -> usize {
    let letters = run(text, |c| c.is_ascii_uppercase());
    if letters > 0 && text.get(letters) == Some(&'$') { letters + 1 } else { 0 }
}

/// `C++`, `F#`.
fn language(text: &[char]) -> usize {
    match text {
        ['c' | 'C', '+', '+', ..] => 3,
        ['c' | 'C' | 'f' | 'F', '#', ..] => 2,
        _ => 0,
    }
}

/// `me@home.com`.
fn address(text: &[char]) -> usize {
    let is_inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let user = run(text, is_inside);
    if text.get(user) != Some(&'@') {
        return 0;
    }
    let host = run(&text[user + 1..], is_inside);
    let end =
        text[..user + 1 + host].iter().rposition(char::is_ascii_alphanumeric).map_or(0, |last| last + 1);
    if end > user + 1 { end } else { 0 }
}

/// `X'amour`, `n'amour`: one letter, an apostrophe and two letters at least.
fn name(text: &[char]) -> usize {
    let is_first = matches!(text.first(), Some('n' | 'A'..='Z')) && !matches!(text[0], 'I' | 'Y');
    let letters = text.get(2..).map_or(0, |rest| run(rest, is_letter));
    let is_name = is_first && letters > 1 && behind_apostrophe(&text[1..]).is_some();
    if is_name { 2 + letters } else { 0 }
}

/// `hawai'i`, `ma'am`: the apostrophe behind a vowel and before a vowel or a capital.
fn between_vowels(text: &[char]) -> usize {
    let is_vowel = |c: char| "aeiouy".contains(c.to_ascii_lowercase());
    let before = run(text, is_letter);
    let is_before = before > 1 && is_vowel(text[before - 1]);
    let rest = text.get(before + 1..).unwrap_or_default();
    let is_behind = rest.first().is_some_and(|c| "aeiou".contains(*c) || c.is_ascii_uppercase());
    if !is_before || !is_behind || behind_apostrophe(&text[before..]).is_none() {
        return 0;
    }
    before + 1 + run(rest, is_letter)
}

/// Words with an apostrophe that stand in a list.
fn known(text: &[char]) -> usize {
    let letters = run(text, is_letter);
    let Some(rest) = text.get(letters + 1..).filter(|_| is_apostrophe(text[letters])) else { return 0 };
    let whole = letters + 1 + run(rest, is_alphanumeric);
    let is_one_of = |words: &[&str], end: usize| words.contains(&lower(&text[..end]).as_str());
    if is_one_of(&WITH_APOSTROPHE, whole) {
        return whole;
    }
    let stands_alone = behind_apostrophe(&text[letters..]).is_some();
    if stands_alone && is_one_of(&BEFORE_APOSTROPHE, letters) { letters + 1 } else { 0 }
}
