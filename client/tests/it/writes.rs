//! Writes that are sent again, to clusters that remember them and to others.

use conclave_client::{
    Client, Error, Outcome, RetryBudget,
    pb::{PutResponse, ResponseHeader, ResponseOp, TxnResponse, response_op::Response},
    v1::{WriteRequest, WriteResponse, write_response::State},
};
use tonic::Status;

use crate::{SOON, fake::Fake};

type Answer = Result<WriteResponse, Status>;

/// Puts to a cluster with these answers; returns all that was sent, and the result.
async fn put(answers: Vec<Answer>) -> (Vec<WriteRequest>, Result<i64, Error>) {
    let fake = Fake::start();
    fake.script.write_answers.lock().extend(answers);
    let client = Client::builder([fake.endpoint()]).timeout(SOON).build();
    let put = client.unwrap().put("k", "v").await;
    let writes = fake.script.writes.lock().clone();
    (writes, put.map(|put| put.revision()))
}

fn state(state: State, revision: i64) -> Answer {
    Ok(WriteResponse { state: state.into(), revision, txn: None })
}

fn done(revision: i64) -> Answer {
    let put = Response::ResponsePut(PutResponse::default());
    let header = Some(ResponseHeader { revision, ..Default::default() });
    let responses = vec![ResponseOp { response: Some(put) }];
    let txn = Some(TxnResponse { header, succeeded: true, responses });
    Ok(WriteResponse { state: State::Done.into(), revision, txn })
}

fn lost() -> Answer {
    Err(Status::unavailable(
        "etcdserver: request timed out, possibly due to previous leader failure",
    ))
}

fn refusal() -> Answer {
    Err(Status::not_found("etcdserver: requested lease not found"))
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_sent_again_as_it_was() {
    let (writes, put) = put(vec![lost(), lost(), done(7)]).await;
    assert_eq!(put.unwrap(), 7);
    assert_eq!(writes.len(), 3);
    assert_eq!((writes[0].sequence, writes[0].settled, writes[0].since), (1, 1, 0));
    assert_eq!(writes[0].writer.len(), 16);
    assert!(writes.iter().all(|write| *write == writes[0]), "{writes:?}");
}

#[tokio::test]
async fn a_refused_repetition_does_not_tell_what_became_of_the_first() {
    let (writes, refused) = put(vec![lost(), refusal()]).await;
    assert_eq!((writes.len(), refused.unwrap_err().outcome()), (2, Outcome::Unknown));
    let (writes, refused) = put(vec![refusal()]).await;
    assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
    assert_eq!(writes.len(), 1);
}

#[tokio::test]
async fn what_may_be_forgotten_is_begun_anew_only_if_it_came_once() {
    let (writes, put_again) = put(vec![state(State::Forgotten, 40), done(41)]).await;
    assert_eq!(put_again.unwrap(), 41);
    let numbers = |write: &WriteRequest| (write.sequence, write.since);
    assert_eq!(writes.iter().map(numbers).collect::<Vec<_>>(), [(1, 0), (2, 40)]);
    let (writes, unknown) = put(vec![lost(), state(State::Forgotten, 40)]).await;
    assert_eq!((writes.len(), unknown.unwrap_err().outcome()), (2, Outcome::Unknown));
}

#[tokio::test]
async fn a_write_may_have_been_done_although_its_answer_is_lost() {
    let (_, unkept) = put(vec![lost(), state(State::Unkept, 9)]).await;
    let unkept = unkept.unwrap_err();
    assert!(matches!(unkept, Error::AnswerLost { revision: 9 }), "{unkept:?}");
    assert_eq!(unkept.outcome(), Outcome::Applied);
}

#[tokio::test]
async fn a_cluster_that_remembers_nothing_is_asked_once() {
    let fake = Fake::start();
    let client = Client::builder([fake.endpoint()]).build().unwrap();
    for _ in 0..3 {
        // This server does not know etcd's calls either.
        let refused = client.put("k", "v").await;
        assert!(matches!(refused, Err(Error::Unimplemented(_))), "{refused:?}");
    }
    assert_eq!(fake.script.writes.lock().len(), 1);
}

#[tokio::test]
async fn calls_are_made_again_within_a_budget() {
    let fake = Fake::start();
    let busy = || Err(Status::unavailable("etcdserver: no leader"));
    fake.script.write_answers.lock().extend((0..20).map(|_| busy()));
    let budget = RetryBudget { per_second: 0, percent: 100, burst: 5 };
    let client = Client::builder([fake.endpoint()]).timeout(SOON).retry_budget(budget);
    let client = client.build().unwrap();
    let sent = || std::mem::take(&mut *fake.script.writes.lock()).len();
    let refused = client.put("k", "v").await.unwrap_err();
    assert!(
        matches!(refused, Error::Unavailable { outcome: Outcome::NotApplied, .. }),
        "{refused:?}"
    );
    assert_eq!(sent(), 6, "once, and again as often as there are tokens");
    // Clients that share the connections share the budget.
    client.each()[0].put("k", "v").await.unwrap_err();
    client.clone().put("k", "v").await.unwrap_err();
    assert_eq!(sent(), 2);
    let mut answers = std::mem::take(&mut *fake.script.write_answers.lock());
    answers.extend([done(7), busy(), done(8), busy(), done(9)]);
    *fake.script.write_answers.lock() = answers.split_off(12);
    for revision in [7, 8, 9] {
        assert_eq!(client.put("k", "v").await.unwrap().revision(), revision);
    }
    assert_eq!(sent(), 5, "a call that goes well pays for a repetition");
}
