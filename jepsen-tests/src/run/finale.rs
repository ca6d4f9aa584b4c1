//! The end of a run: with everything healed, changes that everybody has to see.

use std::sync::Arc;
use std::time::Instant;

use super::{FINISH_TIMEOUT, POLL};
use crate::history::{Operation, Outcome, Range, Request, Revision, WatchSession, in_range};
use crate::load::{Client, KEY_COUNT, KEYS_END, KEYS_START, Stage, key_name};

/// The client that speaks before and after the load.
const NARRATOR: u32 = 99;

/// The last changes of a run: what a watcher has to have seen in the end.
pub(super) struct Last {
    /// Revision of the deletion of every key.
    pub(super) delete: Revision,
    /// Revision of the put of each key after that.
    pub(super) puts: Vec<Revision>,
    /// The last of them.
    pub(super) put: Revision,
}

impl Last {
    /// The last revision that `session` has to deliver.
    pub(super) fn wanted_by(&self, session: &WatchSession) -> Revision {
        if session.no_puts {
            return self.delete;
        }
        let keys = (0..KEY_COUNT)
            .filter(|&index| in_range(&key_name(index), &session.start, &session.end));
        keys.map(|index| self.puts[index]).max().unwrap_or(0)
    }
}

/// With everything healed: puts every key, deletes them all, puts them again, and reads them from every member.
pub(super) async fn finale(stage: &Arc<Stage>, seed: u64) -> (Vec<Operation>, Last) {
    let mut narrator = Client::new(stage.clone(), NARRATOR, 0, true, seed);
    let mut revisions = Vec::new();
    for round in 0..2 {
        for index in 0..KEY_COUNT {
            let put =
                Request::Put { key: key_name(index), value: format!("final-{round}-{index}") };
            revisions.push(insist(&mut narrator, put).await);
        }
        if round == 0 {
            let delete = Request::Delete { start: KEYS_START.into(), end: KEYS_END.into() };
            revisions.push(insist(&mut narrator, delete).await);
        }
    }
    let mut operations = narrator.into_operations();
    for node in 0..stage.endpoints.len() {
        let mut reader = Client::new(stage.clone(), NARRATOR + 1 + node as u32, node, false, seed);
        for serializable in [false, true] {
            let (start, end) = (KEYS_START.to_owned(), KEYS_END.to_owned());
            insist(
                &mut reader,
                Request::Range(Range { start, end, revision: 0, limit: 0, serializable }),
            )
            .await;
        }
        operations.append(&mut reader.into_operations());
    }
    let puts = revisions.split_off(KEY_COUNT + 1);
    let put = puts.last().copied().unwrap_or(0);
    (operations, Last { delete: revisions[KEY_COUNT], puts, put })
}

/// Sends a request until it is answered. A repeated put is a new change with the same value: only the first
/// unknown one could be confused, so values carry the attempt.
async fn insist(client: &mut Client, request: Request) -> Revision {
    let deadline = Instant::now() + FINISH_TIMEOUT;
    let mut attempt = 0;
    while Instant::now() < deadline {
        let request = match request.clone() {
            Request::Put { key, value } => {
                Request::Put { key, value: format!("{value}-{attempt}") }
            }
            other => other,
        };
        if let Some(Outcome::Ok { revision, .. }) = client.perform(request).await {
            return revision;
        }
        attempt += 1;
        tokio::time::sleep(POLL).await;
    }
    0
}
