//! The output of `harpoon seals` and `harpoon release`.

use std::io::{self, Write};

use serde::Serialize;

use super::json::write_line;
use super::text::{Table, or_dash};
use crate::model::text::{sanitize, size};
use crate::runtime::containerd::Seal;

#[derive(Serialize)]
struct SealsJson<'a> {
    seals: Vec<SealJson<'a>>,
}

#[derive(Serialize)]
struct SealJson<'a> {
    image: &'a str,
    digest: &'a str,
    bytes: Option<u64>,
    expires: String,
    /// True if all content of the image is present.
    complete: bool,
}

#[derive(Serialize)]
struct ReleasedJson<'a> {
    released: &'a [String],
}

fn expires(seal: &Seal) -> String {
    humantime::format_rfc3339_seconds(seal.expires).to_string()
}

/// Writes the seals as a table.
///
/// # Errors
/// Those of the writer.
pub fn write_text(out: &mut impl Write, seals: &[Seal]) -> io::Result<()> {
    let mut table = Table::new(["IMAGE", "DIGEST", "SIZE", "EXPIRES"]);
    for seal in seals {
        let state = if seal.is_whole { "" } else { " (incomplete)" };
        table.row([
            sanitize(&seal.image),
            sanitize(&seal.digest),
            or_dash(seal.bytes.map(size)),
            format!("{}{state}", expires(seal)),
        ]);
    }
    table.write(out)
}

/// Writes the seals as one line of JSON.
///
/// # Errors
/// Those of the writer.
pub fn write_json(out: &mut impl Write, seals: &[Seal]) -> io::Result<()> {
    let seals = seals.iter().map(|seal| SealJson {
        image: &seal.image,
        digest: &seal.digest,
        bytes: seal.bytes,
        expires: expires(seal),
        complete: seal.is_whole,
    });
    let seals = seals.collect();
    write_line(out, &SealsJson { seals })
}

/// Writes the images whose seals or pins were given up, one a line, and how many there were.
///
/// # Errors
/// Those of the writer.
pub fn write_released_text(out: &mut impl Write, released: &[String]) -> io::Result<()> {
    for image in released {
        writeln!(out, "{}", sanitize(image))?;
    }
    writeln!(out, "harpoon: released {} images", released.len())
}

/// Writes the same as one line of JSON.
///
/// # Errors
/// Those of the writer.
pub fn write_released_json(out: &mut impl Write, released: &[String]) -> io::Result<()> {
    write_line(out, &ReleasedJson { released })
}
