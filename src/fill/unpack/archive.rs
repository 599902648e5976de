//! Reads the entries of a tar archive: header blocks, PAX and GNU extensions, content. Accepts what Go's `archive/tar` accepts,
//! which containerd uses.

use super::UnpackError;
use super::header::{self, BLOCK, Time};
use super::input::Input;
use super::pax::{self, Attributes, Records};
use crate::model::digest::Digest;

/// The longest extension header: long names, PAX records. Go's limit.
const EXTENSION_MAX: u64 = 1 << 20;

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
    /// PAX records for the whole archive. containerd ignores them, but not the entry's name.
    Global,
}

/// One entry, without its content.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) size: u64,
    /// Permissions, set-uid, set-gid and sticky bit.
    pub(super) mode: u32,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) modified: Time,
    pub(super) accessed: Option<Time>,
    pub(super) device: (i64, i64),
    pub(super) attributes: Attributes,
}

/// An archive that is being read.
pub(super) struct Archive<'a> {
    input: Input<'a>,
    /// Unread bytes of the current entry.
    content: u64,
    padding: u64,
}

impl<'a> Archive<'a> {
    pub(super) fn new(input: Input<'a>) -> Self {
        Self {
            input,
            content: 0,
            padding: 0,
        }
    }

    /// The next entry; what is left of the current one is skipped.
    ///
    /// # Errors
    /// [`UnpackError`].
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_entry()?;
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let mut header = header::parse(&block)?;
            self.begin(header.type_flag, header.size)?;
            match header.type_flag {
                b'x' => extensions.records = pax::parse(&self.extension()?)?,
                b'L' => extensions.name = header::text(&self.extension()?).to_vec(),
                b'K' => extensions.link = header::text(&self.extension()?).to_vec(),
                b'g' => {
                    let records = pax::parse(&self.extension()?)?;
                    pax::merge(&mut header, records)?;
                    return entry(header, Kind::Global, Attributes::new()).map(Some);
                }
                _ => {
                    let (header, attributes) = extensions.merge(header)?;
                    let kind = kind(&header)?;
                    self.begin(header.type_flag, header.size)?;
                    return entry(header, kind, attributes).map(Some);
                }
            }
        }
    }

    /// Passes the content of the current entry to `write`, in pieces.
    ///
    /// # Errors
    /// [`UnpackError`], also of `write`.
    pub(super) fn content(
        &mut self,
        write: impl FnMut(&[u8]) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        let content = std::mem::take(&mut self.content);
        self.input.each(content, write)
    }

    /// Reads what follows the archive.
    ///
    /// # Errors
    /// [`UnpackError`].
    pub(super) fn drain(&mut self) -> Result<(), UnpackError> {
        self.input.drain()
    }

    /// The digest of all bytes received, and how many they are.
    pub(super) fn into_sums(self) -> (Digest, u64) {
        self.input.into_sums()
    }

    fn skip_entry(&mut self) -> Result<(), UnpackError> {
        self.content(|_| Ok(()))?;
        // The padding of the last entry may be missing.
        let mut padding = [0; BLOCK];
        let length = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(BLOCK);
        self.input.read(&mut padding[..length])?;
        Ok(())
    }

    /// The next header block; `None` at the end of the archive or of the input.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.block()? {
            Some(block) if block != [0; BLOCK] => Err(UnpackError::malformed(
                "a tar header follows the end of the archive",
            )),
            _ => Ok(None),
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        match self.input.read(&mut block)? {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(UnpackError::malformed("the archive is truncated")),
        }
    }

    /// Sets the length of the content that follows a header.
    fn begin(&mut self, type_flag: u8, size: i64) -> Result<(), UnpackError> {
        let has_content = !matches!(type_flag, b'1'..=b'6');
        let size = if has_content { size } else { 0 };
        self.content =
            u64::try_from(size).map_err(|_| UnpackError::malformed("negative size of an entry"))?;
        self.padding = self.content.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    /// The content of an extension header.
    fn extension(&mut self) -> Result<Vec<u8>, UnpackError> {
        if self.content > EXTENSION_MAX {
            return Err(UnpackError::malformed("a tar extension exceeds 1 MiB"));
        }
        let mut content = Vec::new();
        self.content(|piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(content)
    }
}

/// Values of extension headers for the entry that follows.
#[derive(Default)]
struct Extensions {
    records: Records,
    name: Vec<u8>,
    link: Vec<u8>,
}

impl Extensions {
    fn merge(
        self,
        mut header: header::Header,
    ) -> Result<(header::Header, Attributes), UnpackError> {
        let attributes = pax::merge(&mut header, self.records)?;
        if !self.name.is_empty() {
            header.name = self.name;
        }
        if !self.link.is_empty() {
            header.link = self.link;
        }
        if header.type_flag == 0 {
            let is_directory = header.name.ends_with(b"/");
            header.type_flag = if is_directory { b'5' } else { b'0' };
        }
        Ok((header, attributes))
    }
}

fn kind(header: &header::Header) -> Result<Kind, UnpackError> {
    Ok(match header.type_flag {
        b'0' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(UnpackError::unsupported("sparse file", &header.name)),
        _ => return Err(UnpackError::unsupported("type of entry", &header.name)),
    })
}

fn entry(header: header::Header, kind: Kind, attributes: Attributes) -> Result<Entry, UnpackError> {
    let size = if kind == Kind::File { header.size } else { 0 };
    Ok(Entry {
        kind,
        size: u64::try_from(size)
            .map_err(|_| UnpackError::malformed("negative size of an entry"))?,
        // The bits of the type are not part of it.
        mode: u32::try_from(header.mode & 0o7777).unwrap_or_default(),
        name: header.name,
        link: header.link,
        uid: header.uid,
        gid: header.gid,
        modified: header.modified,
        accessed: header.accessed,
        device: (header.major, header.minor),
        attributes,
    })
}
