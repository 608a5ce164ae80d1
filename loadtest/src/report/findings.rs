//! What a subcommand found, as text, as figures and as charts.

use std::fmt::Display;

use serde::Serialize;
use serde_json::Value;

use super::chart::Chart;

/// The result of a subcommand.
pub struct Findings {
    /// For a terminal.
    pub text: String,
    /// For programs.
    pub figures: Value,
    /// The broken bounds, one line for each.
    pub failures: Vec<String>,
    /// For the HTML page.
    pub charts: Vec<Chart>,
}

impl Findings {
    pub fn new(report: &(impl Display + Serialize), failures: Vec<String>) -> anyhow::Result<Self> {
        Ok(Self { text: report.to_string(), figures: serde_json::to_value(report)?, failures, charts: Vec::new() })
    }

    pub fn with(self, charts: Vec<Chart>) -> Self {
        Self { charts, ..self }
    }
}
