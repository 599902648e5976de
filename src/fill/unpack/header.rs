//! One header block of a tar archive: v7, ustar, star and GNU. Accepts what Go's `archive/tar` accepts, which containerd uses. Pure.

use super::UnpackError;

/// Size of a block.
pub(super) const BLOCK: usize = 512;

/// Nanoseconds since 1970.
pub(super) type Time = i128;

/// The fields of a header block, not validated beyond their encoding.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) type_flag: u8,
    pub(super) size: i64,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) modified: Time,
    pub(super) accessed: Option<Time>,
    pub(super) major: i64,
    pub(super) minor: i64,
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// Parses a header block.
///
/// # Errors
/// [`UnpackError::Malformed`].
pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Header, UnpackError> {
    check_sum(block)?;
    let format = format(block);
    let mut header = Header {
        name: text(&block[..100]).to_vec(),
        mode: number(&block[100..108])?,
        uid: number(&block[108..116])?,
        gid: number(&block[116..124])?,
        size: number(&block[124..136])?,
        modified: seconds(number(&block[136..148])?),
        type_flag: block[156],
        link: text(&block[157..257]).to_vec(),
        ..Header::default()
    };
    if format == Format::V7 {
        return Ok(header);
    }
    header.major = number(&block[329..337])?;
    header.minor = number(&block[337..345])?;
    let prefix = match format {
        Format::V7 => &[],
        Format::Ustar => text(&block[345..500]),
        Format::Star => {
            header.accessed = Some(seconds(number(&block[476..488])?));
            number(&block[488..500])?;
            text(&block[345..476])
        }
        Format::Gnu => {
            header.accessed = gnu_times(block)?;
            &[]
        }
    };
    if !prefix.is_empty() {
        header.name = [prefix, b"/", &header.name].concat();
    }
    Ok(header)
}

fn format(block: &[u8; BLOCK]) -> Format {
    match (&block[257..263], &block[263..265]) {
        (b"ustar\0", _) if &block[508..] == b"tar\0" => Format::Star,
        (b"ustar\0", _) => Format::Ustar,
        (b"ustar ", b" \0") => Format::Gnu,
        _ => Format::V7,
    }
}

/// The time of access of a GNU header. A broken one makes Go read the fields as something else: containerd decides.
fn gnu_times(block: &[u8; BLOCK]) -> Result<Option<Time>, UnpackError> {
    let mut times = [&block[345..357], &block[357..369]]
        .map(|field| (field[0] != 0).then(|| number(field)).transpose());
    match (std::mem::replace(&mut times[0], Ok(None)), &times[1]) {
        (Ok(accessed), Ok(_)) => Ok(accessed.map(seconds)),
        _ => Err(UnpackError::unsupported("times of a GNU header", b"")),
    }
}

/// Accepts the sum of unsigned and, as old programs wrote it, of signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), UnpackError> {
    let sum = |value: fn(u8) -> i64| -> i64 {
        let blank = 8 * i64::from(b' ');
        let (before, after) = (&block[..148], &block[156..]);
        before.iter().chain(after).map(|b| value(*b)).sum::<i64>() + blank
    };
    let expected = octal(&block[148..156])?;
    if expected == sum(i64::from) || expected == sum(|b| i64::from(b.cast_signed())) {
        Ok(())
    } else {
        Err(UnpackError::malformed("wrong checksum of a tar header"))
    }
}

/// The field up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0);
    &field[..end.unwrap_or(field.len())]
}

pub(super) fn seconds(seconds: i64) -> Time {
    Time::from(seconds) * 1_000_000_000
}

/// A number in octal digits, or in two's complement to the base 256 if the first bit is set.
fn number(field: &[u8]) -> Result<i64, UnpackError> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    let negative = field[0] & 0x40 != 0;
    let inverted = if negative { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (at, byte) in field.iter().enumerate() {
        let mask = if at == 0 { 0x7f } else { 0xff };
        if value >> 56 > 0 {
            return Err(bad_number());
        }
        value = value << 8 | u64::from((byte ^ inverted) & mask);
    }
    let value = i64::try_from(value).map_err(|_| bad_number())?;
    Ok(if negative { !value } else { value })
}

fn octal(field: &[u8]) -> Result<i64, UnpackError> {
    let is_padding = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !is_padding(b));
    let end = field.iter().rposition(|b| !is_padding(b));
    let (Some(start), Some(end)) = (start, end) else {
        return Ok(0);
    };
    let mut value: u64 = 0;
    for digit in text(&field[start..=end]) {
        if !(b'0'..=b'7').contains(digit) || value >> 61 > 0 {
            return Err(bad_number());
        }
        value = value << 3 | u64::from(digit - b'0');
    }
    Ok(value.cast_signed())
}

fn bad_number() -> UnpackError {
    UnpackError::malformed("bad number in a tar header")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_in_go() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"00000009", None),
            (b"-0000001", None),
            (b"12 34567", None),
            (b"12\0zzzzz", Some(0o12)),
            (b"\x80\0\0\0\0\0\x01\x00", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfb", Some(-5)),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
            (b"777777777777777777777777", None),
        ] {
            assert_eq!(number(field).ok(), value, "{}", field.escape_ascii());
        }
    }
}
