//! Back-off between attempts.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use crate::model::failure::FailureKind;

/// The longest `Retry-After` of a registry that is obeyed: nobody waits an hour for an init container.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// The wait after a failed attempt, the first being 1: exponential with full jitter, so that nodes that failed together
/// do not come back together. A registry's own wish is a minimum, with the jitter on top.
pub(crate) fn wait(kind: FailureKind, attempt: u32, retry_after: Option<Duration>) -> Duration {
    let (base, cap) = match kind {
        FailureKind::RateLimited => (Duration::from_secs(8), Duration::from_secs(120)),
        FailureKind::Unavailable => (Duration::from_secs(4), Duration::from_secs(60)),
        _ => (Duration::from_secs(1), Duration::from_secs(30)),
    };
    let ceiling = base
        .saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)))
        .min(cap);
    match retry_after {
        Some(wish) => wish.min(RETRY_AFTER_MAX) + base.mul_f64(fastrand::f64()),
        None => ceiling.mul_f64(fastrand::f64()),
    }
}

/// `Retry-After` of an answer, in seconds or as a date (RFC 9110, section 10.2.3). The server chooses it: the caller limits it.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_date() {
        let told = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().ok()?);
            retry_after(&headers)
        };
        assert_eq!(told(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(told("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        for text in ["", "-1", "soon", "1.5"] {
            assert_eq!(told(text), None, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
