//! Keys, values and transactions.

use conclave_client::{
    Error, Outcome,
    kv::{delete, get, put},
    pb::{
        AlarmRequest, AlarmType,
        alarm_request::AlarmAction,
        maintenance_client::MaintenanceClient,
        range_request::{SortOrder, SortTarget},
        response_op::Response,
    },
    txn::{key, txn},
};

use crate::start;

#[tokio::test]
async fn what_was_put_is_read_and_deleted() {
    let Some((_server, client)) = start("what_was_put_is_read_and_deleted").await else { return };
    let first = client.put("a/1", "one").await.unwrap();
    let second = client.put("a/2", "two").await.unwrap();
    assert_eq!(second.revision(), first.revision() + 1);
    let kv = client.get("a/1").await.unwrap().one().unwrap();
    assert_eq!((&kv.value[..], kv.version), (&b"one"[..], 1));
    let replaced = client.put("a/1", "uno").prev_kv().await.unwrap();
    assert_eq!(&replaced.prev_kv.as_ref().unwrap().value[..], b"one");

    let range = client.get("a/").prefix().await.unwrap();
    assert_eq!((range.count, range.kvs.len()), (2, 2));
    let old = client.get("a/1").revision(first.revision()).serializable().await.unwrap();
    assert_eq!(&old.one().unwrap().value[..], b"one");
    let last = client.get("a/").prefix().sort(SortTarget::Mod, SortOrder::Descend).limit(1).await;
    assert_eq!(&last.unwrap().one().unwrap().key[..], b"a/1");
    let counted = client.get("").prefix().count_only().await.unwrap();
    assert_eq!((counted.count, counted.kvs.len()), (2, 0));
    let keys = client.get("a/2").from_key().keys_only().await.unwrap();
    assert!(keys.kvs.iter().all(|kv| kv.value.is_empty()) && keys.count == 1);

    let deleted = client.delete("a/").prefix().prev_kv().await.unwrap();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (2, 2));
    assert!(client.get("a/1").await.unwrap().one().is_none());
}

#[tokio::test]
async fn a_transaction_does_one_branch() {
    let Some((_server, client)) = start("a_transaction_does_one_branch").await else { return };
    let create = || {
        client
            .txn()
            .when(key("k").create_revision().equal(0))
            .then(put("k", "1"))
            .then(txn().when(key("k").version().equal(0)).then(put("nested", "yes")))
            .or_else(get("k"))
            .or_else(delete("nested"))
    };
    assert!(create().commit().await.unwrap().succeeded);
    let refused = create().commit().await.unwrap();
    assert!(!refused.succeeded);
    let Some(Response::ResponseRange(range)) = &refused.responses[0].response else {
        panic!("the first answer is the range: {refused:?}");
    };
    assert_eq!(&range.kvs[0].value[..], b"1");
    let held =
        client.txn().when(key("k").value().greater("0")).when(key("k").prefix().lease().less(1));
    assert!(held.commit().await.unwrap().succeeded);
    assert!(client.get("nested").await.unwrap().one().is_none());
}

#[tokio::test]
async fn compares_hold_for_what_they_say() {
    let Some((_server, client)) = start("compares_hold_for_what_they_say").await else { return };
    client.put("k", "a").await.unwrap();
    client.put("k", "b").await.unwrap();
    let (version, value) = (|| key("k").version(), || key("k").value());
    let holding = [version().equal(2), version().not_equal(1), version().greater(1)];
    let holding = holding.into_iter().chain([version().less(3), value().equal("b")]);
    let holding = holding.chain([value().not_equal("a"), value().greater("a"), value().less("c")]);
    for compare in holding {
        let said = format!("{compare:?}");
        assert!(client.txn().when(compare).commit().await.unwrap().succeeded, "{said}");
    }
    let failing = [version().equal(1), version().not_equal(2), version().greater(2)];
    let failing = failing.into_iter().chain([version().less(2), value().equal("a")]);
    let failing = failing.chain([value().not_equal("b"), value().greater("b"), value().less("b")]);
    for compare in failing {
        let said = format!("{compare:?}");
        assert!(!client.txn().when(compare).commit().await.unwrap().succeeded, "{said}");
    }
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let Some((_server, client)) = start("errors_say_what_to_do").await else { return };
    let put = client.put("k", "1").await.unwrap();
    client.put("k", "2").await.unwrap();
    client.compact(put.revision() + 1).physical().await.unwrap();
    let error = client.get("k").revision(put.revision()).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { .. }), "{error:?}");
    let error = client.get("k").revision(1_000_000).await.unwrap_err();
    assert!(matches!(error, Error::FutureRevision(_)), "{error:?}");
    let error = client.put("", "1").await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    assert_eq!(error.to_string(), "etcdserver: key is not provided");
    let error = client.put("k", "1").lease(77).await.unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error:?}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
}

#[tokio::test]
async fn operators_see_members_and_status() {
    let Some((_server, client)) = start("operators_see_members_and_status").await else { return };
    let members = client.members().await.unwrap();
    let status = client.status().await.unwrap();
    assert_eq!(members.members[0].id, status.leader);
    client.put("k", "v").await.unwrap();
    assert!(client.hash_kv(0).await.unwrap().hash != 0);
    assert!(client.alarms().await.unwrap().alarms.is_empty());
    assert!(client.disarm_alarms().await.unwrap().alarms.is_empty());
    client.defragment().await.unwrap();
    let error = client.move_leader(12).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
}

#[tokio::test]
async fn an_alarm_refuses_writes_until_disarmed() {
    let test = "an_alarm_refuses_writes_until_disarmed";
    let Some((_server, client)) = start(test).await else { return };
    let member = client.status().await.unwrap().leader;
    let request = AlarmRequest {
        action: AlarmAction::Activate.into(),
        member_id: member,
        alarm: AlarmType::Nospace.into(),
    };
    MaintenanceClient::new(client.channel()).alarm(request).await.unwrap();
    let error = client.put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::NoSpace(_)), "{error:?}");
    assert_eq!(client.alarms().await.unwrap().alarms.len(), 1);
    let disarmed = client.disarm_alarms().await.unwrap();
    assert_eq!(disarmed.alarms[0].member_id, member);
    client.put("k", "v").await.unwrap();
}
