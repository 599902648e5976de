//! A scripted service for unit tests: what each attempt at an image results in.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::credentials::secret::Credential;
use crate::model::failure::FailureKind;
use crate::model::image_size::{ImageFs, LayerStorage, Usage};
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;
use crate::runtime::image_service::{ImageService, Progress, RuntimeError, RuntimeInfo};

/// The result of pulling an image, attempt after attempt; the last one is repeated.
pub(super) type Script = HashMap<&'static str, Vec<Answer>>;

#[derive(Clone)]
pub(super) enum Answer {
    Pulled,
    Fails(FailureKind),
    Hangs,
    /// Sends something every second, for this many seconds, and is then pulled.
    Trickles(u64),
    /// Fails after bytes were received.
    Breaks(FailureKind),
}

pub(super) struct Scripted {
    pub(super) info: RuntimeInfo,
    /// If the runtime does not answer.
    pub(super) away: Option<std::ops::Range<Instant>>,
    pub(super) script: Script,
    pub(super) attempts: Mutex<HashMap<String, Vec<Instant>>>,
    pub(super) running: AtomicUsize,
    pub(super) most: AtomicUsize,
    /// The reported usage of the store, response after response; the last one is repeated.
    pub(super) usage: Vec<u64>,
    pub(super) asked: AtomicUsize,
    /// The file system, which can change.
    pub(super) fs: Mutex<Option<ImageFs>>,
}

impl ImageService for Scripted {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    async fn status(&self, _: &Reference) -> Result<Option<StoredImage>, RuntimeError> {
        self.answers()?;
        Ok(None)
    }

    async fn pull(
        &self,
        image: &Reference,
        _: Option<&Credential>,
        progress: &Progress,
    ) -> Result<StoredImage, RuntimeError> {
        let attempt = {
            let mut attempts = self.attempts.lock().expect("lock");
            let seen = attempts.entry(image.as_written().to_owned()).or_default();
            seen.push(Instant::now());
            seen.len()
        };
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let answers = &self.script[image.as_written()];
        let answer = answers.get(attempt - 1).or(answers.last()).expect("script");
        if matches!(answer, Answer::Hangs) {
            std::future::pending::<()>().await;
        }
        if let Answer::Trickles(seconds) = answer {
            for second in 1..=*seconds {
                tokio::time::sleep(Duration::from_secs(1)).await;
                progress.set(second, *seconds);
            }
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.answers()?;
        if let Answer::Breaks(_) = answer {
            progress.set_came();
        }
        match answer {
            Answer::Breaks(kind) | Answer::Fails(kind) => {
                Err(RuntimeError::new(*kind, format!("scripted {kind}")))
            }
            _ => Ok(StoredImage::default()),
        }
    }

    fn tells_progress(&self) -> bool {
        true
    }

    fn layer_storage(&self) -> LayerStorage {
        LayerStorage::Packed
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        let told = self.usage.get(asked).or(self.usage.last());
        let Some(bytes) = told.filter(|bytes| **bytes != SILENT) else {
            return Err(RuntimeError::new(FailureKind::Timeout, "scripted"));
        };
        Ok(Usage {
            bytes: *bytes,
            ..Usage::default()
        })
    }

    async fn file_system(&self) -> Option<ImageFs> {
        *self.fs.lock().expect("lock")
    }
}

impl Scripted {
    fn answers(&self) -> Result<(), RuntimeError> {
        match &self.away {
            Some(away) if away.contains(&Instant::now()) => {
                let message = "scripted: the runtime is away";
                Err(RuntimeError::new(FailureKind::Unavailable, message))
            }
            _ => Ok(()),
        }
    }
}

/// A usage that the service does not report.
pub(super) const SILENT: u64 = u64::MAX;

/// A service that answers so, and reports this usage.
pub(super) fn scripted(script: &[(&'static str, &[Answer])], usage: &[u64]) -> Scripted {
    Scripted {
        info: RuntimeInfo {
            name: "scripted".to_owned(),
            version: "1".to_owned(),
            endpoint: String::new(),
        },
        away: None,
        script: script.iter().map(|(i, a)| (*i, a.to_vec())).collect(),
        attempts: Mutex::default(),
        running: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        usage: usage.to_vec(),
        fs: Mutex::default(),
        asked: AtomicUsize::new(0),
    }
}
