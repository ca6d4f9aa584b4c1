//! The pages beside gRPC, and what a broken client can do to the port.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::within;
use crate::support::{Server, server};

/// Sends one HTTP/1.1 request and returns the whole answer.
async fn http(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.running.client_addresses()[0]).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_answer_as_in_etcd() {
    let server = server(&[]).await;
    for path in ["/health", "/health?serializable=true&exclude=NOSPACE"] {
        let answer = http(&server, &format!("GET {path}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n{\"health\":\"true\",\"reason\":\"\"}"), "{answer}");
    }
    let answer = http(&server, "GET /version").await;
    let version = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    assert!(answer.ends_with(version), "{answer}");
    assert!(http(&server, "POST /health").await.starts_with("HTTP/1.1 405 "));
    assert!(http(&server, "GET /nowhere").await.starts_with("HTTP/1.1 404 "));
    assert!(http(&server, "GET /").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_etcds_names() {
    let server = server(&[]).await;
    server.put("a", "1").await;
    let answer = http(&server, "GET /metrics").await;
    let id = format!("etcd_server_id{{server_id=\"{:x}\"}} 1", server.running.node().member_id());
    for line in [
        "etcd_server_has_leader 1",
        "etcd_server_is_leader 1",
        "etcd_server_leader_changes_seen_total 1",
        "# TYPE etcd_server_proposals_committed_total gauge",
        "# TYPE etcd_server_proposals_applied_total gauge",
        "etcd_server_quota_backend_bytes 2147483648",
        "# TYPE etcd_mvcc_db_total_size_in_bytes gauge",
        "# TYPE etcd_mvcc_db_total_size_in_use_in_bytes gauge",
        "# TYPE etcd_disk_wal_fsync_duration_seconds histogram",
        "# TYPE etcd_network_client_grpc_received_bytes_total counter",
        "grpc_server_started_total{grpc_type=\"unary\",grpc_service=\"etcdserverpb.KV\",\
         grpc_method=\"Put\"} 1",
        "grpc_server_handled_total{grpc_type=\"unary\",grpc_service=\"etcdserverpb.KV\",\
         grpc_method=\"Put\",grpc_code=\"OK\"} 1",
        "etcd_server_version{server_version=\"3.7.1\"} 1",
        "etcd_cluster_version{cluster_version=\"3.7\"} 1",
        "etcd_debugging_mvcc_current_revision 2",
        "# TYPE process_resident_memory_bytes gauge",
        &id,
    ] {
        assert!(answer.lines().any(|found| found == line), "{line}\n{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_clients_leave_the_port_serving() {
    let server = server(&[]).await;
    let address = server.running.client_addresses()[0];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A frame header: 24 bits of length, type, flags, stream.
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let absurd = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    let half = [0, 0, 20, 1, 4, 0, 0];
    let noise: Vec<u8> =
        (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [
        noise.clone(),
        b"GET / HTTP/1.1\r\n".to_vec(),
        preface[..10].to_vec(),
        [preface.as_slice(), &settings, &absurd].concat(),
        [preface.as_slice(), &settings, &half].concat(),
        [preface.as_slice(), &noise].concat(),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may close before it has read everything.
        stream.write_all(&bytes).await.unwrap_or_default();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        tokio::time::timeout(Duration::from_millis(300), read).await.map(drop).unwrap_or_default();
    }
    server.put("a", "1").await;
    assert!(http(&server, "GET /health").await.starts_with("HTTP/1.1 200 "));
}
