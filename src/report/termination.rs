//! The termination message of a container, which `kubectl describe pod` shows for a finished init container.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use super::text::closing;
use super::{Outcome, Report};
use crate::model::text::{clip_bytes, sanitize};

/// Path at which the kubelet mounts the file by default (`terminationMessagePath`).
pub const PATH: &str = "/dev/termination-log";

/// Number of bytes that the kubelet reads of it.
pub const MAX_BYTES: usize = 4096;

/// Writes the message if the kubelet has created a file for it; never creates the file.
///
/// # Errors
/// Those of opening and writing the file, except that it does not exist.
pub fn write(path: &Path, message: &str) -> io::Result<()> {
    match OpenOptions::new().write(true).truncate(true).open(path) {
        Ok(mut file) => file.write_all(message.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The closing line, then as many failed images as fit.
pub fn message(report: &Report) -> String {
    let mut message = closing(report);
    let failed: Vec<_> = report
        .images
        .iter()
        .filter(|i| i.outcome == Outcome::Failed)
        .collect();
    for (told, image) in failed.iter().enumerate() {
        let mut line = format!("\n{}", sanitize(&image.image));
        if let Some(reason) = image.reason {
            let _ = write!(line, ": {}", reason.as_str());
        }
        if let Some(text) = &image.message {
            let _ = write!(line, ": {}", sanitize(text));
        }
        let line = clip_bytes(&line, 400);
        let more = format!("\nand {} more failed", failed.len() - told);
        if message.len() + line.len() + more.len() > MAX_BYTES {
            message.push_str(&more);
            break;
        }
        message.push_str(&line);
    }
    clip_bytes(&message, MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::failure::FailureKind;
    use crate::model::outcome::ImageReport;
    use crate::model::outcome::Reason;
    use crate::runtime::image_service::RuntimeInfo;

    fn failed(image: String) -> ImageReport {
        ImageReport {
            image: image.into(),
            outcome: Outcome::Failed,
            reason: Some(Reason::Failure(FailureKind::Other)),
            message: Some("é".repeat(500)),
            pods: None,
            workloads: [].into(),
            attempts: 1,
            seconds: None,
            bytes: None,
            digest: None,
            credential: None,
            is_sealed: false,
        }
    }

    #[test]
    fn message_fits_and_counts_omitted_images() {
        let report = Report {
            runtime: Some(RuntimeInfo {
                name: "containerd".to_owned(),
                version: "1".to_owned(),
                endpoint: String::new(),
            }),
            node: None,
            error: None,
            images: (0..100).map(|i| failed(format!("image-{i}"))).collect(),
            elapsed: Duration::from_secs(1),
        };
        let message = message(&report);
        assert!(message.len() <= MAX_BYTES, "{}", message.len());
        assert!(message.starts_with("harpoon: pulled 0, present 0, failed 100"));
        let told = message.matches("\nimage-").count();
        assert!(told > 5, "{message}");
        assert!(
            message.ends_with(&format!("and {} more failed", 100 - told)),
            "{message}"
        );
    }
}
