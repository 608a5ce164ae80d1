//! What gateways count of what they refuse: every attack must be in here, as one of a few fixed words.

use std::collections::BTreeMap;

use super::metrics::Scrape;

/// The counters, and the values of their label that are no refusal.
const COUNTERS: [(&str, &[&str]); 5] = [
    ("handshakes", &["accepted"]),
    ("joins", &["joined"]),
    ("disconnects", &["client", "lost"]),
    ("bad_messages", &[]),
    ("http_requests", &["101", "200", "202", "204"]),
];

/// How often each thing was refused, by counter and label: `disconnects framing`.
#[derive(Debug, Clone, Default)]
pub struct Refusals(BTreeMap<String, u64>);

impl Refusals {
    pub fn of(scrapes: &[Scrape]) -> Self {
        let mut refusals = Self::default();
        for (scrape, (counter, others)) in scrapes.iter().flat_map(|scrape| COUNTERS.map(|counter| (scrape, counter))) {
            let prefix = format!("gateway_{counter}_total{{");
            for series in scrape.0.lines().filter_map(|line| line.strip_prefix(&prefix)) {
                let [_, label, count] = series.split('"').collect::<Vec<_>>()[..] else {
                    panic!("more than one label: {series}")
                };
                if !others.contains(&label) {
                    let count: u64 = count.trim_start_matches("} ").parse().unwrap();
                    *refusals.0.entry(format!("{counter} {label}")).or_default() += count;
                }
            }
        }
        refusals
    }

    /// What was refused after `before`, and how often.
    pub fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        let more = self.0.iter().map(|(what, count)| (what, count - before.0.get(what).unwrap_or(&0)));
        more.filter(|(_, count)| *count > 0).map(|(what, count)| (what.clone(), count)).collect()
    }
}
