//! A real Prometheus on the configuration and the alerts of `deploy/prometheus`, only in more of a hurry.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::http;
use super::ports::free_port;
use super::process::{Process, scratch};
use super::wait::{PATIENCE, eventually};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus");

pub struct Prometheus {
    addr: SocketAddr,
    _process: Process,
}

impl Prometheus {
    /// Scrapes these addresses every second, as it finds them in its `targets.json`; returns once it answers.
    pub async fn start(targets: &[SocketAddr]) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let directory = scratch(&format!("prometheus-{}", addr.port()));
        let configuration = std::fs::read_to_string(Path::new(DIRECTORY).join("prometheus.yml")).unwrap();
        let hurried = configuration.replace("interval: 5s", "interval: 1s").replace("timeout: 4s", "timeout: 1s");
        assert_ne!(hurried, configuration, "prometheus.yml has other intervals than these");
        std::fs::write(directory.join("prometheus.yml"), hurried).unwrap();
        std::fs::copy(Path::new(DIRECTORY).join("alerts.yml"), directory.join("alerts.yml")).unwrap();
        std::fs::write(directory.join("targets.json"), json!([{ "targets": targets }]).to_string()).unwrap();

        let mut command = Command::new("prometheus");
        command
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error"])
            .arg(format!("--web.listen-address={addr}"))
            .current_dir(&directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let prometheus = Self { addr, _process: Process::spawn(&mut command) };
        eventually("Prometheus is ready", PATIENCE, async || {
            drop(tokio::net::TcpStream::connect(addr).await.ok()?);
            (http::get(addr, "/-/ready").await.status == 200).then_some(())
        })
        .await;
        prometheus
    }

    /// What the expression gives now: one value for each series.
    pub async fn query(&self, expression: &str) -> Vec<f64> {
        let endpoint = format!("http://{}/api/v1/query", self.addr);
        let url = reqwest::Url::parse_with_params(&endpoint, [("query", expression)]).unwrap();
        let path = format!("{}?{}", url.path(), url.query().unwrap());
        let answer = http::get(self.addr, &path).await;
        assert_eq!(answer.status, 200, "{expression}: {}", answer.body);
        let series = answer.json()["data"]["result"].as_array().unwrap().clone();
        series.iter().map(|series| series["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }

    /// Every rule that was loaded, with its state and its health.
    pub async fn rules(&self) -> Vec<Value> {
        let answer = http::get(self.addr, "/api/v1/rules").await.expect(200).json();
        let groups = answer["data"]["groups"].as_array().unwrap().clone();
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }
}
