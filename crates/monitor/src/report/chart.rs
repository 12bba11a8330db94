//! Line charts as SVG, drawn by hand: axes with round ticks, lines with bands, guides. Colours come from the page.

use std::fmt::Write as _;

use super::html::Text;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;

/// A long curve is drawn as this many points, each the mean of a stretch of steps.
const MAX_POINTS: usize = 240;

/// A chart: titled lines over a common horizontal axis.
#[derive(Debug, Default)]
pub(super) struct Chart {
    pub title: String,
    pub x_label: String,
    pub y_label: String,
    pub lines: Vec<Line>,
    /// Horizontal dashed lines: value and what it means.
    pub guides: Vec<(f64, String)>,
    /// Keeps 0 on the vertical axis.
    pub from_zero: bool,
}

/// One line.
#[derive(Debug)]
pub(super) struct Line {
    pub name: String,
    pub tone: Tone,
    /// Dots are drawn too: for values that are measured now and then.
    pub dotted: bool,
    /// Step and value; values that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// The colours of the page, told apart by colour-blind readers too; CSS gives each for light and dark.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tone {
    Main,
    Second,
    Third,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Self::Main => "t1",
            Self::Second => "t2",
            Self::Third => "t3",
        }
    }
}

/// A stretch of a line: its middle, mean, smallest and largest value.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stretch {
    x: f64,
    mean: f64,
    min: f64,
    max: f64,
}

/// From data to pixels.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
}

impl Chart {
    /// The chart as a `figure`; empty when no line has a point.
    pub(super) fn figure(&self) -> String {
        let lines: Vec<(&Line, Vec<Stretch>, usize)> = self
            .lines
            .iter()
            .map(|line| {
                let (stretches, steps_each) = stretches(&line.points);
                (line, stretches, steps_each)
            })
            .filter(|(_, stretches, _)| !stretches.is_empty())
            .collect();
        let Some(scale) = self.scale(lines.iter().flat_map(|(_, stretches, _)| stretches)) else {
            return String::new();
        };
        let mut svg = format!(
            "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            Text(&self.title),
            Text(&self.title)
        );
        self.axes(&mut svg, &scale);
        for (value, _) in &self.guides {
            let y = scale.y_of(*value);
            let _ = write!(
                svg,
                "<line class=\"guide\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            );
        }
        for (line, stretches, _) in &lines {
            draw(&mut svg, line, stretches, &scale);
        }
        svg.push_str("</svg>");
        self.legend(&mut svg, &lines);
        svg.push_str("</figure>");
        svg
    }

    fn scale<'a>(&self, stretches: impl Iterator<Item = &'a Stretch>) -> Option<Scale> {
        let (mut x, mut y) = ((f64::MAX, f64::MIN), (f64::MAX, f64::MIN));
        for stretch in stretches {
            x = (x.0.min(stretch.x), x.1.max(stretch.x));
            y = (y.0.min(stretch.min), y.1.max(stretch.max));
        }
        if x.0 > x.1 {
            return None;
        }
        for (value, _) in &self.guides {
            y = (y.0.min(*value), y.1.max(*value));
        }
        if self.from_zero {
            y = (y.0.min(0.0), y.1.max(0.0));
        }
        if y.1 - y.0 <= y.1.abs().max(y.0.abs()) * 1e-9 {
            y = (y.0 - y.0.abs() * 0.1 - 1e-9, y.1 + y.1.abs() * 0.1 + 1e-9); // a constant gets some air
        }
        if x.0 == x.1 {
            x = (x.0 - 1.0, x.1 + 1.0);
        }
        let air = (y.1 - y.0) * 0.04;
        let low = if self.from_zero && y.0 == 0.0 { 0.0 } else { y.0 - air };
        Some(Scale { x, y: (low, y.1 + air) })
    }

    fn axes(&self, svg: &mut String, scale: &Scale) {
        for tick in ticks(scale.y.0, scale.y.1, 5) {
            let y = scale.y_of(tick);
            let (right, label, base) = (WIDTH - RIGHT, number(tick), y + 3.5);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 7.0
            );
        }
        let bottom = HEIGHT - BOTTOM;
        for tick in ticks(scale.x.0, scale.x.1, 6) {
            let (x, label) = (scale.x_of(tick), number(tick));
            let _ = write!(
                svg,
                "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{:.1}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 4.0,
                bottom + 16.0
            );
        }
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"translate(13 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            WIDTH - RIGHT,
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 7.0,
            Text(&self.x_label),
            (TOP + bottom) / 2.0,
            Text(&self.y_label)
        );
    }

    fn legend(&self, html: &mut String, lines: &[(&Line, Vec<Stretch>, usize)]) {
        html.push_str("<div class=\"legend\">");
        for (line, _, steps_each) in lines {
            let how = match *steps_each {
                0 | 1 => String::new(),
                steps => format!(" (mean of {steps} steps; band: smallest to largest)"),
            };
            let left_out = line.points.iter().filter(|(_, value)| !value.is_finite()).count();
            let _ = write!(html, "<span class=\"key {}\">{}{how}", line.tone.class(), Text(&line.name));
            if left_out > 0 {
                let _ = write!(html, " <b>({left_out} values are not finite)</b>");
            }
            html.push_str("</span>");
        }
        for (_, meaning) in &self.guides {
            let _ = write!(html, "<span class=\"key guide\">{}</span>", Text(meaning));
        }
        html.push_str("</div>");
    }
}

