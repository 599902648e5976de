use super::text::{Style, age, write};
use super::*;

const PLAIN: Style = Style {
    wide: false,
    headers: true,
    colors: false,
};

fn text(view: &View, style: Style) -> String {
    let mut out = Vec::new();
    write(&mut out, view, style).unwrap();
    String::from_utf8(out).unwrap()
}

fn sums(desired: u64, complete: u64, updating: u64, failing: u64) -> NodeSums {
    NodeSums {
        desired,
        complete,
        updating,
        failing,
        unknown: 0,
    }
}

fn row(name: &str, state: NodeState, desired: u64, present: u64, failed: u64) -> NodeRow {
    NodeRow {
        name: name.to_owned(),
        state,
        images: ImageSums {
            desired,
            present,
            pulling: desired - present - failed,
            failed,
        },
        heartbeat_seconds: Some(14),
        first_fill_seconds: Some(72.4),
    }
}

fn shop() -> PrefetchRow {
    PrefetchRow {
        name: "shop".to_owned(),
        ready: "False".to_owned(),
        reason: "NotFound".to_owned(),
        message: "registry.example/shop/web:7: not found".to_owned(),
        degraded: true,
        degraded_reason: "NotFound".to_owned(),
        degraded_message: "registry.example/shop/web:7: not found".to_owned(),
        suspended: false,
        images: 212,
        nodes: sums(5000, 4987, 10, 3),
        age_seconds: Some(41 * 86_400),
    }
}

fn failure(image: &str) -> FailureRow {
    FailureRow {
        image: image.to_owned(),
        reason: "not_found".to_owned(),
        nodes: 3,
        example_node: "node-17".to_owned(),
        message: "manifest unknown".to_owned(),
    }
}

fn overview() -> Overview {
    let release = PrefetchRow {
        name: "release-42".to_owned(),
        ready: "True".to_owned(),
        images: 12,
        nodes: sums(40, 40, 0, 0),
        age_seconds: Some(3),
        ..PrefetchRow::default()
    };
    Overview {
        prefetches: vec![release, shop()],
        nodes: sums(5000, 4987, 10, 3),
        incomplete: vec![row("node-17", NodeState::Failing, 212, 211, 1)],
        failures: vec![failure("registry.example/shop/web:7")],
    }
}

#[test]
fn overview_has_its_tables() {
    let expected = "\
NAME         READY   IMAGES   NODES   COMPLETE   UPDATING   FAILING   UNKNOWN   AGE
release-42   True    12       40      40         0          0         0         3s
shop         False   212      5000    4987       10         3         0         41d

DEGRADED   REASON     MESSAGE
shop       NotFound   registry.example/shop/web:7: not found

INCOMPLETE NODE   STATE     PRESENT   PULLING   FAILED   FIRST FILL   HEARTBEAT
node-17           failing   211/212   0         1        1m12s        14s

FAILED IMAGE                  REASON      NODES   NODE      MESSAGE
registry.example/shop/web:7   not_found   3       node-17   manifest unknown

harpoon: 1 of 2 prefetches ready, 4987 of 5000 nodes complete, 10 updating, 3 failing
";
    assert_eq!(text(&View::Overview(overview()), PLAIN), expected);
}

#[test]
fn prefetch_has_images_and_nodes() {
    let image = |image: &str, present_min, failed| ImageRow {
        image: image.to_owned(),
        pods: 4,
        nodes: 5000,
        present_min,
        present_max: 4997,
        failed,
    };
    let mut view = PrefetchView {
        prefetch: shop(),
        images: vec![image("a:1", 4987, 3), image("b:1", 4997, 0)],
        slowest: vec![row("node-9", NodeState::Complete, 212, 212, 0)],
        ..PrefetchView::default()
    };
    let shown = text(&View::Prefetch(Box::new(view.clone())), PLAIN);
    let expected = "
IMAGE   PODS   NODES   PRESENT     FAILED
a:1     4      5000    4987-4997   3
b:1     4      5000    4997        0

SLOWEST NODE   STATE      PRESENT   PULLING   FAILED   FIRST FILL   HEARTBEAT
node-9         complete   212/212   0         0        1m12s        14s

harpoon: shop: 4987 of 5000 nodes complete, 10 updating, 3 failing
";
    assert!(shown.ends_with(expected), "{shown}");
    view.incomplete = vec![row("node-17", NodeState::Updating, 212, 3, 0)];
    let shown = text(&View::Prefetch(Box::new(view)), PLAIN);
    assert!(shown.contains("\nnode-17           updating   3/212     209 "));
    assert!(!shown.contains("SLOWEST"), "{shown}");
}

