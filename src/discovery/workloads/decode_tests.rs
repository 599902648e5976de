//! The page decoder, on pages of workloads.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::accumulate::Accumulator;
use super::object::Facts;
use crate::kube_api::decode::*;
use crate::model::workload_kind::WorkloadKind;

const CONTAINER: &str = r#"{"spec":{"containers":[{"name":"c","image":"nginx"}]}}"#;

fn decode(kind: WorkloadKind, text: &[u8]) -> (Accumulator, Result<PageEnd, DecodeError>) {
    let (sender, chunks) = mpsc::channel(1);
    let text = Bytes::copy_from_slice(text);
    // Small chunks, so that tokens are torn apart.
    let feeder = std::thread::spawn(move || {
        for chunk in text.chunks(7) {
            if sender.blocking_send(Bytes::copy_from_slice(chunk)).is_err() {
                return;
            }
        }
    });
    let mut into = Accumulator::default();
    let end = page(kind, chunks, &mut folded(kind, &mut into));
    feeder.join().unwrap();
    (into, end)
}

/// The handling of each object of a list.
fn folded(kind: WorkloadKind, into: &mut Accumulator) -> impl FnMut(Facts) -> bool {
    move |facts| {
        into.fold(kind, &facts);
        true
    }
}

fn images(into: Accumulator) -> Vec<String> {
    into.into_candidates()
        .into_iter()
        .map(|c| c.image.to_string())
        .collect()
}

fn deployment(name: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"a"}},"spec":{{"template":{CONTAINER}}}}}"#
    )
}

