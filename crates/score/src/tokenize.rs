//! Caption tokenisation as pycocoevalcap has it from Stanford's `PTBTokenizer -preserveLines -lowerCase` (3.4.1), with
//! its list of punctuation removed.
//!
//! The rules were found by asking the Java program, and cover what captions hold: words with hyphens, slashes and
//! apostrophes, contractions, acronyms and abbreviations, numbers, brackets, currency, quotes and dashes. Not covered, and
//! cut into their parts here: web addresses with a path, markup, entities other than `&amp;` and the like, faces made of
//! punctuation; curly apostrophes before `em` and `90s` become straight, and marks written apart from their letter are
//! those of U+0300 to U+036F.

mod phone;
mod shapes;
mod stops;
#[cfg(test)]
mod tests;

/// The words of a caption. A token with a blank inside (`1 1/2`, a telephone number) has U+00A0 there.
pub type Tokens = Vec<String>;

/// Words that are two.
const TWO_WORDS: [(&str, usize); 6] =
    [("cannot", 3), ("gonna", 3), ("gotta", 3), ("wanna", 3), ("gimme", 3), ("lemme", 3)];

/// Words that begin with an apostrophe where no word stands before; others lose it as a quotation mark.
const BEGIN_WITH_APOSTROPHE: [&str; 2] = ["til", "cause"];

/// What is cut off a word, apostrophe included.
const CLITICS: [&str; 7] = ["s", "m", "d", "ll", "re", "ve", "n"];

/// Shows where a word may be broken, and is no part of it.
const SOFT_HYPHEN: char = '\u{ad}';

/// Splits a caption into words: lower case, without punctuation. What other captions stand beside it makes no difference.
pub fn tokenize(caption: &str) -> Tokens {
    let text: Vec<char> = caption.chars().filter(|c| *c != SOFT_HYPHEN).chain(['\n']).collect();
    let end = text.len() - 1;
    Scanner { text: &text, at: 0, tokens: Vec::new() }.run_to(end)
}

/// Splits captions as pycocoevalcap does it, which hands them over as one text with a caption a line: whether the last
/// full stop of a caption belongs to its word can depend on the next one (`vitamin c.`, then `A dog` or `Dogs`).
/// This is to compare with it; figures are made of [`tokenize`].
pub fn tokenize_as_one_text(captions: &[&str]) -> Vec<Tokens> {
    let lines: Vec<String> =
        captions.iter().map(|caption| caption.replace('\n', " ").replace(SOFT_HYPHEN, "")).collect();
    let text: Vec<char> = lines.join("\n").chars().collect();
    let mut start = 0;
    let of_line = |line: &String| {
        let at = start;
        start += line.chars().count() + 1;
        Scanner { text: &text, at, tokens: Vec::new() }.run_to(start - 1)
    };
    lines.iter().map(of_line).collect()
}

/// Straight or curly. In contractions a curly one becomes straight; inside a word (`o’clock`) it stays.
fn is_apostrophe(character: char) -> bool {
    matches!(character, '\'' | '\u{2018}' | '\u{2019}')
}

struct Scanner<'a> {
    /// The caption, and what follows it.
    text: &'a [char],
    at: usize,
    tokens: Tokens,
}

