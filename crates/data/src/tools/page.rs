//! A data set on one page of HTML that needs nothing else: numbers, problems, duplicates, thumbnails with captions.

use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::ToolError;
use super::survey::{Shown, Survey};

/// Samples on the page, unless another number is asked for.
pub const PAGE_SAMPLES: usize = 200;

const STYLE: &str = "\
body{font:14px/1.4 system-ui,sans-serif;margin:2em;color:#222}\
table{border-collapse:collapse}td{padding:.1em 1em .1em 0;vertical-align:top}\
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(180px,1fr));gap:1em}\
figure{margin:0}img{max-width:160px;max-height:160px;background:#eee}\
figcaption{font-size:12px;overflow-wrap:anywhere}small{color:#777}";

/// Writes the page to `path`; `title` says which shards.
pub fn write_page(path: &Path, title: &str, survey: &Survey) -> Result<(), ToolError> {
    std::fs::write(path, page(title, survey)).map_err(ToolError::writing(path))
}

fn page(title: &str, survey: &Survey) -> String {
    let mut html = String::new();
    let title = escaped(title);
    html.push_str("<!doctype html><meta charset=\"utf-8\">");
    push(&mut html, format_args!("<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"));
    let rows = survey.statistics.lines().into_iter().map(|(name, value)| (name.to_owned(), value));
    table(&mut html, "Numbers", rows);
    let problems = survey
        .problems
        .by_reason()
        .into_iter()
        .map(|(reason, count)| (reason.to_string(), count.to_string()));
    table(&mut html, "Left out", problems);
    let bad =
        survey.bad.iter().map(|error| (error.key.clone(), format!("{} in {}", error.reason, error.shard)));
    table(&mut html, "First bad samples", bad);
    let duplicates = &survey.duplicates;
    let counts = [
        ("same bytes".to_owned(), duplicates.same_bytes.to_string()),
        ("same look".to_owned(), duplicates.same_look.to_string()),
    ];
    let pairs = duplicates.pairs.iter().map(|(key, earlier)| (key.clone(), format!("as {earlier}")));
    table(&mut html, "There more than once", counts.into_iter().chain(pairs));
    html.push_str("<h2>Samples</h2><div class=\"grid\">");
    survey.shown.iter().for_each(|shown| figure(&mut html, shown));
    html.push_str("</div>\n");
    html
}

/// Nothing for no rows.
fn table(html: &mut String, heading: &str, rows: impl Iterator<Item = (String, String)>) {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return;
    }
    push(html, format_args!("<h2>{heading}</h2><table>"));
    for (name, value) in rows {
        push(html, format_args!("<tr><td>{}<td>{}", escaped(&name), escaped(&value)));
    }
    html.push_str("</table>\n");
}

fn figure(html: &mut String, shown: &Shown) {
    let [width, height] = shown.size;
    let picture = STANDARD.encode(&shown.thumbnail);
    let key = escaped(&shown.key);
    push(
        html,
        format_args!("<figure><img alt=\"{key}\" src=\"data:image/jpeg;base64,{picture}\"><figcaption>"),
    );
    for caption in &shown.captions.captions {
        push(html, format_args!("{}<br>", escaped(caption)));
    }
    push(html, format_args!("<small>{key}, {width}x{height}</small></figcaption></figure>\n"));
}

fn push(html: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = html.write_fmt(text);
}

/// Text as it stands in HTML: captions come from anywhere.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_caption_becomes_html() {
        let mut survey = Survey::default();
        survey.shown.push(Shown {
            key: "a\"onload=\"x".to_owned(),
            size: [3, 2],
            captions: crate::Captions {
                captions: vec!["<script>alert('1')</script> & more".to_owned()],
                ..crate::Captions::default()
            },
            thumbnail: vec![1, 2, 3],
        });
        let html = page("shards <x>", &survey);
        assert!(!html.contains("<script") && !html.contains("\"onload") && !html.contains("<x>"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; more"));
        assert!(html.contains("data:image/jpeg;base64,AQID"));
    }
}
