//! The tables of the page: retrieval beside references and chance, captions beside their controls, the phases.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::data::{PhaseFacts, ReportData};
use super::html::{Text, count, percent};
use crate::eval_file::{Directions, Recalls};
use crate::progress::{bytes_text, seconds_text};
use crate::record::Phase;

/// Retrieval of one split: ours, the references, chance.
pub(super) fn retrieval(html: &mut String, data: &ReportData) {
    for (split, scores) in data.ordered(&data.eval.retrieval) {
        let candidates = data.eval.candidates.get(split).copied().filter(|&candidates| candidates > 0);
        let ways =
            candidates.map_or(String::new(), |n| format!("<span class=\"ways\">1 of {}</span>", count(n)));
        let _ = write!(
            html,
            "<section class=\"split\"><h3>{} {ways}</h3><p class=\"what\">{}</p><div class=\"scroll\">\
             <table class=\"recalls\"><col class=\"name\"><col class=\"wide\"><col><col><col class=\"wide\"><col><col>\
             <thead><tr><th rowspan=\"2\" class=\"name\"></th><th colspan=\"3\" class=\"group gap\">image to text</th>\
             <th colspan=\"3\" class=\"group gap\">text to image</th></tr><tr><th class=\"gap\">R@1</th><th>R@5</th>\
             <th>R@10</th><th class=\"gap\">R@1</th><th>R@5</th><th>R@10</th></tr></thead><tbody>",
            Text(split),
            Text(data.description(split))
        );
        let ours = |directions: Directions| (Some(directions.i2t), Some(directions.t2i));
        recall_row(html, "ours", "this run, ITC", ours(scores.itc), candidates);
        recall_row(html, "ours", "this run, ITM re-ranked", ours(scores.itm), candidates);
        for row in data.references.iter().filter(|row| row.split == split) {
            recall_row(html, "other", &row.name, (row.i2t, row.t2i), None);
        }
        if let Some(candidates) = candidates {
            let share = |k: u64| k as f64 / candidates.max(k) as f64;
            let chance = Some(Recalls { r1: share(1), r5: share(5), r10: share(10) });
            recall_row(html, "chance", "chance", (chance, chance), None);
        }
        html.push_str("</tbody></table></div></section>");
    }
}

/// One row; with `candidates`, R@1 gets its standard error.
fn recall_row(
    html: &mut String,
    class: &str,
    name: &str,
    (i2t, t2i): (Option<Recalls>, Option<Recalls>),
    candidates: Option<u64>,
) {
    let _ = write!(html, "<tr class=\"{class}\"><th scope=\"row\">{}</th>", Text(name));
    for recalls in [i2t, t2i] {
        let Some(recalls) = recalls else {
            html.push_str("<td class=\"none gap\">–</td><td class=\"none\">–</td><td class=\"none\">–</td>");
            continue;
        };
        for (place, share) in [recalls.r1, recalls.r5, recalls.r10].into_iter().enumerate() {
            let error = candidates.filter(|_| place == 0).map_or(String::new(), |n| {
                let error = (share * (1.0 - share) / n as f64).max(0.0).sqrt();
                format!(" <small>± {}</small>", percent(error))
            });
            let (bar, text) = (percent(share.clamp(0.0, 1.0)), percent(share));
            let gap = if place == 0 { " gap" } else { "" };
            let _ = write!(html, "<td class=\"bar{gap}\" style=\"--share:{bar}%\">{text}{error}</td>");
        }
    }
    html.push_str("</tr>");
}

