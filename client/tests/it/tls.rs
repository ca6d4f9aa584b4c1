//! TLS against a server that requires client certificates.

use std::time::Duration;

use conclave_client::balance::{BalancedChannel, Instance, RoundRobin, SnapshotOptions};
use conclave_client::pb::{RangeRequest, kv_client::KvClient};
use conclave_client::{Client, Error, Tls};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::{
    SOON,
    authority::{Authority, Files, Wish},
    server::{Server, program},
};

/// Certificate files of a cluster and of its clients.
struct Stage {
    dir: TempDir,
    server: Files,
    alice: Files,
}

impl Stage {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let ca = Authority::new("ca");
        ca.write(&dir.path().join("ca.pem"));
        Authority::new("other").write(&dir.path().join("other.pem"));
        let server = ca.issue(Wish::default(), dir.path(), "server");
        let wish = Wish { common_name: "alice", ..Wish::default() };
        let alice = ca.issue(wish, dir.path(), "alice");
        Self { dir, server, alice }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn flags(&self) -> Vec<String> {
        let (cert, key) = (self.server.cert.display(), self.server.key.display());
        let ca = self.path("ca.pem");
        let both = ["", "peer-"]
            .map(|port| [format!("--{port}cert-file={cert}"), format!("--{port}key-file={key}")]);
        let asking = [
            format!("--trusted-ca-file={ca}"),
            "--client-cert-auth".to_owned(),
            format!("--peer-trusted-ca-file={ca}"),
        ];
        both.into_iter().flatten().chain(asking).collect()
    }

    /// Trusts the authority and presents alice's certificate.
    fn alice(&self) -> Tls {
        let tls = Tls::new().ca_file(self.path("ca.pem"));
        tls.client_certificate(&self.alice.cert, &self.alice.key)
    }
}

fn client(endpoint: String, tls: Tls) -> Client {
    Client::builder([endpoint]).tls(tls).timeout(SOON).build().unwrap()
}

/// The error of a single short attempt.
async fn refused(endpoint: &str, tls: Tls) -> String {
    let client = Client::builder([endpoint]).tls(tls).timeout(Duration::from_secs(6));
    let answer = client.build().unwrap().get("a").await;
    format!("{:?}", answer.expect_err("must be refused"))
}

#[tokio::test]
async fn keys_are_read_and_written_over_tls() {
    let Some(program) = program("keys_are_read_and_written_over_tls") else { return };
    let stage = Stage::new();
    let server = Server::secure(program, 1, &stage.flags()).remove(0);
    for endpoint in [format!("https://{}", server.endpoint()), server.endpoint()] {
        let client = client(endpoint, stage.alice());
        client.ready().await.unwrap();
        client.put("a", "1").await.unwrap();
        assert_eq!(client.get("a").await.unwrap().kvs[0].value, "1");
    }
    let plain = Client::builder([format!("http://{}", server.plain())]).tls(stage.alice());
    assert_eq!(plain.build().unwrap().get("a").await.unwrap().kvs[0].value, "1");

    let endpoint = format!("https://{}", server.endpoint());
    let anonymous = || Tls::new().ca_file(stage.path("ca.pem"));
    let careless = stage.alice().insecure_skip_verify();
    client(endpoint.clone(), careless).put("a", "2").await.unwrap();
    client(endpoint.clone(), stage.alice().server_name("localhost")).put("a", "3").await.unwrap();
    refused(&endpoint, anonymous()).await;
    let text = refused(&endpoint, stage.alice().server_name("example.com")).await;
    assert!(text.contains("NotValidForName"), "{text}");
    let text = refused(&endpoint, stage.alice().ca_file(stage.path("other.pem"))).await;
    assert!(text.contains("UnknownIssuer"), "{text}");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_when_the_client_is_built() {
    let stage = Stage::new();
    let build = |tls: Tls| Client::builder(["https://127.0.0.1:1"]).tls(tls).build();
    for tls in [
        Tls::new().ca_file(stage.path("missing.pem")),
        stage.alice().client_certificate(&stage.alice.cert, &stage.server.key),
        stage.alice().server_name("no name"),
    ] {
        assert!(matches!(build(tls), Err(Error::Config { .. })));
    }
    build(stage.alice()).unwrap();
}

/// The members that answer `calls` reads through a channel to these addresses, or the first error.
async fn answering(
    tls: Option<Tls>,
    addresses: &[String],
    calls: usize,
) -> Result<std::collections::BTreeSet<u64>, String> {
    let named = addresses.iter().enumerate();
    let list = named.map(|(id, address)| Instance::new(id.to_string(), address));
    let (_lists, list) = watch::channel(list.collect());
    let builder = BalancedChannel::builder().policy(RoundRobin::default());
    let even = SnapshotOptions { slow_start: Duration::ZERO, ..SnapshotOptions::default() };
    let builder = builder.snapshot(even).connect_timeout(SOON).timeout(SOON);
    let builder = match tls {
        Some(tls) => builder.tls(tls).unwrap(),
        None => builder,
    };
    let mut kv = KvClient::new(builder.watch(list));
    let mut members = std::collections::BTreeSet::new();
    for _ in 0..calls {
        let read = RangeRequest { key: "a".into(), serializable: true, ..RangeRequest::default() };
        let answer = kv.range(read).await.map_err(|status| format!("{status:?}"))?.into_inner();
        members.insert(answer.header.unwrap().member_id);
    }
    Ok(members)
}

#[tokio::test]
async fn a_balanced_channel_reaches_its_instances_over_tls() {
    let Some(program) = program("a_balanced_channel_reaches_its_instances_over_tls") else {
        return;
    };
    let stage = Stage::new();
    let servers = Server::secure(program, 3, &stage.flags());
    for server in &servers {
        client(format!("https://{}", server.endpoint()), stage.alice()).ready().await.unwrap();
    }
    let bare: Vec<String> = servers.iter().map(Server::endpoint).collect();
    let https: Vec<String> = bare.iter().map(|address| format!("https://{address}")).collect();
    for addresses in [&bare, &https] {
        let members = answering(Some(stage.alice()), addresses, 9).await.unwrap();
        assert_eq!(members.len(), 3, "{addresses:?}");
    }
    let named = stage.alice().server_name("localhost");
    assert_eq!(answering(Some(named), &https, 9).await.unwrap().len(), 3);
    let text = answering(Some(stage.alice().server_name("example.com")), &https, 1).await;
    assert!(text.as_ref().is_err_and(|text| text.contains("NotValidForName")), "{text:?}");
    let other = stage.alice().ca_file(stage.path("other.pem"));
    let text = answering(Some(other), &https, 1).await;
    assert!(text.as_ref().is_err_and(|text| text.contains("UnknownIssuer")), "{text:?}");
    // With the system's authorities, none of which signed these certificates.
    answering(None, &https, 1).await.unwrap_err();
    let plain: Vec<String> = servers.iter().map(|s| format!("http://{}", s.plain())).collect();
    assert_eq!(answering(Some(stage.alice()), &plain, 9).await.unwrap().len(), 3);
    let missing = Tls::new().ca_file(stage.path("missing.pem"));
    assert!(matches!(BalancedChannel::builder().tls(missing), Err(Error::Config { .. })));
}
