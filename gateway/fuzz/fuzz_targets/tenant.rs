//! A tenant's id: nothing outside its alphabet becomes one, and no channel is anybody else's.
#![cfg_attr(fuzzing, no_main)]

use std::sync::LazyLock;

use publisher::TenantId;
use publisher::internals::Names;

static NAMES: LazyLock<Names> = LazyLock::new(|| Names::new("dash").expect("a prefix"));

fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let is_tenant = (1..=64).contains(&text.len()) && text.bytes().all(plain);
    match TenantId::try_from(&*text) {
        Ok(tenant) => {
            assert!(is_tenant, "{text:?} was taken");
            assert_eq!(tenant.as_str(), text);
            assert_eq!(NAMES.tenant_of_channel(&NAMES.events(&tenant)), Some(tenant));
        }
        Err(invalid) => {
            assert!(!is_tenant, "{text:?} was refused");
            gateway_fuzz::assert_presentable(&invalid.to_string());
        }
    }
    if let Some(tenant) = NAMES.tenant_of_channel(&text) {
        assert_eq!(NAMES.events(&tenant), text);
    }
}

gateway_fuzz::target!(check);
