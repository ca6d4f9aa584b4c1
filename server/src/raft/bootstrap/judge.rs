//! What the peers' answers mean for a member that founds or joins a cluster.

use std::collections::BTreeMap;

use conclave_proto::internal::{self, DescribeResponse};
use conclave_raft_store::Identity;
use conclave_raft_store::types::{MemberNode, Nodes};

use super::{BootstrapError, Founding};
use crate::config::{Settings, member_id};

/// Whether what a running cluster says about this member is certain, or patience has run out and it
/// must do. A member that was away may not know that this one has started since, and even one that
/// knows may have the record only in the unapplied part of its log.
fn is_certain(answers: &[DescribeResponse], is_patient: bool) -> bool {
    !is_patient || answers.iter().any(|answer| answer.is_confirmed)
}

/// Judges the answers for a member that would found the cluster; `None` to keep asking.
pub(super) fn judge_new(
    settings: &Settings,
    answers: &[DescribeResponse],
    answers_min: usize,
    is_patient: bool,
) -> Result<Option<Founding>, BootstrapError> {
    let id = settings.initial_member_id().unwrap_or(0);
    let identity = Identity { cluster: settings.initial_cluster_id(), member: id };
    let mut is_running = false;
    for answer in answers {
        let Some(membership) = &answer.membership else { continue };
        is_running = true;
        if answer.cluster_id != identity.cluster {
            return Err(BootstrapError::OtherCluster {
                cluster: answer.cluster_id,
                own: identity.cluster,
                name: settings.name.clone(),
                urls: settings.listen.advertise_peer_urls.join(","),
            });
        }
        if !has_member(membership, id) {
            // A lagging member may not know of the addition yet.
            if answer.is_confirmed || !is_patient {
                return Err(not_a_member(settings, answer.cluster_id));
            }
            continue;
        }
        refuse_if_started_before(settings, answer, id)?;
    }
    if is_running {
        let joined = Founding { identity, members: None };
        return Ok(is_certain(answers, is_patient).then_some(joined));
    }
    // A peer that has not read its directory yet may find the whole cluster in it.
    let ready = answers.iter().filter(|answer| !answer.is_starting).count();
    let members = (ready >= answers_min).then(|| first_members(settings));
    Ok(members.map(|members| Founding { identity, members: Some(members) }))
}

/// Judges the answers for a member that joins; `None` to keep asking.
pub(super) fn judge_existing(
    settings: &Settings,
    answers: &[DescribeResponse],
    is_patient: bool,
) -> Result<Option<Founding>, BootstrapError> {
    let running = answers.iter().filter_map(|a| Some((a, a.membership.as_ref()?)));
    let (mut known_as, mut stranger_to) = (None, None);
    for (answer, membership) in running {
        let mut members = membership.members.iter();
        let own = members.find(|member| {
            let mut urls = member.peer_urls.clone();
            urls.sort();
            urls == settings.listen.advertise_peer_urls
        });
        let Some(own) = own else {
            // A lagging member may not know of the addition yet: counts only if no answer knows
            // this member.
            stranger_to = Some(answer.cluster_id);
            continue;
        };
        refuse_if_started_before(settings, answer, own.id)?;
        refuse_if_unequal(settings, answer.cluster_id, &membership.members)?;
        known_as = Some(Identity { cluster: answer.cluster_id, member: own.id });
    }
    match (known_as, stranger_to) {
        (Some(identity), _) => {
            let joined = Founding { identity, members: None };
            Ok(is_certain(answers, is_patient).then_some(joined))
        }
        // Peers that know this member may not have answered yet.
        (None, Some(_)) if !is_certain(answers, is_patient) => Ok(None),
        (None, Some(cluster)) => Err(not_a_member(settings, cluster)),
        (None, None) => Ok(None),
    }
}

fn has_member(membership: &internal::Membership, id: u64) -> bool {
    membership.members.iter().any(|member| member.id == id)
}

fn refuse_if_started_before(
    settings: &Settings,
    answer: &DescribeResponse,
    id: u64,
) -> Result<(), BootstrapError> {
    if !answer.published.contains(&id) {
        return Ok(());
    }
    Err(BootstrapError::StartedBefore {
        id,
        name: settings.name.clone(),
        dir: settings.data_dir.clone(),
        urls: settings.listen.advertise_peer_urls.join(","),
    })
}

