//! Numbers and times as people read them.

use std::time::Duration;

use crate::status::Unit;

/// A value with its unit, with about three digits.
pub(super) fn value(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count => number(value),
        Unit::PerSecond => format!("{}/s", number(value)),
        Unit::BytesPerSecond => scaled(value, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s"]),
        Unit::Seconds => match value {
            ..0.001 => format!("{} µs", digits(value * 1e6)),
            ..1.0 => format!("{} ms", digits(value * 1e3)),
            _ => format!("{} s", digits(value)),
        },
    }
}

fn number(value: f64) -> String {
    match value {
        ..10_000.0 => digits(value),
        _ => scaled(value, &["", "k", "M", "G", "T"]),
    }
}

fn scaled(value: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for larger in units {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    format!("{} {unit}", digits(value)).trim_end().to_owned()
}

fn digits(value: f64) -> String {
    let text = match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => return format!("{value:.0}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A number with a thin space between thousands.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len().saturating_mul(2));
    for (left, digit) in (0..digits.len()).rev().zip(digits.chars()) {
        grouped.push(digit);
        if left > 0 && left % 3 == 0 {
            grouped.push('\u{202f}');
        }
    }
    grouped
}

/// A time in its two largest units.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, 1..10) => format!("{minutes} min {} s", seconds % 60),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        (1..30, _, _) => format!("{days} d {hours} h"),
        _ => format!("{days} d"),
    }
}

/// A time in its largest unit.
pub(super) fn ago(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits_and_a_unit() {
        for (number, unit, text) in [
            (0.0, Unit::Count, "0"),
            (12.0, Unit::Count, "12"),
            (9_999.0, Unit::Count, "9999"),
            (12_345.0, Unit::Count, "12.3 k"),
            (0.25, Unit::PerSecond, "0.25/s"),
            (999.0, Unit::BytesPerSecond, "999 B/s"),
            (999.9, Unit::BytesPerSecond, "1 kB/s"),
            (123_456_789.0, Unit::BytesPerSecond, "123 MB/s"),
            (0.000_25, Unit::Seconds, "250 µs"),
            (0.001_2, Unit::Seconds, "1.2 ms"),
            (2.5, Unit::Seconds, "2.5 s"),
        ] {
            assert_eq!(value(number, unit), text);
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1_000"),
            (12_345_678, "12_345_678"),
        ] {
            assert_eq!(count(number), text.replace('_', "\u{202f}"));
        }
        assert_eq!(
            count(u64::MAX).chars().filter(char::is_ascii_digit).count(),
            20
        );
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3_599, "59 min"),
            (3_600, "1 h 0 min"),
            (90_000, "1 d 1 h"),
            (8_640_000, "100 d"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        for (seconds, text) in [
            (59, "59 s"),
            (119, "1 min"),
            (86_399, "23 h"),
            (90_000, "1 d"),
        ] {
            assert_eq!(ago(Duration::from_secs(seconds)), text);
        }
    }
}
