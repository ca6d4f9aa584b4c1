//! Finds which key a contender waits for.
//!
//! In etcd's recipe every key under the name counts, which would mean reading all of them. That is
//! rarely needed. If only places (keys of the form that locks and elections write) precede the
//! contender, the head of the queue is enough. If an earlier waiter is known to be behind places
//! only, just the keys created since are read.

use bytes::Bytes;
use conclave_state_machine::command::Range;
use conclave_state_machine::locks::queue;
use conclave_state_machine::response::KeyValue;
use tonic::Status;

use super::{Place, Queue, end_of};
use crate::api::kv::{off_thread, read, read_off_thread};
use crate::status;

/// Most contenders that are read on the calling thread.
const SHORT_QUEUE_MAX: usize = 256;

/// Where a contender is in its queue.
pub(super) enum Standing {
    First,
    /// Behind others; `before` is the key just before it.
    Behind {
        before: Bytes,
        others: Others,
    },
    /// The contender's key is gone.
    Lost,
}

/// What is before a contender.
pub(super) enum Others {
    /// Only places.
    Places,
    /// This many keys of any kind.
    Keys(usize),
}

impl Queue {
    /// Where the owner of `place` is in the queue, and at which revision. `is_behind_places`: it is
    /// known that only places were before it.
    pub(super) async fn stand(
        &self,
        place: &Place,
        is_behind_places: bool,
    ) -> Result<(Standing, i64), Status> {
        if is_behind_places && let Some(revision) = self.first_since(place)? {
            return Ok((Standing::First, revision));
        }
        if let Some((before, revision)) = self.behind_places(place)? {
            return Ok((Standing::Behind { before, others: Others::Places }, revision));
        }
        self.look(place).await
    }

    /// The key just before `place` and the revision of that answer, if only places were created
    /// between a waiter known to be behind places only and `place`. `None` if that is not known.
    fn behind_places(&self, place: &Place) -> Result<Option<(Bytes, i64)>, Status> {
        let Some(known) = self.crowd.behind_places(&place.prefix) else { return Ok(None) };
        self.context().auth.check_by_name(&place.caller, &place.wanted())?;
        let reader = self.context().node.reader();
        let behind = reader.behind_places((&place.key, place.create_revision), known);
        behind.map_err(|error| status::from_read(&error))
    }

    /// Where the owner of `place` is, by reading the keys of the queue, and at which revision.
    async fn look(&self, place: &Place) -> Result<(Standing, i64), Status> {
        self.context().auth.check_by_name(&place.caller, &place.wanted())?;
        let short = Range {
            key: place.prefix.clone(),
            range_end: end_of(&place.prefix),
            limit: SHORT_QUEUE_MAX as i64,
            keys_only: true,
            ..Default::default()
        };
        let (mut found, mut revision) = read(self.context(), short.clone()).await?;
        if found.more {
            let max_create_revision = place.create_revision;
            let whole = Range { limit: 0, max_create_revision, ..short };
            (found, revision) = read_off_thread(self.context(), whole).await?;
        }
        Ok((place.standing(found.kvs), revision))
    }

    /// Whether all the `keys` keys found before `place` are places. Nothing can be added before it,
    /// only removed, so a count of places equal to `keys` means that there was nothing else.
    pub(super) async fn are_places(&self, place: &Place, keys: usize) -> Result<bool, Status> {
        let (reader, fence) = (self.context().node.reader().clone(), place.create_revision);
        let key = place.key.clone();
        let count = move || match queue::name_of(&key) {
            Some(name) => queue::ahead(&reader, name, fence, keys),
            None => Ok(0),
        };
        // Not on this thread: even if few places are left, the scan may pass many that were
        // deleted.
        let ahead = off_thread(count).await?;
        Ok(ahead.map_err(|halt| status::internal(&halt))? == keys)
    }

    /// The revision at which the owner of `place` is first, if it is. Needs only the head of the
    /// queue, so it is valid only for a contender that was behind places only.
    fn first_since(&self, place: &Place) -> Result<Option<i64>, Status> {
        self.context().auth.check_by_name(&place.caller, &place.wanted())?;
        let reader = self.context().node.reader();
        let first = reader.first_since(&place.key, place.create_revision);
        first.map_err(|error| status::from_read(&error))
    }
}

impl Place {
    fn standing(&self, contenders: Vec<KeyValue>) -> Standing {
        let (mut is_here, mut keys, mut before) = (false, 0, None::<KeyValue>);
        for kv in contenders {
            is_here |= kv.key == self.key && kv.create_revision == self.create_revision;
            if kv.create_revision < self.create_revision {
                keys += 1;
                if before.as_ref().is_none_or(|known| known.create_revision < kv.create_revision) {
                    before = Some(kv);
                }
            }
        }
        match before {
            _ if !is_here => Standing::Lost,
            Some(kv) => Standing::Behind { before: kv.key, others: Others::Keys(keys) },
            None => Standing::First,
        }
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::etcdserverpb as etcd;
    use conclave_state_machine::command::Caller;

    use super::*;

    #[test]
    fn only_the_nearest_key_in_front_is_waited_for() {
        let place = Place {
            caller: Caller::Inside,
            prefix: Bytes::from_static(b"n/"),
            key: Bytes::from_static(b"n/me"),
            create_revision: 7,
            lease: 1,
            entered: etcd::ResponseHeader::default(),
            found: None,
        };
        let kv = |key: &'static [u8], create_revision| KeyValue {
            key: Bytes::from_static(key),
            create_revision,
            ..Default::default()
        };
        let me = || kv(b"n/me", 7);
        let near = place.standing(vec![kv(b"n/a", 3), kv(b"n/b", 5), kv(b"n/c", 9), me()]);
        let Standing::Behind { before, others: Others::Keys(2) } = near else { panic!("two") };
        assert_eq!(before, "n/b");
        assert!(matches!(place.standing(vec![kv(b"n/c", 9), me()]), Standing::First));
        assert!(matches!(place.standing(vec![kv(b"n/a", 3)]), Standing::Lost));
        assert!(matches!(place.standing(vec![kv(b"n/me", 9)]), Standing::Lost), "put again");
    }
}