/// As etcd: a joining member must list the cluster as it is; a difference is a mistake.
fn refuse_if_unequal(
    settings: &Settings,
    cluster: u64,
    members: &[internal::Member],
) -> Result<(), BootstrapError> {
    let named: Vec<&Vec<String>> = settings.bootstrap.initial_cluster.members.values().collect();
    let unequal = |reason: String| Err(BootstrapError::Unequal { cluster, reason });
    if named.len() != members.len() {
        return unequal(format!(
            "member count is unequal: --initial-cluster names {}, the cluster has {}",
            named.len(),
            members.len()
        ));
    }
    for member in members {
        let mut urls = member.peer_urls.clone();
        urls.sort();
        if !named.contains(&&urls) {
            let (id, urls) = (member.id, urls.join(" "));
            return unequal(format!(
                "PeerURLs: no match found for existing member ({id:x}, [{urls}])"
            ));
        }
    }
    Ok(())
}

fn not_a_member(settings: &Settings, cluster: u64) -> BootstrapError {
    BootstrapError::NotAMember {
        cluster,
        name: settings.name.clone(),
        urls: settings.listen.advertise_peer_urls.join(","),
    }
}

/// The initial members, equal on every founder: founding with different members would be a split
/// brain.
fn first_members(settings: &Settings) -> Nodes {
    let bootstrap = &settings.bootstrap;
    let nodes: BTreeMap<u64, MemberNode> = bootstrap
        .initial_cluster
        .members
        .iter()
        .map(|(name, urls)| {
            let node = MemberNode { name: name.clone(), peer_urls: urls.clone(), is_to_vote: true };
            (member_id(urls, &bootstrap.token), node)
        })
        .collect();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Invocation};

    fn settings(state: &str) -> Settings {
        let arguments = [
            "--name=a",
            "--listen-peer-urls=http://127.0.0.1:1",
            "--initial-advertise-peer-urls=http://127.0.0.1:1",
            "--initial-cluster=a=http://127.0.0.1:1,b=http://127.0.0.1:2,c=http://127.0.0.1:3",
            "--data-dir=/nonexistent",
        ];
        let state = format!("--initial-cluster-state={state}");
        let arguments = arguments.into_iter().map(str::to_owned).chain([state]);
        match config::parse(arguments, []) {
            Ok(Invocation::Run(settings)) => *settings,
            _ => panic!("not a start"),
        }
    }

    fn running(settings: &Settings, published: &[u64]) -> DescribeResponse {
        let members = first_members(settings).into_iter().map(|(id, node)| internal::Member {
            id,
            name: node.name,
            peer_urls: node.peer_urls,
            to_vote: node.is_to_vote,
        });
        DescribeResponse {
            cluster_id: settings.initial_cluster_id(),
            membership: Some(internal::Membership { configs: vec![], members: members.collect() }),
            published: published.to_vec(),
            last_log_index: 100,
            ..DescribeResponse::default()
        }
    }

    #[test]
    fn all_founders_compute_the_same_members() {
        let settings = settings("new");
        let silent = DescribeResponse::default();
        assert_eq!(judge_new(&settings, &[], 1, false).unwrap(), None, "a quorum must answer");
        let founding = judge_new(&settings, &[silent], 1, false).unwrap().unwrap();
        assert_eq!(founding.identity.cluster, settings.initial_cluster_id());
        let members = founding.members.unwrap();
        assert_eq!(members, first_members(&settings));
        assert!(members.contains_key(&founding.identity.member));
        assert_eq!(members.values().map(|node| node.name.as_str()).collect::<String>().len(), 3);
    }

    #[test]
    fn a_late_founder_waits_for_the_leader() {
        let settings = settings("new");
        let own = settings.initial_member_id().unwrap();
        let answer = running(&settings, &[own ^ 1]);
        let founding = judge_new(&settings, &[answer], 1, false).unwrap().unwrap();
        assert_eq!(founding.members, None);
        assert_eq!(founding.identity.member, own);
    }

    #[test]
    fn a_voter_that_lost_its_directory_is_refused() {
        for state in ["new", "existing"] {
            let settings = settings(state);
            let own = settings.initial_member_id().unwrap();
            let answers = [DescribeResponse::default(), running(&settings, &[own])];
            let refused = match state {
                "new" => judge_new(&settings, &answers, 1, false).unwrap_err(),
                _ => judge_existing(&settings, &answers, false).unwrap_err(),
            };
            assert!(matches!(refused, BootstrapError::StartedBefore { id, .. } if id == own));
            assert!(refused.to_string().contains(&format!("member remove {own:x}")));
        }
    }

    #[test]
    fn who_has_not_read_its_directory_founds_nothing() {
        let settings = settings("new");
        let starting = DescribeResponse { is_starting: true, ..DescribeResponse::default() };
        let answers = [starting.clone(), starting];
        assert_eq!(judge_new(&settings, &answers, 1, false).unwrap(), None, "asks on");
        let founding = [answers[0].clone(), DescribeResponse::default()];
        assert!(judge_new(&settings, &founding, 1, true).unwrap().unwrap().members.is_some());
    }

    #[test]
    fn a_member_that_may_lag_is_believed_only_after_a_while() {
        for state in ["new", "existing"] {
            let settings = settings(state);
            let own = settings.initial_member_id().unwrap();
            let judge = |answers: &[DescribeResponse], is_patient| match state {
                "new" => judge_new(&settings, answers, 1, is_patient),
                _ => judge_existing(&settings, answers, is_patient),
            };
            let lagging = running(&settings, &[]);
            assert_eq!(judge(std::slice::from_ref(&lagging), true).unwrap(), None, "asks on");
            assert!(judge(std::slice::from_ref(&lagging), false).unwrap().is_some());
            let confirmed = DescribeResponse { is_confirmed: true, ..lagging.clone() };
            assert!(judge(&[lagging.clone(), confirmed], true).unwrap().is_some());
            let started = DescribeResponse { is_confirmed: true, ..running(&settings, &[own]) };
            let refused = judge(&[lagging, started], true).unwrap_err();
            assert!(matches!(refused, BootstrapError::StartedBefore { .. }), "{refused}");
        }
    }

    #[test]
    fn a_stranger_is_told_to_be_added_first() {
        let settings = settings("new");
        let own = settings.initial_member_id().unwrap();
        let mut answer = running(&settings, &[]);
        answer.membership.as_mut().unwrap().members.retain(|member| member.id != own);
        let refused = judge_new(&settings, std::slice::from_ref(&answer), 1, false).unwrap_err();
        assert!(matches!(refused, BootstrapError::NotAMember { .. }), "{refused}");
        let refused = judge_existing(&settings, &[answer], false).unwrap_err();
        assert!(matches!(refused, BootstrapError::NotAMember { .. }), "{refused}");

        let mut other = running(&settings, &[]);
        other.cluster_id ^= 1;
        let refused = judge_new(&settings, &[other], 1, false).unwrap_err();
        assert!(matches!(refused, BootstrapError::OtherCluster { .. }), "{refused}");
        assert!(refused.to_string().contains("--initial-cluster-token"), "{refused}");
    }

    #[test]
    fn a_stranger_to_members_that_may_lag_asks_on() {
        for state in ["new", "existing"] {
            let settings = settings(state);
            let own = settings.initial_member_id().unwrap();
            let judge = |answers: &[DescribeResponse]| match state {
                "new" => judge_new(&settings, answers, 1, true),
                _ => judge_existing(&settings, answers, true),
            };
            let knows = running(&settings, &[]);
            let mut lags = knows.clone();
            lags.membership.as_mut().unwrap().members.retain(|member| member.id != own);
            assert_eq!(judge(std::slice::from_ref(&lags)).unwrap(), None, "asks on");
            assert_eq!(judge(&[lags.clone(), knows.clone()]).unwrap(), None, "asks on");
            let confirmed = DescribeResponse { is_confirmed: true, ..knows };
            let founding = judge(&[lags.clone(), confirmed]).unwrap().unwrap();
            assert_eq!((founding.identity.member, founding.members), (own, None));
            let removed = DescribeResponse { is_confirmed: true, ..lags };
            let refused = judge(&[removed]).unwrap_err();
            assert!(matches!(refused, BootstrapError::NotAMember { .. }), "{refused}");
        }
    }

    #[test]
    fn an_added_member_takes_the_id_it_was_given() {
        let settings = settings("existing");
        let own = settings.initial_member_id().unwrap();
        let mut answer = running(&settings, &[]);
        let members = &mut answer.membership.as_mut().unwrap().members;
        members.iter_mut().filter(|member| member.id == own).for_each(|member| member.id = 77);
        let founding = judge_existing(&settings, &[answer], false).unwrap().unwrap();
        assert_eq!(founding.identity.member, 77);
        assert_eq!(founding.members, None);
        assert_eq!(judge_existing(&settings, &[], false).unwrap(), None, "asks on");
    }

    #[test]
    fn who_joins_must_name_the_cluster_as_it_is() {
        let settings = settings("existing");
        let own = settings.initial_member_id().unwrap();
        let answer = running(&settings, &[]);
        let refusal = |change: &dyn Fn(&mut Vec<internal::Member>)| {
            let mut answer = answer.clone();
            change(&mut answer.membership.as_mut().unwrap().members);
            judge_existing(&settings, &[answer], false).unwrap_err().to_string()
        };
        let fewer = refusal(&|members| members.retain(|member| member.id == own));
        assert!(fewer.contains("member count is unequal"), "{fewer}");
        let moved = refusal(&|members| {
            let other = members.iter_mut().find(|member| member.id != own).unwrap();
            other.peer_urls = vec!["http://127.0.0.1:9".to_owned()];
        });
        assert!(moved.contains("no match found for existing member"), "{moved}");
    }
}
