//! Reads a list page by page to its end, as the Kubernetes API concepts describe it ("Retrieving large results sets in chunks"),
//! including an expired continue token.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::connect::Cluster;
use super::decode::PageEnd;
use super::error::ListError;
use super::request::{ListFault, PageFault};

/// Objects per page, as in kubectl.
pub(crate) const LIMIT: usize = 500;
/// Ten million objects; a longer list is assumed to be endless.
const MAX_PAGES: usize = 20_000;
/// Maximum number of times that a list is started again because it expired.
const MAX_RESTARTS: u32 = 3;

/// A list, and the objects that were read of it.
pub(crate) trait Pages {
    /// Reads the page that the continue token leads to, with retries where these may help; the first page without one.
    ///
    /// # Errors
    /// The fault of the last attempt.
    async fn read(&mut self, token: Option<&str>) -> Result<PageEnd, PageFault>;

    /// Removes the objects that were read: the list has expired and is read again.
    fn clear(&mut self);
}

/// Reads the list to its end; returns the number of its objects. The pages that were read are kept, even after an error.
///
/// # Errors
/// If a page cannot be read, the list expires again and again, or it is endless.
pub(crate) async fn read(cluster: &Cluster, list: &mut impl Pages) -> Result<usize, ListFault> {
    let mut token: Option<String> = None;
    // Only hashes are kept: 20,000 tokens of the maximum length would be 320 MB.
    let (mut tokens, hash) = (HashSet::new(), RandomState::new());
    let mut objects = 0;
    let mut restarts = 0;
    for _ in 0..MAX_PAGES {
        let next = match list.read(token.as_deref()).await {
            Ok(end) => {
                objects += end.objects;
                match end.next {
                    Some(next) => next,
                    None => return Ok(objects),
                }
            }
            Err(PageFault::Gone(Some(next))) => next,
            Err(PageFault::Gone(None)) if restarts == MAX_RESTARTS => {
                return failed(ListError::Expired(restarts + 1));
            }
            Err(PageFault::Gone(None)) => {
                list.clear();
                restarts += 1;
                cluster.patience.pause(restarts, None).await;
                objects = 0;
                token = None;
                tokens.clear();
                continue;
            }
            Err(PageFault::Passing(error, _)) => return failed(error),
            Err(PageFault::Final(fault)) => return Err(fault),
        };
        if !tokens.insert(hash.hash_one(&next)) {
            return failed(ListError::Endless("it repeats a page"));
        }
        token = Some(next);
    }
    failed(ListError::Endless("it has more than 20000 pages"))
}

fn failed(error: ListError) -> Result<usize, ListFault> {
    Err(ListFault::Failed(error))
}
