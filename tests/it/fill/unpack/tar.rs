//! Writes tar archives, valid and not.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// A layer's uncompressed archive, under construction.
#[derive(Debug, Clone, Default)]
pub struct Tar(pub Vec<u8>);

/// One entry.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: u8,
    pub data: Vec<u8>,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub mtime: i64,
    pub link: Vec<u8>,
    pub prefix: Vec<u8>,
    pub magic: &'static [u8],
    pub device: (i64, i64),
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
}

fn entry(name: impl AsRef<[u8]>, kind: u8, mode: i64) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        kind,
        data: Vec::new(),
        mode,
        uid: 0,
        gid: 0,
        mtime: 1_700_000_000,
        link: Vec::new(),
        prefix: Vec::new(),
        magic: b"ustar\x0000",
        device: (0, 0),
        pax: Vec::new(),
    }
}

pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
    let data = data.as_ref().to_vec();
    Entry {
        data,
        ..entry(name, b'0', 0o644)
    }
}

pub fn dir(name: impl AsRef<[u8]>) -> Entry {
    entry(name, b'5', 0o755)
}

pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    entry(name, b'2', 0o777).link(target)
}

pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    entry(name, b'1', 0o644).link(target)
}

/// `kind` is `3`, `4` or `6`.
pub fn node(name: impl AsRef<[u8]>, kind: u8, major: i64, minor: i64) -> Entry {
    Entry {
        device: (major, minor),
        ..entry(name, kind, 0o644)
    }
}

impl Entry {
    pub fn mode(self, mode: i64) -> Self {
        Self { mode, ..self }
    }

    pub fn owner(self, uid: i64, gid: i64) -> Self {
        Self { uid, gid, ..self }
    }

    pub fn mtime(self, mtime: i64) -> Self {
        Self { mtime, ..self }
    }

    pub fn kind(self, kind: u8) -> Self {
        Self { kind, ..self }
    }

    pub fn link(self, link: impl AsRef<[u8]>) -> Self {
        let link = link.as_ref().to_vec();
        Self { link, ..self }
    }

    pub fn prefix(self, prefix: impl AsRef<[u8]>) -> Self {
        let prefix = prefix.as_ref().to_vec();
        Self { prefix, ..self }
    }

    /// As GNU tar writes it, or as before POSIX.
    pub fn magic(self, magic: &'static [u8]) -> Self {
        Self { magic, ..self }
    }

    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax
            .push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// An extended attribute.
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }

    fn header(&self) -> [u8; 512] {
        let mut header = [0; 512];
        let mut set = |at: usize, length: usize, value: &[u8]| {
            let length = value.len().min(length);
            header[at..at + length].copy_from_slice(&value[..length]);
        };
        set(0, 100, &self.name);
        set(100, 8, &number(self.mode, 8));
        set(108, 8, &number(self.uid, 8));
        set(116, 8, &number(self.gid, 8));
        set(124, 12, &number(self.data.len().try_into().unwrap(), 12));
        set(136, 12, &number(self.mtime, 12));
        set(148, 8, b"        ");
        set(156, 1, &[self.kind]);
        set(157, 100, &self.link);
        set(257, 8, self.magic);
        if !self.magic.is_empty() {
            set(329, 8, &number(self.device.0, 8));
            set(337, 8, &number(self.device.1, 8));
        }
        set(345, 155, &self.prefix);
        let sum: i64 = header.iter().map(|b| i64::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }
}

fn number(value: i64, length: usize) -> Vec<u8> {
    if (0..8_i64.pow(u32::try_from(length).unwrap() - 1)).contains(&value) {
        return format!("{value:0width$o}\0", width = length - 1).into_bytes();
    }
    let mut number = vec![if value < 0 { 0xff } else { 0 }; length];
    number[length - 8..].copy_from_slice(&value.to_be_bytes());
    number[0] |= 0x80;
    number
}

impl Tar {
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut tar = Self::default();
        for entry in entries {
            tar.push(entry);
        }
        tar
    }

    pub fn push(&mut self, mut entry: Entry) {
        let is_long = entry.magic.starts_with(b"ustar\0");
        if entry.name.len() > 100 && is_long {
            entry = entry.clone().pax("path", &entry.name);
        }
        if entry.link.len() > 100 && is_long {
            entry = entry.clone().pax("linkpath", &entry.link);
        }
        if !entry.pax.is_empty() {
            let records: Vec<u8> = entry.pax.iter().flat_map(|(k, v)| record(k, v)).collect();
            self.raw(&file("PaxHeaders/x", records).kind(b'x'));
        }
        self.raw(&entry);
    }

    /// GNU's long name or long link of the entry that follows.
    pub fn gnu_long(&mut self, kind: u8, value: &[u8]) {
        let value = [value, b"\0"].concat();
        self.raw(&file("././@LongLink", value).kind(kind).magic(b"ustar  \0"));
    }

    pub fn raw(&mut self, entry: &Entry) {
        self.0.extend_from_slice(&entry.header());
        self.0.extend_from_slice(&entry.data);
        let padding = self.0.len().wrapping_neg() % 512;
        self.0.resize(self.0.len() + padding, 0);
    }

    /// With the two zero blocks of the end.
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
