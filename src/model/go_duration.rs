//! Durations in Go's format, `1h30m`, `500ms`. Pure.

use std::time::Duration;

/// Longer durations are limited to this, so that sums of times cannot overflow. No credential lasts longer.
const MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A duration that Go's `time.ParseDuration` accepts; a negative one is `Err(Negative)`.
pub(crate) fn parse(text: &str) -> Option<Result<Duration, Negative>> {
    let (negative, rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let duration = if rest == "0" {
        Duration::ZERO
    } else {
        sum(rest)?
    };
    Some(if negative && !duration.is_zero() {
        Err(Negative)
    } else {
        Ok(duration)
    })
}

/// The duration is negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Negative;

fn sum(mut rest: &str) -> Option<Duration> {
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = |c: char| c.is_ascii_digit() || c == '.';
        let (number, behind) = rest.split_at(rest.find(|c| !digits(c))?);
        let unit_end = behind.find(digits).unwrap_or(behind.len());
        let (unit, next) = behind.split_at(unit_end);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        let seconds = Duration::try_from_secs_f64(number * unit).unwrap_or(MAX);
        total = total.saturating_add(seconds).min(MAX);
        rest = next;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_parsed() {
        let good = [
            ("0", 0.0),
            ("0s", 0.0),
            ("-0s", 0.0),
            ("12h", 43200.0),
            ("12h0m0s", 43200.0),
            ("1h30m", 5400.0),
            ("1.5h", 5400.0),
            (".5s", 0.5),
            ("250ms", 0.25),
            ("+10m", 600.0),
            ("100us", 0.0001),
            ("9999999999999999h", MAX.as_secs_f64()),
        ];
        for (text, seconds) in good {
            assert_eq!(
                parse(text),
                Some(Ok(Duration::from_secs_f64(seconds))),
                "{text}"
            );
        }
        assert_eq!(parse("-1m"), Some(Err(Negative)));
        for text in [
            "", "-", "5", "s", "1d", "1 h", "h1", "1.2.3s", ".s", "1h5", "1e3s", "NaNs",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
