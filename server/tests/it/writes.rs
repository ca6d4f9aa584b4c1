//! Writes that come again, over their wire contract and through the client crate.

use conclave_client::{Client, Error, Outcome};
use conclave_proto::v1;
use tonic::Code;
use v1::write_response::State;
use v1::write_service_client::WriteServiceClient;

use crate::native_lock::{client, session, soon};
use crate::support::{Server, leader, op, put, range, refused, server, servers, then};

const WRITER: &[u8] = b"sixteen bytes ..";

fn write(sequence: u64, key: &str, value: &str) -> v1::WriteRequest {
    let txn = then(vec![op(put(key, value))]);
    v1::WriteRequest {
        writer: WRITER.into(),
        sequence,
        settled: 1,
        txn: Some(txn),
        ..Default::default()
    }
}

async fn send(
    server: &Server,
    request: v1::WriteRequest,
) -> Result<v1::WriteResponse, tonic::Status> {
    let mut writes = WriteServiceClient::new(server.channel.clone());
    soon("a write", writes.write(request)).await.map(tonic::Response::into_inner)
}

/// The same write on every member, and after the leader has gone: one put, one answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_recognised_on_every_member() {
    let mut servers = servers(3, &[]).await;
    let first = send(&servers[0], write(1, "k", "one")).await.unwrap();
    assert_eq!(first.state(), State::Done);
    servers[1].put("k", "other").await;
    for server in &servers {
        let again = send(server, write(1, "k", "one")).await.unwrap();
        assert_eq!((again.state(), again.revision), (State::Done, first.revision));
        assert_eq!(again.txn.unwrap().responses, first.txn.clone().unwrap().responses);
    }
    let leader = leader(&servers).await;
    servers.remove(leader).running.stop().await;
    let patient = async {
        loop {
            if let Ok(answer) = send(&servers[0], write(1, "k", "one")).await {
                return answer;
            }
        }
    };
    let again = soon("another leader", Box::pin(patient)).await;
    assert_eq!(again.revision, first.revision);
    let kv = servers[1].range(range("k", "")).await.kvs.remove(0);
    assert_eq!((kv.value.as_ref(), kv.version), (b"other".as_slice(), 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_numbered_write_is_refused() {
    let server = server(&[]).await;
    let unnamed = v1::WriteRequest { writer: "me".into(), ..write(1, "k", "v") };
    let ahead = write(33, "k", "v");
    let zero = write(0, "k", "v");
    let negative = v1::WriteRequest { since: -1, ..write(1, "k", "v") };
    for request in [unnamed, ahead, zero, negative, v1::WriteRequest::default()] {
        let (code, text) = refused(send(&server, request).await);
        assert_eq!(code, Code::InvalidArgument, "{text}");
    }
    let (code, _) = refused(send(&server, write(1, "", "v")).await);
    assert_eq!(code, Code::InvalidArgument, "the rules of a transaction hold");
    // A refusal is not remembered.
    send(&server, write(1, "k", "v")).await.unwrap();
    let settled = v1::WriteRequest { settled: 2, ..write(2, "k", "v") };
    send(&server, settled).await.unwrap();
    let late = refused(send(&server, write(1, "k", "v")).await);
    assert_eq!(late, (Code::FailedPrecondition, "conclave: a later request came first".to_owned()));
    assert_eq!(server.range(range("k", "")).await.kvs[0].version, 2);
}

/// Everything that a client writes goes this way, with the answers that etcd's calls would have had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remembered_writes_answer_as_others() {
    let servers = [server(&[]).await];
    let remembering = client(&servers);
    let plain = Client::builder(servers[0].running.client_urls()).remembered_writes(false);
    let plain = plain.build().unwrap();
    let mut revision = remembering.put("k", "0").await.unwrap().revision();
    let mut values = (1..).map(|number: u32| number.to_string());
    for client in [&remembering, &plain] {
        let value = values.next().unwrap();
        let answer = client.put("k", value).prev_kv().await.unwrap();
        revision += 1;
        assert_eq!(answer.revision(), revision);
        assert_eq!(answer.prev_kv.as_ref().unwrap().mod_revision, revision - 1);
        assert_ne!(answer.header.as_ref().unwrap().member_id, 0);
        let answer = client.delete("k").prev_kv().await.unwrap();
        revision += 1;
        assert_eq!((answer.revision(), answer.deleted, answer.prev_kvs.len()), (revision, 1, 1));
        let missing = client.put("k", "v").lease(7).await.unwrap_err();
        assert!(matches!(missing, Error::NotFound(_)), "{missing:?}");
        assert_eq!(missing.outcome(), Outcome::NotApplied);
        client.put("k", "v").await.unwrap();
        revision += 1;
    }
    let large = "v".repeat(1 << 20);
    remembering.put("k", large.clone()).await.unwrap();
    let answer = remembering.put("k", "small").prev_kv().await.unwrap();
    assert_eq!(answer.prev_kv.as_ref().unwrap().value, large, "the first answer is whole");
    let lock = soon("a lock", session(&remembering, "me").await.lock("l")).await.unwrap();
    let write = || lock.txn().then(conclave_client::kv::put("k", "guarded")).commit();
    write().await.unwrap();
    remembering.delete(lock.locks()[0].key.to_vec()).await.unwrap();
    assert!(matches!(write().await, Err(Error::Lost { .. })));
}
