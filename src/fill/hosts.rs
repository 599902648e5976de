//! The node's registry configuration: `hosts.toml` below the directory that containerd's CRI plugin reads, for each pull.
//!
//! The rules are those of containerd's `docs/hosts.md` and `core/remotes/docker/config`. What is not done here, and what cannot
//! be read, is [`Unsupported`]: the runtime then pulls the image, so that no mirror is ever passed by. Only files below the
//! directory, and those that they name, are read. No network.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, Uri};
use toml::{Table, Value};

use crate::model::go_duration;
use crate::model::reference::{DOCKER_HUB, served_at};
use crate::model::text::excerpt;
use crate::registry::endpoint::{Endpoint, Identity, Tls, private_header};
use crate::registry::transport::is_loopback;
use crate::runtime::containerd::HostDir;

/// Name of the file in a registry's directory.
const FILE: &str = "hosts.toml";
/// Directory of registries that have none of their own.
const DEFAULT: &str = "_default";
/// Maximum size of a configuration file, certificate or key in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Maximum number of hosts of one registry.
const HOSTS_MAX: usize = 64;
/// Time limit for establishing a connection where none is configured, as in containerd.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The reason why the runtime has to pull the image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unsupported(pub(super) String);

/// A server to request a registry's content from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// The configured server; `None` for the registry without any configuration.
    pub(super) endpoint: Option<Endpoint>,
    /// Time limit for establishing a connection.
    pub(super) dial_timeout: Duration,
    /// It is trusted to turn a tag into a digest.
    pub(super) resolves: bool,
    /// It serves content by digest.
    pub(super) pulls: bool,
    /// It is the registry's own server: the image's credential is for it.
    pub(super) is_own: bool,
}

impl Host {
    /// The registry itself, as without any configuration.
    fn own() -> Self {
        Self {
            endpoint: None,
            dial_timeout: DIAL_TIMEOUT,
            resolves: true,
            pulls: true,
            is_own: true,
        }
    }

    /// Returns whether requests go to another machine over plain http.
    pub(super) fn is_plain(&self) -> bool {
        let base = self.endpoint.as_ref().map(|endpoint| &endpoint.base);
        base.is_some_and(|base| {
            base.scheme() == "http" && !base.host_str().is_some_and(is_loopback)
        })
    }
}

/// The servers of a registry, in the order in which containerd asks them.
pub(super) fn hosts(dir: &HostDir, registry: &str) -> Result<Vec<Host>, Unsupported> {
    if dir.has_more {
        return Err(Unsupported("config_path names several directories".into()));
    }
    if dir.path.is_empty() {
        return Ok(vec![Host::own()]);
    }
    let root = Path::new(&dir.path);
    // In a container, a directory that is not mounted looks like one that does not exist.
    if !exists(root)? {
        let is_visible = match root.parent() {
            Some(parent) => exists(parent)?,
            None => false,
        };
        return match is_visible {
            true => Ok(vec![Host::own()]),
            false => Err(unreadable(root, "it is not mounted")),
        };
    }
    for name in directories(registry) {
        let directory = root.join(name);
        if exists(&directory)? {
            return of_directory(&directory, registry);
        }
    }
    Ok(vec![Host::own()])
}

/// The names of a registry's directory, in the order in which containerd looks for them.
fn directories(registry: &str) -> Vec<String> {
    let with_port = registry
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty());
    let with_port = with_port.map(|(host, port)| format!("{host}_{port}_"));
    let own = [registry.to_owned(), DEFAULT.to_owned()];
    with_port.into_iter().chain(own).collect()
}

