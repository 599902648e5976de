//! Sums the layers of Docker's stream of pull events. No I/O.

use std::collections::HashMap;

use bollard::models::CreateImageInfo;

/// Maximum number of layers that are counted, more than any image has, so that a broken daemon cannot fill the memory.
const LAYERS_MAX: usize = 1024;

#[derive(Debug, Default, Clone, Copy)]
struct Layer {
    done: u64,
    total: u64,
}

/// The layers of one pull, by Docker's short ID.
#[derive(Debug, Default)]
pub(super) struct Layers(HashMap<String, Layer>);

impl Layers {
    /// Records one event. Only downloaded bytes count: unpacking restarts at zero and would decrease the sum, as would a layer
    /// whose download restarts.
    pub(super) fn record(&mut self, event: &CreateImageInfo) {
        let (Some(id), Some(status)) = (&event.id, &event.status) else {
            return;
        };
        let downloading = match status.as_str() {
            "Downloading" => true,
            "Verifying Checksum" | "Download complete" | "Already exists" | "Extracting"
            | "Pull complete" => false,
            _ => return,
        };
        if !self.0.contains_key(id) && self.0.len() >= LAYERS_MAX {
            return;
        }
        let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        let detail = event.progress_detail.as_ref();
        let current = bytes(detail.and_then(|d| d.current));
        let total = bytes(detail.and_then(|d| d.total));
        let layer = self.0.entry(id.clone()).or_default();
        if layer.total == 0 || downloading {
            layer.total = layer.total.max(total);
        }
        layer.done = if downloading {
            layer.done.max(current.min(layer.total))
        } else {
            layer.total
        };
    }

    /// Bytes received, and bytes of all layers whose size Docker has reported so far.
    pub(super) fn sum(&self) -> (u64, u64) {
        self.0.values().fold((0, 0), |(done, total), layer| {
            (
                done.saturating_add(layer.done),
                total.saturating_add(layer.total),
            )
        })
    }
}
