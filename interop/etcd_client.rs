//! In place of etcd-client's own `tests/testing.rs`: how its suite connects, to the first endpoint in `$ENDPOINTS`;
//! a CA in `$CA` makes it TLS, and `name:password` in `$LOGIN` says who does it.

use std::env;

use etcd_client::{Certificate, Client, ConnectOptions, Error, TlsOptions};

pub type Result<T> = std::result::Result<T, Error>;

/// What the suite takes away and adds again; `run.sh` puts in the port.
pub const DEFAULT_TEST_ENDPOINT: &str = "localhost:2379";

pub async fn get_client() -> Result<Client> {
    let mut options = ConnectOptions::new().with_require_leader(true);
    if let Ok(login) = env::var("LOGIN") {
        let (name, password) = login.split_once(':').expect("a name and a password");
        options = options.with_user(name, password);
    }
    let mut scheme = "http";
    if let Ok(ca) = env::var("CA") {
        let ca = Certificate::from_pem(std::fs::read(ca).expect("a certificate"));
        (scheme, options) = ("https", options.with_tls(TlsOptions::new().ca_certificate(ca)));
    }
    let endpoints = env::var("ENDPOINTS").expect("endpoints");
    let first = endpoints.split(',').next().expect("an endpoint");
    Client::connect([format!("{scheme}://{first}")], Some(options)).await
}
