//! Embeds the migrations, the page, and the commit that is built.

#![allow(clippy::disallowed_macros)] // Cargo listens to what a build script prints.

use std::env;
use std::path::Path;
use std::process::Command;

/// What `npm run build` made of the page.
const BUILT: &str = "web/dist";
/// The page that says how to get it.
const UNBUILT: &str = "web/unbuilt";

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
    println!("cargo:rustc-env=GIT_COMMIT={}", commit());
    let page = if Path::new(BUILT).join("index.html").exists() {
        BUILT
    } else {
        println!("cargo:rerun-if-changed=web");
        UNBUILT
    };
    memory_serve::load_directory(page);
}

/// The short hash of the commit: from Git, or from the variable `GIT_COMMIT` where the source has no Git directory (an image).
fn commit() -> String {
    println!("cargo:rerun-if-env-changed=GIT_COMMIT");
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else {
        return env::var("GIT_COMMIT").ok().filter(|commit| !commit.is_empty()).unwrap_or_else(|| "unknown".into());
    };
    watch("HEAD");
    // A debug build keeps the hash of the commit at which its branch was last checked out: a new commit should not rebuild it.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release")
        && let Some(branch) = git(&["symbolic-ref", "--quiet", "HEAD"])
    {
        watch(&branch);
        watch("packed-refs");
    }
    commit
}

/// Reruns this script when a file of the Git directory changes. A file that is missing would rerun it at every build.
fn watch(name: &str) {
    if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
        println!("cargo:rerun-if-changed={path}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}