#[test]
fn node_has_its_facts() {
    let view = NodeView {
        node: row("node-7", NodeState::Failing, 212, 211, 1),
        ready: "False".to_owned(),
        reason: "NotFound".to_owned(),
        message: String::new(),
        runtime: "containerd 2.1.9".to_owned(),
        image_store: StoreRow {
            harpoon_bytes: Some(12_300_000_000),
            used_bytes: Some(40_100_000_000),
            capacity_bytes: None,
        },
        prefetches: vec![EntryRow {
            name: "shop".to_owned(),
            images: row("", NodeState::Failing, 212, 211, 1).images,
            current: false,
        }],
        failures: vec![failure("registry.example/shop/web:7")],
    };
    let expected = "\
Node:         node-7
State:        failing (NotFound)
Images:       211 of 212 present, 0 pulling, 1 failed
Runtime:      containerd 2.1.9
Image store:  12.30 GB by harpoon, 40.10 GB in all
First fill:   1m12s
Heartbeat:    14s ago

PREFETCH   DESIRED   PRESENT   PULLING   FAILED   CURRENT
shop       212       211       0         1        no

FAILED IMAGE                  REASON      MESSAGE
registry.example/shop/web:7   not_found   manifest unknown
";
    assert_eq!(text(&View::Node(Box::new(view)), PLAIN), expected);
}

#[test]
fn long_tables_are_cut_unless_wide() {
    let mut all = overview();
    let names = (0..25).map(|n| row(&format!("node-{n}"), NodeState::Updating, 3, 1, 0));
    all.incomplete = names.collect();
    all.failures[0].message = "x".repeat(300);
    let view = View::Overview(all);
    let shown = text(&view, PLAIN);
    assert!(
        shown.contains("\n... and 15 more nodes, shown by -o wide\n"),
        "{shown}"
    );
    assert!(
        shown.contains(&format!("{}…\n", "x".repeat(100))),
        "{shown}"
    );
    let wide = Style {
        wide: true,
        ..PLAIN
    };
    let shown = text(&view, wide);
    assert!(shown.contains("\nnode-24 ") && shown.contains(&"x".repeat(300)));
    assert!(shown.contains("AGE   REASON\n"), "{shown}");
}

#[test]
fn heads_and_colors_are_optional() {
    let style = Style {
        headers: false,
        colors: true,
        wide: false,
    };
    let shown = text(&View::Overview(overview()), style);
    assert!(
        shown.starts_with("release-42   \u{1b}[32mTrue\u{1b}[0m    12 "),
        "{shown:?}"
    );
    assert!(!shown.contains("READY") && !shown.contains("REASON"));
    assert!(!text(&View::Overview(overview()), PLAIN).contains('\u{1b}'));
}

#[test]
fn bars_fit_the_terminal() {
    let mut all = overview();
    all.prefetches[1].name = "s".repeat(200);
    all.failures = vec![failure(&"x".repeat(300)); 30];
    let view = View::Overview(all);
    for columns in [40, 80, 200] {
        let lines = bars::lines(&view, columns, false);
        assert!(lines.len() < 30, "{lines:?}");
        for line in &lines {
            assert!(line.chars().count() <= columns, "{line}");
        }
    }
    let lines = bars::lines(&View::Overview(overview()), 80, false);
    let expected = [
        "release-42 [========================] 40/40 nodes",
        "shop       [======================> ] 4987/5000 nodes, 3 failing",
        "  [======================> ] 211/212 failing node-17",
    ];
    assert_eq!(lines[..3], expected);
    let colored = bars::lines(&View::Overview(overview()), 80, true);
    assert!(
        colored[0].starts_with("\u{1b}[32mrelease-42"),
        "{colored:?}"
    );
}

#[test]
fn completeness_needs_ready_and_nodes() {
    let of = |ready: &str, complete| {
        let prefetch = PrefetchRow {
            ready: ready.to_owned(),
            nodes: sums(3, complete, 3 - complete, 0),
            ..shop()
        };
        let view = PrefetchView {
            prefetch,
            ..PrefetchView::default()
        };
        View::Prefetch(Box::new(view)).is_complete()
    };
    assert!(of("True", 3));
    assert!(!of("True", 2), "the controller has not noticed yet");
    assert!(!of("", 3), "the status is about an earlier spec");
    assert!(!View::Overview(overview()).is_complete());
    assert!(View::Overview(Overview::default()).is_complete());
}

#[test]
fn json_and_yaml_agree() {
    let view = View::Overview(overview());
    let (mut json, mut yaml) = (Vec::new(), Vec::new());
    write_json(&mut json, &view).unwrap();
    write_yaml(&mut yaml, &view).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let yaml = String::from_utf8(yaml).unwrap();
    let yaml: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(json, yaml);
    assert_eq!(json["prefetches"][1]["nodes"]["complete"], 4987);
    assert_eq!(json["incomplete"][0]["state"], "failing");
}

#[test]
fn ages_are_short() {
    for (seconds, expected) in [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7_200, "2h"),
        (172_800, "2d"),
    ] {
        assert_eq!(age(Some(seconds)), expected);
    }
    assert_eq!(age(None), "-");
}
