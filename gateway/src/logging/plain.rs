//! Text of others in a line of ours: no control character of it, so no line and no terminal command of its own, and not too much of it.

use std::fmt::{self, Debug, Write};

use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

/// Characters of a field that are written.
const FIELD: usize = 1000;

/// How a line of the text log has its fields: `message name=value`, each in plain characters.
pub fn fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(|writer: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
        match field.name() {
            "message" => {}
            // The library's own, of lines that come from the `log` crate.
            name if name.starts_with("log.") => return Ok(()),
            name => write!(writer, "{name}=")?,
        }
        write!(Plain { output: writer, room: FIELD }, "{value:?}")
    })
    .delimited(" ")
}

/// Writes plain characters, as many as there is room for.
struct Plain<'a, W> {
    output: &'a mut W,
    room: usize,
}

impl<W: Write> Write for Plain<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match (self.room, is_plain(character)) {
                (0, _) => return Ok(()),
                (1, _) => self.output.write_char('…')?,
                (_, true) => self.output.write_char(character)?,
                (_, false) => write!(self.output, "{}", character.escape_default())?,
            }
            self.room -= 1;
        }
        Ok(())
    }
}

/// Control characters begin lines and command terminals; some others change the order or the lines of what is shown (Unicode TR36).
fn is_plain(character: char) -> bool {
    !(character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::warn;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the text log has of what is logged in `log`.
    fn written(log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber =
            tracing_subscriber::fmt().fmt_fields(fields()).with_ansi(false).with_writer(move || writer.clone());
        tracing::subscriber::with_default(subscriber.finish(), log);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn b72_a_text_of_others_writes_no_line_and_commands_no_terminal() {
        const HOSTILE: &str =
            "x\n2026-11-29T00:00:00Z  INFO gateway: all is well\r\u{1b}[2J\u{9b}31m\u{202e}\u{2028}\0";
        let log = written(|| {
            let error = anyhow::anyhow!("{HOSTILE}");
            warn!(%error, value = HOSTILE, debug = ?HOSTILE, "a line of ours: {HOSTILE}");
        });
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.trim_end().chars().all(is_plain), "{log:?}");
        assert!(
            log.contains(r"a line of ours: x\n2026") && log.contains(r" error=x\n2026") && log.contains(r"\u{1b}[2J"),
            "{log}"
        );
    }

    #[test]
    fn b72_a_text_of_others_is_cut() {
        let long = "x".repeat(100_000);
        let log = written(|| warn!(error = %long, "{long}"));
        assert!(log.len() < 2 * FIELD + 100, "{}", log.len());
    }

    #[test]
    fn a_line_of_ours_is_as_it_was() {
        let log = written(|| warn!(tenant = %"acorn", count = 3, name = "two words", "something happened"));
        assert!(
            log.ends_with(
                "WARN gateway::logging::plain::tests: something happened tenant=acorn count=3 name=\"two words\"\n"
            ),
            "{log}"
        );
    }
}
