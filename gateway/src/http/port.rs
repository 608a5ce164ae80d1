//! Why a port can't be opened: which process has it.

use std::io;
use std::net::SocketAddr;

/// The error in words, with the process that has the port where that can be told.
pub fn why_closed(address: SocketAddr, error: &io::Error) -> String {
    let holder = (error.kind() == io::ErrorKind::AddrInUse).then(|| holder::of(address)).flatten();
    match holder {
        Some(holder) => format!("in use by {holder}"),
        None => error.to_string(),
    }
}

#[cfg(target_os = "linux")]
mod holder {
    use std::fs;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::path::Path;

    /// The state of a socket that listens, in the kernel's tables.
    const LISTENING: &str = "0A";

    /// The process that listens where `address` would, as "haproxy (pid 4711)". Processes of other users show nothing but the user.
    pub fn of(address: SocketAddr) -> Option<String> {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
        let (inode, user) = tables.iter().flat_map(|table| table.lines()).find_map(|line| listener(line, address))?;
        let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        match process_with(&format!("socket:[{inode}]")) {
            Some(pid) => Some(format!("{} (pid {pid})", name(&pid).trim_end())),
            None => Some(format!("a process of the user with id {user}")),
        }
    }

    /// The inode and the user of a line's socket, if it listens where `address` would.
    fn listener(line: &str, address: SocketAddr) -> Option<(&str, &str)> {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, local, _, state, _, _, _, user, _, inode, ..] = fields[..] else { return None };
        let (ip, port) = local.split_once(':')?;
        let listens = state == LISTENING && u16::from_str_radix(port, 16).ok()? == address.port();
        let ip = parsed(ip)?;
        let same = ip == address.ip().to_canonical() || ip.is_unspecified() || address.ip().is_unspecified();
        (listens && same).then_some((inode, user))
    }

    /// Groups of four bytes, each written as the number that it is in the machine's own order.
    fn parsed(hex: &str) -> Option<IpAddr> {
        let groups = (0..hex.len()).step_by(8).map(|at| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok());
        let bytes: Vec<u8> = groups.collect::<Option<Vec<_>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
        let ip = match bytes.len() {
            4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
            _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        };
        Some(ip.to_canonical())
    }

    fn process_with(socket: &str) -> Option<String> {
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let mut ids = processes.filter_map(|entry| entry.file_name().into_string().ok());
        ids.find(|id| id.bytes().all(|b| b.is_ascii_digit()) && has(id, socket))
    }

    fn has(pid: &str, socket: &str) -> bool {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == Path::new(socket)))
    }

    #[cfg(test)]
    mod tests {
        use std::net::TcpListener;

        use super::*;

        #[test]
        fn who_listens_on_a_port_is_found_by_every_address_that_clashes() {
            let clashing = [
                ("127.0.0.1", vec!["127.0.0.1", "0.0.0.0", "::"]),
                ("0.0.0.0", vec!["127.0.0.1", "0.0.0.0"]),
                ("[::1]", vec!["::1", "::"]),
            ];
            for (listens, asked) in clashing {
                let listener = TcpListener::bind(format!("{listens}:0")).expect("a port");
                let port = listener.local_addr().expect("an address").port();
                for ip in asked {
                    let holder = of(SocketAddr::new(ip.parse().expect("an address"), port));
                    let expected = format!("(pid {})", std::process::id());
                    assert!(holder.as_ref().is_some_and(|holder| holder.ends_with(&expected)), "{ip}: {holder:?}");
                }
            }
            assert_eq!(of(SocketAddr::from(([127, 0, 0, 1], 1))), None);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod holder {
    use std::net::SocketAddr;

    /// Only Linux tells.
    pub fn of(_: SocketAddr) -> Option<String> {
        None
    }
}
