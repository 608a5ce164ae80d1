//! The books of the demo's centre: invoices that are issued, paid and forgotten, and the sums over them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use publisher::{ArrearsAlert, EventData, InvoiceStatusChanged, MetricsUpdated, Money, PaymentReceived};
use rand::seq::IteratorRandom;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::snapshots::queries::{Contents, RECENT_PAYMENTS};
use crate::socket::snapshot::RecentPayment;

const FAMILIES: [(&str, &str); 12] = [
    ("Thandi Mokoena", "Lwazi"),
    ("Pieter van der Merwe", "Anika"),
    ("Naledi Dlamini", "Sipho"),
    ("Fatima Patel", "Zayn"),
    ("Johan Botha", "Mia"),
    ("Lerato Nkosi", "Amahle"),
    ("Sarah Naidoo", "Kiran"),
    ("Bongani Khumalo", "Nomvula"),
    ("Anneke Pretorius", "Liam"),
    ("Priya Govender", "Aarav"),
    ("Zanele Mthembu", "Minenhle"),
    ("Yusuf Ebrahim", "Imaan"),
];
const FEES: [i64; 6] = [95_000, 120_000, 150_000, 185_000, 240_000, 362_550];
/// Open invoices at the beginning, and as many as are kept open.
const OPEN: usize = 40;
/// Those among them that only the page pays.
const FOR_TILL: usize = 20;
/// Payments that came before the demo began.
const EARLIER: i64 = 7;
/// Answers that are remembered, so that a payment that is sent again is not recorded again.
const KEYS: usize = 256;

/// An invoice that can be paid.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenInvoice {
    pub invoice_id: String,
    pub invoice_number: String,
    pub balance: Money,
}

struct Invoice {
    /// Only the page's till pays it: the simulation must not pay what a visitor is about to pay.
    for_till: bool,
    number: u32,
    family: usize,
    cents: i64,
    status: &'static str,
}

impl Invoice {
    fn id(&self) -> String {
        format!("inv-{}", self.number)
    }

    fn number(&self) -> String {
        format!("INV-2026-{:04}", self.number)
    }

    fn becomes(&mut self, status: &'static str) -> Option<EventData> {
        let previous = std::mem::replace(&mut self.status, status);
        let changed = InvoiceStatusChanged {
            invoice_id: self.id(),
            invoice_number: self.number(),
            previous_status: previous.into(),
            new_status: status.into(),
        };
        (previous != status).then(|| changed.into())
    }
}

/// What the centre is owed, and what it got today.
pub struct Books {
    open: Vec<Invoice>,
    paid: u64,
    issued: u32,
    payments: u64,
    received: i64,
    recent: VecDeque<RecentPayment>,
    keys: VecDeque<String>,
}

impl Books {
    pub fn open() -> Self {
        let mut books = Self {
            open: Vec::new(),
            paid: 64,
            issued: 400,
            payments: 0,
            received: 0,
            recent: VecDeque::new(),
            keys: VecDeque::new(),
        };
        books.issue();
        for late in books.open.iter_mut().step_by(9) {
            late.status = "OVERDUE";
        }
        // The page should not start empty: some families have paid this morning.
        for minutes in (1..=EARLIER).rev().map(|payment| payment * 11) {
            let cents = books.open[0].cents;
            books.pay(0, cents);
            if let Some(payment) = books.recent.front_mut() {
                payment.received_at -= Duration::minutes(minutes);
            }
        }
        books
    }

    /// New invoices for those that were paid.
    fn issue(&mut self) {
        while self.open.len() < OPEN {
            self.issued += 1;
            let family = rand::random_range(0..FAMILIES.len());
            let cents = FEES[rand::random_range(0..FEES.len())];
            let for_till = self.open.iter().filter(|invoice| invoice.for_till).count() < FOR_TILL;
            self.open.push(Invoice { for_till, number: self.issued, family, cents, status: "PENDING" });
        }
    }

    /// A payment, or, more seldom, an invoice that falls due.
    pub fn something_happens(&mut self) -> Vec<EventData> {
        let others = self.open.iter().enumerate().filter(|(_, invoice)| !invoice.for_till).map(|(at, _)| at);
        let Some(at) = others.choose(&mut rand::rng()) else { return Vec::new() };
        if self.open[at].status == "PENDING" && rand::random_ratio(1, 6) {
            return self.falls_due(at);
        }
        let cents = self.open[at].cents;
        let part = if cents > 100_000 && rand::random_ratio(1, 6) { 50_000 } else { cents };
        self.pay(at, part)
    }

    /// Records a payment from the page; one that was sent before is recorded already.
    pub fn pay_once(&mut self, key: Option<&str>, invoice: &str, amount: Money) -> Result<Vec<EventData>, String> {
        if key.is_some_and(|key| self.keys.iter().any(|known| known == key)) {
            return Ok(Vec::new());
        }
        let found = self.open.iter().position(|it| it.id() == invoice);
        let at = found.ok_or("invoiceId: no such open invoice")?;
        let balance = self.open[at].cents;
        let mut decimal = amount.as_decimal();
        decimal.rescale(2);
        let cents = i64::try_from(decimal.mantissa()).ok().filter(|cents| (1..=balance).contains(cents));
        let cents = cents.ok_or("amount: must be more than 0, and no more than is owed")?;
        if let Some(key) = key {
            self.keys.push_front(key.to_owned());
            self.keys.truncate(KEYS);
        }
        Ok(self.pay(at, cents))
    }

