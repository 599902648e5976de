//! Failed gRPC calls to a container runtime, as errors. It makes no call.

use std::borrow::Cow;
use std::error::Error as _;

use tonic::{Code, Status};

use crate::model::failure::FailureKind;
use crate::model::reference::Reference;
use crate::model::text::{causes, join_causes};
use crate::runtime::error_kind;
use crate::runtime::image_service::RuntimeError;

/// Error of containerd's CRI plugin while containerd starts.
const STARTING: &str = "server is not initialized yet";
/// The beginning of CRI-O's error text of a failed pull: it tries each image as an artifact too, and reports both failures.
const BOTH: &str = "unable to pull image or OCI artifact: ";
const FIRST: &str = "pull image err: ";
const SECOND: &str = "; artifact err: ";

/// The error of a failed call for an image.
pub(super) fn failure(status: &Status, image: &Reference) -> RuntimeError {
    let message = message(status);
    let kind = match error_kind::kind_for(&message, image) {
        _ if status.source().is_some() => FailureKind::Unavailable,
        FailureKind::Other => kind_of_code(status.code()),
        kind => kind,
    };
    RuntimeError::new(kind, message)
}

/// The error of a failed call that is not for one image.
pub(super) fn unexplained(status: &Status) -> RuntimeError {
    // A call that did not reach the runtime, or reached it while it starts, can be retried.
    let is_away = status.source().is_some() || status.message().contains(STARTING);
    let kind = match is_away {
        true => FailureKind::Unavailable,
        false => kind_of_code(status.code()),
    };
    RuntimeError::new(kind, message(status))
}

/// The kind for the status code, if the text gives none. `NotFound` does not count: containerd returns it for a blob that its own
/// store has lost, and the texts of registries are recognised.
fn kind_of_code(code: Code) -> FailureKind {
    match code {
        Code::Unavailable | Code::Aborted => FailureKind::Unavailable,
        Code::DeadlineExceeded | Code::Cancelled => FailureKind::Timeout,
        Code::Unauthenticated | Code::PermissionDenied => FailureKind::Unauthorized,
        _ => FailureKind::Other,
    }
}

/// The server's own message; if the call did not reach it, the connection error.
pub(super) fn message(status: &Status) -> String {
    let text = words(status);
    match (status.source().is_some(), text.is_empty()) {
        (true, _) => format!("failed to reach the container runtime: {text}"),
        (false, true) => format!(
            "the container runtime returned an error without a message (gRPC {:?})",
            status.code()
        ),
        (false, false) => text,
    }
}

/// The message of the status and its causes.
pub(super) fn words(status: &Status) -> String {
    let causes = causes(status).map(ToString::to_string);
    let text = join_causes(status.message().to_owned(), causes);
    first_failure(&error_kind::tidy(&text)).into_owned()
}

/// The text with only the first of the two failures: usually both are of the same request.
fn first_failure(text: &str) -> Cow<'_, str> {
    let first = || {
        let (before, rest) = text.split_once(BOTH)?;
        let (first, _) = rest.strip_prefix(FIRST)?.split_once(SECOND)?;
        (!first.is_empty()).then(|| format!("{before}{first}"))
    };
    first().map_or(Cow::Borrowed(text), Cow::Owned)
}