fn draw(svg: &mut String, line: &Line, stretches: &[Stretch], scale: &Scale) {
    let class = line.tone.class();
    let at = |x: f64, y: f64| format!("{:.1},{:.1} ", scale.x_of(x), scale.y_of(y));
    if stretches.iter().any(|stretch| stretch.max > stretch.min) {
        let above: String = stretches.iter().map(|s| at(s.x, s.max)).collect();
        let below: String = stretches.iter().rev().map(|s| at(s.x, s.min)).collect();
        let _ = write!(svg, "<polygon class=\"band {class}\" points=\"{above}{below}\"/>");
    }
    let points: String = stretches.iter().map(|s| at(s.x, s.mean)).collect();
    let _ = write!(svg, "<polyline class=\"line {class}\" points=\"{}\"/>", points.trim_end());
    if line.dotted || stretches.len() == 1 {
        for stretch in stretches {
            let (x, y) = (scale.x_of(stretch.x), scale.y_of(stretch.mean));
            let value = number(stretch.mean);
            let _ = write!(
                svg,
                "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>{value}</title></circle>"
            );
        }
    }
}

/// At most [`MAX_POINTS`] stretches of equally many finite points each, and how many points that is.
fn stretches(points: &[(f64, f64)]) -> (Vec<Stretch>, usize) {
    let finite: Vec<_> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let steps_each = finite.len().div_ceil(MAX_POINTS).max(1);
    let stretch = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        Stretch {
            x: points.iter().map(|(x, _)| x).sum::<f64>() / count,
            mean: points.iter().map(|(_, y)| y / count).sum::<f64>(),
            min: points.iter().map(|(_, y)| *y).fold(f64::INFINITY, f64::min),
            max: points.iter().map(|(_, y)| *y).fold(f64::NEG_INFINITY, f64::max),
        }
    };
    (finite.chunks(steps_each).map(stretch).collect(), steps_each)
}

impl Scale {
    fn x_of(&self, value: f64) -> f64 {
        LEFT + (value - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y_of(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (value - self.y.0) / (self.y.1 - self.y.0) * (HEIGHT - TOP - BOTTOM)
    }
}

/// About `wanted` round numbers (1, 2 or 5 times a power of ten apart) inside `low..=high`.
fn ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let rough = (high - low) / wanted as f64;
    if !(rough.is_finite() && rough > 0.0) {
        return Vec::new();
    }
    let power = 10f64.powf(rough.log10().floor());
    let apart =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|apart| *apart >= rough).unwrap_or(rough);
    let first = (low / apart).ceil() as i64;
    let last = (high / apart).floor() as i64;
    (first..=last).take(20).map(|index| index as f64 * apart).collect()
}

/// A tick's number, as short as it can be.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    match magnitude {
        0.0 => "0".to_owned(),
        m if m >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        m if m >= 1e4 => format!("{}k", trimmed(value / 1e3)),
        m if m < 1e-3 => format!("{value:.1e}"),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(-0.3, 0.9, 5), [0.0, 0.5]);
        assert_eq!(
            [0.0, 0.25, 1500.0, 25_000.0, 3e6, 1e-4].map(number),
            ["0", "0.25", "1500", "25k", "3M", "1.0e-4"]
        );
    }

    #[test]
    fn a_long_curve_is_shortened_to_means() {
        let points: Vec<_> = (0..1000).map(|x| (x as f64, (x % 5) as f64)).collect();
        let (stretches, steps_each) = stretches(&points);
        assert_eq!((stretches.len(), steps_each), (200, 5));
        assert_eq!(stretches[0], Stretch { x: 2.0, mean: 2.0, min: 0.0, max: 4.0 });
    }

    proptest! {
        #[test]
        fn any_numbers_give_a_chart_inside_its_frame(
            points in proptest::collection::vec((any::<f64>(), any::<f64>()), 0..50), from_zero in any::<bool>()
        ) {
            let small = points.iter().map(|(x, y)| (x.clamp(-1e15, 1e15), y.clamp(-1e15, 1e15))).collect();
            let line = Line { name: "a".to_owned(), tone: Tone::Main, dotted: true, points: small };
            let svg = Chart { lines: vec![line], from_zero, ..Chart::default() }.figure();
            prop_assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}", svg);
            for part in svg.split("cy=\"").skip(1) {
                let y: f64 = part.split('"').next().expect("value").parse().expect("number");
                prop_assert!((0.0..=HEIGHT).contains(&y), "{}", y);
            }
        }
    }
}
