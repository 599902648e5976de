//! Where candidates come from: an images file, arguments, or the workloads of a Kubernetes cluster.
//!
//! A source reads and maps. It never decides what is pulled: merging, filtering and ordering are the plan's work.

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

/// Why no candidates could be found out.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The images file is there, but cannot be read as one.
    #[error(transparent)]
    List(#[from] images_file::ListError),
    /// The images file that the user named does not exist.
    #[error("the images file {0} does not exist")]
    NoFile(PathBuf),
    /// There is no images file, and no cluster that can be asked.
    #[error("no images file at {path}, and no cluster")]
    NoCluster {
        /// Where the images file was looked for.
        path: String,
        /// Why there is no cluster.
        source: ConnectError,
    },
    /// The cluster told nothing.
    #[error(transparent)]
    Discover(#[from] workloads::DiscoverError),
}

/// What a source found.
#[derive(Debug, Default)]
pub struct Found {
    /// The images, and who uses them.
    pub candidates: Vec<Candidate>,
    /// With what the workloads' images may be pulled, where that was asked for.
    pub pull_secrets: Vec<workloads::ImageSecret>,
    /// What images weigh, by normalised reference, where that was asked for and is known.
    pub sizes: HashMap<String, Size>,
}

/// Where candidates come from. It is opened first and read later, since a node may have to wait for its turn in between.
pub enum Source {
    /// A list, and this node where its age was wanted.
    Listed(Vec<Candidate>, Option<NodeFacts>),
    /// A cluster.
    Cluster(Box<Cluster>),
}

/// A cluster, and what is to be read of it.
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

    /// The images file where it exists, as an explicit choice; else the cluster, of which this node is read at once.
    /// Where the file is `required`, the cluster is not asked in its place.
    ///
    /// # Errors
    /// When the file cannot be read or is required and missing, or there is no cluster that can be asked.
    pub async fn open(
        images_file: &Path,
        required: bool,
        settings: &workloads::Settings,
    ) -> Result<Self, SourceError> {
        if let Some(listed) = images_file::read_images_file(images_file)? {
            let path = images_file.display();
            match listed.len() {
                0 => warn!("the images file {path} names no image"),
                n => info!("the images file {path} names {n} images"),
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

    /// This node, where it was asked for and could be read.
    pub fn node(&self) -> Option<&NodeFacts> {
        match self {
            Self::Listed(_, node) => node.as_ref(),
            Self::Cluster(cluster) => cluster.node.facts(),
        }
    }

    /// The candidates.
    ///
    /// # Errors
    /// When the cluster tells nothing at all.
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

/// This node, read for its age alone: whatever fails is no reason not to pull what is listed.
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
