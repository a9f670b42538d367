//! Medians, ranges and ratios.
//!
//! A ratio is always taken within one round, and the median over the rounds afterwards: a
//! disturbance that lasts a minute then affects both sides of the ratio.

use serde::{Deserialize, Serialize};

/// A median with its range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median; the mean of the middle two for an even number of values.
    pub median: f64,
    /// Minimum.
    pub low: f64,
    /// Maximum.
    pub high: f64,
}

impl Spread {
    /// Computes the spread of the finite values. `None` without a finite value.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self {
            median: f64::midpoint(lower, upper),
            low,
            high,
        })
    }
}

/// Divides `numerators` by `denominators`, round by round. Rounds that lack one of the two are
/// skipped.
#[must_use]
pub fn ratios(numerators: &[Option<f64>], denominators: &[Option<f64>]) -> Vec<f64> {
    let pairs = numerators.iter().zip(denominators);
    pairs
        .filter_map(|(above, below)| Some((*above)? / (*below)?))
        .filter(|ratio| ratio.is_finite())
        .collect()
}

/// The order of the arms in a round. The first arm rotates, and every second round runs backwards,
/// so that an arm does not always follow the same one.
#[must_use]
pub fn arm_order(arms: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..arms).collect();
    if arms > 0 {
        order.rotate_left(round % arms);
    }
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Formats with three significant digits and thousands separators.
#[must_use]
pub fn format_figure(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 1000.0 => return thousands(value),
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 || size == 0.0 => 2,
        _ => 4,
    };
    format!("{value:.digits$}")
}

fn thousands(value: f64) -> String {
    let text = format!("{:.0}", value.abs());
    let mut grouped = String::new();
    for (index, digit) in text.chars().enumerate() {
        if index > 0 && (text.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match value < 0.0 {
        true => format!("-{grouped}"),
        false => grouped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_has_the_median_and_the_range() {
        let spread = Spread::of([3.0, 1.0, 10.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (1.0, 3.0, 10.0));
        assert_eq!(Spread::of([4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN, 2.0]).unwrap().median, 2.0);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // Both are slower in the second round; one is missing in the third.
        let ours = [Some(1.0), Some(10.0), None, Some(3.0)];
        let theirs = [Some(2.0), Some(20.0), Some(1.0), Some(0.0)];
        assert_eq!(ratios(&ours, &theirs), [0.5, 0.5]);
    }

    #[test]
    fn arm_order_rotates_and_alternates_direction() {
        assert_eq!(arm_order(3, 0), [0, 1, 2]);
        assert_eq!(arm_order(3, 1), [0, 2, 1]);
        assert_eq!(arm_order(3, 2), [2, 0, 1]);
        assert_eq!(arm_order(0, 5), [0; 0]);
    }

    #[test]
    fn format_figure_keeps_three_significant_digits() {
        assert_eq!(format_figure(1_234_567.8), "1,234,568");
        assert_eq!(format_figure(123.4), "123");
        assert_eq!(format_figure(12.34), "12.3");
        assert_eq!(format_figure(0.5), "0.50");
        assert_eq!(format_figure(0.0123), "0.0123");
        assert_eq!(format_figure(-4321.0), "-4,321");
    }
}
