//! The image layout directory itself: its blobs, `index.json`, and the lock on it.
//!
//! Blocking file I/O throughout: callers use [`blocking`]. No network.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Access;
use serde_json::{Map, Value, json};

use super::error::{Error, OpenError};
use super::partial;
use crate::image::{Digest, Platform};
use crate::printable::excerpt;
use crate::registry::MANIFEST_MAX;
use crate::registry::digest;
use crate::registry::manifest::{ImageManifest, OCI_INDEX, OCI_MANIFEST};

/// The version of the image layout specification that is written.
pub(super) const VERSION: &str = "1.0.0";

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const SOURCE_DIGEST: &str = "dev.harpoon.source.digest";

/// What is ours alone: the lock, downloads, files to be renamed.
const PRIVATE: &str = ".harpoon";
/// How files begin that are written to be renamed, and after how long one is known to be of a writer that was killed.
const NEW: &str = "new.";
const NEW_STALE_AFTER: Duration = Duration::from_secs(3600);
/// What makes a directory a layout.
const MARKER: &str = "oci-layout";
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
            // The runtime is shutting down: whoever waits for this is about to be dropped.
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
    /// What the reference stood for in the registry.
    pub(super) source: Digest,
    /// What the image is made for; another tool may not have said.
    pub(super) platform: Option<Platform>,
}

/// The lock on the layout; let go when dropped.
pub(super) struct Lock {
    _file: File,
}

/// A layout directory. A clone is of the same one.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: Arc<Path>,
}

impl Layout {
    /// Opens the directory, which need not be there yet. Only looks, so that a plan leaves no trace: [`Layout::make`] makes what is missing.
    pub(super) fn open(root: PathBuf) -> Result<Self, OpenError> {
        let layout = Self {
            root: Arc::from(root),
        };
        if !layout.is_known()? {
            may_be_made(&layout.root)?;
        }
        Ok(layout)
    }

