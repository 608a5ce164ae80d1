//! The two ports: whether they can be opened.

use std::io::ErrorKind;
use std::net::SocketAddr;

use super::report::Report;
use crate::config::Settings;
use crate::http;

pub(super) fn check(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    let (public, internal) = (settings.listen, settings.internal_listen);
    let free = [opens("LISTEN", public, report)?, opens("INTERNAL_LISTEN", internal, report)?];
    if free == [true, true] {
        report.good(format!("ports: {public} and {internal} can be opened"))?;
    }
    Ok(())
}

fn opens(variable: &str, address: SocketAddr, report: &mut Report) -> anyhow::Result<bool> {
    let Err(error) = http::listen(address) else { return Ok(true) };
    let instead = match error.kind() {
        ErrorKind::AddrInUse => "end that process, or write another port",
        ErrorKind::AddrNotAvailable => "write an address of this machine",
        ErrorKind::PermissionDenied => "write a port from 1024 on, or give the process CAP_NET_BIND_SERVICE",
        _ => "write another address",
    };
    report.fault(format!("ports: {variable}={address}: {}; {instead}", http::why_closed(address, &error)))?;
    Ok(false)
}
