//! All members are killed at the same moment under load, again and again: nothing acknowledged is lost.

use std::collections::BTreeMap;

use crate::support::{HASTY, Nodes, Writers, is_long};

const WRITERS: usize = 12;
const WRITES_BEFORE: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_all_are_killed() {
    let kills = if is_long() { 20 } else { 2 };
    let mut nodes = Nodes::serving(3, &[HASTY]).await;
    let mut acknowledged = BTreeMap::new();
    for kill in 0..kills {
        let writers = Writers::start(&format!("k-{kill}"), &nodes.cluster.endpoints(), WRITERS);
        // Under load, not at its beginning.
        let client = nodes.client(kill % 3).await;
        for number in 0..WRITES_BEFORE {
            client.insist(&format!("p-{kill}-{number}"), b"v").await;
        }
        nodes.cluster.kill_together(&[0, 1, 2]).expect("they can be killed");
        acknowledged.append(&mut writers.stop().await);
        nodes.cluster.start_all().expect("the program starts");
        nodes.all_serve().await;
        nodes.must_have("k", &acknowledged).await;
    }
    println!("{} puts acknowledged, {kills} kills of all", acknowledged.len());
}