    fn pay(&mut self, at: usize, cents: i64) -> Vec<EventData> {
        let invoice = &mut self.open[at];
        let (parent, child) = FAMILIES[invoice.family];
        self.payments += 1;
        self.received += cents;
        let payment = PaymentReceived {
            payment_id: format!("pay-{}", self.payments),
            amount: money(cents),
            parent_name: parent.into(),
            child_name: child.into(),
            invoice_number: invoice.number(),
        };
        self.recent.push_front(recent(&payment));
        self.recent.truncate(RECENT_PAYMENTS);
        invoice.cents -= cents;
        let change = invoice.becomes(if invoice.cents == 0 { "PAID" } else { "PARTIALLY_PAID" });
        if invoice.cents == 0 {
            self.open.swap_remove(at);
            self.paid += 1;
            self.issue();
        }
        [payment.into()].into_iter().chain(change).collect()
    }

    fn falls_due(&mut self, at: usize) -> Vec<EventData> {
        let change = self.open[at].becomes("OVERDUE");
        let family = self.open[at].family;
        let owed = self.overdue().filter(|invoice| invoice.family == family).map(|invoice| invoice.cents).sum();
        let alert = ArrearsAlert {
            parent_id: format!("par-{family}"),
            parent_name: FAMILIES[family].0.into(),
            total_arrears: money(owed),
            days_overdue: rand::random_range(1..45),
        };
        change.into_iter().chain([alert.into()]).collect()
    }

    fn overdue(&self) -> impl Iterator<Item = &Invoice> {
        self.open.iter().filter(|invoice| invoice.status == "OVERDUE")
    }

    /// What the page offers for payment.
    pub fn open_invoices(&self) -> Vec<OpenInvoice> {
        let open =
            |it: &Invoice| OpenInvoice { invoice_id: it.id(), invoice_number: it.number(), balance: money(it.cents) };
        self.open.iter().filter(|invoice| invoice.for_till).map(open).collect()
    }

    pub fn snapshot(&self) -> Contents {
        let mut invoices_by_status = BTreeMap::from([("PAID".to_owned(), self.paid)]);
        for invoice in &self.open {
            *invoices_by_status.entry(invoice.status.to_owned()).or_default() += 1;
        }
        let metrics = MetricsUpdated {
            total_outstanding: money(self.open.iter().map(|invoice| invoice.cents).sum()),
            total_arrears: money(self.overdue().map(|invoice| invoice.cents).sum()),
            accounts_in_arrears: self.overdue().map(|invoice| invoice.family).collect::<BTreeSet<_>>().len() as u64,
            payments_today: self.payments,
            amount_received_today: money(self.received),
            invoices_by_status,
            as_of: OffsetDateTime::now_utc(),
            condensed: None,
        };
        Contents { metrics: Some(metrics), payments: self.recent.iter().cloned().collect() }
    }
}

fn recent(payment: &PaymentReceived) -> RecentPayment {
    let PaymentReceived { payment_id, amount, parent_name, child_name, invoice_number } = payment.clone();
    RecentPayment {
        payment_id,
        amount,
        parent_name,
        child_name,
        invoice_number,
        received_at: OffsetDateTime::now_utc(),
    }
}

/// No sum of the demo comes near the largest that there is.
fn money(cents: i64) -> Money {
    Money::from_cents(cents).unwrap_or(Money::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(books: &Books) -> MetricsUpdated {
        books.snapshot().metrics.expect("the demo always has figures")
    }

    #[test]
    fn the_figures_follow_from_the_invoices() {
        let mut books = Books::open();
        let offered = |books: &Books| books.open_invoices().into_iter().map(|it| it.invoice_id).collect::<Vec<_>>();
        let on_the_page = offered(&books);
        assert_eq!(on_the_page.len(), FOR_TILL);
        for _ in 0..500 {
            let before = figures(&books);
            let events = books.something_happens();
            let after = figures(&books);
            let paid: Money = events
                .iter()
                .filter_map(|event| match event {
                    EventData::PaymentReceived(payment) => Some(payment.amount),
                    _ => None,
                })
                .sum();
            assert_eq!(after.amount_received_today, before.amount_received_today.checked_add(paid).unwrap_or_default());
            assert_eq!(after.invoices_by_status.values().sum::<u64>(), books.open.len() as u64 + books.paid);
            assert!(after.total_arrears <= after.total_outstanding);
        }
        assert_eq!(books.open.len(), OPEN);
        // What is offered there can still be paid.
        assert_eq!(offered(&books), on_the_page);
        assert_eq!(books.snapshot().payments.len(), RECENT_PAYMENTS);
    }

    #[test]
    fn a_payment_that_is_sent_again_is_recorded_once() {
        let mut books = Books::open();
        let OpenInvoice { invoice_id, balance, .. } = books.open_invoices().remove(3);
        let events = books.pay_once(Some("key"), &invoice_id, balance).expect("the invoice is open");
        assert_eq!(events.len(), 2, "{events:?}");
        let after = figures(&books);
        assert_eq!(books.pay_once(Some("key"), &invoice_id, balance), Ok(Vec::new()));
        assert_eq!(figures(&books).payments_today, after.payments_today);
        // Without the key it is another payment, and that invoice is paid.
        assert_eq!(books.pay_once(None, &invoice_id, balance), Err("invoiceId: no such open invoice".to_owned()));
    }

    #[test]
    fn an_amount_that_does_not_fit_is_refused_and_nothing_changes() {
        let mut books = Books::open();
        let OpenInvoice { invoice_id, balance, .. } = books.open_invoices().remove(0);
        let more = balance.checked_add(money(1)).expect("in range");
        for amount in [Money::ZERO, money(-100), more] {
            let refusal = books.pay_once(Some("key"), &invoice_id, amount).expect_err("it doesn't fit");
            assert!(refusal.starts_with("amount: "), "{refusal}");
        }
        assert!(books.pay_once(Some("key"), &invoice_id, money(1)).is_ok());
    }
}
