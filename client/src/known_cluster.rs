//! Whose answers a stream or mirror gets: revisions of different clusters have nothing to do with each other.
//!
//! A store that was put back to an older state is noticed by a smaller revision only until it has caught up. Restoring a
//! backup makes a new cluster, with an id of its own, which stands in every answer.

use tonic::Status;

use crate::error::Error;

/// The cluster that answered first; none yet, or none that says who it is, by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KnownCluster(u64);

impl KnownCluster {
    /// Takes the id of an answer, 0 if it has none.
    ///
    /// # Errors
    /// [`Error::FutureRevision`] if another cluster answered before: what it told is not the past of this one.
    pub(crate) fn meet(&mut self, cluster_id: u64) -> Result<(), Error> {
        match (self.0, cluster_id) {
            (_, 0) => Ok(()),
            (0, first) => {
                self.0 = first;
                Ok(())
            }
            (known, now) if known == now => Ok(()),
            (known, now) => {
                let text =
                    format!("conclave: cluster {now:x} answers, and what is known is of {known:x}");
                Err(Error::FutureRevision(Status::out_of_range(text)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cluster_is_known_from_its_first_answer_on() {
        let mut known = KnownCluster::default();
        for id in [0, 7, 0, 7] {
            known.meet(id).expect("the same cluster, or nobody knows");
        }
        let error = known.meet(8).unwrap_err();
        assert!(matches!(error, Error::FutureRevision(_)), "{error:?}");
        known.meet(7).expect("it is not forgotten");
    }
}
