//! Caption tokenisation as pycocoevalcap has it from Stanford's `PTBTokenizer -preserveLines -lowerCase` (3.4.1), with
//! its list of punctuation removed.
//!
//! The rules were found by asking the Java program, and cover what captions hold: words with hyphens, slashes and
//! apostrophes, contractions, acronyms and abbreviations, numbers, brackets, currency, quotes and dashes. Not covered, and
//! cut into their parts here: web addresses, markup, and faces made of punctuation.

/// The words of a caption.
pub type Tokens = Vec<String>;

/// Words that are two.
const TWO_WORDS: [(&str, usize); 6] =
    [("cannot", 3), ("gonna", 3), ("gotta", 3), ("wanna", 3), ("gimme", 3), ("lemme", 3)];

/// Words that begin with an apostrophe; all others lose it as a quotation mark.
const WITH_APOSTROPHE: [&str; 6] = ["s", "n", "em", "til", "cause", "t"];

/// What is cut off a word, apostrophe included.
const CLITICS: [&str; 7] = ["s", "m", "d", "ll", "re", "ve", "n"];

/// Words that keep their apostrophe inside though more than one letter stands before it.
const WHOLE: [&str; 3] = ["ma'am", "ne'er", "hors-d'oeuvre"];

/// Abbreviations that keep their full stop, beside single letters and acronyms (`u.s.`).
const ABBREVIATIONS: &str = "mr mrs ms mme mlle messrs dr st jr sr esq prof gen rep reps sen sens gov govs rev hon pres sgt cpl pvt lt \
    maj col cmdr adm capt insp supt det atty asst bros etc vs al cf jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues \
    wed thu thurs fri ave blvd rd ft sq ct ste bldg mt mont dept est inc ltd co corp cos plc pty mfg assoc bancorp univ assn intl natl \
    sys treas tel ext mo md adj adv ph.d ala calif colo conn fla ga ind kan ky mich minn neb nev okla tenn va vt wis wyo ariz";
/// Written with a capital they are states, else words: `a car wash.`
const STATES: &str = "ark az del ill la mass miss ore pa tex wash";
/// They keep their stop before a number.
const BEFORE_NUMBERS: &str = "no nos fig figs pp prop op art ca";
/// A sentence begins with them where they are capitalised: a letter before is then the end of the one before.
const STARTERS: &str = "a about according additionally after an as at but earlier he her here however if in it last many more now once \
    one other our she since so some such that the their then there these they this we what when while yet you";

/// Splits a caption into words: lower case, without punctuation.
pub fn tokenize(caption: &str) -> Tokens {
    let mut scanner = Scanner { text: caption.chars().collect(), at: 0, tokens: Vec::new() };
    while let Some(character) = scanner.peek(0) {
        scanner.step(character);
    }
    scanner.tokens
}

/// Straight or curly. In contractions a curly one becomes straight; inside a word (`o’clock`) it stays.
fn is_apostrophe(character: char) -> bool {
    matches!(character, '\'' | '\u{2018}' | '\u{2019}')
}

struct Scanner {
    text: Vec<char>,
    at: usize,
    tokens: Tokens,
}

impl Scanner {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn is_at(&self, ahead: usize, is: impl Fn(char) -> bool) -> bool {
        self.peek(ahead).is_some_and(is)
    }

    /// True where a character of a word, or a sign that belongs to a number, stands before.
    fn is_inside_word(&self) -> bool {
        self.at > 0 && is_word(self.text[self.at - 1])
    }

    fn push(&mut self, token: impl Into<String>) {
        self.tokens.push(token.into());
    }

    /// Reads one token, or passes over what is none.
    fn step(&mut self, character: char) {
        match character {
            c if is_word(c) => return self.word(),
            c if is_apostrophe(c) && self.apostrophe() => return,
            '!' | '?' => return self.run(|c| matches!(c, '!' | '?')),
            '.' | '-' | '+' if self.is_at(1, |c| c.is_ascii_digit()) => return self.signed(),
            '@' | '#' if self.is_at(1, char::is_alphabetic) => return self.signed(),
            '*' | '#' => return self.run(|c| c == character),
            '&' => return self.ampersand(),
            '(' => self.push("-lrb-"),
            ')' => self.push("-rrb-"),
            '[' => self.push("-lsb-"),
            ']' => self.push("-rsb-"),
            '{' => self.push("-lcb-"),
            '}' => self.push("-rcb-"),
            '½' => self.push("1/2"),
            '¼' => self.push("1/4"),
            '¾' => self.push("3/4"),
            '€' => self.push("$"),
            '£' => self.push("#"),
            '¢' => self.push("cents"),
            c if is_dropped(c) => {}
            c => self.push(c),
        }
        self.at += 1;
    }

