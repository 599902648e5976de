//! The image layout directory itself: its blobs, `index.json`, and the lock on it.
//!
//! Blocking file I/O throughout: callers use [`blocking`]. No network.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{Access, OFlags};
use serde_json::{Map, Value, json};

use super::dir::Dir;
use super::error::{Error, OpenError};
use super::partial;
use crate::model::digest::Digest;
use crate::model::platform::Platform;
use crate::model::text::excerpt;
use crate::registry::MANIFEST_MAX;
use crate::registry::digest;
use crate::registry::manifest::{ImageManifest, OCI_INDEX, OCI_MANIFEST};

/// The version of the image layout specification that is written.
pub(super) const VERSION: &str = "1.0.0";

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const SOURCE_DIGEST: &str = "dev.harpoon.source.digest";

/// Our private directory: the lock, downloads, and temporary files.
const PRIVATE: &str = ".harpoon";
/// Prefix of temporary files, and the age after which their writer must have been killed.
const NEW: &str = "new.";
const NEW_STALE_AFTER: Duration = Duration::from_secs(3600);
const PARTIAL: &str = "partial";
const LOCK: &str = "lock";
const BLOBS: &str = "blobs";
const INDEX: &str = "index.json";
/// The algorithms of digests, each with its own directory of blobs.
const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];
/// The file that marks a directory as a layout.
const MARKER: &str = "oci-layout";
const MARKER_MAX: u64 = 64 << 10;
const INDEX_MAX: u64 = 64 << 20;
/// The lock is held for one small write.
const LOCK_WAIT: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Runs blocking file I/O off the async threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: the waiting future is about to be dropped.
            Err(_) => std::future::pending().await,
        },
    }
}

/// An entry of `index.json`.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// The normalised reference.
    pub(super) name: String,
    /// The manifest in `blobs/`, and its size.
    pub(super) manifest: Digest,
    pub(super) size: u64,
    /// The digest of the reference in the registry.
    pub(super) source: Digest,
    /// The platform of the image; other tools may not record it.
    pub(super) platform: Option<Platform>,
}

/// The lock on the layout; released when dropped.
pub(super) struct Lock {
    _file: File,
}

/// A layout directory. Clones refer to the same directory.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: Arc<Path>,
    /// The directory once it was opened, even if its path later refers to another one.
    top: Arc<OnceLock<Dir>>,
}

impl Layout {
    /// The path of the directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Opens the directory, which need not exist yet. It only reads, so that a plan creates nothing: [`Layout::make`] creates
    /// missing files.
    pub(super) fn open(root: PathBuf) -> Result<Self, OpenError> {
        let layout = Self {
            root: Arc::from(root),
            top: Arc::default(),
        };
        match layout.top()? {
            Some(top) if layout.is_known(top)? => check(top)?,
            Some(top) => {
                check(top)?;
                may_be_made(&layout.root)?;
            }
            None => may_be_made(&layout.root)?,
        }
        Ok(layout)
    }

