//! Docker config files on disk, reloaded after they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use super::{ConfigFileError, DockerConfig};
use crate::credentials::file_watch::FileWatch;
use crate::model::text::{chain, excerpt, sanitize};

/// One docker config file, or the first existing one of several.
///
/// A new content that is invalid is ignored with a warning; the previous one stays in use.
#[derive(Debug)]
pub struct ConfigFile {
    paths: Vec<PathBuf>,
    /// The user named it, so a missing file is an error.
    is_named: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    config: Option<Arc<DockerConfig>>,
    watch: FileWatch,
    /// Number of times that another content was read.
    changes: u64,
}

impl ConfigFile {
    /// A file that the user named; `None` if it does not exist.
    ///
    /// # Errors
    /// Those of [`DockerConfig::read`].
    pub fn named(path: &Path) -> Result<Option<Self>, ConfigFileError> {
        let watch = FileWatch::new([path.to_owned()]);
        let Some(config) = DockerConfig::read(path)? else {
            return Ok(None);
        };
        let (paths, config) = (vec![path.to_owned()], Some(config));
        Ok(Some(Self::new(paths, true, config, watch)))
    }

    /// The first of these files that exists and is valid. None has to exist.
    pub fn first_of(paths: Vec<PathBuf>) -> Self {
        let watch = FileWatch::new(paths.iter().cloned());
        let config = paths.iter().find_map(|path| {
            DockerConfig::read(path).unwrap_or_else(|error| {
                warn!("{}", sanitize(&chain(&error)));
                None
            })
        });
        Self::new(paths, false, config, watch)
    }

    fn new(
        paths: Vec<PathBuf>,
        is_named: bool,
        config: Option<DockerConfig>,
        watch: FileWatch,
    ) -> Self {
        let config = config.map(|config| Arc::new(told(config)));
        Self {
            paths,
            is_named,
            state: Mutex::new(State {
                config,
                watch,
                changes: 0,
            }),
        }
    }

    /// The current content; `None` if there is no file.
    pub(crate) fn current(&self) -> Option<Arc<DockerConfig>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.watch.has_changed(|| self.paths.iter().cloned()) {
            match self.read_again() {
                Ok(config) => {
                    if let Some(config) = &config {
                        info!("reloaded {} after a change", sanitize(config.name()));
                    }
                    state.config = config.map(|config| Arc::new(told(config)));
                    state.changes += 1;
                }
                Err(problem) => warn!(
                    "failed to read changed credentials, keeping the previous ones: {}",
                    sanitize(&problem)
                ),
            }
        }
        state.config.clone()
    }

    /// Number of times that another content was read, by now.
    pub(crate) fn changes(&self) -> u64 {
        self.current();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.changes
    }

    fn read_again(&self) -> Result<Option<DockerConfig>, String> {
        let path = match self.is_named {
            true => self.paths.first(),
            false => self.paths.iter().find(|path| path.is_file()),
        };
        let Some(path) = path else {
            return Ok(None);
        };
        let shown = || format!("file {}", excerpt(&path.display().to_string()));
        // A pipe may never have a writer.
        if path.exists() && !path.is_file() {
            return Err(format!("{} is not a regular file", shown()));
        }
        match DockerConfig::read(path) {
            Ok(None) if self.is_named => Err(format!("{} does not exist", shown())),
            read => read.map_err(|error| chain(&error)),
        }
    }
}

/// A configuration that never changes.
impl From<DockerConfig> for ConfigFile {
    fn from(config: DockerConfig) -> Self {
        Self::new(Vec::new(), false, Some(config), FileWatch::new([]))
    }
}

/// Logs a warning for each entry that cannot be used.
fn told(config: DockerConfig) -> DockerConfig {
    for problem in config.problems() {
        warn!("{}", sanitize(problem));
    }
    config
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::credentials::file_watch::CHECK_INTERVAL;

    fn auths(registry: &str) -> String {
        format!(r#"{{"auths":{{"{registry}":{{"auth":"dTpw"}}}}}}"#)
    }

    /// The registry of the only entry, after the interval of checks.
    async fn registry(file: &ConfigFile) -> String {
        tokio::time::advance(CHECK_INTERVAL).await;
        let config = file.current();
        config.map_or_else(
            || "none".to_owned(),
            |config| config.entries()[0].pattern.as_key().to_owned(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn rotated_secret_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        // As the kubelet mounts a Secret: a link to a link that it replaces.
        for (version, registry) in [("v1", "a.example"), ("v2", "b.example")] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("config.json"), auths(registry)).unwrap();
        }
        symlink("v1", path("..data")).unwrap();
        symlink("..data/config.json", path("config.json")).unwrap();
        let file = ConfigFile::named(&path("config.json")).unwrap().unwrap();
        assert_eq!(registry(&file).await, "a.example");
        symlink("v2", path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        assert_eq!(registry(&file).await, "b.example");
        assert_eq!(file.changes(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn broken_change_keeps_previous_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, auths("a.example")).unwrap();
        let file = ConfigFile::named(&path).unwrap().unwrap();
        for broken in ["", "hunter2", r#"{"auths":7}"#] {
            fs::write(&path, broken).unwrap();
            assert_eq!(registry(&file).await, "a.example", "{broken}");
        }
        fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        assert_eq!(registry(&file).await, "a.example");
        fs::remove_file(&path).unwrap();
        assert_eq!(registry(&file).await, "a.example");
        fs::create_dir(&path).unwrap();
        assert_eq!(registry(&file).await, "a.example");
        fs::remove_dir(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        assert_eq!(registry(&file).await, "a.example");
        fs::remove_file(&path).unwrap();
        fs::write(&path, auths("b.example")).unwrap();
        assert_eq!(registry(&file).await, "b.example");
    }

    #[tokio::test(start_paused = true)]
    async fn default_file_may_appear_and_vanish() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("1.json"), dir.path().join("2.json"));
        let file = ConfigFile::first_of(vec![first.clone(), second.clone()]);
        assert_eq!(registry(&file).await, "none");
        fs::write(&second, auths("two.example")).unwrap();
        assert_eq!(registry(&file).await, "two.example");
        fs::write(&first, auths("one.example")).unwrap();
        assert_eq!(registry(&file).await, "one.example");
        fs::remove_file(&first).unwrap();
        assert_eq!(registry(&file).await, "two.example");
        fs::remove_file(&second).unwrap();
        assert_eq!(registry(&file).await, "none");
    }

    #[tokio::test(start_paused = true)]
    async fn parsed_config_never_changes() {
        let json = auths("a.example");
        let file = ConfigFile::from(DockerConfig::parse("test", json.as_bytes()).unwrap());
        assert_eq!(registry(&file).await, "a.example");
        assert_eq!(registry(&file).await, "a.example");
    }
}
