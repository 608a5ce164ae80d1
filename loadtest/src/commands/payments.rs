//! `payments`: the time from `POST /payments` at the reference billing API to a dashboard's socket, and to new figures.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::options::{Gateways, MaxP99, Writing, duration};
use crate::client::Client;
use crate::measure::latency::{Latency, Recorder};
use crate::report::findings::Findings;
use crate::wire::message::Scanner;

/// Record payments of the centres `load-1`, `load-2` … through the reference billing API (`--seed-load 50`); report how long
/// they take to the one dashboard of their centre.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    gateways: Gateways,
    /// The billing API, http://host:port.
    #[arg(long, default_value = "http://127.0.0.1:8090")]
    api: String,
    #[command(flatten)]
    writing: Writing,
    /// Fail when the median of the latency is above this.
    #[arg(long, value_parser = duration)]
    max_p50: Option<Duration>,
    #[command(flatten)]
    latency: MaxP99,
}

#[derive(Serialize)]
struct Report {
    posted: usize,
    shown: usize,
    shown_twice: usize,
    latency: Latency,
    /// Tenants whose last figures equal the books.
    figures_right: usize,
    tenants: u32,
    /// The longest time from a tenant's last payment to figures that include it.
    figures_after: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { posted, shown, shown_twice, latency, figures_right, tenants, figures_after } = self;
        writeln!(f, "payments      {posted} recorded, {shown} shown, {shown_twice} twice")?;
        writeln!(f, "POST→socket   {latency}")?;
        write!(
            f,
            "figures       right for {figures_right} of {tenants} tenants, {figures_after:?} after the payment at most"
        )
    }
}

/// What one tenant's socket has received.
#[derive(Default)]
struct Seen {
    /// When each payment arrived first.
    payments: HashMap<String, Instant>,
    twice: usize,
    figures: Option<(Instant, Value)>,
}

type AllSeen = Arc<Vec<Mutex<Seen>>>;

/// Time from the last payment until everything must have arrived.
const SETTLE: Duration = Duration::from_secs(5);

