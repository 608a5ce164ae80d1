//! `gateway demo`: a gateway without any set-up, and a small centre whose day passes before one's eyes.
//!
//! The events take the way of real ones: through the engine's publish path, its limit and its log, to real sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::routing::get;
use publisher::{
    ArrearsAlert, DashboardEvent, EventData, InvoiceStatusChanged, MetricsUpdated, Money, PaymentReceived, TenantId,
};
use rand::seq::IndexedRandom;
use time::OffsetDateTime;
use tokio::time::sleep;
use tracing::warn;

use super::serve::{self, Instance};
use crate::config::Config;
use crate::engine::Engine;
use crate::tokens;

/// The demo's centre.
const TENANT: &str = "acorn-montessori";
/// How long a token of the demo lasts; the page asks for a new one before that.
const TOKEN_LIFE: Duration = Duration::from_secs(900);

const FAMILIES: [(&str, &str, &str); 8] = [
    ("Thandi Mokoena", "Lwazi", "parent-101"),
    ("Pieter van der Merwe", "Anika", "parent-102"),
    ("Naledi Dlamini", "Sipho", "parent-103"),
    ("Fatima Patel", "Zayn", "parent-104"),
    ("Johan Botha", "Mia", "parent-105"),
    ("Lerato Nkosi", "Amahle", "parent-106"),
    ("Sarah Naidoo", "Kiran", "parent-107"),
    ("Bongani Khumalo", "Nomvula", "parent-108"),
];

/// Runs the demo until a signal.
///
/// # Errors
/// What keeps the gateway from starting.
pub async fn run(mut config: Config) -> anyhow::Result<()> {
    if config.jwt.secret.is_none() {
        config.jwt.public_key_file = None;
        config.jwt.jwks = None;
        // Nobody else needs to know it: the demo hands out its tokens itself.
        let secret = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        config.jwt.secret = Some(secret.parse().map_err(|rule: String| anyhow::anyhow!("the demo's secret {rule}"))?);
    }
    serve::log(&config)?;
    let jwt = config.jwt.clone();
    let tenant: TenantId = TENANT.parse()?;
    let instance = Instance::start(config).await?;
    tokio::spawn(centre(tenant.clone(), instance.gateway.engine.clone()));

    let mut address = instance.address()?;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    println!("The demo is running. Open http://{address}/ and watch payments arrive; Ctrl-C ends it.");
    let token = move || {
        let token = tokens::mint(&jwt, std::slice::from_ref(&tenant), Some("demo"), TOKEN_LIFE);
        async move { token.unwrap_or_default() }
    };
    instance.serve(axum::Router::new().route("/demo/token", get(token))).await
}

/// A centre's billing, sped up: a payment every few seconds, now and then a reminder, and the figures after each.
async fn centre(tenant: TenantId, engine: Engine) {
    let mut books = Books::open();
    loop {
        for data in books.something_happens() {
            let event = DashboardEvent::new(data);
            // Throttled or down: the demo's centre doesn't mind, its next event is seconds away.
            if let Err(error) = engine.publish(&tenant, &event).await {
                warn!(%error, "the demo's event was not published");
            }
        }
        sleep(Duration::from_millis(rand::random_range(600..2500))).await;
    }
}

/// What the centre is owed, in cents.
struct Books {
    outstanding: i64,
    arrears: BTreeMap<&'static str, i64>,
    received: i64,
    payments: u64,
    invoices: BTreeMap<&'static str, u64>,
    next: u32,
}

impl Books {
    fn open() -> Self {
        Self {
            outstanding: 18_450_000,
            arrears: BTreeMap::from([("parent-103", 420_000), ("parent-108", 185_000)]),
            received: 0,
            payments: 0,
            invoices: BTreeMap::from([("PENDING", 41), ("PARTIALLY_PAID", 6), ("OVERDUE", 9), ("PAID", 64)]),
            next: 1,
        }
    }

    fn something_happens(&mut self) -> Vec<EventData> {
        let mut events = if rand::random_ratio(1, 5) { self.arrears_grow() } else { self.payment() };
        events.extend(self.figures());
        events
    }

    fn payment(&mut self) -> Vec<EventData> {
        let (parent, child, parent_id) = *pick(&FAMILIES);
        let cents = *pick(&[95_000, 120_000, 150_000, 185_000, 240_000, 362_550]);
        let number = self.next;
        self.next += 1;
        self.received += cents;
        self.payments += 1;
        self.outstanding = (self.outstanding - cents).max(2_000_000);
        self.arrears.remove(parent_id);
        let invoice_number = format!("INV-2026-{:04}", 400 + number);
        let mut events = Vec::new();
        events.extend(money(cents).map(|amount| {
            EventData::from(PaymentReceived {
                payment_id: format!("pay-{number}"),
                amount,
                parent_name: parent.into(),
                child_name: child.into(),
                invoice_number: invoice_number.clone(),
            })
        }));
        let from = *pick(&["PENDING", "OVERDUE", "PARTIALLY_PAID"]);
        if let Some(open) = self.invoices.get_mut(from).filter(|open| **open > 2) {
            *open -= 1;
            *self.invoices.entry("PAID").or_default() += 1;
            events.push(EventData::from(InvoiceStatusChanged {
                invoice_id: format!("invoice-{number}"),
                invoice_number,
                previous_status: from.into(),
                new_status: "PAID".into(),
            }));
        }
        events
    }

    fn arrears_grow(&mut self) -> Vec<EventData> {
        let (parent, _, parent_id) = *pick(&FAMILIES);
        let owed = self.arrears.entry(parent_id).or_default();
        *owed += 95_000;
        self.outstanding += 95_000;
        let total_arrears = money(*owed);
        let alert = |total_arrears| {
            let days_overdue = rand::random_range(7..60);
            ArrearsAlert { parent_id: parent_id.into(), parent_name: parent.into(), total_arrears, days_overdue }
        };
        total_arrears.map(|total| EventData::from(alert(total))).into_iter().collect()
    }

    fn figures(&self) -> Option<EventData> {
        Some(EventData::from(MetricsUpdated {
            total_outstanding: money(self.outstanding)?,
            total_arrears: money(self.arrears.values().sum())?,
            accounts_in_arrears: self.arrears.len() as u64,
            payments_today: self.payments,
            amount_received_today: money(self.received)?,
            invoices_by_status: self.invoices.iter().map(|(status, count)| ((*status).to_owned(), *count)).collect(),
            as_of: OffsetDateTime::now_utc(),
            condensed: None,
        }))
    }
}

/// No sum of the demo comes near the largest that there is.
fn money(cents: i64) -> Option<Money> {
    Money::from_cents(cents).ok()
}

fn pick<T>(from: &[T]) -> &T {
    from.choose(&mut rand::rng()).expect("the demo's lists are not empty")
}
