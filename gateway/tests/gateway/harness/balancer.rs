//! The load balancers of `deploy/`, as their real binaries, on the configuration that operators get.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::http;
use super::ports::free_port;
use super::process::{Process, scratch};
use super::stack::Stack;
use super::tls::self_signed;
use super::wait::{PATIENCE, eventually};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

/// How often HAProxy asks whether a gateway is ready.
pub const CHECKED_OFTEN: &str = "100ms";
/// Not within a test: what goes elsewhere then does so since a gateway refused it.
pub const CHECKED_NEVER: &str = "1h";

/// A gateway as a balancer sees it: where its sockets go, and where it is asked for its health.
#[derive(Debug, Clone, Copy)]
pub struct Behind {
    pub public: SocketAddr,
    pub internal: SocketAddr,
}

impl Behind {
    /// The gateways, once all of them are ready: a check that came earlier would stand until the next.
    pub async fn stack(stack: &Stack) -> Vec<Self> {
        let mut behind = Vec::new();
        for gateway in &stack.gateways {
            let (public, internal) = (gateway.public, gateway.internal);
            eventually("the gateway is ready", PATIENCE, async || {
                (http::get(internal, "/readyz").await.status == 200).then_some(())
            })
            .await;
            behind.push(Self { public, internal });
        }
        behind
    }
}

pub struct Balancer {
    pub addr: SocketAddr,
    /// Where TLS is spoken, and the certificate to trust.
    pub tls: Option<(SocketAddr, PathBuf)>,
    log: PathBuf,
    command: Command,
    process: Process,
}

impl Balancer {
    /// HAProxy with these variables on top. The configuration has three gateways; fewer stand in for the others as well.
    pub async fn haproxy(gateways: &[Behind], variables: &[(&str, &str)]) -> Self {
        let addr = loopback();
        let mut command = Command::new("haproxy");
        command.arg("-f").arg(Path::new(DEPLOY).join("haproxy/haproxy.cfg")).env("LISTEN", addr.to_string());
        for number in 0..3 {
            let gateway = gateways[number % gateways.len()];
            command.env(format!("GATEWAY_{}", number + 1), gateway.public.to_string());
            command.env(format!("GATEWAY_{}_HEALTH", number + 1), gateway.internal.port().to_string());
        }
        command.envs(variables.iter().copied());
        Self::start(addr, None, scratch(&format!("haproxy-{}", free_port())).join("log"), command).await
    }

    /// HAProxy with a configuration of one's own, whose health check is a single line: HTTP/1.0 without Host.
    pub async fn haproxy_with_a_short_check(gateway: Behind) -> Self {
        let addr = loopback();
        let configuration = format!(
            "defaults
                mode http
                timeout connect 3s
                timeout client 30s
                timeout server 30s
            frontend public
                bind {addr}
                default_backend gateways
            backend gateways
                option httpchk GET /readyz
                server gateway {} check port {} inter {CHECKED_OFTEN} fall 1 rise 1
",
            gateway.public,
            gateway.internal.port()
        );
        let directory = scratch(&format!("haproxy-{}", free_port()));
        let file = directory.join("haproxy.cfg");
        std::fs::write(&file, configuration).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-f").arg(file);
        Self::start(addr, None, directory.join("log"), command).await
    }

    /// HAProxy with TLS, and a certificate that it was given for this.
    pub async fn haproxy_with_tls(gateways: &[Behind]) -> Self {
        let (tls, directory) = (loopback(), scratch(&format!("haproxy-{}", free_port())));
        let certificate = self_signed(&directory);
        let pem = directory.join("both.pem");
        let both =
            [&certificate, &directory.join("certificate.key")].map(|path| std::fs::read_to_string(path).unwrap());
        std::fs::write(&pem, both.concat()).unwrap();
        let listen = tls.to_string();
        let variables = [("TLS_LISTEN", listen.as_str()), ("TLS_PEM", pem.to_str().unwrap())];
        Self { tls: Some((tls, certificate)), ..Self::haproxy(gateways, &variables).await }
    }

