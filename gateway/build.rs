//! Embeds the migrations and the page.

#![allow(clippy::disallowed_macros)] // Cargo listens to what a build script prints.

use std::path::Path;

/// What `npm run build` made of the page.
const BUILT: &str = "web/dist";
/// The page that says how to get it.
const UNBUILT: &str = "web/unbuilt";

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
    let page = if Path::new(BUILT).join("index.html").exists() {
        BUILT
    } else {
        println!("cargo:rerun-if-changed=web");
        UNBUILT
    };
    memory_serve::load_directory(page);
}
