//! The initial members of a cluster, and the ids computed from their URLs.

use std::collections::{BTreeMap, BTreeSet};

use sha1::{Digest, Sha1};

use super::{ConfigError, urls};

/// The members named by `--initial-cluster`: name -> sorted peer URLs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialCluster {
    /// Peer URLs by member name.
    pub members: BTreeMap<String, Vec<String>>,
}

impl InitialCluster {
    /// Parses `name=url,name=url,...`; a name may occur several times.
    pub(crate) fn parse(value: &str) -> Result<Self, ConfigError> {
        const FLAG: &str = "initial-cluster";
        let invalid = |reason: &str| ConfigError::InvalidValue {
            flag: FLAG,
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (name, url) = item.split_once('=').ok_or_else(|| invalid("expected name=url"))?;
            if name.is_empty() {
                return Err(invalid("expected name=url"));
            }
            for url in urls::list(FLAG, url)? {
                if !seen.insert(url.clone()) {
                    return Err(invalid("initial cluster contains a duplicate URL"));
                }
                members.entry(name.to_owned()).or_default().push(url);
            }
        }
        if members.is_empty() {
            return Err(invalid("no member given"));
        }
        for urls in members.values_mut() {
            urls.sort();
        }
        Ok(Self { members })
    }

    /// Id of the named member; `None` if it is not in the list.
    pub fn member_id(&self, name: &str, token: &str) -> Option<u64> {
        self.members.get(name).map(|urls| member_id(urls, token))
    }

    /// Id of the cluster, computed from all members' ids.
    pub fn cluster_id(&self, token: &str) -> u64 {
        let ids: BTreeSet<u64> = self.members.values().map(|urls| member_id(urls, token)).collect();
        let mut hash = Sha1::new();
        for id in ids {
            hash.update(id.to_be_bytes());
        }
        first_eight_bytes(hash)
    }
}

/// Id of a member, computed as in etcd from its sorted peer URLs and the cluster's token.
pub fn member_id(sorted_peer_urls: &[String], token: &str) -> u64 {
    first_eight_bytes(member_hash(sorted_peer_urls, token))
}

/// Id of a member added to a running cluster: computed from the time too, so that it is a new id.
pub(crate) fn added_member_id(sorted_peer_urls: &[String], token: &str, unix_seconds: u64) -> u64 {
    let mut hash = member_hash(sorted_peer_urls, token);
    hash.update(unix_seconds.to_string().as_bytes());
    first_eight_bytes(hash)
}

fn member_hash(sorted_peer_urls: &[String], token: &str) -> Sha1 {
    let mut hash = Sha1::new();
    for url in sorted_peer_urls {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    hash
}

fn first_eight_bytes(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    let mut id = [0; 8];
    id.copy_from_slice(&digest[..8]);
    // 0 means "no member" in several messages, so the improbable hash of 0 becomes 1.
    u64::from_be_bytes(id).max(1)
}
