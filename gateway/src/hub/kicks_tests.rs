//! Whom a kick closes, and whom it refuses, by the clocks.
#![allow(clippy::unwrap_used)]

use super::*;

fn kick(who: Kicked) -> Kick {
    Kick { who, at: now_millis() }
}

fn acorn() -> TenantId {
    "acorn".parse().unwrap()
}

#[test]
fn a_kick_heard_again_closes_nobody_who_came_since() {
    let mut kicks = Kicks::default();
    let kick = kick(Kicked::Tenant(acorn()));
    let moment = kicks.hear(&kick, Duration::ZERO);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(kicks.hear(&kick, Duration::ZERO), moment);
}

/// Redis' clock may be far from this gateway's, on either side.
#[test]
fn a_kick_closes_the_members_that_joined_before_it_whatever_redis_clock_says() {
    let hour = 60 * 60 * 1000;
    for at in [now_millis() - hour, now_millis() + hour] {
        let kick = Kick { who: Kicked::Tenant(acorn()), at };
        let moment = Kicks::default().hear(&kick, Duration::from_secs(10));
        let ago = now_millis() - moment;
        assert!((10_000..11_000).contains(&ago), "{ago} ms ago");
    }
}

#[test]
fn tokens_from_before_the_kick_are_refused_and_later_ones_are_not() {
    let mut kicks = Kicks::default();
    let kick = kick(Kicked::Tenant(acorn()));
    let second = kick.at / 1000;
    kicks.hear(&kick, Duration::ZERO);
    assert!(kicks.refuse(&acorn(), None, Some(second - 1)));
    assert!(!kicks.refuse(&acorn(), None, Some(second)), "minted in the same second: it may be the new one");
    assert!(kicks.refuse(&acorn(), None, None), "without iat it is as old as clocks may differ");
    assert!(!kicks.refuse(&"hazel".parse().unwrap(), None, Some(second - 1)), "another tenant's");
}

#[test]
fn a_user_is_refused_in_every_tenant_and_nobody_else_is() {
    let mut kicks = Kicks::default();
    let kick = kick(Kicked::User("thandi".into()));
    let before = kick.at / 1000 - 1;
    kicks.hear(&kick, Duration::ZERO);
    assert!(kicks.refuse(&acorn(), Some("thandi"), Some(before)));
    assert!(!kicks.refuse(&acorn(), Some("pieter"), Some(before)));
    assert!(!kicks.refuse(&acorn(), None, Some(before)));
}

#[test]
fn a_kick_is_forgotten_after_its_time() {
    let mut kicks = Kicks::default();
    let old = Kick { who: Kicked::Tenant(acorn()), at: now_millis() - millis(KICK_MEMORY) };
    kicks.hear(&old, KICK_MEMORY);
    assert!(!kicks.refuse(&acorn(), None, Some(0)));
}
