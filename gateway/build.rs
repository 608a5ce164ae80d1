//! New migrations are embedded when they appear.
fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
