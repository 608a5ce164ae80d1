//! `gateway serve`: serves dashboards until a signal.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tracing::warn;

use super::instance::Instance;
use crate::config::Settings;
use crate::logging;

/// Serves until a signal, then drains.
///
/// # Errors
/// What keeps the gateway from starting.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    logging::install(&settings.log)?;
    let instance = Instance::start(&settings, None).await?;
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    // The page asks every gateway whether it is a demo; a 404 would be an error in the browser's console.
    let no_demo = Router::new().route("/demo/token", get(async || StatusCode::NO_CONTENT));
    instance.serve(no_demo).await
}
