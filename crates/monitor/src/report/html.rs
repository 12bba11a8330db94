//! Text that goes into the page. Strings reach the page through [`Text`] alone, so that none of them becomes markup.

use std::fmt;

/// A string as HTML text or attribute value: escaped, and without control characters.
pub(super) struct Text<'a>(pub &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_str(" ")?,
                // Controls and the marks that turn the direction of the text around would let a caption disguise its
                // neighbours.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => f.write_str("\u{fffd}")?,
                character if character.is_control() => f.write_str("\u{fffd}")?,
                character => write!(f, "{character}")?,
            }
        }
        Ok(())
    }
}

/// `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `23.1` for 0.231: a share in per cent, one decimal.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_controls_become_text() {
        let text = Text("<a href='x' on=\"y\">&\u{0}\u{202e}\n\u{1b}[31m é 猫").to_string();
        assert_eq!(
            text,
            "&lt;a href=&#39;x&#39; on=&quot;y&quot;&gt;&amp;\u{fffd}\u{fffd} \u{fffd}[31m é 猫"
        );
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 186_705_470].map(count), ["0", "999", "1,000", "186,705,470"]);
        assert_eq!(percent(0.2306), "23.1");
    }
}
