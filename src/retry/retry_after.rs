//! The wait that a server requests.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

/// Maximum `Retry-After` that is honoured: an init container cannot wait for an hour.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// `Retry-After` of a response, in seconds or as a date (RFC 9110, section 10.2.3), at most [`RETRY_AFTER_MAX`].
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            date.duration_since(SystemTime::now()).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
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
        assert_eq!(told("86400"), Some(RETRY_AFTER_MAX));
        assert_eq!(told("Thu, 31 Dec 2099 00:00:00 GMT"), Some(RETRY_AFTER_MAX));
        assert_eq!(told("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        for text in ["", "-1", "soon", "1.5"] {
            assert_eq!(told(text), None, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
