//! Charts as inline SVG. Colours are CSS variables of the page, so that a chart is readable with
//! the light and the dark colour scheme.
//!
//! Horizontal bars with a range, and lines over linear, logarithmic and percentile axes, with the
//! name of each line at its end and the values as tooltips.

use std::fmt::Write as _;

use crate::stats::{Spread, format_figure};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
/// Margins: left for axis labels or labels of bars, right for labels of lines or values of bars.
const LEFT: f64 = 76.0;
const BAR_LEFT: f64 = 116.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 42.0;
const BAR: f64 = 20.0;
const BAR_GAP: f64 = 10.0;
/// Minimum distance between the labels of two lines.
const LABEL_HEIGHT: f64 = 14.0;

/// The CSS class of an arm, which sets its colour in all charts.
pub(super) fn class(arm: &str) -> &'static str {
    match arm {
        "direct" => "c-direct",
        "plain-relay" => "c-relay",
        "monoio-baseline" => "c-monoio",
        "tokio-baseline" => "c-tokio",
        "pgbouncer" => "c-pgbouncer",
        "stunnel" => "c-stunnel",
        "haproxy" => "c-haproxy",
        "nginx" => "c-nginx",
        "sidecar" => "c-sidecar",
        "sidecar-epoll" => "c-epoll",
        "sidecar-unix" => "c-unix",
        "sidecar-no-poll" => "c-no-poll",
        "sidecar-poll" => "c-poll",
        _ => "c-other",
    }
}

/// Escapes text for HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Draws one horizontal bar for each arm, with a line for the range.
pub(super) fn bars(label: &str, unit: &str, values: &[(String, Spread)]) -> String {
    let max = values
        .iter()
        .map(|(_, spread)| spread.high)
        .fold(0.0, f64::max);
    if max <= 0.0 {
        return String::new();
    }
    let rows = u32::try_from(values.len()).unwrap_or(0);
    let height = TOP + f64::from(rows) * (BAR + BAR_GAP) + 8.0;
    let scale = (WIDTH - BAR_LEFT - RIGHT) / max;
    let mut svg = open_svg(height, label);
    for (row, (arm, spread)) in (0_u32..).zip(values) {
        let y = TOP + f64::from(row) * (BAR + BAR_GAP);
        let middle = y + BAR / 2.0;
        let end = BAR_LEFT + spread.median * scale;
        let (low, high) = (
            BAR_LEFT + spread.low * scale,
            BAR_LEFT + spread.high * scale,
        );
        let range = format!(
            "{} to {}",
            format_figure(spread.low),
            format_figure(spread.high)
        );
        let (class, arm) = (class(arm), escape(arm));
        let _ = write!(
            svg,
            "<g class=\"{class}\"><title>{arm}: {} {unit} ({range})</title>\
             <text class=\"name\" x=\"{}\" y=\"{middle:.1}\" text-anchor=\"end\">{arm}</text>\
             <rect class=\"bar\" x=\"{BAR_LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\"/>\
             <path class=\"range\" d=\"M{low:.1} {middle:.1}H{high:.1}\"/>\
             <text class=\"value\" x=\"{:.1}\" y=\"{middle:.1}\">{} {unit}</text></g>",
            format_figure(spread.median),
            BAR_LEFT - 8.0,
            end - BAR_LEFT,
            high.max(end) + 8.0,
            format_figure(spread.median),
        );
    }
    svg.push_str("</svg>");
    svg
}

/// The name of a line and its points.
pub(super) type Series = (String, Vec<(f64, f64)>);

/// An axis: its title, its scale and its ticks.
pub(super) struct Axis {
    pub(super) title: &'static str,
    pub(super) scale: Scale,
    /// If empty, ticks are chosen for the drawn values.
    pub(super) ticks: Vec<(f64, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Linear, from 0.
    Linear,
    /// Logarithmic.
    Log,
    /// Percentiles by the number of nines: 90, 99 and 99.9 are equally far apart.
    Nines,
}

impl Scale {
    fn position(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.max(1e-9).log10(),
            Self::Nines => -(1.0 - value.min(99.999) / 100.0).log10(),
        }
    }
}

