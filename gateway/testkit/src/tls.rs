//! Certificates for the servers of a test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `certificate.pem` for localhost, which is all that its clients need to trust, and `certificate.key` beside it.
pub fn self_signed(directory: &Path) -> PathBuf {
    let certificate = directory.join("certificate.pem");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"])
        // Not a CA's: some clients take none for a server's.
        .args(["-subj", "/CN=localhost", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout"])
        .arg(directory.join("certificate.key"))
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success(), "openssl: {made}");
    certificate
}
