//! A line chart as inline SVG: axes with round ticks and units, a legend, and the colours of the page's style.

use std::fmt::Write;

/// Lines over a common pair of axes.
#[derive(Debug, Clone)]
pub struct Chart {
    pub title: String,
    pub x: Unit,
    pub y: Unit,
    pub series: Vec<Series>,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// What an axis shows, which decides how its ticks are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Micros,
    PerSecond,
    Count,
    Cores,
    Bytes,
    /// With the same distance between 90 and 99 as between 99 and 99.9.
    Percentile,
}

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;
const GIB: f64 = 1024.0 * MIB;
/// The approximate number of intervals between ticks.
const TICKS: f64 = 5.0;
/// The number of colours in the style.
const COLOURS: usize = 6;

impl Chart {
    /// The figure, with its title and legend.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let mut out = format!("<figure><figcaption>{}", escape(&self.title));
        if self.series.len() > 1 {
            for (index, series) in self.series.iter().enumerate() {
                let _ = write!(out, "<span class=c{}>{}</span>", index % COLOURS, escape(&series.name));
            }
        }
        out += "</figcaption>";
        if points().next().is_none() {
            return out + "<p class=none>the run was too short for this chart</p></figure>";
        }
        // Only the x axis of times and percentiles starts at the first value; all others start at 0.
        let x = Axis::over(self.x, points().map(|point| self.x.place(point.0)), self.x == Unit::PerSecond);
        let y = Axis::over(self.y, points().map(|point| point.1), true);
        let across = |value: f64| LEFT + x.part(value) * (WIDTH - LEFT - RIGHT);
        let down = |value: f64| HEIGHT - BOTTOM - y.part(value) * (HEIGHT - TOP - BOTTOM);