/// Draws one line for each arm.
pub(super) fn lines(label: &str, x: &Axis, y: &Axis, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|(_, points)| points);
    if points().next().is_none() {
        return String::new();
    }
    let x_span = Span::of(x.scale, points().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let y_span = Span::of(y.scale, points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let mut svg = open_svg(HEIGHT, label);
    grid(&mut svg, x, y, x_span, y_span);
    let ends = series.iter().filter_map(|(_, points)| points.last());
    let right = ends.fold(LEFT, |max, end| x_span.pixel(end.0).max(max));
    let mut labels: Vec<(f64, &str)> = Vec::new();
    for (arm, points) in series {
        let at = |(x, y): &(f64, f64)| (x_span.pixel(*x), y_span.pixel(*y));
        let path = points.iter().map(at).map(|(x, y)| format!("{x:.1} {y:.1}"));
        let path: Vec<_> = path.collect();
        let _ = write!(
            svg,
            "<g class=\"{}\"><path class=\"line\" d=\"M{}\"/>",
            class(arm),
            path.join("L"),
        );
        for point in points {
            let (px, py) = at(point);
            let _ = write!(
                svg,
                "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\"><title>{}: {} at {}</title></circle>",
                escape(arm),
                format_figure(point.1),
                format_figure(point.0),
            );
        }
        svg.push_str("</g>");
        let Some(end) = points.last().map(at) else {
            continue;
        };
        if end.0 < right {
            label_line(&mut svg, arm, end);
        } else {
            labels.push((end.1, arm));
        }
    }
    label_lines(&mut svg, labels, right);
    svg.push_str("</svg>");
    svg
}

/// Writes the name of a line next to its end.
fn label_line(svg: &mut String, arm: &str, (x, y): (f64, f64)) {
    let _ = write!(
        svg,
        "<text class=\"name {}\" x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
        class(arm),
        x + 10.0,
        escape(arm),
    );
}

/// Writes the labels of lines that all end at `right`, and moves overlapping labels apart.
fn label_lines(svg: &mut String, mut labels: Vec<(f64, &str)>, right: f64) {
    labels.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut below = TOP;
    let count = u32::try_from(labels.len()).unwrap_or(0);
    for ((y, arm), left) in labels.into_iter().zip((1..=count).rev()) {
        // Leave room for the labels that follow.
        let lowest = HEIGHT - BOTTOM - f64::from(left - 1) * LABEL_HEIGHT;
        let y = y.max(below).min(lowest.max(below));
        below = y + LABEL_HEIGHT;
        label_line(svg, arm, (right, y));
    }
}

fn grid(svg: &mut String, x: &Axis, y: &Axis, x_span: Span, y_span: Span) {
    let bottom = HEIGHT - BOTTOM;
    for (value, text) in ticks(y, y_span) {
        let at = y_span.pixel(value);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{}\"/>\
             <text class=\"tick\" x=\"{}\" y=\"{at:.1}\" text-anchor=\"end\">{text}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
        );
    }
    for (value, text) in ticks(x, x_span) {
        let at = x_span.pixel(value);
        let _ = write!(
            svg,
            "<text class=\"tick\" x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
            bottom + 14.0,
        );
    }
    let _ = write!(
        svg,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
         <text class=\"axis\" transform=\"translate(12 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 8.0,
        x.title,
        f64::midpoint(TOP, bottom),
        y.title,
    );
}

fn ticks(axis: &Axis, span: Span) -> Vec<(f64, String)> {
    if !axis.ticks.is_empty() {
        return axis.ticks.clone();
    }
    let values = match axis.scale {
        Scale::Log => log_ticks(span),
        Scale::Linear | Scale::Nines => linear_ticks(span.max),
    };
    values
        .into_iter()
        .map(|value| (value, format_figure(value)))
        .collect()
}

