//! Text from outside, made fit for a log line or an error.

/// The first 64 characters of a text from outside. None of them can start a new line in a log or move its cursor.
pub fn sanitised(text: &str) -> String {
    let harmless = |c: char| if c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c) { '?' } else { c };
    let mut shown: String = text.chars().take(64).map(harmless).collect();
    if text.chars().nth(64).is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}
