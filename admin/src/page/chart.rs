//! Line charts as inline SVG, without text in the picture: it is stretched to the width of its card, which would distort
//! letters. The values stand beside it, where a screen reader finds them too.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::format::{duration, value};
use crate::status::{Chart, Line};

/// The coordinates of the picture. Its width on the screen follows from the page.
const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 80.0;
/// The space above the highest and below the lowest line, so that strokes are not cut.
const MARGIN: f64 = 4.0;

/// The chart with its heading, its legend and its axes.
pub(super) fn chart(chart: &Chart) -> Markup {
    let all = chart.lines.iter().flat_map(|line| &line.points);
    let known = all.clone().flatten().count();
    let highest = all.copied().flatten().fold(0.0, f64::max);
    let top = nice_above(highest);
    let span = duration(chart.span);
    html! {
        figure class="card" {
            figcaption {
                h3 { (chart.title) }
                ul class="legend" {
                    @for line in &chart.lines { (legend(line, chart)) }
                }
            }
            @if known == 0 {
                p class="muted" { "Nothing was measured yet." }
            } @else {
            div class="plot" {
                span class="axis top" { (value(top, chart.unit)) }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" role="img"
                    aria-label=(format!("{}, last {span}", chart.title)) {
                    path class="grid" d=(grid()) {}
                    @for line in &chart.lines {
                        path class="line" d=(path(&line.points, top)) {}
                    }
                }
                span class="axis zero" { "0" }
                span class="axis span" { span { (span) " ago" } span { "now" } }
            }
            }
        }
    }
}

fn legend(line: &Line, chart: &Chart) -> Markup {
    let known = || line.points.iter().copied().flatten();
    let last = line.points.last().copied().flatten();
    html! {
        li {
            span class="key" aria-hidden="true" {}
            span { (line.name) " " }
            @match last {
                Some(last) => { b { (value(last, chart.unit)) } }
                None => { b { "–" } }
            }
            @if let Some(highest) = known().reduce(f64::max) {
                span class="muted" { " max " (value(highest, chart.unit)) }
            }
        }
    }
}

/// The smallest round number that is not below `value`.
fn nice_above(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0].map(|step| step * power);
    let found = steps.into_iter().find(|step| *step >= value);
    found.unwrap_or(10.0 * power)
}

/// Lines at the top, the middle and the bottom.
fn grid() -> String {
    let at = |y: f64| format!("M0 {y:.1}H{WIDTH}");
    [MARGIN, HEIGHT / 2.0, HEIGHT - MARGIN].map(at).concat()
}

/// The points that are known, connected where neighbours are. A single one is a dot, since the ends of lines are round.
fn path(points: &[Option<f64>], top: f64) -> String {
    let step = WIDTH / (points.len().saturating_sub(1).max(1) as f64);
    let mut path = String::new();
    let mut is_connected = false;
    for (position, point) in points.iter().enumerate() {
        let Some(point) = point.filter(|point| point.is_finite()) else {
            is_connected = false;
            continue;
        };
        let x = position as f64 * step;
        let y = HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * (point / top).clamp(0.0, 1.0);
        let _ = match is_connected {
            true => write!(path, "L{x:.1} {y:.1}"),
            false => write!(path, "M{x:.1} {y:.1}h0"),
        };
        is_connected = true;
    }
    path
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::status::Unit;

    #[test]
    fn the_top_of_the_axis_is_a_round_number() {
        for (value, top) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (1.1, 1.2),
            (0.026, 0.03),
            (8_100.0, 10_000.0),
        ] {
            let found = nice_above(value);
            assert!((found / top - 1.0).abs() < 1e-9, "{value}: {found}");
        }
        assert_eq!(nice_above(f64::NAN), 1.0);
    }

    #[test]
    fn a_gap_interrupts_the_line() {
        let points = [Some(0.0), Some(1.0), None, Some(f64::NAN), Some(0.5)];
        assert_eq!(path(&points, 1.0), "M0.0 76.0h0L80.0 4.0M320.0 40.0h0");
        assert_eq!(path(&[], 1.0), "");
        assert_eq!(path(&[None], 1.0), "");
    }

    #[test]
    fn values_are_text_beside_the_picture() {
        let chart = Chart {
            title: "Throughput",
            unit: Unit::BytesPerSecond,
            span: Duration::from_secs(600),
            lines: vec![
                Line {
                    name: "received",
                    points: vec![Some(2_000.0), Some(1_000.0)],
                },
                Line {
                    name: "sent",
                    points: Vec::new(),
                },
            ],
        };
        let html = super::chart(&chart).into_string();
        for text in [
            "<h3>Throughput</h3>",
            "<b>1 kB/s</b><span class=\"muted\"> max 2 kB/s</span>",
            "<b>–</b></li>",
            "aria-label=\"Throughput, last 10 min\"",
            "10 min ago",
        ] {
            assert!(html.contains(text), "{text} is not in {html}");
        }
    }
}
