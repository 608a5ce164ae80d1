//! Letting tokens in, or not: the same token by every way in.

use super::dashboard::{Bring, Dashboard};
use super::stack::Stack;

/// What only a WebSocket subprotocol's characters can carry is tried that way too.
fn ways(token: &str) -> impl Iterator<Item = Bring> {
    let fits_a_header =
        !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    Bring::ALL.into_iter().filter(move |way| fits_a_header || *way == Bring::Join)
}

/// Each token, by every way in, is closed with `code` before any `joined`, and counted.
pub async fn refused(stack: &Stack, code: u16, tokens: &[(&str, String)]) {
    let before = stack.refusals().await;
    for (name, token) in tokens {
        for way in ways(token) {
            let mut dashboard = Dashboard::bring(stack.addr(), way, "t1", token).await;
            let error = dashboard.expect("error").await;
            assert!(!error.raw.contains("eyJ"), "{name} by {way:?} is echoed: {}", error.raw);
            assert_eq!(dashboard.close_code().await, code, "{name} by {way:?}: {}", error.raw);
        }
    }
    let counted = stack.refusals().await.since(&before);
    let sum =
        |counter: &str| counted.iter().filter(|(what, _)| what.starts_with(counter)).map(|(_, count)| count).sum();
    let sockets = tokens.iter().map(|(_, token)| ways(token).count() as u64).sum();
    assert_eq!((sum("disconnects"), sum("joins")), (sockets, tokens.len() as u64), "{counted:?}");
}

/// Each token, by every way in, joins t1.
pub async fn accepted(stack: &Stack, tokens: &[(&str, String)]) {
    for (name, token) in tokens {
        for way in ways(token) {
            let mut dashboard = Dashboard::bring(stack.addr(), way, "t1", token).await;
            let first = dashboard.next_message().await;
            assert_eq!(first.kind, "joined", "{name} by {way:?}: {}", first.raw);
            dashboard.close().await;
        }
    }
}
