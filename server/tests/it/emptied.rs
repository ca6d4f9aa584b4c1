//! Members that come back with an empty directory: none may take part as who it was.

use std::sync::Arc;

use conclave_server::node::{Node, StartError};
use conclave_server::raft::BootstrapError;

use crate::cluster::{
    Cluster, HASTY, eventually, get, must_put, put_again_and_again, start_again, within,
};
use crate::members::Group;

/// All stop at once, one loses its directory, and all start at once: those with data must not be taken for
/// founders while they read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_its_directory_stays_out_when_all_start_together() {
    let mut cluster = Cluster::start(3, &[HASTY]).await;
    for round in 0..3u8 {
        // What the two others must read before they can say who was a member.
        for i in 0..40u8 {
            put_again_and_again(cluster.node(1), "k", &vec![i; 60_000]).await;
        }
        put_again_and_again(cluster.node(1), "last", &[round]).await;
        let lost = usize::from(round % 2);
        let kept: Vec<usize> = (0..3).filter(|i| *i != lost).collect();
        for i in 0..3 {
            if cluster.nodes[i].is_some() {
                cluster.stop(i).await;
            }
        }
        let saved = cluster.data_dir(lost).with_extension("saved");
        std::fs::rename(cluster.data_dir(lost), &saved).unwrap();

        let settings: Vec<_> = (0..3).map(|i| cluster.settings(i, "new")).collect();
        let starts = settings.iter().map(start_again);
        let started = within("all have started or not", futures::future::join_all(starts)).await;
        for (i, started) in started.into_iter().enumerate() {
            match started {
                Ok(node) => {
                    assert_ne!(i, lost, "an emptied member took part again");
                    cluster.nodes[i] = Some(node);
                }
                Err(error) => {
                    assert_eq!(i, lost, "{error}");
                    let is_told = matches!(
                        &error,
                        StartError::Bootstrap(BootstrapError::StartedBefore { .. })
                    );
                    assert!(is_told, "{error}");
                }
            }
        }
        for i in kept {
            within("a member is ready", cluster.node(i).wait_ready()).await.unwrap();
            assert_eq!(get(cluster.node(i), "last").await.unwrap(), [round]);
        }
        // With its own directory it may.
        eventually("the directory is let go", || {
            let dir = cluster.data_dir(lost);
            std::fs::remove_dir_all(&dir).is_ok() || !dir.exists()
        })
        .await;
        std::fs::rename(saved, cluster.data_dir(lost)).unwrap();
        cluster.restart(lost).await;
    }
    cluster.converge().await;
}

/// The first member of a cluster that has grown asks nobody when it starts with its first flags; the
/// others find it out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_lost_its_directory_is_found_out_by_the_others() {
    let mut group = Group::start(1, 3, &[]).await;
    must_put(group.node(0), "k", b"old").await;
    group.join(1, 0, false).await;
    group.join(2, 0, false).await;
    group.voters_are(3).await;
    must_put(group.node(2), "k", b"new").await;
    for node in std::mem::take(&mut group.nodes).into_values() {
        within("a member stops", node.shutdown()).await;
    }
    let alone = group.settings(0, &[0], &[]);
    eventually("the directory is let go", || {
        let dir = group.data_dir(0);
        std::fs::remove_dir_all(&dir).is_ok() || !dir.exists()
    })
    .await;
    let emptied = start_again(&alone).await.unwrap();
    within("it founds a cluster", emptied.wait_ready()).await.unwrap();

    let settings = [1, 2].map(|i| group.settings(i, &[0, 1, 2], &[]));
    let started = futures::future::join_all(settings.iter().map(start_again)).await;
    let others: Vec<Arc<Node>> = started.into_iter().map(Result::unwrap).collect();
    let reason = within("it is found out", emptied.failed()).await;
    assert!(reason.contains("has been started before"), "{reason}");
    within("it stops", emptied.shutdown()).await;
    drop(emptied);
    for node in &others {
        within("the others serve", node.wait_ready()).await.unwrap();
        assert_eq!(get(node, "k").await.unwrap(), b"new");
    }
    let refused = start_again(&alone).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("has been started before"), "{refused}");
}
