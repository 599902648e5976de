//! Listed candidates: the images file and the arguments of `harpoon pull`.
//!
//! Every line that is neither blank nor a comment becomes a candidate, including malformed ones: they are reported later under
//! their own name. The plan merges duplicates.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::model::candidate::Candidate;

/// A ConfigMap holds at most 1 MiB; a file beyond this size is not a list of images.
const MAX_BYTES: u64 = 64 << 20;

/// A file of 1 MiB cannot name more, and it is ten times the number that any node holds. Each costs some hundred bytes until the
/// end of the run.
const MAX_IMAGES: usize = 100_000;

/// The reason why an images file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file cannot be opened or read.
    #[error("failed to read the images file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The path is a directory, a pipe, a socket or a device.
    #[error("the images file {0} is not a regular file")]
    NotAFile(PathBuf),
    /// The file is larger than 64 MiB.
    #[error("the images file {0} is longer than 64 MiB")]
    TooLong(PathBuf),
    /// The file has more than 100,000 images.
    #[error("the images file {0} has more than {MAX_IMAGES} images")]
    TooMany(PathBuf),
    /// The file is not text.
    #[error("the images file {path} is not text: line {line} {what}")]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first line that is not text, starting at 1.
        line: usize,
        /// The problem with it.
        what: &'static str,
    },
}

/// Reads an images file: one image per line; `#` starts a comment at the start of a line or after a blank.
///
/// `None` if the file does not exist. Symbolic links are followed, because the files of a mounted ConfigMap are symbolic links.
///
/// # Errors
/// If the file exists but is not a regular, readable text file of at most 64 MiB and 100,000 images.
pub fn read_images_file(path: &Path) -> Result<Option<Vec<Candidate>>, ListError> {
    // Without O_NONBLOCK, opening a pipe without a writer would hang.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(read_error(path, source)),
    };
    let metadata = file.metadata().map_err(|source| read_error(path, source))?;
    if !metadata.is_file() {
        return Err(ListError::NotAFile(path.to_owned()));
    }
    parse(file, path).map(Some)
}

/// Parses the text of an images file. Errors name the path.
pub(crate) fn parse(file: impl Read, path: &Path) -> Result<Vec<Candidate>, ListError> {
    let mut reader = BufReader::new(file.take(MAX_BYTES + 1));
    let mut candidates = Vec::new();
    let mut raw = Vec::new();
    let mut line = 0;
    let mut bytes = 0;
    loop {
        raw.clear();
        let read = reader
            .read_until(b'\n', &mut raw)
            .map_err(|source| read_error(path, source))?;
        if read == 0 {
            return Ok(candidates);
        }
        line += 1;
        bytes += read as u64;
        if bytes > MAX_BYTES {
            return Err(ListError::TooLong(path.to_owned()));
        }
        let not_text = |what| ListError::NotText {
            path: path.to_owned(),
            line,
            what,
        };
        if raw.contains(&0) {
            return Err(not_text("holds a NUL byte"));
        }
        let text = std::str::from_utf8(&raw).map_err(|_| not_text("is not UTF-8"))?;
        let text = if line == 1 {
            text.trim_start_matches('\u{feff}')
        } else {
            text
        };
        let image = without_comment(text);
        if !image.is_empty() {
            if candidates.len() == MAX_IMAGES {
                return Err(ListError::TooMany(path.to_owned()));
            }
            candidates.push(Candidate::listed(image));
        }
    }
}

/// A line without its comment and surrounding blanks.
fn without_comment(line: &str) -> &str {
    let mut blank_before = true;
    for (at, c) in line.char_indices() {
        if c == '#' && blank_before {
            return line[..at].trim();
        }
        blank_before = c.is_whitespace();
    }
    line.trim()
}

fn read_error(path: &Path, source: io::Error) -> ListError {
    ListError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images");
        std::fs::write(&path, bytes).unwrap();
        match read_images_file(&path) {
            Ok(found) => Ok(found
                .unwrap()
                .into_iter()
                .map(|c| c.image.to_string())
                .collect()),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(path.to_str().unwrap()), "{text}");
                Err(text)
            }
        }
    }

    #[test]
    fn only_image_lines_become_candidates() {
        let table: [(&str, &[&str]); 9] = [
            ("", &[]),
            ("nginx:1.27\nredis\n", &["nginx:1.27", "redis"]),
            ("nginx", &["nginx"]),
            ("\u{feff}nginx\r\nredis\r\n\r\n", &["nginx", "redis"]),
            ("\u{feff}# comment\nnginx", &["nginx"]),
            ("  # indented\n\tnginx \n \n", &["nginx"]),
            ("nginx # why\nredis\t#why\n#x", &["nginx", "redis"]),
            (
                "nginx#x\nUPPER/case two\n-dash",
                &["nginx#x", "UPPER/case two", "-dash"],
            ),
            ("nginx\nnginx", &["nginx", "nginx"]),
        ];
        for (text, expected) in table {
            assert_eq!(read(text.as_bytes()).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn binary_content_is_refused_with_line() {
        assert!(
            read(b"a\nb\0c\n")
                .unwrap_err()
                .contains("line 2 holds a NUL")
        );
        assert!(
            read(b"a\n\nb\xff\n")
                .unwrap_err()
                .contains("line 3 is not UTF-8")
        );
    }

    #[test]
    fn missing_file_is_none_symlink_works() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            read_images_file(&dir.path().join("images"))
                .unwrap()
                .is_none()
        );
        std::fs::write(dir.path().join("data"), "nginx\n").unwrap();
        let link = dir.path().join("images");
        std::os::unix::fs::symlink("data", &link).unwrap();
        assert_eq!(read_images_file(&link).unwrap().unwrap().len(), 1);
    }

    #[test]
    fn special_file_is_refused_without_hanging() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_images_file(dir.path()).unwrap_err();
        assert!(matches!(error, ListError::NotAFile(_)), "{error}");
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap();
        assert!(made.success());
        let error = read_images_file(&pipe).unwrap_err();
        assert!(matches!(error, ListError::NotAFile(_)), "{error}");
        let error = read_images_file(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, ListError::NotAFile(_)), "{error}");
    }

    #[test]
    fn oversized_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images");
        let file = File::create(&path).unwrap();
        file.set_len(MAX_BYTES + 1).unwrap();
        // The file is sparse, one line of NUL bytes. Either error would be right, but the length is checked first.
        assert!(matches!(
            read_images_file(&path),
            Err(ListError::TooLong(_))
        ));
    }
}
