//! KV through the wire.

use conclave_proto::etcdserverpb as etcd;

use crate::support::server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_write_is_revision_two() {
    let server = server(&[]).await;
    let mut kv = server.kv();
    let request = etcd::RangeRequest { key: "a".into(), ..Default::default() };
    let answer = kv.range(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().revision, 1);
    let put = etcd::PutRequest { key: "a".into(), value: "1".into(), ..Default::default() };
    let answer = kv.put(put).await.unwrap().into_inner();
    assert_eq!(answer.header.unwrap().revision, 2);
    let answer = kv.range(request).await.unwrap().into_inner();
    assert_eq!(answer.kvs[0].value, "1");
    server.running.stop().await;
}