    /// Several marks in a row are one token. A single `!` or `?` is punctuation.
    fn run(&mut self, is_mark: impl Fn(char) -> bool) {
        let run: String = self.text[self.at..].iter().take_while(|c| is_mark(**c)).collect();
        self.at += run.len();
        if !matches!(run.as_str(), "!" | "?") {
            self.push(run);
        }
    }

    /// `+5`, `.5`, `@home`, `#tag`: the sign belongs to what follows.
    fn signed(&mut self) {
        let sign = self.text[self.at];
        self.at += 1;
        let first = self.tokens.len();
        self.word();
        if let Some(token) = self.tokens.get_mut(first) {
            token.insert(0, sign);
        }
    }

    /// `&`, also as `&amp;`.
    fn ampersand(&mut self) {
        for (entity, token) in [("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", "")] {
            if entity.chars().enumerate().all(|(ahead, c)| self.peek(ahead) == Some(c)) {
                self.at += entity.len();
                if !token.is_empty() {
                    self.push(token);
                }
                return;
            }
        }
        self.push("&");
        self.at += 1;
    }

    /// A token that begins with an apostrophe (`'s`, `'em`, `'90s`); false where it is a quotation mark.
    fn apostrophe(&mut self) -> bool {
        let rest: String = self.text[self.at + 1..].iter().take_while(|c| c.is_alphanumeric()).collect();
        let rest = rest.to_lowercase();
        let after = self.at + 1 + rest.chars().count();
        let decade = rest.strip_suffix('s').unwrap_or(&rest);
        let is_decade = decade.len() == 2 && decade.bytes().all(|b| b.is_ascii_digit());
        if let ("tis" | "twas", false) = (rest.as_str(), self.is_inside_word()) {
            self.push("'t");
            self.push(&rest[1..]);
        } else if CLITICS.contains(&rest.as_str())
            || (!self.is_inside_word() && (is_decade || WITH_APOSTROPHE.contains(&rest.as_str())))
        {
            // 'n' keeps both of its apostrophes
            let closing = if rest == "n" && self.text.get(after) == Some(&'\'') { "'" } else { "" };
            self.push(format!("'{rest}{closing}"));
            self.at = after + closing.len();
            return true;
        } else {
            return false;
        }
        self.at = after;
        true
    }

    /// A word or a number with all that belongs to it, cut where the treebank cuts.
    fn word(&mut self) {
        let start = self.at;
        while (self.is_at(0, is_word) && !self.ends_number(start)) || self.joins(start) {
            self.at += 1;
        }
        let word: String = self.text[start..self.at].iter().collect();
        let lower = word.to_lowercase();
        if self.is_at(0, is_apostrophe) && self.cut_not(&lower) {
            return;
        }
        if lower == "y" && self.is_at(0, is_apostrophe) && self.is_at(1, char::is_alphabetic) {
            self.at += 1;
            return self.push("y'");
        }
        if self.is_at(0, |c| c == '.') && self.keeps_full_stop(&word, &lower) {
            self.at += 1;
            return self.push(lower + ".");
        }
        match TWO_WORDS.iter().find(|(word, _)| *word == lower) {
            Some(&(_, at)) => {
                self.push(&lower[..at]);
                self.push(&lower[at..]);
            }
            None => self.push(lower),
        }
    }

    /// `do n't`: the `n` in front of `'t` goes with it. Stands behind the word, at its apostrophe.
    fn cut_not(&mut self, word: &str) -> bool {
        let ends = |ahead: usize| !self.is_at(ahead, char::is_alphanumeric);
        let is_not = self.is_at(1, |c| matches!(c, 't' | 'T')) && ends(2);
        let Some(stem) = word.strip_suffix('n').filter(|_| is_not) else { return false };
        if !stem.is_empty() {
            self.push(stem);
        }
        self.push("n't");
        self.at += 2;
        true
    }

