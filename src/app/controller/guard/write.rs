//! The writes to one Node. Each is for one Node only: one of the same name that was created later is left alone.

use std::time::{Duration, SystemTime};

use http::header::CONTENT_TYPE;
use k8s_openapi::api::core::v1::Node as CoreNode;
use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::super::apply::MANAGER;
use super::super::gate::{self, Action, CONDITION, GateNode, Told};

/// Time limit of one write.
const LIMIT: Duration = Duration::from_secs(10);
/// Attempts to remove a taint while others change the node's taints.
const ATTEMPTS: u32 = 5;

/// The outcome of the writes of one Node: whether each was made, and not needless or for a Node that is gone.
pub(in super::super) struct Outcome {
    pub(super) action: Action,
    pub(super) opened: Result<bool, kube::Error>,
    pub(super) told: Result<bool, kube::Error>,
}

/// Removes the taints, then sets the condition: what lets pods in depends on nothing else.
pub(super) async fn write(client: Client, action: Action) -> Outcome {
    let opened = match action.taints.is_empty() {
        true => Ok(false),
        false => limited(open(&client, &action)).await,
    };
    let told = match &action.condition {
        Some(told) => limited(tell(&client, &action, told)).await,
        None => Ok(false),
    };
    Outcome {
        action,
        opened,
        told,
    }
}

async fn limited(
    write: impl Future<Output = Result<bool, kube::Error>>,
) -> Result<bool, kube::Error> {
    match timeout(LIMIT, write).await {
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(false),
        Ok(outcome) => outcome,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
    }
}

/// Removes exactly these taints, wherever others have moved them meanwhile.
async fn open(client: &Client, action: &Action) -> Result<bool, kube::Error> {
    let api: Api<GateNode> = Api::all_with(client.clone(), &resource());
    let mut taints = action.taints.clone();
    for attempt in 1.. {
        match remove(client, &action.name, &action.uid, &taints).await {
            Ok(()) => return Ok(true),
            // A test of the patch failed, or another write came in between.
            Err(kube::Error::Api(status))
                if matches!(status.code, 409 | 422) && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
        let node = api.get(&action.name).await?;
        taints = gate::taints(&node);
        if taints.is_empty() || node.uid().unwrap_or_default() != action.uid {
            break;
        }
    }
    Ok(false)
}

/// The resource of Nodes that are decoded in part.
pub(in super::super) fn resource() -> ApiResource {
    ApiResource::erase::<CoreNode>(&())
}

async fn remove(
    client: &Client,
    name: &str,
    uid: &str,
    taints: &[(usize, Value)],
) -> Result<(), kube::Error> {
    let mut patch = vec![json!({"op": "test", "path": "/metadata/uid", "value": uid})];
    // From the last one on, so that the others keep their positions.
    for (at, taint) in taints.iter().rev() {
        let path = format!("/spec/taints/{at}");
        patch.push(json!({"op": "test", "path": path, "value": taint}));
        patch.push(json!({"op": "remove", "path": path}));
    }
    let request = http::Request::patch(format!("/api/v1/nodes/{name}?fieldManager={MANAGER}"))
        .header(CONTENT_TYPE, "application/json-patch+json")
        .body(Value::from(patch).to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request::<GateNode>(request).await.map(drop)
}

async fn tell(client: &Client, action: &Action, told: &Told) -> Result<bool, kube::Error> {
    let api: Api<GateNode> = Api::all_with(client.clone(), &resource());
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let condition = json!({
        "type": CONDITION,
        "status": if told.is_open { "True" } else { "False" },
        "reason": told.reason,
        "message": told.message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": told.since.as_ref().unwrap_or(&now),
    });
    // Merged by type, so that the conditions of others stay. The uid is a precondition.
    let patch = Patch::Strategic(
        json!({"metadata": {"uid": action.uid}, "status": {"conditions": [condition]}}),
    );
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch_status(&action.name, &params, &patch).await?;
    Ok(true)
}