impl Scanner<'_> {
    /// The words before `end`, where a line ends.
    fn run_to(mut self, end: usize) -> Tokens {
        while self.at < end {
            self.step(self.text[self.at]);
        }
        self.tokens
    }

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
            '_' => return self.run(|c| c == '_'),
            '\'' if self.is_at(1, |c| c == '\'') => self.at += 1, // a quotation mark
            c if is_word(c) => return self.word(),
            c if is_apostrophe(c) && self.apostrophe() => return,
            '!' | '?' => return self.run(|c| matches!(c, '!' | '?')),
            '+' | '-' | '.' | ',' | ':' | '(' | '@' | '#' if self.signed() => return,
            '*' | '#' | '-' => return self.run(|c| c == character),
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
            '⅓' => self.push("1/3"),
            '⅔' => self.push("2/3"),
            '€' => self.push("$"),
            '£' => self.push("#"),
            '¢' => self.push("cents"),
            c if is_dropped(c) => {}
            c => self.push(c),
        }
        self.at += 1;
    }

    /// Several marks in a row are one token. A few of some kinds are punctuation.
    fn run(&mut self, is_mark: impl Fn(char) -> bool) {
        let run: String = self.text[self.at..].iter().take_while(|c| is_mark(**c)).collect();
        self.at += run.len();
        if !matches!(run.as_str(), "!" | "?" | "-" | "--" | "---" | "----") {
            self.push(run);
        }
    }

    /// `+5`, `.5`, `@home`, `#tag`, `(555) 555-1234`: the sign belongs to what follows. False where it is a mark.
    fn signed(&mut self) -> bool {
        let rest = &self.text[self.at..];
        let behind = &rest[1..];
        let length = match rest[0] {
            '.' if behind.starts_with(&['.', '.']) => {
                self.at += shapes::run(rest, |c| c == '.');
                return true;
            }
            '@' if behind.first().copied().is_some_and(shapes::is_letter) => 1 + shapes::run(behind, is_word),
            '#' => 1 + shapes::run(behind, shapes::is_letter),
            '+' | '-' => shapes::phone(rest).max(1 + shapes::number(behind)),
            '(' => shapes::phone(rest),
            _ => shapes::number(rest),
        };
        if length > 1 {
            self.take(length);
        }
        length > 1
    }

    /// The next characters as one token, whatever they are. A blank inside becomes one that does not divide, so that the
    /// token is one for ROUGE, and words for the figures that look at n-grams.
    fn take(&mut self, length: usize) {
        let token: String = self.text[self.at..self.at + length].iter().collect();
        self.at += length;
        let token = token.to_lowercase().replace("&amp;", "&").replace(' ', "\u{a0}");
        self.push(token.replace('(', "-lrb-").replace(')', "-rrb-"));
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
        let behind = &self.text[self.at + 1..];
        let (letters, digits) = (shapes::run(behind, shapes::is_letter), shapes::digits(behind));
        let length = if digits > 0 { shapes::run(behind, is_word) } else { letters };
        let rest = lower(&behind[..length]);
        let after = self.at + 1 + length;
        let decade = rest.strip_suffix('s').unwrap_or(&rest);
        let is_decade = decade.len() == 2 && decade.bytes().all(|b| b.is_ascii_digit());
        if let ("tis" | "twas", false) = (rest.as_str(), self.is_inside_word()) {
            self.push("'t");
            self.push(&rest[1..]);
        } else if CLITICS.contains(&rest.as_str())
            || rest == "em"
            || (!self.is_inside_word() && (is_decade || BEGIN_WITH_APOSTROPHE.contains(&rest.as_str())))
        {
            // 'n' keeps both of its apostrophes, and 'n stands before a blank
            let behind = self.text.get(after).copied();
            let closing = if rest == "n" && behind == Some('\'') { "'" } else { "" };
            if rest == "n" && closing.is_empty() && behind.is_some_and(|c| !c.is_whitespace()) {
                return false;
            }
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
        let length = shapes::longest(&self.text[self.at..]).max(1);
        let (word, after) = self.text[self.at..].split_at(length);
        let small = lower(word);
        if after.first().copied().is_some_and(is_apostrophe) && self.cut_not(&small, length) {
            return;
        }
        if small == "y" && shapes::behind_apostrophe(after).is_some_and(|letters| letters > 0) {
            return self.take(length + 1);
        }
        if after.first() == Some(&'.') && stops::belongs_to(&word.iter().collect::<String>(), &after[1..]) {
            return self.take(length + 1);
        }
        let Some(&(_, at)) = TWO_WORDS.iter().find(|(word, _)| *word == small) else {
            return self.take(length);
        };
        self.take(at);
        self.take(length - at);
    }

    /// `do n't`: the `n` in front of `'t` goes with it. True where `word`, of that length, stands before that.
    fn cut_not(&mut self, word: &str, length: usize) -> bool {
        let ends = !self.is_at(length + 2, char::is_alphabetic);
        let is_not = ends && self.is_at(length + 1, |c| matches!(c, 't' | 'T'));
        if !is_not || !word.ends_with('n') || !word.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return false;
        }
        if length > 1 {
            self.take(length - 1);
        }
        self.push("n't");
        self.at += 3;
        true
    }
}

/// In small letters.
fn lower(text: &[char]) -> String {
    text.iter().collect::<String>().to_lowercase()
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
        || matches!(character, '\u{feff}' | ';' | '`' | '"' | '…' | '“' | '”' | '«' | '»' | '‹' | '›')
        || ('\u{2010}'..='\u{2015}').contains(&character)
        || ('\u{200b}'..='\u{200f}').contains(&character)
        || ('\u{fe00}'..='\u{fe0f}').contains(&character)
}
