//! Where candidates come from: an images file, arguments, or the workloads of a Kubernetes cluster.
//!
//! A source reads and maps. It never decides what is pulled: merging, filtering and ordering are the plan's work.

use std::path::Path;

use tracing::{info, warn};

use crate::candidate::Candidate;

pub mod kubernetes;
pub mod list;

/// Why no candidates could be found out.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The images file is there, but cannot be read as one.
    #[error(transparent)]
    List(#[from] list::ListError),
    /// There is no images file, and no cluster that can be asked.
    #[error("there is no images file at {path}, and no cluster to ask")]
    NoCluster {
        /// Where the images file was looked for.
        path: String,
        /// Why there is no cluster.
        source: kubernetes::ConnectError,
    },
    /// The cluster told nothing.
    #[error(transparent)]
    Discover(#[from] kubernetes::DiscoverError),
}

/// What a source found.
#[derive(Debug)]
pub struct Found {
    /// The images, and who uses them.
    pub candidates: Vec<Candidate>,
    /// With what the workloads' images may be pulled, where that was asked for.
    pub pull_secrets: Vec<kubernetes::ImageSecret>,
}

/// The images file's candidates where it exists, as an explicit choice; else those of the cluster's workloads.
///
/// # Errors
/// When the file cannot be read, or the cluster tells nothing at all.
pub async fn candidates(
    images_file: &Path,
    cluster: &kubernetes::Settings,
) -> Result<Found, SourceError> {
    if let Some(listed) = list::read_images_file(images_file)? {
        let path = images_file.display();
        match listed.len() {
            0 => warn!("the images file {path} names no image"),
            n => info!("the images file {path} names {n} images"),
        }
        return Ok(Found {
            candidates: listed,
            pull_secrets: Vec::new(),
        });
    }
    let connection = kubernetes::connect()
        .await
        .map_err(|source| SourceError::NoCluster {
            path: images_file.display().to_string(),
            source,
        })?;
    let found = kubernetes::discover(&connection, cluster).await?;
    info!(
        "the cluster's workloads use {} images",
        found.candidates.len()
    );
    Ok(Found {
        candidates: found.candidates,
        pull_secrets: found.pull_secrets,
    })
}
