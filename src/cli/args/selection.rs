//! Settings that select the candidates to pull.

use clap::Args;

use super::values::{List, Parsed, all, list, single, whole};
use crate::model::reference::Prefix;
use crate::planning::plan::Policy;

/// Filters of the candidates.
#[derive(Args)]
#[command(next_help_heading = "Selection")]
pub(crate) struct SelectionArgs {
    /// Pull only images with these prefixes, such as quay.io/team
    #[arg(long, env, value_name = "PREFIXES", value_parser = list(prefixes))]
    only: Option<List<Prefix>>,

    /// Skip images with these prefixes
    #[arg(long, env, value_name = "PREFIXES", value_parser = list(prefixes))]
    ignore: Option<List<Prefix>>,

    /// Maximum number of images, most used first
    #[arg(long, env, value_name = "N", value_parser = single(limit))]
    limit: Option<usize>,
}

impl SelectionArgs {
    pub(crate) fn policy(self) -> Policy {
        let prefixes = |list: Option<List<Prefix>>| list.map(|list| list.0).unwrap_or_default();
        Policy {
            only: prefixes(self.only),
            ignore: prefixes(self.ignore),
            limit: self.limit,
            ..Policy::default()
        }
    }
}

fn prefixes(text: &str) -> Parsed<List<Prefix>> {
    let expected = "expected prefixes of image references separated by commas, without a scheme and with the repository in lower case, such as quay.io or quay.io/team";
    all(text, expected, Prefix::parse)
}

fn limit(text: &str) -> Parsed<usize> {
    let limit = whole(text, usize::MAX as u64).map(|n| n as usize);
    limit.ok_or_else(|| "expected a whole number, 1 or more".into())
}
