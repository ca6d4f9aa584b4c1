//! What a contender stands behind.
//!
//! Every key below the name counts, as in etcd's recipe. A look at all of them is rarely needed: behind places alone, the
//! beginning of the queue tells; and whoever comes after one that is known to be behind places alone looks at
//! what came since.

use bytes::Bytes;
use conclave_state_machine::command::Range;
use conclave_state_machine::locks::queue;
use conclave_state_machine::response::KeyValue;
use tonic::Status;

use super::{Place, Queue, end_of};
use crate::api::kv::{off_thread, read, read_off_thread};
use crate::status;

/// Contenders that are looked at without changing threads.
const SHORT_QUEUE_MAX: usize = 256;

/// How a contender stands.
pub(super) enum Standing {
    First,
    /// Behind `before`, the nearest.
    Behind {
        before: Bytes,
        others: Others,
    },
    /// Its key is gone.
    Lost,
}

/// What stands before a contender.
pub(super) enum Others {
    /// Places alone.
    Places,
    /// So many keys, whatever they are.
    Keys(usize),
}

impl Queue {
    /// How the owner of `place` stands, and the revision at which that is so. `is_behind_places`: it was
    /// behind places alone.
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

    /// What the owner of `place` is behind, and the revision at which that is so, if only places came since one was looked
    /// at that somebody waits in.
    fn behind_places(&self, place: &Place) -> Result<Option<(Bytes, i64)>, Status> {
        let Some(known) = self.crowd.behind_places(&place.prefix) else { return Ok(None) };
        self.context().auth.check_by_name(&place.caller, &place.wanted())?;
        let reader = self.context().node.reader();
        let behind = reader.behind_places((&place.key, place.create_revision), known);
        behind.map_err(|error| status::from_read(&error))
    }

    /// How the owner of `place` stands by its key, and the revision at which that is so.
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

    /// Whether nothing but places stands before `place`, of the `keys` that were found there: nothing else
    /// comes there any more. Only fewer can be found than there were.
    pub(super) async fn are_places(&self, place: &Place, keys: usize) -> Result<bool, Status> {
        let (reader, fence) = (self.context().node.reader().clone(), place.create_revision);
        let key = place.key.clone();
        let count = move || match queue::name_of(&key) {
            Some(name) => queue::ahead(&reader, name, fence, keys),
            None => Ok(0),
        };
        // However few stand there, many may have left since the front one came.
        let ahead = off_thread(count).await?;
        Ok(ahead.map_err(|halt| status::internal(&halt))? == keys)
    }

    /// The revision as of which the owner of `place` is first, if it was behind places alone and nothing but
    /// the beginning of the queue has to be looked at for that.
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