/// 1, 2 and 5 times the powers of ten.
fn log_ticks(span: Span) -> Vec<f64> {
    let first = span.min.floor();
    let decades = (0_u32..).map(|step| first + f64::from(step));
    decades
        .take_while(|power| *power <= span.max)
        .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powf(power)))
        .filter(|value| (span.min..=span.max).contains(&value.log10()))
        .collect()
}

/// About five round values, from 0.
fn linear_ticks(max: f64) -> Vec<f64> {
    let rough = (max / 5.0).max(1e-9);
    let power = 10_f64.powf(rough.log10().floor());
    let digits = [1.0, 2.0, 5.0, 10.0];
    let digit = digits.into_iter().find(|digit| digit * power >= rough);
    let step = digit.unwrap_or(10.0) * power;
    let values = (0_u32..).map(|count| f64::from(count) * step);
    values.take_while(|value| *value <= max * 1.0001).collect()
}

/// Maps scaled values to pixels.
#[derive(Clone, Copy)]
struct Span {
    scale: Scale,
    min: f64,
    max: f64,
    from: f64,
    to: f64,
}

impl Span {
    fn of(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let bounds = (f64::INFINITY, f64::NEG_INFINITY);
        let positions = values.map(|value| scale.position(value));
        let (min, max) = positions.fold(bounds, |(low, high), at| (low.min(at), high.max(at)));
        let min = if scale == Scale::Log { min - 0.03 } else { 0.0 };
        let max = if scale == Scale::Linear {
            max * 1.05
        } else {
            max + 0.03
        };
        Self {
            scale,
            min,
            max: max.max(min + 1e-6),
            from,
            to,
        }
    }

    fn pixel(self, value: f64) -> f64 {
        let part = (self.scale.position(value) - self.min) / (self.max - self.min);
        self.from + part * (self.to - self.from)
    }
}

fn open_svg(height: f64, label: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" \
         xmlns=\"http://www.w3.org/2000/svg\">",
        escape(label),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(linear_ticks(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(linear_ticks(0.0)[0], 0.0);
        let span = Span::of(Scale::Log, [90.0, 1200.0].into_iter(), 0.0, 1.0);
        assert_eq!(log_ticks(span), [100.0, 200.0, 500.0, 1000.0]);
    }

    #[test]
    fn nines_scale_is_logarithmic_in_the_remainder() {
        let at = |percent| Scale::Nines.position(percent);
        assert!((at(99.0) - at(90.0) - 1.0).abs() < 1e-9);
        assert!((at(99.9) - at(99.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn line_labels_do_not_overlap() {
        let mut svg = String::new();
        label_lines(
            &mut svg,
            vec![
                (300.0, "tokio-baseline"),
                (299.0, "sidecar"),
                (298.0, "direct"),
            ],
            WIDTH - RIGHT,
        );
        let ys: Vec<f64> = svg
            .split(" y=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect();
        assert!(
            ys.windows(2).all(|pair| pair[1] - pair[0] >= LABEL_HEIGHT),
            "{ys:?}"
        );
        assert!(ys.iter().all(|y| *y <= HEIGHT - BOTTOM + 0.1), "{ys:?}");
    }

    #[test]
    fn a_short_line_is_labelled_at_its_end() {
        let axis = || Axis {
            title: "",
            scale: Scale::Linear,
            ticks: Vec::new(),
        };
        let short = ("short".to_owned(), vec![(1.0, 5.0)]);
        let long = ("long".to_owned(), vec![(1.0, 5.0), (4.0, 5.0)]);
        let svg = lines("", &axis(), &axis(), &[short, long]);
        let x = |arm: &str| -> f64 {
            let before = svg.split(&format!(">{arm}</text>")).next().unwrap();
            let x = before.rsplit(" x=\"").next().unwrap();
            x.split('"').next().unwrap().parse().unwrap()
        };
        let x_span = WIDTH - RIGHT - LEFT;
        assert!(x("short") < LEFT + x_span / 3.0, "{svg}");
        assert!(x("long") > LEFT + x_span * 0.9, "{svg}");
    }
}
