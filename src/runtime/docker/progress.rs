//! Sums the layers of Docker's stream of pull events. No I/O.

use std::collections::HashMap;

use bollard::models::CreateImageInfo;

/// More layers than any image has; what lies beyond is not counted, so that a broken daemon cannot fill the memory.
const LAYERS_MAX: usize = 1024;

#[derive(Debug, Default, Clone, Copy)]
struct Layer {
    done: u64,
    total: u64,
}

/// The layers of one pull, by the short id that Docker gives them.
#[derive(Debug, Default)]
pub(super) struct Layers(HashMap<String, Layer>);

impl Layers {
    /// Takes in one event. Only bytes that came over the network count: unpacking starts again from zero and would make
    /// the sum go back, as would a layer whose download begins anew.
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

    /// Bytes that are here, and bytes of all layers whose size Docker has told so far.
    pub(super) fn sum(&self) -> (u64, u64) {
        self.0.values().fold((0, 0), |(done, total), layer| {
            (
                done.saturating_add(layer.done),
                total.saturating_add(layer.total),
            )
        })
    }
}
