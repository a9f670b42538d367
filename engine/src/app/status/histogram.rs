//! Quantiles of a histogram, as Prometheus' `histogram_quantile` estimates them.

use super::exposition::Exposition;

/// The cumulative buckets of a histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// The histogram of this name, from the series of its buckets.
    pub(super) fn of(sample: &Exposition<'_>, buckets: &str) -> Self {
        let buckets = sample.family(buckets).filter_map(|series| {
            let bound = series.label("le")?.parse().ok()?;
            Some((bound, series.value))
        });
        let mut buckets: Vec<_> = buckets.collect();
        buckets.sort_by(|(one, _), (other, _)| f64::total_cmp(one, other));
        Self(buckets)
    }

    /// The estimate of a quantile of the values since `earlier`; `None` if there were none.
    pub(super) fn quantile_since(&self, earlier: &Self, quantile: f64) -> Option<f64> {
        let mut before = earlier.0.iter().map(|(_, count)| *count);
        let since: Vec<_> = self
            .0
            .iter()
            .map(|(bound, count)| (*bound, count - before.next().unwrap_or(0.0)))
            .collect();
        let (_, total) = since.last().copied()?;
        if total <= 0.0 {
            return None;
        }
        let rank = quantile * total;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in since {
            if count >= rank {
                let share = (rank - below) / (count - below).max(f64::MIN_POSITIVE);
                // The last bucket has no upper bound.
                let width = if bound.is_finite() {
                    bound - lower
                } else {
                    0.0
                };
                return Some(lower + width * share);
            }
            (lower, below) = (bound, count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(counts: [f64; 3]) -> Histogram {
        let bounds = [1.0, 2.0, f64::INFINITY];
        Histogram(bounds.into_iter().zip(counts).collect())
    }

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        let none = histogram([0.0; 3]);
        let some = histogram([2.0, 4.0, 4.0]);
        assert_eq!(some.quantile_since(&none, 0.5), Some(1.0));
        assert_eq!(some.quantile_since(&none, 0.75), Some(1.5));
        assert_eq!(some.quantile_since(&none, 1.0), Some(2.0));
        assert_eq!(some.quantile_since(&Histogram::default(), 0.25), Some(0.5));
    }

    #[test]
    fn only_new_values_count() {
        let (old, new) = (histogram([2.0, 2.0, 2.0]), histogram([2.0, 6.0, 6.0]));
        assert_eq!(new.quantile_since(&old, 0.5), Some(1.5));
        assert_eq!(new.quantile_since(&new, 0.5), None);
        assert_eq!(Histogram::default().quantile_since(&old, 0.5), None);
        // Above the last bound it is that bound, as in Prometheus.
        let above = histogram([0.0, 0.0, 3.0]);
        assert_eq!(above.quantile_since(&histogram([0.0; 3]), 0.5), Some(2.0));
    }
}