#[test]
fn token_is_found_around_items() {
    let item = deployment("web");
    for text in [
        format!(
            r#"{{"kind":"DeploymentList","metadata":{{"continue":"t","x":[{{}}]}},"items":[{item}]}}"#
        ),
        format!(r#"{{"items":[{item}],"apiVersion":"apps/v1","metadata":{{"continue":"t"}}}}"#),
    ] {
        let (into, end) = decode(WorkloadKind::Deployments, text.as_bytes());
        let end = end.unwrap();
        assert_eq!(end.next.as_deref(), Some("t"));
        assert_eq!(end.objects, 1);
        assert_eq!(images(into), ["nginx"]);
    }
}

#[test]
fn every_empty_list_form_is_accepted() {
    for text in [
        r#"{"items":[]}"#,
        r#"{"items":null,"metadata":null}"#,
        "{\"metadata\":{\"continue\":\"\"},\"items\":[]}\n\n",
        r#"{"metadata":{"continue":null,"remainingItemCount":0},"items":null}"#,
    ] {
        let (_, end) = decode(WorkloadKind::Pods, text.as_bytes());
        assert_eq!(end.unwrap(), PageEnd::default(), "{text}");
    }
}

#[test]
fn truncated_list_differs_from_garbage() {
    let whole = format!(r#"{{"items":[{},{}]}}"#, deployment("a"), deployment("b"));
    for len in 0..whole.len() {
        let (_, end) = decode(WorkloadKind::Deployments, &whole.as_bytes()[..len]);
        assert!(end.unwrap_err().is_cut(), "cut at {len}");
    }
    for text in [
        "<html>proxy</html>",
        "[]",
        "{}",
        "null",
        r#"{"kind":"Status","message":"no"}"#,
        r#"{"items":{}}"#,
        r#"{"items":[1]}"#,
        r#"{"items":["x"]}"#,
        r#"{"items":[{"spec":{"replicas":"many"}}]}"#,
        r#"{"items":[]}garbage"#,
        "{\"items\":[{\"metadata\":{\"name\":\"\u{1}\"}}]}",
    ] {
        let (_, end) = decode(WorkloadKind::Deployments, text.as_bytes());
        assert!(!end.unwrap_err().is_cut(), "{text}");
    }
    let (_, end) = decode(
        WorkloadKind::Deployments,
        b"{\"items\":[{\"metadata\":{\"name\":\"\xff\xfe\"}}]}",
    );
    assert!(!end.unwrap_err().is_cut());
}

#[test]
fn garbage_is_quoted_in_part() {
    let text = format!(
        r#"{{"items":[{{"spec":{{"replicas":"{}"}}}}]}}"#,
        "x".repeat(1 << 20)
    );
    let (_, end) = decode(WorkloadKind::Deployments, text.as_bytes());
    let said = end.unwrap_err().to_string();
    assert!(said.chars().count() <= 301, "{} characters", said.len());
}

#[test]
fn deep_nesting_never_overflows_stack() {
    let deep = format!(r#"{{"items":[{{"x":{}"#, "[".repeat(4 << 20));
    let (_, end) = decode(WorkloadKind::Deployments, deep.as_bytes());
    end.unwrap_err();
}

#[test]
fn endless_object_fails_long_annotations_pass() {
    let huge = "y".repeat(usize::try_from(MAX_OBJECT_BYTES).unwrap() + (1 << 20));
    for text in [
        format!(r#"{{"items":[{{"metadata":{{"name":"{huge}"#),
        format!(r#"{{"items":[{{"{huge}":1}}]}}"#),
        format!(r#"{{"metadata":{{"continue":"{huge}"}},"items":[]}}"#),
    ] {
        let mut read = text.as_bytes();
        let budget = Budget::default();
        let counted = Counted(&mut read, budget.clone());
        let mut into = Accumulator::default();
        let kind = WorkloadKind::Deployments;
        let end = from_reader(kind, counted, budget, &mut folded(kind, &mut into));
        let error = end.unwrap_err();
        assert!(!error.is_cut());
        assert!(error.to_string().contains("longer than 8 MiB"), "{error}");
    }
    let padded = format!(
        r#"{{"items":[{{"metadata":{{"name":"a","namespace":"a","annotations":{{"x":"{}"}}}},"spec":{{"template":{CONTAINER}}}}}]}}"#,
        "z".repeat(1 << 20)
    );
    let (into, end) = decode(WorkloadKind::Deployments, padded.as_bytes());
    end.unwrap();
    assert_eq!(images(into), ["nginx"]);
}

#[test]
fn budget_applies_per_object() {
    let item = format!(
        r#"{{"metadata":{{"name":"a","namespace":"a","annotations":{{"x":"{}"}}}}}}"#,
        "z".repeat(3 << 20)
    );
    let text = format!(r#"{{"items":[{item},{item},{item},{item}]}}"#);
    let mut read = text.as_bytes();
    let budget = Budget::default();
    let counted = Counted(&mut read, budget.clone());
    let end = from_reader(WorkloadKind::Pods, counted, budget, &mut |_: Facts| true);
    assert_eq!(end.unwrap().objects, 4);
}

struct Counted<'a>(&'a mut &'a [u8], Budget);

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(into)?;
        self.1.spend(len)?;
        Ok(len)
    }
}

#[test]
fn closed_channel_ends_decoder() {
    let (sender, chunks) = mpsc::channel(1);
    let decoder = std::thread::spawn(move || {
        page(WorkloadKind::Pods, chunks, &mut |_: Facts| true)
            .unwrap_err()
            .is_cut()
    });
    sender
        .blocking_send(Bytes::from_static(b"{\"items\":["))
        .unwrap();
    drop(sender);
    assert!(decoder.join().unwrap());
}

#[test]
fn full_sink_ends_decoder() {
    let item = deployment("web");
    let text = format!(r#"{{"items":[{item},{item},{item}]}}"#);
    let mut taken = 0;
    let mut take = |_: Facts| {
        taken += 1;
        taken < 2
    };
    let kind = WorkloadKind::Deployments;
    let end = from_reader(kind, text.as_bytes(), Budget::default(), &mut take);
    assert!(!end.unwrap_err().is_cut());
    assert_eq!(taken, 2);
}

proptest::proptest! {
    #[test]
    fn decoder_never_panics(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        for kind in WorkloadKind::ALL {
            let mut whole = b"{\"items\":[{\"spec\":".to_vec();
            whole.extend_from_slice(&text);
            let mut into = Accumulator::default();
            let mut fold = folded(kind, &mut into);
            let _ = from_reader(kind, &text[..], Budget::default(), &mut fold);
            let _ = from_reader(kind, &whole[..], Budget::default(), &mut fold);
        }
    }
}
