//! Checks that a stream or mirror keeps talking to one cluster: revisions of different clusters are
//! unrelated.
//!
//! A store restored to an older state shows a smaller revision only until it has caught up. But
//! restoring a backup makes a new cluster with its own id, which is in every answer.

use tonic::Status;

use crate::error::Error;

/// The id of the cluster that answered first; 0 while no answer had an id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KnownCluster(u64);

impl KnownCluster {
    /// Checks the cluster id of an answer; 0 if it has none.
    ///
    /// # Errors
    /// [`Error::FutureRevision`] if another cluster answered before: its revisions are not the past
    /// of this one.
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
