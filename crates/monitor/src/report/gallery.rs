//! The gallery: held-out pictures, what they are called, and what the models said.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::data::{GalleryItem, ReportData};
use super::html::Text;

/// All cards.
pub(super) fn gallery(html: &mut String, data: &ReportData) {
    if !data.gallery_choice.is_empty() {
        let _ = write!(html, "<p class=\"what\">{}</p>", Text(&data.gallery_choice));
    }
    html.push_str("<div class=\"gallery\">");
    for item in &data.gallery {
        card(html, item);
    }
    html.push_str("</div>");
}

fn card(html: &mut String, item: &GalleryItem) {
    let _ = write!(
        html,
        "<article><img alt=\"{}\" src=\"data:{};base64,{}\"><div><p class=\"reference\">{}</p><dl>",
        Text(&item.reference),
        item.mime.name(),
        STANDARD.encode(&item.picture),
        Text(&item.reference)
    );
    let rows = [
        ("this run", Some(item.generated.as_str())),
        ("without stage 1", item.generated_without_stage1.as_deref()),
        ("nearest by ITC", item.nearest_by_itc.as_deref()),
    ];
    for (name, caption) in rows {
        let Some(caption) = caption else { continue };
        let (class, mark) = match is_same(caption, &item.reference) {
            true => ("hit", "✓ "),
            false => ("", ""),
        };
        let shown = if caption.trim().is_empty() { "(nothing)" } else { caption };
        let _ = write!(html, "<dt>{name}</dt><dd class=\"{class}\">{mark}{}</dd>", Text(shown));
    }
    let _ = write!(html, "</dl><p class=\"of\">{}</p></div></article>", Text(&item.split));
}

/// Equal up to case, and blanks and full stops at the ends: the mark in the gallery is no score.
fn is_same(caption: &str, reference: &str) -> bool {
    let bare = |text: &str| text.trim().trim_end_matches('.').to_lowercase();
    bare(caption) == bare(reference)
}
