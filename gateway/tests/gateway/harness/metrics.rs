//! What a Prometheus scrape says.

/// One scrape of `/metrics`.
#[derive(Debug)]
pub struct Scrape(pub String);

impl Scrape {
    /// The sum over all series of `name` that carry every one of the `labels` (`result="ok"`); 0 without any.
    pub fn value(&self, name: &str, labels: &[&str]) -> f64 {
        let series = self.0.lines().filter_map(|line| line.strip_prefix(name));
        let matching =
            series.filter(|rest| rest.starts_with([' ', '{']) && labels.iter().all(|label| rest.contains(label)));
        matching.map(|rest| rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The names that have a `# TYPE` line.
    pub fn names(&self) -> Vec<&str> {
        let types = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.filter_map(|rest| rest.split(' ').next()).collect()
    }
}