    /// Creates the missing files of the layout. Our own directory comes first and `oci-layout` last, so that an incomplete
    /// directory is recognised as ours.
    pub(super) async fn make(&self) -> Result<(), Error> {
        let layout = self.clone();
        blocking(move || {
            fs::create_dir_all(&layout.root).map_err(|e| failed("make", &layout.root, e))?;
            let top = layout.made_top()?;
            layout.is_known(top)?;
            let private = top.made(PRIVATE)?;
            let partials = private.made(PARTIAL)?;
            top.made(BLOBS)?.made("sha256")?;
            partial::remove_stale(&partials, "", partial::STALE_AFTER);
            partial::remove_stale(&private, NEW, NEW_STALE_AFTER);
            Ok::<_, Error>(())
        })
        .await?;
        // Without the lock, an empty index could replace one that another process has just created and filled.
        let _lock = self.lock().await?;
        let layout = self.clone();
        blocking(move || {
            let top = layout.made_top()?;
            let marker = json!({ "imageLayoutVersion": VERSION }).to_string();
            for (name, content) in [
                (INDEX, pretty(&empty_index())),
                (MARKER, marker.into_bytes()),
            ] {
                if top.stat(name)?.is_none() {
                    layout.replace(top, name, &content)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Returns whether it is a layout already; an error if it cannot become one.
    fn is_known(&self, top: &Dir) -> Result<bool, OpenError> {
        let path = self.root.to_path_buf();
        match read_bounded(top, MARKER, MARKER_MAX)? {
            Some(Some(text)) if is_version_1(&text) => Ok(true),
            Some(_) => Err(OpenError::Version { path }),
            None if may_be_ours(top)? => Ok(false),
            None => Err(OpenError::NotALayout { path }),
        }
    }

    /// The layout's directory; `None` if it does not exist yet.
    fn top(&self) -> Result<Option<&Dir>, OpenError> {
        if self.top.get().is_none() {
            let Some(top) = Dir::top(&self.root)? else {
                return Ok(None);
            };
            return Ok(Some(self.top.get_or_init(|| top)));
        }
        Ok(self.top.get())
    }

    fn made_top(&self) -> Result<&Dir, OpenError> {
        self.top()?.ok_or_else(|| OpenError::Io {
            doing: "open",
            path: self.root.to_path_buf(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// The directory of blobs, with one directory for each algorithm; `None` if it does not exist.
    pub(super) fn blobs(&self) -> Result<Option<Dir>, OpenError> {
        match self.top()? {
            Some(top) => top.sub(BLOBS),
            None => Ok(None),
        }
    }

    /// The directory of an algorithm's blobs.
    pub(super) fn made_blobs(&self, algorithm: &str) -> Result<Dir, OpenError> {
        self.made_top()?.made(BLOBS)?.made(algorithm)
    }

    fn private(&self) -> Result<Dir, OpenError> {
        self.made_top()?.made(PRIVATE)
    }

    /// The directory of incomplete downloads; `None` if it does not exist.
    pub(super) fn partials(&self) -> Result<Option<Dir>, OpenError> {
        match self.top()?.map(|top| top.sub(PRIVATE)).transpose()? {
            Some(Some(private)) => private.sub(PARTIAL),
            _ => Ok(None),
        }
    }

    pub(super) fn made_partials(&self) -> Result<Dir, OpenError> {
        self.private()?.made(PARTIAL)
    }

    /// Returns whether the complete blob is present. Blobs are verified before they get their name. A link or another user's file
    /// does not count.
    pub(super) fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool, Error> {
        let Some(dir) = self.blobs_like(digest)? else {
            return Ok(false);
        };
        // A digest is an algorithm's name and hexadecimal digits, so no name leads out of the directory.
        let stat = dir.stat(digest.hex())?;
        Ok(stat.is_some_and(|stat| {
            dir.is_sound(digest.hex(), &stat) && u64::try_from(stat.st_size) == Ok(size)
        }))
    }

    fn blobs_like(&self, digest: &Digest) -> Result<Option<Dir>, OpenError> {
        match self.blobs()? {
            Some(blobs) => blobs.sub(digest.algorithm()),
            None => Ok(None),
        }
    }

    /// The blob's content, if it is present and has at most `limit` bytes.
    pub(super) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(dir) = self.blobs_like(digest)? else {
            return Ok(None);
        };
        match read_bounded(&dir, digest.hex(), limit) {
            Ok(text) => Ok(text.flatten()),
            Err(OpenError::Kind { .. } | OpenError::Owner { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a small blob, which must have this digest.
    pub(super) fn write_blob(&self, digest: &Digest, content: &[u8]) -> Result<(), Error> {
        if self.has_blob(digest, content.len() as u64)? {
            return Ok(());
        }
        let dir = self.made_blobs(digest.algorithm())?;
        self.replace(&dir, digest.hex(), content)
    }

    /// The entry of each name, if there is a complete one of an image manifest.
    pub(super) fn entries(&self, names: &[String]) -> Result<Vec<Option<Entry>>, Error> {
        let index = self.read_index()?;
        let entries = by_name(&index);
        Ok(names
            .iter()
            .map(|name| entries.get(name.as_str()).cloned())
            .collect())
    }

    /// The total size of the entry's image, if all of it is present.
    pub(super) fn complete(&self, entry: &Entry) -> Result<Option<u64>, Error> {
        let Some(text) = self.read_blob(&entry.manifest, MANIFEST_MAX)? else {
            return Ok(None);
        };
        let sound =
            text.len() as u64 == entry.size && digest::verify(&text, &entry.manifest).is_ok();
        let Ok(image) = ImageManifest::parse(&text) else {
            return Ok(None);
        };
        if !sound {
            return Ok(None);
        }
        let mut bytes = entry.size;
        for blob in image.blobs() {
            if !self.has_blob(&blob.digest, blob.size)? {
                return Ok(None);
            }
            bytes = bytes.saturating_add(blob.size);
        }
        Ok(Some(bytes))
    }

    /// Acquires the lock on `index.json`, waiting for other pulls and other processes. Polls, so that dropping it cancels the
    /// wait.
    pub(super) async fn lock(&self) -> Result<Lock, Error> {
        let deadline = tokio::time::Instant::now() + LOCK_WAIT;
        let path = self.root.join(PRIVATE).join(LOCK);
        loop {
            let layout = self.clone();
            let attempt = blocking(move || {
                let file = layout.private()?.made_file(LOCK)?;
                match file.try_lock() {
                    Ok(()) => Ok(Some(Lock { _file: file })),
                    Err(TryLockError::WouldBlock) => Ok(None),
                    Err(TryLockError::Error(error)) => {
                        let path = layout.root.join(PRIVATE).join(LOCK);
                        Err(failed("lock", &path, error))
                    }
                }
            })
            .await;
            if let Some(lock) = attempt? {
                return Ok(lock);
            }
            if tokio::time::Instant::now() >= deadline {
                let seconds = LOCK_WAIT.as_secs();
                return Err(Error::Locked { path, seconds });
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Adds the image to `index.json`, replacing an entry of the same name. Entries of other tools are kept.
    pub(super) fn record(&self, entry: &Entry, _lock: &Lock) -> Result<(), Error> {
        // The names of all blobs must be on disk before the entry that needs them.
        let blobs = self.made_top()?.made(BLOBS)?;
        for algorithm in ALGORITHMS {
            if let Some(dir) = blobs.sub(algorithm)? {
                let path = blobs.path(algorithm);
                dir.sync().map_err(|e| failed("sync", &path, e))?;
            }
        }
        let mut index = self.read_index()?;
        match enter(&mut index, entry) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(reason) => return Err(self.bad_index(reason)),
        }
        let text = pretty(&Value::Object(index));
        self.replace(self.made_top()?, INDEX, &text)
    }

    fn read_index(&self) -> Result<Map<String, Value>, Error> {
        let Some(top) = self.top()? else {
            return Ok(Map::new());
        };
        let text = match read_bounded(top, INDEX, INDEX_MAX)? {
            Some(Some(text)) => text,
            Some(None) => {
                return Err(self.bad_index(&format!("it has more than {INDEX_MAX} bytes")));
            }
            None => return Ok(Map::new()),
        };
        serde_json::from_slice(&text).map_err(|e| self.bad_index(&excerpt(&e.to_string())))
    }

    fn bad_index(&self, reason: &str) -> Error {
        Error::Index {
            path: self.root.join(INDEX),
            reason: reason.to_owned(),
        }
    }

    /// Writes a file atomically into a directory; it is on disk when this returns. A link of its name is replaced, not followed.
    fn replace(&self, dir: &Dir, name: &str, content: &[u8]) -> Result<(), Error> {
        let private = self.private()?;
        let fresh = format!("{NEW}{}.{:016x}", std::process::id(), fastrand::u64(..));
        let path = dir.path(name);
        let written = private
            .file(&fresh, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
            .map_err(Error::from)
            .and_then(|file| {
                let mut file =
                    file.ok_or_else(|| failed("write", &path, io::ErrorKind::NotFound.into()))?;
                file.write_all(content)
                    .and_then(|()| file.sync_all())
                    .and_then(|()| private.rename(&fresh, dir, name))
                    .map_err(|e| failed("write", &path, e))
            });
        if written.is_err() {
            let _ = private.remove(&fresh);
        }
        written?;
        dir.sync().map_err(|e| failed("sync", &path, e))
    }
}

/// Returns an error if the layout contains links or another user's files in place of ours.
fn check(top: &Dir) -> Result<(), OpenError> {
    top.check(&[PRIVATE, BLOBS], &[INDEX, MARKER])?;
    let below: [(&str, &[&str], &[&str]); 2] =
        [(PRIVATE, &[PARTIAL], &[LOCK]), (BLOBS, &ALGORITHMS, &[])];
    for (name, directories, files) in below {
        match top.sub(name) {
            Ok(Some(dir)) => dir.check(directories, files)?,
            // A plan need not be able to read another user's private directory.
            Ok(None) | Err(OpenError::Io { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The complete entries of an `index.json` that are of an image manifest, the first of each name.
fn by_name(index: &Map<String, Value>) -> HashMap<&str, Entry> {
    let mut found = HashMap::new();
    let entries = index.get("manifests").and_then(Value::as_array);
    for value in entries.into_iter().flatten() {
        if let Some(name) = entry_name(value)
            && !found.contains_key(name)
            && let Some(entry) = parse_entry(name, value)
        {
            found.insert(name, entry);
        }
    }
    found
}

/// Adds the image to an `index.json`, and returns whether that changed it. The error describes the invalid part of the index.
fn enter(index: &mut Map<String, Value>, entry: &Entry) -> Result<bool, &'static str> {
    let fresh = entry_value(entry);
    let entries = index
        .entry("manifests")
        .or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(entries) = entries else {
        return Err("manifests is not a list");
    };
    match entries
        .iter()
        .position(|e| entry_name(e) == Some(&entry.name))
    {
        Some(at) if entries[at] == fresh => return Ok(false),
        Some(at) => entries[at] = fresh,
        None => entries.push(fresh),
    }
    Ok(true)
}

/// Adds an image to an `index.json` of another tool, for fuzzing.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_index(data: &[u8]) {
    let _ = is_version_1(data);
    let Ok(mut index) = serde_json::from_slice::<Map<String, Value>>(data) else {
        return;
    };
    let digest = digest::sha256(data);
    let name = "docker.io/library/nginx:1";
    let before = by_name(&index).remove(name);
    let entry = before.unwrap_or(Entry {
        name: name.to_owned(),
        manifest: digest.clone(),
        size: 1,
        source: digest,
        platform: Some(Platform::current()),
    });
    let others = |index: &Map<String, Value>| {
        let entries = index.get("manifests").and_then(Value::as_array);
        let entries = entries.into_iter().flatten();
        entries
            .filter(|e| entry_name(e) != Some(name))
            .cloned()
            .collect::<Vec<_>>()
    };
    let kept = others(&index);
    if enter(&mut index, &entry).is_ok() {
        let found = by_name(&index).remove(name);
        let found = found.expect("what was entered is there");
        assert_eq!((&found.manifest, found.size), (&entry.manifest, entry.size));
        assert_eq!(others(&index), kept);
        assert_eq!(enter(&mut index, &entry), Ok(false));
    }
}

fn parse_entry(name: &str, entry: &Value) -> Option<Entry> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let manifest = Digest::parse(entry.get("digest")?.as_str()?).ok()?;
    let source = annotation(entry, SOURCE_DIGEST).and_then(|d| Digest::parse(d).ok());
    let platform = entry.get("platform");
    let of = |key| platform.and_then(|p| p.get(key)).and_then(text);
    (entry.get("mediaType")?.as_str()? == OCI_MANIFEST).then_some(Entry {
        name: name.to_owned(),
        size: entry.get("size")?.as_u64()?,
        source: source.unwrap_or_else(|| manifest.clone()),
        manifest,
        platform: match (of("os"), of("architecture")) {
            (Some(os), Some(architecture)) => Some(Platform {
                os,
                architecture,
                variant: of("variant"),
            }),
            _ => None,
        },
    })
}

fn entry_value(entry: &Entry) -> Value {
    let mut value = json!({
        "mediaType": OCI_MANIFEST,
        "digest": entry.manifest.as_str(),
        "size": entry.size,
        "annotations": {
            REF_NAME: entry.name,
            CONTAINERD_NAME: entry.name,
            SOURCE_DIGEST: entry.source.as_str(),
        },
    });
    if let Some(platform) = &entry.platform {
        value["platform"] = json!({ "os": platform.os, "architecture": platform.architecture });
        if let Some(variant) = &platform.variant {
            value["platform"]["variant"] = variant.as_str().into();
        }
    }
    value
}

fn annotation<'a>(entry: &'a Value, key: &str) -> Option<&'a str> {
    entry.get("annotations")?.get(key)?.as_str()
}

fn entry_name(entry: &Value) -> Option<&str> {
    annotation(entry, REF_NAME)
}

fn empty_index() -> Value {
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] })
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("a JSON value is always written");
    text.push(b'\n');
    text
}

fn is_version_1(text: &[u8]) -> bool {
    serde_json::from_slice::<Value>(text).is_ok_and(|value| {
        value
            .get("imageLayoutVersion")
            .and_then(Value::as_str)
            .is_some_and(|version| version.starts_with("1."))
    })
}

/// Checks that files can be created here, or in the nearest existing parent directory, so that a failure is reported before any
/// pull.
fn may_be_made(root: &Path) -> Result<(), OpenError> {
    let here = |path: &Path| match path.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => path.to_owned(),
    };
    let nearest = root.ancestors().map(here).find(|path| path.exists());
    let path = nearest.unwrap_or_else(|| root.to_owned());
    rustix::fs::access(&path, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| OpenError::Io {
        doing: "write to",
        path,
        source: error.into(),
    })
}

/// Returns whether a directory without `oci-layout` is empty, or was being created by us. A new filesystem is not quite empty.
fn may_be_ours(top: &Dir) -> Result<bool, OpenError> {
    let names = top.names()?;
    let is_begun = names.iter().any(|name| name == PRIVATE);
    Ok(is_begun || names.iter().all(|name| name == "lost+found"))
}

/// A file's content: `None` if there is no file, `Some(None)` if it has more than `limit` bytes.
fn read_bounded(dir: &Dir, name: &str, limit: u64) -> Result<Option<Option<Vec<u8>>>, OpenError> {
    let Some(file) = dir.file(name, OFlags::RDONLY)? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    match file.take(limit + 1).read_to_end(&mut text) {
        Ok(_) => Ok(Some((text.len() as u64 <= limit).then_some(text))),
        Err(source) => Err(OpenError::Io {
            doing: "read",
            path: dir.path(name),
            source,
        }),
    }
}

pub(super) fn failed(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}
