//! What a client offers as subprotocols (RFC 6455 §4.1): ours, and in further offers what a `join` would say, since browsers can set
//! no header. A handshake with all of it joins at once, one round trip sooner.

use http::HeaderMap;
use http::header::SEC_WEBSOCKET_PROTOCOL;

use super::problem::Problem;
use crate::engine::Position;
use crate::session::choice::Choice;
use crate::socket::protocol::MAX_SAFE_INTEGER;

/// The subprotocol that the gateway speaks.
pub const SUBPROTOCOL: &str = "crechebooks.dashboard.v1";
/// The beginning of the offer that is a token.
const BEARER: &str = "bearer.";
/// The beginning of the offer that chooses among the token's tenants.
const TENANT: &str = "tenant.";
/// The beginning of the offer that says what was seen: `<epoch>.<seq>` or `<epoch>.<seq>.<id>`.
const RESUME: &str = "resume.";

/// A client's offers.
pub struct Offer<'a> {
    /// Ours is among them.
    pub ours: bool,
    /// The token.
    pub token: Option<&'a str>,
    /// What to join; empty without a token.
    pub choice: Choice,
}

impl<'a> Offer<'a> {
    /// Reads the offers of a handshake.
    ///
    /// # Errors
    /// When they are not text, or the token is missing, ambiguous or without our subprotocol beside it.
    pub fn parse(headers: &'a HeaderMap) -> Result<Self, Problem> {
        let bad = |detail| Problem::bad_request("bad_handshake", detail);
        let mut offers = Vec::new();
        for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
            let value = value.to_str().map_err(|_| bad("Sec-WebSocket-Protocol must be ASCII"))?;
            offers.extend(value.split(',').map(str::trim));
        }
        let all = |prefix: &'static str| offers.iter().filter_map(move |offer| offer.strip_prefix(prefix));
        let sole = |prefix| {
            let mut all = all(prefix);
            all.next().filter(|_| all.next().is_none())
        };
        let ours = offers.contains(&SUBPROTOCOL);
        let token = match (all(BEARER).count(), sole(BEARER)) {
            (0, _) => return Ok(Self { ours, token: None, choice: Choice::default() }),
            (_, None) => return Err(bad("more than one bearer subprotocol")),
            (_, Some("")) => return Err(Problem::unauthorized("the subprotocol bearer. has no token")),
            (_, Some(_)) if !ours => {
                return Err(bad("a bearer subprotocol needs crechebooks.dashboard.v1 beside it"));
            }
            (_, token) => token,
        };
        let choice = Choice {
            tenant: sole(TENANT).and_then(|tenant| tenant.parse().ok()),
            resume: sole(RESUME).and_then(position),
        };
        Ok(Self { ours, token, choice })
    }
}

/// Reads `<epoch>.<seq>` or `<epoch>.<seq>.<id>`.
fn position(text: &str) -> Option<Position> {
    let mut parts = text.splitn(3, '.');
    let (epoch, seq, id) = (parts.next()?, parts.next()?, parts.next());
    let digits = seq.bytes().all(|byte| byte.is_ascii_digit());
    let seq = seq.parse().ok().filter(|seq| digits && *seq <= MAX_SAFE_INTEGER)?;
    // An id that none of ours can be is as good as none, as in a `join`.
    Some(Position { epoch: epoch.parse().ok()?, seq, id: id.and_then(|id| id.parse().ok()) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn choice(offers: &[&str]) -> Choice {
        let mut headers = HeaderMap::new();
        for offer in offers {
            headers.append(SEC_WEBSOCKET_PROTOCOL, offer.parse().unwrap());
        }
        Offer::parse(&headers).ok().unwrap().choice
    }

    #[test]
    fn b62_the_handshake_says_what_a_join_would() {
        let all = choice(&["crechebooks.dashboard.v1, bearer.x.y.z", "tenant.t-1, resume.e-1.41.id-1"]);
        let resume = Position { epoch: "e-1".parse().unwrap(), seq: 41, id: Some("id-1".parse().unwrap()) };
        assert_eq!(all, Choice { tenant: Some("t-1".parse().unwrap()), resume: Some(resume.clone()) });
        let without_id = choice(&["crechebooks.dashboard.v1, bearer.x.y.z, resume.e-1.41"]);
        assert_eq!(without_id, Choice { tenant: None, resume: Some(Position { id: None, ..resume }) });
    }

    #[test]
    fn b62_an_offer_that_cannot_be_read_is_ignored() {
        for offer in [
            "tenant.",
            "tenant.a b",
            "tenant.a.b",
            "tenant.a, tenant.b",
            "resume.",
            "resume.e",
            "resume..1",
            "resume.e.",
            "resume.e.-1",
            "resume.e.+1",
            "resume.e.1e3",
            "resume.e.9007199254740992",
            "resume.e.99999999999999999999",
            "resume.e.1, resume.e.2",
            "tenant",
            "chat",
        ] {
            assert_eq!(choice(&["crechebooks.dashboard.v1, bearer.x", offer]), Choice::default(), "{offer}");
        }
        assert_eq!(
            choice(&["crechebooks.dashboard.v1, tenant.a, resume.e.1"]),
            Choice::default(),
            "no token beside it"
        );
    }
}