    pub async fn nginx(gateways: &[Behind]) -> Self {
        Self::nginx_in(gateways, scratch(&format!("nginx-{}", free_port())), None).await
    }

    pub async fn nginx_with_tls(gateways: &[Behind]) -> Self {
        let (tls, directory) = (loopback(), scratch(&format!("nginx-{}", free_port())));
        let certificate = self_signed(&directory);
        let configuration = std::fs::read_to_string(Path::new(DEPLOY).join("nginx/tls.conf")).unwrap();
        std::fs::write(directory.join("tls.conf"), adapted(configuration, "listen 8443", &format!("listen {tls}")))
            .unwrap();
        Self::nginx_in(gateways, directory, Some((tls, certificate))).await
    }

    async fn nginx_in(gateways: &[Behind], directory: PathBuf, tls: Option<(SocketAddr, PathBuf)>) -> Self {
        let addr = loopback();
        let mut configuration = std::fs::read_to_string(Path::new(DEPLOY).join("nginx/nginx.conf")).unwrap();
        configuration = adapted(configuration, "listen 8080", &format!("listen {addr}"));
        for number in 0..3 {
            let gateway = gateways[number % gateways.len()];
            let name = format!("gateway-{}:8080", number + 1);
            configuration = adapted(configuration, &name, &gateway.public.to_string());
        }
        // Its own folders, where the distribution's belong to root.
        configuration = adapted(configuration, "access_log /var/log/nginx/access.log", "access_log log");
        let mut own = "http {\n".to_owned();
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            own.push_str(&format!("    {kind}_temp_path {kind};\n"));
        }
        configuration = adapted(configuration, "http {", &own);
        // Run by root, its workers may not reach this folder as another user.
        configuration = adapted(configuration, "user www-data;", "user root;");
        std::fs::write(directory.join("nginx.conf"), configuration).unwrap();

        let mut command = Command::new("nginx");
        command.arg("-p").arg(&directory).args(["-c", "nginx.conf", "-e", "stderr", "-g"]);
        // One process, which dies as a whole.
        command.arg("daemon off; master_process off; pid nginx.pid;");
        Self::start(addr, tls, directory.join("log"), command).await
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// SIGKILL: every socket through it is cut.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// On the same address, after [`Self::kill9`].
    pub async fn restart(&mut self) {
        self.process = Process::spawn(&mut self.command);
        self.ready().await;
    }

    /// HAProxy with its configuration read again: another process takes the sockets that come, and the one before, which is
    /// returned, serves its own to their end.
    pub async fn reload(&mut self) -> Process {
        let mut command = Command::new(self.command.get_program());
        command.args(self.command.get_args()).args(["-sf", &self.process.id().to_string()]);
        command.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let new = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let old = std::mem::replace(&mut self.process, new);
        self.ready().await;
        old
    }

    async fn start(addr: SocketAddr, tls: Option<(SocketAddr, PathBuf)>, log: PathBuf, mut command: Command) -> Self {
        let path = std::env::var("PATH").unwrap_or_default();
        let output = File::options().create(true).append(true).open(&log).unwrap();
        command.env("PATH", format!("{path}:/usr/sbin")).stdout(output).stderr(Stdio::null());
        let process = Process::spawn(&mut command);
        let balancer = Self { addr, tls, log, command, process };
        balancer.ready().await;
        balancer
    }

    async fn ready(&self) {
        eventually("the balancer answers", PATIENCE, async || {
            drop(tokio::net::TcpStream::connect(self.addr).await.ok()?);
            (http::get(self.addr, "/asyncapi.json").await.status < 400).then_some(())
        })
        .await;
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Replaces what an operator adapts, which must be there.
fn adapted(configuration: String, theirs: &str, ours: &str) -> String {
    assert!(configuration.contains(theirs), "no {theirs:?} to adapt");
    configuration.replace(theirs, ours)
}
