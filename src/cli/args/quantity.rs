//! Kubernetes quantities of bytes: `20Gi`, `1.5G`, `1e9`. Pure.
//!
//! The grammar is that of `resource.Quantity` in apimachinery: a decimal number and a suffix, binary (`Ki` to `Ei`), decimal
//! (`k` to `E`) or an exponent (`e9`). The suffixes below one (`n`, `u`, `m`) are no bytes and are refused.

/// The expected values, for an error.
pub(super) const EXPECTED: &str = "expected a Kubernetes quantity of bytes above zero, such as 20Gi, 1.5G or 500M, or a percentage such as 30%";

/// More digits than any number of bytes can have.
const DIGITS_MAX: usize = 30;

/// The bytes, rounded down; `None` if the text is no quantity, is below one byte or exceeds 64 bits.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > DIGITS_MAX || fraction.contains('.') {
        return None;
    }
    let digits: u128 = digits.parse().ok()?;
    let scaled = digits.checked_mul(multiplier(suffix)?)?;
    let bytes = scaled / 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

fn multiplier(suffix: &str) -> Option<u128> {
    let power = |letters: &str, of: u128, letter: &str| {
        let place = letters.find(letter).filter(|_| letter.len() == 1)?;
        of.checked_pow(u32::try_from(place).ok()? + 1)
    };
    if suffix.is_empty() {
        return Some(1);
    }
    if let Some(letter) = suffix.strip_suffix('i') {
        return power("KMGTPE", 1024, letter);
    }
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']).filter(|e| !e.is_empty()) {
        let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
        let digits = exponent.bytes().all(|b| b.is_ascii_digit());
        let exponent: u32 = exponent.parse().ok().filter(|_| digits)?;
        return 10_u128.checked_pow(exponent);
    }
    power("kMGTPE", 1000, suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_follow_kubernetes() {
        for (text, expected) in [
            ("1", 1),
            ("20Gi", 20 << 30),
            ("500M", 500_000_000),
            ("1.5G", 1_500_000_000),
            ("1.5Gi", 3 << 29),
            (".5k", 500),
            ("5.k", 5_000),
            ("+1Ki", 1024),
            ("1e9", 1_000_000_000),
            ("1E3", 1_000),
            ("12e+1", 120),
            ("1E", 1_000_000_000_000_000_000),
            ("15Ei", 15 << 60),
            ("1.0009k", 1_000),
            ("000000000001k", 1_000),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "0",
            "0Gi",
            "0.5",
            "-1",
            "Gi",
            ".",
            "1.2.3",
            "1 Gi",
            "1gi",
            "1K",
            "1ki",
            "1GB",
            "1kM",
            "1m",
            "1e",
            "1e-3",
            "1e99",
            "16Ei",
            "1i",
            "1e+",
            "１",
            "9999999999999999999999999999999",
            "1KiKi",
            "1MPi",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
