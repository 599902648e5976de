//! Puts the commit into `harpoon --version`, and has the release linked for little memory.

use std::process::Command;

fn main() {
    // A build from a source archive has no git: the packager gives the commit.
    println!("cargo::rerun-if-env-changed=HARPOON_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src");
    let given = std::env::var("HARPOON_COMMIT").ok();
    let commit = given
        .or_else(commit)
        .unwrap_or_else(|| "unknown".to_owned());
    println!(
        "cargo::rustc-env=HARPOON_VERSION={} ({commit})",
        env!("CARGO_PKG_VERSION")
    );
    let is = |variable, value: &str| std::env::var(variable).is_ok_and(|v| v == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        let layout = concat!(env!("CARGO_MANIFEST_DIR"), "/image/pause.ld");
        println!("cargo::rerun-if-changed={layout}");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{layout}");
    }
}

fn commit() -> Option<String> {
    let head = git(&["rev-parse", "--git-path", "HEAD"])?;
    println!("cargo::rerun-if-changed={head}");
    if let Some(branch) = git(&["symbolic-ref", "-q", "HEAD"]) {
        let path = git(&["rev-parse", "--git-path", &branch])?;
        if std::path::Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
