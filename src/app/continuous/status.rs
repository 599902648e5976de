//! Parts of the statuses that agent and controller write. Pure.

use crate::api::v1alpha1::Condition;

/// The condition of a node on which harpoon yields the disk.
pub(crate) const DISK_PRESSURE: &str = "DiskPressure";

/// A condition with this type and status. Its last transition is that of the condition in `before`, unless the status differs:
/// then it is `now`, in RFC 3339.
pub(crate) fn condition(
    before: &[Condition],
    (kind, status): (&str, &str),
    (reason, message): (String, String),
    now: &str,
) -> Condition {
    let mut known = before.iter().filter(|known| known.kind == kind);
    let same = known.find(|known| known.status == status && !known.last_transition_time.is_empty());
    Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        last_transition_time: same
            .map_or(now, |known| &known.last_transition_time)
            .to_owned(),
        observed_generation: None,
    }
}

/// A number as the API has it.
pub(crate) fn number(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