/// A link to a missing file counts as an error, because the file may only be out of sight here.
fn exists(path: &Path) -> Result<bool, Unsupported> {
    let found = match fs::symlink_metadata(path) {
        Ok(_) => fs::metadata(path).map(|_| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    };
    found.map_err(|error| unreadable(path, &error.to_string()))
}

fn unreadable(path: &Path, why: &str) -> Unsupported {
    Unsupported(format!("failed to read {}: {why}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, Unsupported> {
    let mut content = Vec::new();
    let read = fs::File::open(path).and_then(|f| f.take(FILE_MAX + 1).read_to_end(&mut content));
    match read {
        Ok(_) if content.len() as u64 > FILE_MAX => Err(unreadable(path, "it is too large")),
        Ok(_) => Ok(content),
        Err(error) => Err(unreadable(path, &error.to_string())),
    }
}

fn of_directory(directory: &Path, registry: &str) -> Result<Vec<Host>, Unsupported> {
    let file = directory.join(FILE);
    let text = match exists(&file)? {
        true => read(&file)?,
        false => Vec::new(),
    };
    if text.is_empty() {
        return match has_certificates(directory)? {
            true => Err(Unsupported(format!(
                "{} has certificate files for Docker",
                directory.display()
            ))),
            false => Ok(vec![Host::own()]),
        };
    }
    let invalid = |why: &str| Unsupported(format!("{}: {why}", file.display()));
    let text = String::from_utf8(text).map_err(|_| invalid("not UTF-8"))?;
    parse(&text, directory, registry).map_err(|error| invalid(&error.0))
}

/// Certificate files beside, or instead of, `hosts.toml`, which containerd takes for the registry.
fn has_certificates(directory: &Path) -> Result<bool, Unsupported> {
    let fail = |error: io::Error| unreadable(directory, &error.to_string());
    for entry in fs::read_dir(directory).map_err(fail)? {
        let name = PathBuf::from(entry.map_err(fail)?.file_name());
        let extension = name.extension().and_then(|e| e.to_str());
        if matches!(extension, Some("crt" | "cert" | "key")) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn parse(text: &str, directory: &Path, registry: &str) -> Result<Vec<Host>, Unsupported> {
    let mut root: Table = text.parse().map_err(|error: toml::de::Error| {
        Unsupported(format!("invalid TOML: {}", excerpt(error.message())))
    })?;
    let server = match root.remove("server") {
        None => String::new(),
        Some(Value::String(server)) => server,
        Some(_) => return Err(wrong("server")),
    };
    let mirrors = match root.remove("host") {
        None => Table::new(),
        Some(Value::Table(mirrors)) => mirrors,
        Some(_) => return Err(wrong("host")),
    };
    if mirrors.len() >= HOSTS_MAX {
        return Err(Unsupported(format!("more than {HOSTS_MAX} hosts")));
    }
    let mut hosts = Vec::new();
    for (url, fields) in mirrors {
        let Value::Table(fields) = fields else {
            return Err(wrong("host"));
        };
        hosts.push(Fields::parse(fields, directory)?.host(&url, registry)?);
    }
    let fields = Fields::parse(root, directory)?;
    let last = match server.is_empty() {
        false => fields.host(&server, registry)?,
        true => fields.registry(registry)?,
    };
    hosts.push(last);
    Ok(hosts)
}

fn wrong(field: &str) -> Unsupported {
    Unsupported(format!("unexpected value of {field}"))
}

/// The fields of one host.
struct Fields {
    resolves: bool,
    pulls: bool,
    headers: HeaderMap,
    tls: Tls,
    has_tls: bool,
    override_path: bool,
    dial_timeout: Duration,
}

impl Fields {
    fn parse(table: Table, directory: &Path) -> Result<Self, Unsupported> {
        let mut fields = Self {
            resolves: true,
            pulls: true,
            headers: HeaderMap::new(),
            tls: Tls::default(),
            has_tls: false,
            override_path: false,
            dial_timeout: DIAL_TIMEOUT,
        };
        for (name, value) in table {
            fields.set(&name, value, directory)?;
        }
        Ok(fields)
    }

    fn set(&mut self, name: &str, value: Value, directory: &Path) -> Result<(), Unsupported> {
        match (name, value) {
            ("capabilities", value) => self.set_capabilities(&texts(value, name)?)?,
            ("ca", value) => {
                self.has_tls = true;
                for path in texts(value, name)? {
                    self.tls.roots.push(read(&directory.join(path))?);
                }
            }
            ("client", value) => {
                self.has_tls = true;
                self.tls.client = client(value, directory)?;
            }
            ("skip_verify", Value::Boolean(skip)) => {
                self.has_tls = true;
                self.tls.skip_verify = skip;
            }
            ("override_path", Value::Boolean(is_set)) => self.override_path = is_set,
            ("header", Value::Table(headers)) => self.set_headers(headers)?,
            ("dial_timeout", Value::String(text)) => match go_duration::parse(&text) {
                Some(Ok(limit)) if !limit.is_zero() => self.dial_timeout = limit,
                _ => return Err(wrong(name)),
            },
            ("skip_verify" | "override_path" | "header" | "dial_timeout", _) => {
                return Err(wrong(name));
            }
            _ => return Err(Unsupported(format!("unsupported field {}", excerpt(name)))),
        }
        Ok(())
    }

    fn set_capabilities(&mut self, names: &[String]) -> Result<(), Unsupported> {
        // As in containerd, an empty list stands for all.
        if names.is_empty() {
            return Ok(());
        }
        (self.resolves, self.pulls) = (false, false);
        for name in names {
            match &*name.to_ascii_lowercase() {
                "resolve" => self.resolves = true,
                "pull" => self.pulls = true,
                "push" => {}
                _ => return Err(wrong("capabilities")),
            }
        }
        Ok(())
    }

    fn set_headers(&mut self, headers: Table) -> Result<(), Unsupported> {
        for (name, values) in headers {
            let key = HeaderName::try_from(&name).map_err(|_| wrong("header"))?;
            for value in texts(values, "header")? {
                let value = private_header(&value).ok_or_else(|| wrong("header"))?;
                self.headers.append(key.clone(), value);
            }
        }
        Ok(())
    }

    /// The host at a URL of the configuration.
    fn host(self, text: &str, registry: &str) -> Result<Host, Unsupported> {
        let invalid = || Unsupported(format!("unexpected host {}", excerpt(text)));
        let with_scheme = match text.starts_with("http") {
            true => text.to_owned(),
            false => format!("https://{text}"),
        };
        let url: Uri = with_scheme.parse().map_err(|_| invalid())?;
        let (scheme, host) = (url.scheme_str(), url.authority().map(|a| a.as_str()));
        let (Some(scheme @ ("http" | "https")), Some(host)) = (scheme, host) else {
            return Err(invalid());
        };
        if host.contains('@') || url.query().is_some() {
            return Err(invalid());
        }
        let path = url.path().trim_end_matches('/');
        // containerd cleans such a path.
        if path.contains("//") || path.split('/').any(|part| part == "." || part == "..") {
            return Err(invalid());
        }
        let path = match path.ends_with("/v2") || self.override_path {
            true => path.to_owned(),
            false => format!("{path}/v2"),
        };
        self.at(scheme, host, &path, registry)
    }

    /// The registry's own server, where the file names no other.
    fn registry(mut self, registry: &str) -> Result<Host, Unsupported> {
        let host = served_at(registry);
        if is_loopback(host) {
            // containerd guesses http or https by the port and does not verify the certificate.
            return match self.has_tls || !self.headers.is_empty() {
                true => Err(Unsupported("settings of a registry on this machine".into())),
                false => Ok(Host::own()),
            };
        }
        // As in containerd, the capabilities in the file are those of `server`.
        (self.resolves, self.pulls) = (true, true);
        self.at("https", host, "/v2", registry)
    }

    fn at(self, scheme: &str, host: &str, path: &str, registry: &str) -> Result<Host, Unsupported> {
        if scheme == "http" && self.has_tls {
            // containerd tries https first.
            return Err(Unsupported("TLS settings of a host with http".into()));
        }
        let base = format!("{scheme}://{host}{path}");
        let base = base
            .parse()
            .map_err(|_| Unsupported(format!("unexpected host {}", excerpt(host))))?;
        let is_own = host == served_at(registry);
        let is_registry = is_own || (host == registry && registry != DOCKER_HUB);
        Ok(Host {
            endpoint: Some(Endpoint {
                base,
                namespace: (!is_registry).then(|| registry.to_owned()),
                headers: self.headers,
                tls: self.tls,
            }),
            dial_timeout: self.dial_timeout,
            resolves: self.resolves,
            pulls: self.pulls,
            is_own,
        })
    }
}

/// A text, or a list of texts.
fn texts(value: Value, field: &str) -> Result<Vec<String>, Unsupported> {
    let text = |value| match value {
        Value::String(text) => Ok(text),
        _ => Err(wrong(field)),
    };
    match value {
        Value::Array(values) => values.into_iter().map(text).collect(),
        value => Ok(vec![text(value)?]),
    }
}

/// Certificate chain and key: one file with both, or a pair of files. containerd offers several to the server, this does not.
fn client(value: Value, directory: &Path) -> Result<Option<Identity>, Unsupported> {
    let entry = match value {
        Value::Array(entries) => {
            let mut entries = entries.into_iter();
            match (entries.next(), entries.next()) {
                (None, _) => return Ok(None),
                (Some(entry), None) => entry,
                _ => return Err(Unsupported("several client certificates".into())),
            }
        }
        entry => entry,
    };
    let files = texts(entry, "client")?;
    let (chain, key) = match &*files {
        [one] => (one, one),
        [chain, key] if key.is_empty() => (chain, chain),
        [chain, key] => (chain, key),
        _ => return Err(wrong("client")),
    };
    Ok(Some((
        read(&directory.join(chain))?,
        read(&directory.join(key))?,
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
