//! Sources of candidates: an images file, arguments, or the workloads of a Kubernetes cluster.
//!
//! A source reads and maps. It never decides which images are pulled: the plan merges, filters and orders them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::kube_api::connect;
use crate::kube_api::error::ConnectError;
use crate::model::candidate::Candidate;
use crate::model::image_size::Size;
use crate::model::node_facts::NodeFacts;
use crate::model::text::{chain, sanitize};

pub mod images_file;
pub mod workloads;

/// The reason why candidates could not be determined.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The images file exists, but cannot be used.
    #[error(transparent)]
    List(#[from] images_file::ListError),
    /// The images file that the user named does not exist.
    #[error("the images file {0} does not exist")]
    NoFile(PathBuf),
    /// There is no images file, and no cluster to query.
    #[error("no images file at {path}, and no cluster")]
    NoCluster {
        /// The path of the missing images file.
        path: String,
        /// The reason why there is no cluster.
        source: ConnectError,
    },
    /// Discovery in the cluster failed.
    #[error(transparent)]
    Discover(#[from] workloads::DiscoverError),
}

/// The result of a source.
#[derive(Debug, Default)]
pub struct Found {
    /// The images and the workloads that use them.
    pub candidates: Vec<Candidate>,
    /// The pull secrets of the workloads' images, if requested.
    pub pull_secrets: Vec<workloads::ImageSecret>,
    /// Image sizes by normalised reference, as far as they are requested and known.
    pub sizes: HashMap<String, Size>,
}

/// A source of candidates. It is opened first and read later, since the node may delay its start in between.
pub enum Source {
    /// A list, and this node if its age is needed.
    Listed(Vec<Candidate>, Option<NodeFacts>),
    /// A cluster.
    Cluster(Box<Cluster>),
}

/// A cluster, and the settings of the scan.
pub struct Cluster {
    connection: connect::Cluster,
    settings: workloads::Settings,
    node: workloads::ThisNode,
}

impl Source {
    /// These images.
    pub fn listed(candidates: Vec<Candidate>) -> Self {
        Self::Listed(candidates, None)
    }

    /// The images file if it exists, since it is an explicit choice; otherwise the cluster, whose Node for this node is read
    /// immediately. If the file is `required`, the cluster is no substitute for it.
    ///
    /// # Errors
    /// If the file cannot be read or is required and missing, or if there is no cluster to query.
    pub async fn open(
        images_file: &Path,
        required: bool,
        settings: &workloads::Settings,
    ) -> Result<Self, SourceError> {
        if let Some(listed) = images_file::read_images_file(images_file)? {
            let path = images_file.display();
            match listed.len() {
                0 => warn!("the images file {path} contains no image"),
                n => info!("the images file {path} contains {n} images"),
            }
            let node = match settings.node_age {
                true => age(settings).await,
                false => None,
            };
            return Ok(Self::Listed(listed, node));
        }
        if required {
            return Err(SourceError::NoFile(images_file.to_owned()));
        }
        let connection = connect::connect()
            .await
            .map_err(|source| SourceError::NoCluster {
                path: images_file.display().to_string(),
                source,
            })?;
        let node = workloads::ThisNode::read(&connection, settings).await?;
        Ok(Self::Cluster(Box::new(Cluster {
            connection,
            settings: settings.clone(),
            node,
        })))
    }

    /// This node, if it was requested and could be read.
    pub fn node(&self) -> Option<&NodeFacts> {
        match self {
            Self::Listed(_, node) => node.as_ref(),
            Self::Cluster(cluster) => cluster.node.facts(),
        }
    }

    /// The candidates.
    ///
    /// # Errors
    /// If discovery in the cluster failed completely.
    pub async fn find(self) -> Result<Found, SourceError> {
        let cluster = match self {
            Self::Listed(candidates, _) => {
                return Ok(Found {
                    candidates,
                    ..Found::default()
                });
            }
            Self::Cluster(cluster) => *cluster,
        };
        let found =
            workloads::discover(&cluster.connection, &cluster.settings, cluster.node).await?;
        info!(
            "the cluster's workloads use {} images",
            found.candidates.len()
        );
        Ok(Found {
            candidates: found.candidates,
            pull_secrets: found.pull_secrets,
            sizes: found.sizes,
        })
    }
}

/// This node, read only for its age. A failure does not prevent the pull of the listed images.
async fn age(settings: &workloads::Settings) -> Option<NodeFacts> {
    let read = async {
        let connection = connect::connect().await.map_err(|e| chain(&e))?;
        let node = workloads::ThisNode::read(&connection, settings).await;
        Ok::<_, String>(node.map_err(|e| chain(&e))?.facts().cloned())
    };
    match read.await {
        Ok(facts) => facts,
        Err(error) => {
            warn!(
                "failed to determine the age of this node: {}",
                sanitize(&error)
            );
            None
        }
    }
}
