//! Events worth publishing, each one different.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use publisher::{DashboardEvent, MetricsUpdated, Money, PaymentReceived, TenantId};
use rand::RngExt as _;
use rand::distr::Alphanumeric;
use time::OffsetDateTime;

/// Who pays in these tests, and for whom. No log may ever hold a name of theirs.
pub const PARENT: &str = "Nomsa Dlamini";
pub const CHILD: &str = "Thandi";

/// A tenant that no other test knows.
pub fn tenant() -> TenantId {
    let random: String = rand::rng().sample_iter(Alphanumeric).take(12).map(char::from).collect();
    format!("t-{random}").parse().unwrap()
}

pub fn tenants(count: usize) -> Vec<TenantId> {
    std::iter::repeat_with(tenant).take(count).collect()
}

pub fn payment() -> DashboardEvent {
    static CENTS: AtomicI64 = AtomicI64::new(150_000);
    let cents = CENTS.fetch_add(1, Ordering::Relaxed);
    DashboardEvent::new(PaymentReceived {
        payment_id: format!("pay-{cents}"),
        amount: Money::from_cents(cents).unwrap(),
        parent_name: PARENT.to_owned(),
        child_name: CHILD.to_owned(),
        invoice_number: "INV-0042".to_owned(),
    })
}

/// The same as a publish API caller writes it.
pub fn payment_json() -> String {
    let who = format!(r#""parentName":"{PARENT}","childName":"{CHILD}""#);
    let what = r#""paymentId":"pay-1","amount":1500.00,"invoiceNumber":"INV-0042""#;
    format!(r#"{{"type":"payment_received","data":{{{what},{who}}}}}"#)
}

/// [`payment_json`] under an id of the caller's own.
pub fn payment_json_with_id(id: &str) -> String {
    payment_json().replacen('{', &format!(r#"{{"id":"{id}","#), 1)
}

pub fn metrics_json() -> String {
    let owed = r#""totalOutstanding":100.00,"totalArrears":10.00,"accountsInArrears":1"#;
    let paid = r#""paymentsToday":2,"amountReceivedToday":30.00"#;
    let rest = r#""invoicesByStatus":{"PENDING":1},"asOf":"2026-11-23T10:00:00Z""#;
    format!(r#"{{"type":"metrics_updated","data":{{{owed},{paid},{rest}}}}}"#)
}

/// As large as an event may nearly be: it fills socket buffers with few publishes.
pub fn bulky() -> DashboardEvent {
    let money = Money::from_cents(100).unwrap();
    let statuses: BTreeMap<String, u64> = (0..210).map(|n| (format!("{n:064}"), n)).collect();
    DashboardEvent::new(MetricsUpdated {
        total_outstanding: money,
        total_arrears: money,
        accounts_in_arrears: 1,
        payments_today: 1,
        amount_received_today: money,
        invoices_by_status: statuses,
        as_of: OffsetDateTime::now_utc(),
        condensed: None,
    })
}
