//! The page as a whole: head, headline figures, sections in the order in which a reader asks.

use std::fmt::Write as _;

use super::data::ReportData;
use super::html::{Text, count, percent};
use super::{chart::Chart, curves, gallery, tables};
use crate::record::Phase;

const STYLE: &str = include_str!("style.css");

/// Nothing may be loaded or run: a caption that slipped through as markup would still do nothing.
const POLICY: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The whole document.
pub(super) fn page(data: &ReportData) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{}</title><style>{STYLE}</style></head><body><main>\
         <header><h1>{}</h1><p class=\"summary\">{}</p></header>",
        Text(&data.title),
        Text(&data.title),
        Text(&data.summary)
    );
    headline(&mut html, data);
    section(&mut html, "Notes", "", !data.notes.is_empty(), |html| list(html, &data.notes));
    let about = "Share of queries, in per cent, whose partner is among the first 1, 5 or 10; ± is one standard error.";
    section(&mut html, "Retrieval", about, !data.eval.retrieval.is_empty(), |html| {
        tables::retrieval(html, data)
    });
    let about = "CIDEr from 0 to 10. Shuffled pictures show what the language model says without looking.";
    section(&mut html, "Captions", about, !data.eval.captions.is_empty(), |html| {
        tables::captions(html, data)
    });
    section(&mut html, "Held-out pictures", "", !data.gallery.is_empty(), |html| {
        gallery::gallery(html, data)
    });
    let charts = curves::stage1(&data.records);
    section(&mut html, "Stage 1", "", !charts.is_empty(), |html| figures(html, &charts));
    let charts = curves::stage2(&data.records);
    section(
        &mut html,
        "Stage 2, with and without stage 1",
        &stage2_sentence(data),
        !charts.is_empty(),
        |html| {
            figures(html, &charts);
        },
    );
    let has_records = !data.records.is_empty();
    section(&mut html, "Speed and schedule", "", has_records, |html| {
        figures(html, &curves::training(&data.records))
    });
    section(&mut html, "The run", "", true, |html| tables::facts(html, data));
    section(&mut html, "Sources", "", !data.attributions.is_empty(), |html| list(html, &data.attributions));
    html.push_str("</main></body></html>\n");
    html
}

fn section(html: &mut String, title: &str, about: &str, is_shown: bool, body: impl FnOnce(&mut String)) {
    if !is_shown {
        return;
    }
    let _ = write!(html, "<section><h2>{}</h2>", Text(title));
    if !about.is_empty() {
        let _ = write!(html, "<p class=\"what\">{}</p>", Text(about));
    }
    body(html);
    html.push_str("</section>");
}

fn list(html: &mut String, items: &[String]) {
    html.push_str("<ul>");
    for item in items {
        let _ = write!(html, "<li>{}</li>", Text(item));
    }
    html.push_str("</ul>");
}

fn figures(html: &mut String, charts: &[Chart]) {
    html.push_str("<div class=\"charts\">");
    for chart in charts {
        html.push_str(&chart.figure());
    }
    html.push_str("</div>");
}

/// One tile per split with the figure that a reader looks for first, and what it stands against.
fn headline(html: &mut String, data: &ReportData) {
    html.push_str("<div class=\"tiles\">");
    for (split, scores) in data.ordered(&data.eval.retrieval) {
        let references = data.references.iter().filter(|row| row.split == split);
        let mut against: Vec<(String, String)> = references
            .filter_map(|row| Some((row.name.clone(), format!("{}%", percent(row.i2t?.r1)))))
            .collect();
        let candidates = data.eval.candidates.get(split).copied().filter(|&candidates| candidates > 0);
        against.extend(
            candidates
                .map(|n| (format!("chance, 1 of {}", count(n)), format!("{}%", percent(1.0 / n as f64)))),
        );
        let figure = format!("{}%", percent(scores.itm.i2t.r1));
        tile(html, &figure, split, "image to text R@1, ITM re-ranked", &against);
    }
    for (split, scores) in data.ordered(&data.eval.captions) {
        let mut against = vec![("shuffled pictures".to_owned(), format!("{:.3}", scores.cider_shuffled))];
        against.extend(
            scores.cider_without_stage1.map(|cider| ("without stage 1".to_owned(), format!("{cider:.3}"))),
        );
        tile(html, &format!("{:.3}", scores.cider), split, "CIDEr of captions", &against);
    }
    html.push_str("</div>");
}

fn tile(html: &mut String, figure: &str, split: &str, what: &str, against: &[(String, String)]) {
    let (figure, split, what) = (Text(figure), Text(split), Text(what));
    let _ = write!(html, "<div class=\"tile\"><b>{figure}</b><h3>{split}</h3><p>{what}</p><ul>");
    for (name, value) in against {
        let _ = write!(html, "<li><span>{}</span><span>{}</span></li>", Text(name), Text(value));
    }
    html.push_str("</ul></div>");
}

fn stage2_sentence(data: &ReportData) -> String {
    let of = |phase| curves::last_tenth(&data.records, phase, "loss_lm");
    match (of(Phase::Stage2), of(Phase::Stage2WithoutStage1)) {
        (Some((with, steps)), Some((without, steps_without))) => format!(
            "Both runs start from the same frozen parts. Mean language-model loss over the last tenth: {with:.3} with \
             stage 1 ({steps} steps), {without:.3} without ({steps_without} steps)."
        ),
        _ => String::new(),
    }
}
