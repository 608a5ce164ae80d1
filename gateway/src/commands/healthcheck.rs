//! `gateway healthcheck`: whether the gateway of this machine is alive. For images without a HTTP client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::Client;

use crate::config::Settings;

/// A gateway that takes longer than this is not alive.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks `/healthz` of INTERNAL_LISTEN.
///
/// # Errors
/// When there is no answer, or another than 200.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let address = reachable(settings.internal_listen);
    let client = Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let answer = client.get(format!("http://{address}/healthz")).send().await;
    let status =
        answer.map_err(reqwest::Error::without_url).with_context(|| format!("no answer at {address}"))?.status();
    ensure!(status.is_success(), "{address} answers {status}");
    Ok(())
}

/// The address to call for one that may mean "every interface".
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_is_called_at_its_own_loopback() {
        for (listen, call) in
            [("0.0.0.0:9090", "127.0.0.1:9090"), ("[::]:9090", "[::1]:9090"), ("10.1.2.3:9090", "10.1.2.3:9090")]
        {
            assert_eq!(reachable(listen.parse().expect("an address")).to_string(), call);
        }
    }
}