    /// Makes what is missing of the layout. Our own directory comes first and `oci-layout` last, so that a directory that
    /// was left half made is known as ours.
    pub(super) async fn make(&self) -> Result<(), Error> {
        let layout = self.clone();
        blocking(move || {
            layout.is_known()?;
            for dir in [layout.partials(), layout.root.join("blobs/sha256")] {
                fs::create_dir_all(&dir).map_err(|e| failed("make", &dir, e))?;
            }
            partial::remove_stale(&layout.partials(), "", partial::STALE_AFTER);
            partial::remove_stale(&layout.root.join(PRIVATE), NEW, NEW_STALE_AFTER);
            Ok::<_, Error>(())
        })
        .await?;
        // Without the lock an empty index could take the place of one that another process has just made and filled.
        let _lock = self.lock().await?;
        let layout = self.clone();
        blocking(move || {
            let marker = json!({ "imageLayoutVersion": VERSION }).to_string();
            for (path, content) in [
                (layout.index_path(), pretty(&empty_index())),
                (layout.root.join(MARKER), marker.into_bytes()),
            ] {
                if !path.try_exists().map_err(|e| failed("read", &path, e))? {
                    layout
                        .replace(&path, &content)
                        .map_err(|e| failed("write", &path, e))?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Whether it is a layout already; an error where it can become none.
    fn is_known(&self) -> Result<bool, OpenError> {
        let marker = self.root.join(MARKER);
        let none = |doing, path: &Path, source| OpenError::Io {
            doing,
            path: path.to_owned(),
            source,
        };
        match fs::read(&marker) {
            Ok(text) if is_version_1(&text) => return Ok(true),
            Ok(_) => {
                return Err(OpenError::Version {
                    path: self.root.to_path_buf(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(none("open", &self.root, error));
            }
            Err(error) => return Err(none("read", &marker, error)),
        }
        match may_be_ours(&self.root) {
            Ok(true) => Ok(false),
            Ok(false) => Err(OpenError::NotALayout {
                path: self.root.to_path_buf(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(none("read", &self.root, error)),
        }
    }

    /// Where blobs are kept, a directory for each algorithm.
    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Where downloads are kept until they are whole.
    pub(super) fn partials(&self) -> PathBuf {
        self.root.join(PRIVATE).join("partial")
    }

    /// A blob's path. A digest is an algorithm's name and hexadecimal digits, so no path leads out of the directory.
    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.algorithm()).join(digest.hex())
    }

    /// Whether the blob is here, whole. Blobs are verified before they get their name.
    pub(super) fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool, Error> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file() && metadata.len() == size),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("read", &path, error)),
        }
    }

    /// The blob's content, if it is here and has not more than `limit` bytes.
    pub(super) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        read_bounded(&self.blob_path(digest), limit)
    }

    /// Writes a small blob, which must have this digest.
    pub(super) fn write_blob(&self, digest: &Digest, content: &[u8]) -> Result<(), Error> {
        if self.has_blob(digest, content.len() as u64)? {
            return Ok(());
        }
        let path = self.blob_path(digest);
        self.replace(&path, content)
            .map_err(|e| failed("write", &path, e))
    }

    /// The entry of each name, if there is one that is whole and of an image manifest.
    pub(super) fn entries(&self, names: &[String]) -> Result<Vec<Option<Entry>>, Error> {
        let index = self.read_index()?;
        let entries = by_name(&index);
        Ok(names
            .iter()
            .map(|name| entries.get(name.as_str()).cloned())
            .collect())
    }

    /// The size of all that the entry's image is made of, if all of it is here.
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

    /// Takes the lock on `index.json`, waiting for other pulls and other processes. Polls, so that dropping it cancels the wait.
    pub(super) async fn lock(&self) -> Result<Lock, Error> {
        let path = self.root.join(PRIVATE).join("lock");
        let deadline = tokio::time::Instant::now() + LOCK_WAIT;
        loop {
            let file = path.clone();
            let attempt = blocking(move || {
                let file = OpenOptions::new()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(file)?;
                match file.try_lock() {
                    Ok(()) => Ok(Some(Lock { _file: file })),
                    Err(TryLockError::WouldBlock) => Ok(None),
                    Err(TryLockError::Error(error)) => Err(error),
                }
            })
            .await;
            if let Some(lock) = attempt.map_err(|e| failed("lock", &path, e))? {
                return Ok(lock);
            }
            if tokio::time::Instant::now() >= deadline {
                let seconds = LOCK_WAIT.as_secs();
                return Err(Error::Locked { path, seconds });
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Enters the image into `index.json`, in place of an entry of the same name. What other tools wrote stays as it is.
    pub(super) fn record(&self, entry: &Entry, _lock: &Lock) -> Result<(), Error> {
        // The names of all blobs must be on disk before the entry that needs them.
        for algorithm in ["sha256", "sha512"] {
            let dir = self.root.join("blobs").join(algorithm);
            match sync_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("sync", &dir, error));
                }
                _ => {}
            }
        }
        let mut index = self.read_index()?;
        match enter(&mut index, entry) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(reason) => return Err(self.bad_index(reason)),
        }
        let path = self.index_path();
        self.replace(&path, &pretty(&Value::Object(index)))
            .map_err(|e| failed("write", &path, e))
    }

    fn read_index(&self) -> Result<Map<String, Value>, Error> {
        let path = self.index_path();
        let text = match read_bounded(&path, INDEX_MAX)? {
            Some(text) => text,
            None if path.exists() => {
                return Err(self.bad_index(&format!("it has more than {INDEX_MAX} bytes")));
            }
            None => return Ok(Map::new()),
        };
        serde_json::from_slice(&text).map_err(|e| self.bad_index(&excerpt(&e.to_string())))
    }

    fn bad_index(&self, reason: &str) -> Error {
        Error::Index {
            path: self.index_path(),
            reason: reason.to_owned(),
        }
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    /// Puts `content` at `path` at one stroke, on disk when this returns.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let name = format!("{NEW}{}.{:016x}", std::process::id(), fastrand::u64(..));
        let fresh = self.root.join(PRIVATE).join(name);
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir)?;
        let written = File::create_new(&fresh)
            .and_then(|mut file| {
                file.write_all(content)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&fresh, path));
        if written.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        written?;
        sync_dir(dir)
    }
}

/// The entries of an `index.json` that are whole and of an image manifest, the first of each name.
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

/// Enters the image into an `index.json`, and says whether that changed it. An error says what the index is not.
fn enter(index: &mut Map<String, Value>, entry: &Entry) -> Result<bool, &'static str> {
    let fresh = entry_value(entry);
    let entries = index
        .entry("manifests")
        .or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(entries) = entries else {
        return Err("its manifests are no list");
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

/// An `index.json` under fire, into which an image is entered as if another tool had written it.
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

/// That files can be made here, or in the nearest directory above that is there: that there is no room for a layout is
/// to be known before anything is pulled.
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

/// Whether a directory without `oci-layout` is empty, or was being made by us. A new filesystem is not quite empty.
fn may_be_ours(root: &Path) -> io::Result<bool> {
    let mut empty = true;
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        if name == PRIVATE {
            return Ok(true);
        }
        empty &= name == "lost+found";
    }
    Ok(empty)
}

fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut text));
    match read {
        Ok(_) => Ok((text.len() as u64 <= limit).then_some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path, error)),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(super) fn failed(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}
