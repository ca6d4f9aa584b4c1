//! Double barriers: who goes in and out together, and who is missed.

use std::time::Duration;

use conclave_client::{Error, Session};
use conclave_proto::v1;
use tonic::Code;
use v1::double_barrier_service_client::DoubleBarrierServiceClient;
use v1::patience::Wait;
use v1::wait_response::Event;

use crate::native_lock::{client, session, soon};
use crate::primitives::{MOMENT, stop_leader, value};
use crate::support::{Server, server, servers};

fn enter(session: &Session, count: u32) -> conclave_client::double_barrier::Enter {
    session.double_barrier("step", count).note("here")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn participants_go_in_and_out_together() {
    let mut servers = servers(3, &[]).await;
    let client = client(&servers);
    let one = session(&client, "1").await;
    let two = session(&client, "2").await;
    let three = session(&client, "3").await;
    let first = tokio::spawn(enter(&one, 3).into_future());
    soon("the first", async {
        while value(&client, "step").await != "3" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let refused = enter(&two, 2).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "they disagree: {refused:?}");
    let alone = enter(&two, 3).wait(MOMENT).await;
    assert!(matches!(alone, Err(Error::NotYet)), "{alone:?}");
    assert_eq!(client.get("step/").prefix().await.unwrap().count, 1, "it waits no more");
    drop(enter(&two, 3).into_future());
    let second = tokio::spawn(enter(&two, 3).into_future());
    let third = tokio::spawn(enter(&three, 3).into_future());
    let first = soon("to go in", first).await.unwrap().unwrap();
    let second = soon("to go in", second).await.unwrap().unwrap();
    let third = soon("to go in", third).await.unwrap().unwrap();
    assert!(value(&client, "step").await.starts_with("3 open "));
    // Nobody is out before all are.
    let early = first.leave().at_most(MOMENT).await;
    assert!(matches!(early, Err(Error::NotYet)), "{early:?}");
    let leaving = tokio::spawn(second.leave().into_future());
    stop_leader(&mut servers).await;
    soon("the last is out", third.leave()).await.unwrap();
    soon("the others are out", leaving).await.unwrap().unwrap();
    soon("nothing is left", async {
        while client.get("step").prefix().count_only().await.unwrap().count > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A participant whose session is lost is missed while it waits, and not waited for once it is in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_that_dies_leaves() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let [one, two, three] =
        [session(&client, "1").await, session(&client, "2").await, session(&client, "3").await];
    let doomed = tokio::spawn(enter(&one, 2).into_future());
    soon("the first", async {
        while client.get("step/").prefix().count_only().await.unwrap().count == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    client.session_end(one.id()).await.unwrap();
    let lost = soon("the loss", doomed).await.unwrap();
    assert!(matches!(lost, Err(Error::Lost { .. })), "{lost:?}");
    let alone = enter(&two, 2).wait(MOMENT).await;
    assert!(matches!(alone, Err(Error::NotYet)), "the dead do not count: {alone:?}");
    let (second, third) =
        tokio::join!(soon("to go in", enter(&two, 2)), soon("to go in", enter(&three, 2)));
    let (second, third) = (second.unwrap(), third.unwrap());
    let leaving = tokio::spawn(second.leave().into_future());
    client.session_end(three.id()).await.unwrap();
    soon("the dead are not waited for", leaving).await.unwrap().unwrap();
    drop(third);
}

/// What a stream that broke had entered is entered, on another member, and not twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_is_resumed_on_another_member() {
    let servers = servers(3, &[]).await;
    let client = client(&servers);
    let (one, two) = (session(&client, "1").await, session(&client, "2").await);
    let enters = |server: &Server, wait, settled| {
        let once = Some(v1::Once { session: one.id(), sequence: 1, settled, undoes: 0 });
        let (name, patience) = ("step".into(), Some(v1::Patience { wait: Some(wait) }));
        let note = bytes::Bytes::new();
        let request = v1::DoubleBarrierEnterRequest { once, name, count: 2, note, patience };
        let mut barriers = DoubleBarrierServiceClient::new(server.channel.clone());
        async move { soon("to enter", barriers.enter(request)).await.unwrap().into_inner() }
    };
    let mut broken = enters(&servers[0], Wait::WaitForever(true), 1).await;
    let first = soon("an answer", broken.message()).await.unwrap().unwrap().event.unwrap();
    assert!(matches!(first, Event::Waiting(_)), "{first:?}");
    drop(broken);
    let mut resumed = enters(&servers[1], Wait::WaitForever(true), 0).await;
    let again = soon("an answer", resumed.message()).await.unwrap().unwrap().event.unwrap();
    assert!(matches!(again, Event::Waiting(_)), "{again:?}");
    assert_eq!(client.get("step/").prefix().await.unwrap().count, 1);
    let _inside = soon("to go in", enter(&two, 2)).await.unwrap();
    let end = soon("an answer", resumed.message()).await.unwrap().unwrap().event.unwrap();
    let Event::Passed(passed) = end else { panic!("{end:?}") };
    // Who is in is in, also if the time to wait is over.
    let mut late = enters(&servers[2], Wait::WaitMs(0), 0).await;
    let end = soon("an answer", late.message()).await.unwrap().unwrap().event.unwrap();
    assert!(matches!(&end, Event::Passed(again) if again.fence == passed.fence), "{end:?}");
    client.session_end(one.id()).await.unwrap();
    let mut gone = enters(&servers[2], Wait::WaitMs(0), 0).await;
    let refused = soon("a refusal", gone.message()).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

/// Others may take their time: meanwhile the session makes more requests than the cluster remembers of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_left_and_waits_holds_up_no_other_request() {
    let servers = [server(&[]).await];
    let client = client(&servers);
    let (one, two) = (session(&client, "1").await, session(&client, "2").await);
    let (first, second) =
        tokio::join!(soon("to go in", enter(&one, 2)), soon("to go in", enter(&two, 2)));
    let (first, second) = (first.unwrap(), second.unwrap());
    let leaving = tokio::spawn(first.leave().into_future());
    soon("it left", async {
        while client.get("step/").prefix().count_only().await.unwrap().count != 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let counter = one.counter("requests");
    for number in 1..=300 {
        assert_eq!(counter.add(1).await.unwrap().value, number);
    }
    assert!(!leaving.is_finished());
    soon("the last is out", second.leave()).await.unwrap();
    soon("the first is out", leaving).await.unwrap().unwrap();
}

/// Who left on a stream that broke waits for the others on another member, and needs no number for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leave_is_resumed_on_another_member() {
    let servers = servers(3, &[]).await;
    let client = client(&servers);
    let (one, two) = (session(&client, "1").await, session(&client, "2").await);
    let enters = v1::DoubleBarrierEnterRequest {
        once: Some(v1::Once { session: one.id(), sequence: 1, settled: 1, undoes: 0 }),
        name: "step".into(),
        count: 2,
        patience: Some(v1::Patience { wait: Some(Wait::WaitForever(true)) }),
        ..Default::default()
    };
    let barriers = |place: usize| DoubleBarrierServiceClient::new(servers[place].channel.clone());
    let mut entering = barriers(0).enter(enters).await.unwrap().into_inner();
    let inside = soon("to go in", enter(&two, 2)).await.unwrap();
    let leave = |once, until_fence| v1::DoubleBarrierLeaveRequest {
        once,
        name: "step".into(),
        patience: Some(v1::Patience { wait: Some(Wait::WaitForever(true)) }),
        until_fence,
    };
    loop {
        let event = soon("an answer", entering.message()).await.unwrap().unwrap().event.unwrap();
        if matches!(event, Event::Passed(_)) {
            break;
        }
    }
    let once = v1::Once { session: one.id(), sequence: 2, settled: 2, undoes: 1 };
    let mut broken = barriers(0).leave(leave(Some(once), 0)).await.unwrap().into_inner();
    let first = soon("an answer", broken.message()).await.unwrap().unwrap().event.unwrap();
    let Event::Waiting(waiting) = first else { panic!("{first:?}") };
    drop(broken);
    let resumed = leave(None, waiting.fence);
    let mut resumed = barriers(1).leave(resumed).await.unwrap().into_inner();
    let again = soon("an answer", resumed.message()).await.unwrap().unwrap().event.unwrap();
    assert!(matches!(&again, Event::Waiting(again) if again.fence == waiting.fence), "{again:?}");
    soon("the other one is out", inside.leave()).await.unwrap();
    let end = soon("an answer", resumed.message()).await.unwrap().unwrap().event.unwrap();
    assert!(matches!(end, Event::Passed(_)), "{end:?}");
}