    /// True where letters follow a number that has a separator: `5:30 pm`, `3.5 mm`, but `5pm`.
    fn ends_number(&self, start: usize) -> bool {
        let word = &self.text[start..self.at];
        let is_number = word.iter().all(|c| c.is_ascii_digit() || is_separator(*c));
        is_number && word.iter().copied().any(is_separator) && self.is_at(0, char::is_alphabetic)
    }

    /// True where the mark at the cursor stands inside the word that began at `start`.
    fn joins(&self, start: usize) -> bool {
        let Some(mark) = self.peek(0) else { return false };
        let (before, next) = (self.text[self.at - 1], self.peek(1).unwrap_or(' '));
        let word = &self.text[start..self.at];
        let is_number = before.is_ascii_digit() && next.is_ascii_digit();
        match mark {
            '-' => is_word(before) && is_word(next) && !word.contains(&':'),
            '/' | '@' => before.is_alphanumeric() && next.is_alphanumeric(),
            ',' => is_number,
            ':' => is_number && word.iter().all(char::is_ascii_digit),
            '.' if before.is_ascii_digit() => is_number && !word.iter().any(|c| c.is_alphabetic()),
            '.' => next.is_alphabetic() && word.iter().all(|&c| c.is_alphabetic() || c == '.'),
            '&' => next.is_uppercase() && word.iter().all(|c| c.is_uppercase()),
            c if is_apostrophe(c) => self.joins_apostrophe(word, next),
            _ => false,
        }
    }

    /// `o'clock`, `d'angelo`: one letter before the apostrophe and a name behind it, which is no clitic.
    fn joins_apostrophe(&self, word: &[char], next: char) -> bool {
        let behind = self.text[self.at + 1..].iter().take_while(|c| c.is_alphabetic());
        let behind: String = behind.collect::<String>().to_lowercase();
        let before: String = word.iter().collect::<String>().to_lowercase();
        let is_elided = matches!(before.as_str(), "o" | "d" | "l" | "c" | "e");
        let is_whole = WHOLE.contains(&format!("{before}'{behind}").as_str());
        next.is_alphabetic() && (is_whole || (is_elided && !CLITICS.contains(&behind.as_str())))
    }

    /// True for acronyms, abbreviations, `no.` before a number, and before a mark that cannot follow a sentence.
    fn keeps_full_stop(&self, word: &str, lower: &str) -> bool {
        let is_one_of = |list: &str| list.split_ascii_whitespace().any(|known| known == lower);
        let is_letter = |part: &str| part.chars().count() == 1 && part.chars().all(char::is_alphabetic);
        let mut behind = self.text[self.at + 1..].iter().skip_while(|c| **c == ' ').peekable();
        let is_number_next = behind.peek().is_some_and(|c| c.is_ascii_digit());
        let next: String = behind.take_while(|c| c.is_alphabetic()).collect();
        let starts = next.starts_with(char::is_uppercase)
            && STARTERS.split_ascii_whitespace().any(|starter| starter == next.to_lowercase())
            && self.is_at(1, char::is_whitespace);
        let is_capital = word.starts_with(char::is_uppercase);
        (is_letter(lower) && !starts)
            || (lower.contains('.') && lower.split('.').all(is_letter))
            || is_one_of(ABBREVIATIONS)
            || (is_capital && is_one_of(STATES))
            || (is_number_next && is_one_of(BEFORE_NUMBERS))
            || (self.is_at(1, |c| matches!(c, ',' | ';' | ':')) && lower.chars().all(char::is_alphabetic))
    }
}

/// Marks inside a number.
fn is_separator(character: char) -> bool {
    matches!(character, '.' | ',' | ':')
}

/// Letters, digits, the underscore, and accents written apart.
fn is_word(character: char) -> bool {
    let is_plane_0 = u32::from(character) < 0x1_0000;
    (character.is_alphanumeric() && is_plane_0 && !is_number_sign(character))
        || character == '_'
        || ('\u{300}'..='\u{36f}').contains(&character)
}

/// Numeric, but neither digit nor letter: fractions, superscripts, Roman numerals.
fn is_number_sign(character: char) -> bool {
    (character.is_numeric() && !character.is_ascii_digit() && !character.is_alphabetic())
        || is_roman(character)
}

