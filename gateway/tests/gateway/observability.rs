//! The dashboard and the alerts of `deploy/`, asked of a real Prometheus that scrapes a real gateway.
