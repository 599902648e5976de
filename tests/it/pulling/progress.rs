//! Output during a pull: bars with bytes on a terminal, lines in a log.

use super::*;
use crate::bed::{Pushed, Terminal};

with_both! {
    terminal_gets_bars_with_bytes,
    log_gets_lines_about_pull_progress,
}

/// An image whose layer comes at so many bytes a second.
fn slow(bytes: u64, bytes_per_second: usize) -> (Proxy, String, Pushed) {
    let name = format!("{}:1", unique("slow"));
    let pushed = registry().image(&name).size(bytes).push();
    let proxy = Proxy::start(registry().url(), move |seen| {
        if seen.is_blob() {
            Fault::Throttle(bytes_per_second)
        } else {
            Fault::Pass
        }
    });
    let image = proxy.reference(&name);
    (proxy, image, pushed)
}

/// The bytes in all places where the text says `DONE MB of TOTAL MB`.
fn bytes_told(text: &str) -> Vec<(f64, f64)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let bytes = |number: &str, unit: &str| {
        let scale = match unit {
            "B" => 1.0,
            "kB" => 1e3,
            "MB" => 1e6,
            _ => return None,
        };
        Some(number.parse::<f64>().ok()? * scale)
    };
    let told = words.windows(5).filter(|w| w[2] == "of");
    told.filter_map(|w| Some((bytes(w[0], w[1])?, bytes(w[3], w[4])?)))
        .collect()
}

/// All totals are the image's (the configuration may count), what is done only grows, and some of it was seen on its way.
#[track_caller]
fn check_bytes(told: &[(f64, f64)], pushed: &Pushed) {
    let bytes = pushed.bytes as f64;
    assert!(
        told.iter()
            .all(|(_, total)| (bytes * 0.99..bytes * 1.01).contains(total)),
        "{told:?} of {bytes}"
    );
    assert!(told.is_sorted_by(|a, b| a.0 <= b.0), "{told:?}");
    assert!(
        told.iter().any(|(done, total)| 0.0 < *done && done < total),
        "{told:?}"
    );
}

fn terminal_gets_bars_with_bytes<R: Runtime>() {
    let (_proxy, image, pushed) = slow(2_000_000, 500_000);
    let other = registry().reference(&format!("{}:1", unique("missing")));
    let harpoon = pull(R::shared(), &[&image, &other]);
    let output = harpoon.terminal(Terminal::Stderr).run().expect(1);
    // Standard output contains data only.
    check(
        &output,
        &[(&image, "pulled 1"), (&other, "failed not_found 1")],
    );
    let shown = &output.stderr;
    check_bytes(&bytes_told(shown), &pushed);
    assert!(shown.contains("/2 images"), "{output}");
    // The failure stands above the bars; that a pull began is no line here.
    assert!(
        shown.contains("failed to pull") && shown.contains(&other),
        "{output}"
    );
    assert!(!shown.contains(" pulling "), "{output}");
}

fn log_gets_lines_about_pull_progress<R: Runtime>() {
    // Docker with containerd's store reports whole mebibytes only.
    let scale = match R::NAME {
        "docker" if crate::bed::docker_has_containerds_store() => 20,
        _ => 1,
    };
    let (_proxy, image, pushed) = slow(170_000 * scale, 10_000 * scale as usize);
    let output = pull(R::shared(), &[&image]).run().expect(0);
    check(&output, &[(&image, "pulled 1")]);
    let lines: Vec<&str> = output
        .stderr
        .lines()
        .filter(|line| line.contains(&image))
        .collect();
    let place = |text: &str| lines.iter().position(|line| line.contains(text));
    let (began, goes_on, ended) = (
        place(" pulling "),
        place("still pulling after"),
        place("pulled in"),
    );
    assert!(began == Some(0) && goes_on == Some(1), "{output}");
    assert!(
        ended.is_some_and(|ended| ended == lines.len() - 1),
        "{output}"
    );
    let told = bytes_told(&lines[1].replace(':', " "));
    assert_eq!(told.len(), 1, "{output}");
    check_bytes(&told, &pushed);
    assert!(
        !output.stderr.contains('\u{1b}') && !output.stderr.contains("images,"),
        "{output}"
    );
}
