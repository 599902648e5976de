//! The records of a PAX extended header. Accepts what Go's `archive/tar` accepts. Pure.

use std::collections::BTreeMap;

use super::UnpackError;
use super::header::{Header, Time, seconds};

/// Prefix of the records that are extended attributes.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// The records by key; the last one of a key counts.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Extended attributes by name.
pub(super) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Parses the content of an extended header.
///
/// # Errors
/// [`UnpackError::Malformed`]; [`UnpackError::Unsupported`] if a record describes a sparse file.
pub(super) fn parse(mut text: &[u8]) -> Result<Records, UnpackError> {
    let mut records = Records::new();
    while !text.is_empty() {
        let (key, value, rest) = record(text).ok_or_else(bad_record)?;
        if key.starts_with(b"GNU.sparse.") {
            return Err(UnpackError::unsupported("sparse file", key));
        }
        records.insert(key.to_vec(), value.to_vec());
        text = rest;
    }
    Ok(records)
}

/// The first record, `LENGTH KEY=VALUE\n`, and what follows it.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    if length < 5 || length > text.len() || length <= space + 1 {
        return None;
    }
    let (record, rest) = text.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    let nul = if is_text { value } else { key };
    (!key.is_empty() && !nul.contains(&0)).then_some((key, value, rest))
}

/// Replaces the fields of a header that records name, and returns the extended attributes among them.
///
/// # Errors
/// [`UnpackError::Malformed`] if the value of a known field is not a number.
pub(super) fn merge(header: &mut Header, records: Records) -> Result<Attributes, UnpackError> {
    let mut attributes = Vec::new();
    for (key, value) in records {
        if let Some(name) = key.strip_prefix(ATTRIBUTE) {
            attributes.push((name.to_vec(), value));
            continue;
        }
        // An empty value keeps the header's own.
        if value.is_empty() {
            continue;
        }
        match key.as_slice() {
            b"path" => header.name = value,
            b"linkpath" => header.link = value,
            b"uid" => header.uid = integer(&value)?,
            b"gid" => header.gid = integer(&value)?,
            b"size" => header.size = integer(&value)?,
            b"mtime" => header.modified = time(&value)?,
            b"atime" => header.accessed = Some(time(&value)?),
            b"ctime" => _ = time(&value)?,
            _ => {}
        }
    }
    Ok(attributes)
}

fn integer(text: &[u8]) -> Result<i64, UnpackError> {
    let number = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
    number.ok_or_else(bad_record)
}

/// Decimal seconds with any number of fractional digits, of which nine count.
fn time(text: &[u8]) -> Result<Time, UnpackError> {
    let point = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
    let (whole, fraction) = text.split_at(point);
    let fraction = fraction.strip_prefix(b".").unwrap_or(fraction);
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad_record());
    }
    let digits = fraction.iter().map(|b| Time::from(b - b'0'));
    let nanos = digits
        .chain(std::iter::repeat(0))
        .take(9)
        .fold(0, |sum, digit| sum * 10 + digit);
    let is_negative = whole.first() == Some(&b'-');
    Ok(seconds(integer(whole)?) + if is_negative { -nanos } else { nanos })
}

fn bad_record() -> UnpackError {
    UnpackError::malformed("bad record in a PAX header")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_in_go() {
        for (text, expected) in [
            ("6 k=v\n", Some(("k", "v"))),
            ("5 k=\n", Some(("k", ""))),
            ("7 k=v=\n", Some(("k", "v="))),
            ("06 k=v\n", None),
            ("007 k=v\n", None),
            ("008 k=v\n", Some(("k", "v"))),
            ("6 k=v", None),
            ("7 k=v\n", None),
            ("4 =\n", None),
            ("5 =v\n", None),
            ("k=v\n", None),
            ("-6 k=v\n", None),
            ("99999999999999999999 k=v\n", None),
            ("6 k\0=\n", None),
        ] {
            let parsed = parse(text.as_bytes()).ok();
            let expected = expected.map(|(k, v)| Records::from([(k.into(), v.into())]));
            assert_eq!(parsed, expected, "{text:?}");
        }
    }

    #[test]
    fn times_have_nanoseconds() {
        for (text, expected) in [
            ("1350244992.023960108", Some(1_350_244_992_023_960_108)),
            ("1350244992.02396010899", Some(1_350_244_992_023_960_108)),
            ("0.5", Some(500_000_000)),
            ("-1.5", Some(-1_500_000_000)),
            ("-0.5", Some(-500_000_000)),
            ("1.", Some(1_000_000_000)),
            ("1.5.5", None),
            ("", None),
            (".5", None),
            ("1e3", None),
        ] {
            assert_eq!(time(text.as_bytes()).ok(), expected, "{text:?}");
        }
    }
}