/// Captions by split beside the shuffled pictures and the control without stage 1.
pub(super) fn captions(html: &mut String, data: &ReportData) {
    html.push_str(
        "<div class=\"sheet\"><div class=\"scroll\"><table><thead><tr><th rowspan=\"2\" class=\"name\">split</th>\
         <th rowspan=\"2\">pictures</th><th colspan=\"3\" class=\"group gap\">this run</th>\
         <th colspan=\"2\" class=\"group gap\">shuffled pictures</th><th colspan=\"2\" class=\"group gap\">without stage 1\
         </th></tr><tr><th class=\"gap\">CIDEr</th><th>exact %</th><th>near %</th><th class=\"gap\">CIDEr</th>\
         <th>ours is</th><th class=\"gap\">CIDEr</th><th>exact %</th></tr></thead><tbody>",
    );
    for (split, scores) in data.ordered(&data.eval.captions) {
        let ratio = scores.ratio_to_shuffled().map_or_else(nothing, |ratio| format!("{ratio:.1} ×"));
        let optional = |value: Option<f64>, show: fn(f64) -> String| value.map_or_else(nothing, show);
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{}<small>{}</small></th><td>{}</td><td class=\"strong gap\">{:.3}</td>\
             <td>{}</td><td>{}</td><td class=\"gap\">{:.3}</td><td>{ratio}</td><td class=\"gap\">{}</td><td>{}</td></tr>",
            Text(split),
            Text(data.description(split)),
            count(scores.count),
            scores.cider,
            percent(scores.exact),
            percent(scores.near),
            scores.cider_shuffled,
            optional(scores.cider_without_stage1, |cider| format!("{cider:.3}")),
            optional(scores.exact_without_stage1, percent),
        );
    }
    html.push_str("</tbody></table></div></div>");
}

/// The facts of the run, and a table of its phases.
pub(super) fn facts(html: &mut String, data: &ReportData) {
    let facts = &data.facts;
    let mut pairs = vec![
        ("config".to_owned(), facts.config_name.clone()),
        ("seed".to_owned(), facts.seed.to_string()),
        ("ranks".to_owned(), facts.world_size.to_string()),
        ("device".to_owned(), facts.device.clone()),
        ("peak memory, all processes".to_owned(), bytes_text(data.eval.peak_rss_bytes)),
        ("time, all phases".to_owned(), seconds_text(data.eval.seconds.values().sum())),
    ];
    pairs.extend(facts.more.iter().cloned());
    html.push_str("<dl class=\"facts\">");
    for (name, value) in &pairs {
        let _ = write!(html, "<div><dt>{}</dt><dd>{}</dd></div>", Text(name), Text(value));
    }
    html.push_str("</dl>");
    phases(html, data);
}

/// A row for every phase that took time or is told of, in the order of a run.
fn phases(html: &mut String, data: &ReportData) {
    html.push_str(
        "<div class=\"sheet\"><div class=\"scroll\"><table><thead><tr><th class=\"name\">phase</th><th>time</th>\
         <th>steps</th><th>pairs</th><th>pairs/s</th><th>trainable parameters</th><th>reduced per step</th></tr></thead>\
         <tbody>",
    );
    let told = data.facts.phases.iter().map(|facts| facts.phase);
    let all: BTreeSet<Phase> = told.chain(data.eval.seconds.keys().copied()).collect();
    for phase in all {
        let facts = data.facts.phases.iter().find(|facts| facts.phase == phase);
        let figure = |of: fn(&PhaseFacts) -> u64, show: fn(u64) -> String| {
            facts.map(of).filter(|&number| number > 0).map_or_else(nothing, show)
        };
        let seconds = data.eval.seconds.get(&phase).map_or_else(nothing, |&seconds| seconds_text(seconds));
        let speed =
            data.eval.pairs_per_second.get(&phase).map_or_else(nothing, |speed| format!("{speed:.1}"));
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{}</th><td>{seconds}</td><td>{}</td><td>{}</td><td>{speed}</td><td>{}</td>\
             <td>{}</td></tr>",
            phase.name().replace('_', " "),
            figure(|facts| facts.steps, count),
            figure(|facts| facts.pairs, count),
            figure(|facts| facts.trainable_parameters, count),
            figure(|facts| facts.bytes_reduced_per_step, bytes_text),
        );
    }
    html.push_str("</tbody></table></div></div>");
}

/// What stands where there is no figure.
fn nothing() -> String {
    "–".to_owned()
}