        let _ = write!(out, r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">"#, escape(&self.title));
        for tick in y.ticks() {
            let (at, label) = (down(tick), self.y.tick(tick));
            let _ = write!(out, r#"<path class=grid d="M{LEFT} {at:.1}H{:.1}"/>"#, WIDTH - RIGHT);
            let _ = write!(out, r#"<text x="{:.1}" y="{:.1}" class=y>{label}</text>"#, LEFT - 7.0, at + 4.0);
        }
        for tick in x.ticks() {
            let (at, label) = (across(tick), self.x.tick(tick));
            let base = HEIGHT - BOTTOM;
            let _ = write!(out, r#"<path class=tick d="M{at:.1} {base:.1}v4"/>"#);
            let _ = write!(out, r#"<text x="{at:.1}" y="{:.1}" class=x>{label}</text>"#, base + 17.0);
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let _ = write!(out, r#"<text x="{middle:.1}" y="{:.1}" class=x>{}</text>"#, HEIGHT - 6.0, self.x.name());
        for (index, series) in self.series.iter().enumerate() {
            let path: Vec<_> =
                series.points.iter().map(|&(a, b)| format!("{:.1} {:.1}", across(self.x.place(a)), down(b))).collect();
            let class = index % COLOURS;
            let _ = write!(out, r#"<path class="line c{class}" d="M{}"/>"#, path.join("L"));
            if let [only] = path.as_slice() {
                let (cx, cy) = only.split_once(' ').unwrap_or_default();
                let _ = write!(out, r#"<circle class="dot c{class}" cx="{cx}" cy="{cy}" r="3"/>"#);
            }
        }
        out + "</svg></figure>"
    }
}

/// From the first to the last value, in round steps.
struct Axis {
    from: f64,
    to: f64,
    step: f64,
}

impl Axis {
    fn over(unit: Unit, values: impl Iterator<Item = f64>, from_zero: bool) -> Self {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), value| (l.min(value), h.max(value)));
        let low = if from_zero { 0.0 } else { low };
        let high = if high > low { high } else { low + 1.0 };
        let step = if unit == Unit::Percentile { 1.0 } else { unit.step((high - low) / TICKS) };
        let to = if unit == Unit::Seconds { high } else { (high / step - 1e-9).ceil() * step };
        Self { from: (low / step).floor() * step, to, step }
    }

    fn part(&self, value: f64) -> f64 {
        (value - self.from) / (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.to - self.from) / self.step + 1e-9) as u32;
        (0..=count).map(|tick| self.from + f64::from(tick) * self.step)
    }
}

impl Unit {
    /// The place of a value on the axis.
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Percentile => -(1.0 - value / 100.0).max(1e-9).log10(),
            _ => value,
        }
    }

    /// The next round step that is at least `least`: 1, 2 or 5 times a power of ten, or of 1024 for bytes.
    fn step(self, least: f64) -> f64 {
        let unit = if self == Self::Bytes && least >= 1024.0 {
            1024_f64.powf((least.ln() / 1024_f64.ln()).floor())
        } else {
            1.0
        };
        let power = 10_f64.powf((least / unit).log10().floor());
        let round = [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power * unit);
        round.into_iter().find(|&step| step >= least * (1.0 - 1e-9)).unwrap_or(10.0 * power * unit)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Micros => "latency",
            Self::PerSecond => "deliveries a second",
            Self::Count => "number",
            Self::Cores => "cores",
            Self::Bytes => "bytes",
            Self::Percentile => "percentile of deliveries",
        }
    }

    fn tick(self, value: f64) -> String {
        let scaled = |steps: &[(f64, &str)], least: &str| {
            let (by, unit) = steps.iter().find(|(by, _)| value.abs() >= *by).copied().unwrap_or((1.0, least));
            format!("{}{unit}", round(value / by))
        };
        match self {
            _ if value == 0.0 && self != Self::Percentile => "0".to_owned(),
            Self::Micros => scaled(&[(1e6, " s"), (1e3, " ms")], " µs"),
            Self::PerSecond | Self::Count => scaled(&[(1e6, " M"), (1e3, " k")], ""),
            Self::Bytes => scaled(&[(GIB, " GiB"), (MIB, " MiB"), (KIB, " KiB")], " B"),
            Self::Percentile if value < 0.5 => "0 %".to_owned(),
            Self::Percentile => format!("{} %", round(100.0 * (1.0 - 10_f64.powf(-value)))),
            Self::Seconds | Self::Cores => round(value),
        }
    }
}

/// Without trailing zeros, and with at most five digits after the point.
fn round(value: f64) -> String {
    let digits = format!("{value:.5}");
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Escapes text for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_have_a_unit() {
        let ticks = |unit: Unit, high: f64| {
            Axis::over(unit, [0.0, high].into_iter(), true).ticks().map(|tick| unit.tick(tick)).collect::<Vec<_>>()
        };
        assert_eq!(ticks(Unit::Micros, 4321.0), ["0", "1 ms", "2 ms", "3 ms", "4 ms", "5 ms"]);
        assert_eq!(ticks(Unit::Micros, 800.0), ["0", "200 µs", "400 µs", "600 µs", "800 µs"]);
        assert_eq!(ticks(Unit::Cores, 0.42), ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]);
        assert_eq!(ticks(Unit::Bytes, 50e6), ["0", "10 MiB", "20 MiB", "30 MiB", "40 MiB", "50 MiB"]);
        assert_eq!(ticks(Unit::PerSecond, 1_800_000.0), ["0", "500 k", "1 M", "1.5 M", "2 M"]);
    }

    #[test]
    fn percentiles_are_spaced_by_their_nines() {
        let places = [0.0, 90.0, 99.0, 99.9].map(|percentile| Unit::Percentile.place(percentile));
        assert!(places.iter().zip([0.0, 1.0, 2.0, 3.0]).all(|(place, nine)| (place - nine).abs() < 1e-6));
        assert_eq!(Unit::Percentile.tick(3.0), "99.9 %");
    }

    #[test]
    fn a_chart_without_points_and_one_of_a_single_point_can_be_drawn() {
        let chart = |points| Chart {
            title: "a < b".to_owned(),
            x: Unit::Seconds,
            y: Unit::Count,
            series: vec![Series { name: String::new(), points }],
        };
        assert!(chart(vec![]).svg().contains("a &lt; b"));
        let one = chart(vec![(3.0, 0.0)]).svg();
        assert!(one.contains("circle") && !one.contains("NaN") && !one.contains("inf"), "{one}");
    }
}
