//! An authority and one certificate for loopback, created for a measurement and removed with its
//! directory.

use std::path::{Path, PathBuf};

use conclave_testing::authority::{Authority, Files, Wish};
use conclave_transport::{Client, Pair, Verification};

/// Paths of the files; servers, peers and the generator present the same certificate.
#[derive(Clone, Debug)]
pub struct Certificates {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Certificates {
    /// Creates them in `dir`. The common name is empty, because it would be taken for a user name.
    #[must_use]
    pub fn create(dir: &Path) -> Self {
        let authority = Authority::new("conclave-bench authority");
        let wish = Wish { common_name: "", days: (-1, 10), ..Wish::default() };
        let Files { cert, key } = authority.issue(wish, dir, "node");
        Self { ca: authority.write(&dir.join("ca.pem")), cert, key }
    }

    /// Server flags that require certificates on both ports.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let mut flags = Vec::new();
        for port in ["--", "--peer-"] {
            flags.push(format!("{port}cert-file={}", path(&self.cert)));
            flags.push(format!("{port}key-file={}", path(&self.key)));
            flags.push(format!("{port}trusted-ca-file={}", path(&self.ca)));
            flags.push(format!("{port}client-cert-auth"));
        }
        flags
    }

    /// TLS settings for connecting to such servers.
    #[must_use]
    pub fn client(&self) -> Client {
        let identity = Pair { cert: self.cert.clone(), key: self.key.clone() };
        Client {
            verification: Verification::Ca(self.ca.clone()),
            identity: Some(identity),
            ..Client::default()
        }
    }
}
