//! What must hold of every parser that strangers reach, for any input: targets of cargo-fuzz.
//!
//! A file of `fuzz_targets` says what it is for one parser. `corpus/` has inputs that lead into its corners; `cargo test` puts them
//! to the target with the compiler and the profile of every other test. With a nightly compiler, cargo-fuzz finds more:
//!
//! ```text
//! cargo install cargo-fuzz && cd gateway && mkdir -p ../target/found
//! export CARGO_PROFILE_RELEASE_LTO=off                # spares minutes of linking
//! cargo +nightly fuzz run frames ../target/found fuzz/corpus/frames -- -max_total_time=600 -max_len=2048
//! ```
//!
//! What it finds goes to the first directory, and an input that breaks a promise to `fuzz/artifacts`: that one belongs into the
//! corpus, under a name. The other names are libFuzzer's: few and short, for what they reach (`-set_cover_merge=1 -use_counters=0
//! -max_len=512 fuzz/corpus/frames ../target/found` adds such).
#![allow(clippy::disallowed_macros)] // Prints for the person who runs it.

use std::fs;
use std::path::Path;

/// Makes a program of a check: libFuzzer's under cargo-fuzz, otherwise one that replays the corpus, which is also its test.
#[macro_export]
macro_rules! target {
    ($check:expr) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|input: &[u8]| $check(input));

        #[cfg(not(fuzzing))]
        fn main() {
            $crate::replay(env!("CARGO_BIN_NAME"), $check);
        }

        #[cfg(test)]
        #[test]
        fn holds_for_the_corpus() {
            main();
        }
    };
}

/// Puts every input of a target's corpus to its check.
///
/// # Panics
/// When the check does, after naming the input; and without a corpus.
pub fn replay(target: &str, check: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let inputs = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
    let mut replayed = 0;
    for input in inputs {
        let path = input.expect("a readable directory").path();
        eprintln!("{}", path.display());
        check(&fs::read(&path).expect("a readable input"));
        replayed += 1;
    }
    assert!(replayed > 0, "{} is empty", corpus.display());
}

/// What people are told of an input that is refused: short, on one line, and nothing that moves a cursor in a log.
///
/// # Panics
/// When the text is not so.
pub fn assert_presentable(text: &str) {
    assert!(text.chars().count() <= 256, "too much is said: {text:?}");
    assert!(!text.chars().any(char::is_control), "a control character is repeated: {text:?}");
}