pub fn run(options: Options) -> anyhow::Result<Findings> {
    let mint = options.gateways.mint();
    let seen: AllSeen = Arc::new((0..options.writing.tenants).map(|_| Mutex::default()).collect());
    for index in 0..options.writing.tenants as usize {
        let token = mint.token(&format!("payments-{index}"), &tenant(index))?;
        let mut client = Client::upgrade(options.gateways.of(index), index, &token)?;
        client.joined(&Scanner::new())?;
        client.remove_read_limit()?;
        let seen = seen.clone();
        thread::spawn(move || watch(client, &seen[index]));
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let posted = runtime.block_on(post_all(&options))?;
    thread::sleep(SETTLE);
    let report = runtime.block_on(judge(&options, &posted, &seen))?;

    let mut failures = Vec::new();
    if report.shown < report.posted {
        failures.push(format!("{} payments were not shown", report.posted - report.shown));
    }
    if report.shown_twice > 0 {
        failures.push(format!("{} payments were shown twice", report.shown_twice));
    }
    if report.figures_right < report.tenants as usize {
        failures.push("some tenants' figures differ from the books".into());
    }
    if report.figures_after > FIGURES_LIMIT {
        failures.push(format!("figures came {:?} after their payment", report.figures_after));
    }
    let p50 = Duration::from_micros(report.latency.p50_us);
    if let Some(max) = options.max_p50.filter(|&max| p50 > max) {
        failures.push(format!("p50 is {p50:?}, above {max:?}"));
    }
    failures.extend(options.latency.failure(report.latency.p99()));
    Findings::new(&report, failures)
}

/// The gateway promises new figures within a second of a change, but at most once a second.
const FIGURES_LIMIT: Duration = Duration::from_millis(1500);

fn tenant(index: usize) -> String {
    format!("load-{}", index + 1)
}

fn watch(mut client: Client, seen: &Mutex<Seen>) {
    while let Ok(text) = client.next_text() {
        let now = Instant::now();
        let Ok(message) = serde_json::from_slice::<Value>(&text) else { continue };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match message["type"].as_str() {
            Some("payment_received") => {
                let payment = message["data"]["paymentId"].as_str().unwrap_or_default().to_owned();
                if seen.payments.insert(payment, now).is_some() {
                    seen.twice += 1;
                }
            }
            Some("metrics_updated") => seen.figures = Some((now, message["data"].clone())),
            _ => {}
        }
    }
}

struct Posted {
    tenant: usize,
    payment: String,
    /// When the request was due to be sent.
    at: Instant,
}

/// Posts payments of the tenants in turn, each when it is due, without waiting for earlier answers.
async fn post_all(options: &Options) -> anyhow::Result<Vec<Posted>> {
    let http = reqwest::Client::new();
    let Writing { tenants, rate, duration } = options.writing;
    let mut invoices = Vec::new();
    for index in 0..tenants as usize {
        let url = format!("{}/tenants/{}/invoices?status=PENDING", options.api, tenant(index));
        let open: Value = serde_json::from_str(&http.get(url).send().await?.text().await?)?;
        let invoice =
            open[0]["invoiceId"].as_str().context("a centre has no open invoice: run the API with --seed-load")?;
        invoices.push(invoice.to_owned());
    }
    let total = (duration.as_secs_f64() * f64::from(rate)) as usize;
    let begin = Instant::now();
    let mut posting = Vec::with_capacity(total);
    for number in 0..total {
        let at = begin + Duration::from_secs_f64(number as f64 / f64::from(rate));
        tokio::time::sleep_until(at.into()).await;
        let index = number % tenants as usize;
        let body = json!({ "tenantId": tenant(index), "invoiceId": invoices[index], "amount": 1 }).to_string();
        let request =
            http.post(format!("{}/payments", options.api)).header("content-type", "application/json").body(body);
        posting.push(tokio::spawn(async move {
            let answer = request.send().await?;
            let (status, text) = (answer.status(), answer.text().await?);
            ensure!(status.is_success(), "a payment was refused: {text}");
            let receipt: Value = serde_json::from_str(&text)?;
            let payment = receipt["paymentId"].as_str().context("a receipt without an id")?.to_owned();
            Ok(Posted { tenant: index, payment, at })
        }));
    }
    let mut posted = Vec::with_capacity(total);
    for posting in posting {
        posted.push(posting.await??);
    }
    Ok(posted)
}

async fn judge(options: &Options, posted: &[Posted], all_seen: &AllSeen) -> anyhow::Result<Report> {
    let http = reqwest::Client::new();
    let mut recorder = Recorder::new();
    let (mut shown, mut shown_twice, mut figures_right) = (0, 0, 0);
    let mut figures_after = Duration::ZERO;
    for (index, seen) in all_seen.iter().enumerate() {
        let url = format!("{}/tenants/{}/metrics", options.api, tenant(index));
        let mut books: Value = serde_json::from_str(&http.get(url).send().await?.text().await?)?;
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        shown_twice += seen.twice;
        let mut own = posted.iter().filter(|posted| posted.tenant == index);
        for Posted { payment, at, .. } in own.clone() {
            if let Some(arrived) = seen.payments.get(payment) {
                shown += 1;
                recorder.record((*arrived - *at).as_micros() as u64);
            }
        }
        if let (Some((arrived, figures)), Some(last)) = (&seen.figures, own.next_back()) {
            let mut figures = figures.clone();
            for metrics in [&mut figures, &mut books] {
                metrics.as_object_mut().context("figures are an object")?.remove("asOf");
            }
            figures_right += usize::from(figures == books);
            figures_after = figures_after.max(arrived.saturating_duration_since(last.at));
        }
    }
    Ok(Report {
        posted: posted.len(),
        shown,
        shown_twice,
        latency: recorder.summary(),
        figures_right,
        tenants: options.writing.tenants,
        figures_after,
    })
}
