//! Fuzz target of the page decoder and the accumulator.

use super::accumulate::Accumulator;
use super::object::{Facts, MAX_IMAGE};
use crate::kube_api::decode::{Budget, from_reader};
use crate::model::text::is_unsafe;
use crate::model::workload_kind::WorkloadKind;

/// Decodes a page of the API server; the first byte chooses the kind.
pub(crate) fn fuzz_page(data: &[u8]) {
    let Some((first, text)) = data.split_first() else {
        return;
    };
    let kind = WorkloadKind::ALL[usize::from(*first) % WorkloadKind::ALL.len()];
    let mut into = Accumulator::with_pull_secrets();
    let mut folded = 0;
    let mut sink = |facts: Facts| {
        into.fold(kind, &facts);
        folded += 1;
        true
    };
    let end = from_reader(kind, text, Budget::default(), &mut sink);
    if let Ok(end) = &end {
        assert_eq!(end.objects, folded);
    }
    for candidate in into.into_candidates() {
        assert!(candidate.image.len() <= MAX_IMAGE);
    }
    if let Err(error) = end {
        assert!(!error.to_string().chars().any(is_unsafe), "{error}");
    }
}
