//! Opens and reads the source of candidates. An invalid setting becomes an error that names the setting.

use anyhow::{Context, Result};

use crate::app::settings::{SettingError, Sources};
use crate::discovery::workloads::DiscoverError;
use crate::discovery::{Found, Source, SourceError};

/// The beginning of the errors of a source.
const NO_CANDIDATES: &str = "failed to determine which images to pull";

/// The images file where it exists, else the cluster.
///
/// # Errors
/// Those of [`Source::open`]; [`SettingError`] where a file that the user named does not exist.
pub(crate) async fn open(sources: &Sources) -> Result<Source> {
    let file = &sources.images_file;
    match Source::open(file, sources.images_file_given, &sources.cluster).await {
        Err(SourceError::NoFile(path)) => {
            let path = path.to_string_lossy();
            Err(SettingError::new("images-file", &path, "the file does not exist").into())
        }
        opened => opened.context(NO_CANDIDATES),
    }
}

/// The candidates of a source.
///
/// # Errors
/// Those of [`Source::find`]; [`SettingError`] where the API server rejects the label selector.
pub(crate) async fn find(source: Source) -> Result<Found> {
    match source.find().await {
        Err(SourceError::Discover(DiscoverError::Selector { selector, message })) => {
            let reason = format!("the API server rejects the label selector: {message}");
            Err(SettingError::new("selector", &selector, &reason).into())
        }
        found => found.context(NO_CANDIDATES),
    }
}
