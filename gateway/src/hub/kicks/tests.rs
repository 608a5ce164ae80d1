//! Which tokens a kick revokes, and for how long.
#![allow(clippy::unwrap_used)]

use super::*;

const LIFETIME: Duration = Duration::from_secs(1000);
/// Of the engine's clock, which may be far from this machine's.
const NOW: u64 = 77_700;

fn acorn() -> TenantId {
    "acorn".parse().unwrap()
}

fn heard(who: Kicked, at: u64) -> Kicks {
    let kicks = Kicks::new(LIFETIME);
    assert_eq!(kicks.hear(vec![Kick { who, at }], NOW).len(), 1);
    kicks
}

#[test]
fn b65_a_kick_revokes_what_was_issued_up_to_its_second() {
    let kicks = heard(Kicked::Tenant(acorn()), NOW);
    let revoked = |issued_at| kicks.revoking(&acorn(), Some("thandi"), issued_at).is_some();
    assert!(revoked(76) && revoked(77), "before, and in the kick's second");
    assert!(!revoked(78), "a second later");
    assert!(revoked(0), "a token without iat");
    assert_eq!(kicks.revoking(&"hazel".parse().unwrap(), Some("thandi"), 0), None, "another tenant's");
}

#[test]
fn b65_a_kick_of_a_user_revokes_its_tokens_in_every_tenant_and_no_others() {
    let kicks = heard(Kicked::User("thandi".into()), NOW);
    for tenant in ["acorn", "hazel"] {
        let of = |user| kicks.revoking(&tenant.parse().unwrap(), user, 77);
        assert_eq!(of(Some("thandi")), Some(Kicked::User("thandi".into())));
        assert!(of(Some("pieter")).is_none() && of(Some("acorn")).is_none() && of(None).is_none());
    }
}

#[test]
fn b65_only_a_later_kick_is_news() {
    let who = || Kicked::Tenant(acorn());
    let kicks = heard(who(), NOW);
    let hear = |at| kicks.hear(vec![Kick { who: who(), at }], NOW + 5000).len();
    assert_eq!((hear(NOW), hear(NOW - 1), hear(NOW + 2000), hear(NOW)), (0, 0, 1, 0));
    assert!(kicks.revoking(&acorn(), None, 79).is_some() && kicks.revoking(&acorn(), None, 80).is_none());
    assert_eq!(kicks.all().len(), 1, "one entry, however often");
}

#[test]
fn b65_a_kick_is_forgotten_when_no_token_of_its_time_can_live() {
    let now = NOW + LIFETIME.as_millis() as u64;
    for (at, revoked) in [(NOW, false), (NOW + 1000, true)] {
        let kicks = Kicks::new(LIFETIME);
        kicks.hear(vec![Kick { who: Kicked::Tenant(acorn()), at }], now);
        assert_eq!(kicks.revoking(&acorn(), None, 0).is_some(), revoked, "{at}");
    }
}

#[test]
fn b65_a_kick_is_kept_for_as_long_as_a_token_of_its_time_can_live() {
    let minute = Duration::from_secs(60);
    for (at, left) in [(NOW - 60_000, LIFETIME - minute), (NOW, LIFETIME), (NOW + 60_000, LIFETIME)] {
        let before = Instant::now();
        let kicks = heard(Kicked::Tenant(acorn()), at);
        let until = kicks.revoked.read().unwrap().tenants[&acorn()].until;
        assert!(before + left <= until && until <= Instant::now() + left, "{at}");
    }
}

#[test]
fn b65_all_kicks_are_told_until_they_are_forgotten() {
    let kick = |who, at| Kick { who, at };
    let kicks = Kicks::new(LIFETIME);
    let later = NOW + LIFETIME.as_millis() as u64;
    let news = kicks.hear(vec![kick(Kicked::Tenant(acorn()), later), kick(Kicked::User("thandi".into()), NOW)], later);
    assert_eq!(news.len(), 2);
    assert_eq!(kicks.all(), news);
    assert_eq!(kicks.hear(vec![], later), []);
    // The user's is over by now, and goes when the next one is heard.
    let hazel = kick(Kicked::User("hazel".into()), later);
    assert_eq!(kicks.hear(vec![hazel.clone()], later), std::slice::from_ref(&hazel));
    assert_eq!(kicks.all(), [news[0].clone(), hazel]);
    kicks.hear(vec![kick(Kicked::Tenant(acorn()), later + 1)], later + 1);
    assert_eq!(kicks.all().len(), 2, "the user's stays for as long as it counts");

    let kicks = Kicks::new(LIFETIME);
    kicks.hear(vec![kick(Kicked::Tenant(acorn()), NOW)], later);
    kicks.hear(vec![kick(Kicked::Tenant("hazel".parse().unwrap()), later)], later);
    assert_eq!(kicks.all().len(), 1, "a tenant's too");
}

#[test]
fn b65_the_kicks_in_force_are_bounded() {
    let kicks = Kicks::new(LIFETIME);
    let who = |n: usize| match n % 2 {
        0 => Kicked::User(n.to_string().into()),
        _ => Kicked::Tenant(n.to_string().parse().unwrap()),
    };
    let kick = |n: usize| Kick { who: who(n), at: NOW };
    assert_eq!(kicks.hear((0..=MOST_KICKS).map(kick).collect(), NOW).len(), MOST_KICKS);
    let later = vec![Kick { at: NOW + 1, ..kick(0) }];
    assert_eq!(kicks.hear(later, NOW).len(), 1, "a later kick of the same user takes no more space");
}