fn is_roman(character: char) -> bool {
    ('\u{2160}'..='\u{2188}').contains(&character)
}

/// Punctuation of pycocoevalcap's list in all its writings, blanks, and what the Java program cannot read.
fn is_dropped(character: char) -> bool {
    character.is_whitespace()
        || character.is_control()
        || u32::from(character) >= 0x1_0000
        || is_roman(character)
        || is_separator(character)
        || is_apostrophe(character)
        || matches!(character, ';' | '-' | '`' | '"' | '…' | '“' | '”' | '«' | '»' | '‹' | '›')
        || ('\u{2010}'..='\u{2015}').contains(&character)
        || ('\u{200b}'..='\u{200f}').contains(&character)
        || ('\u{fe00}'..='\u{fe0f}').contains(&character)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the Java program and the removal of punctuation give.
    const KNOWN: &[(&str, &str)] = &[
        ("A black-and-white cat's toy.", "a black-and-white cat 's toy"),
        ("Don't! It's the dogs' ball, isn't it?", "do n't it 's the dogs ball is n't it"),
        ("I’d’ve said “no”", "i 'd 've said no"),
        ("They can't; we cannot, gonna", "they ca n't we can not gon na"),
        ("six o'clock, O'Brien's d'Angelo ma'am", "six o'clock o'brien 's d'angelo ma'am"),
        (
            "rock 'n' roll, fish'n chips, get 'em in the '90s",
            "rock 'n' roll fish 'n chips get 'em in the '90s",
        ),
        ("'twas y'all", "'t was y' all"),
        ("Mr. Smith in the U.S. near St. Mary's, etc.", "mr. smith in the u.s. near st. mary 's etc."),
        ("no. 5, No.1, no.", "no. 5 no. 1 no"),
        (
            "1,000th 3.5mm 10:30 5:30pm 5pm 1/2 ½ 5' 3\" .5 -5",
            "1,000 th 3.5 mm 10:30 5:30 pm 5pm 1/2 1/2 5 3 .5 -5",
        ),
        ("twelve o’clock ** 5:30-6:00", "twelve o’clock ** 5:30 -6:00"),
        ("$5 10% #1 @home #tag a/b w/ £5 20°C", "$ 5 10 % # 1 @home #tag a/b w / # 5 20 ° c"),
        ("(blood type) [a] {b}", "-lrb- blood type -rrb- -lsb- a -rsb- -lcb- b -rcb-"),
        ("wait... what?! yes!! no! a...b man…dog", "wait what ?! yes !! no a. b man dog"),
        ("AT&T R&B black&white &amp; M&M's", "at&t r&b black & white & m&m 's"),
        ("two -- three — four – five-six a--b", "two three four five-six a b"),
        ("street.A man stands. IT'S", "street.a man stands it 's"),
        ("café naïve 猫 ❤️ 😀 smile", "café naïve 猫 ❤ smile"),
        ("a car wash. Boston, Mass. and Tex.", "a car wash boston mass. and tex."),
        ("Mt. Hood, Asst. Chief; pp. 5 and pp.", "mt. hood asst. chief pp. 5 and pp"),
        ("vitamin C. The dog and J. Smith", "vitamin c the dog and j. smith"),
        ("a dog., a cat", "a dog. a cat"),
        ("C. D. v1.0 2+2=4 under_score 1980's", "c. d. v1 .0 2 +2 = 4 under_score 1980 's"),
    ];

    #[test]
    fn agrees_with_the_java_program() {
        for (caption, tokens) in KNOWN {
            assert_eq!(tokenize(caption).join(" "), *tokens, "{caption}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_words(text in "[ -~\\PC]{0,60}") {
            for token in tokenize(&text) {
                prop_assert!(!token.is_empty() && !token.contains(char::is_whitespace), "{:?}", token);
                prop_assert_eq!(&token.to_lowercase(), &token);
            }
        }

        #[test]
        fn plain_words_are_kept(words in proptest::collection::vec("[bcdfghjklm]{2,6}", 0..8)) {
            let known = |word: &String| ABBREVIATIONS.split_ascii_whitespace().any(|a| a == word) || word == "gimme";
            prop_assume!(!words.iter().any(known));
            prop_assert_eq!(tokenize(&words.join(" ")), words);
        }
    }
}
