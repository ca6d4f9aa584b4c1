//! Changes and refusals as messages between members.

use conclave_proto::internal::{self, change_members_request, change_members_response};
use conclave_state_machine::members::rules::{MemberChange, MemberRefusal};

use super::Denial;

pub(super) fn message(change: &MemberChange) -> change_members_request::Change {
    use change_members_request::Change;
    match change.clone() {
        MemberChange::Add { peer_urls, is_learner } => {
            Change::Add(internal::MemberAdd { peer_urls, is_learner })
        }
        MemberChange::Remove { id } => Change::Remove(id),
        MemberChange::Update { id, peer_urls } => {
            Change::Update(internal::MemberMove { id, peer_urls })
        }
        MemberChange::Promote { id } => Change::Promote(id),
    }
}

pub(super) fn from_message(message: change_members_request::Change) -> MemberChange {
    use change_members_request::Change;
    match message {
        Change::Add(internal::MemberAdd { peer_urls, is_learner }) => {
            MemberChange::Add { peer_urls, is_learner }
        }
        Change::Remove(id) => MemberChange::Remove { id },
        Change::Update(internal::MemberMove { id, peer_urls }) => {
            MemberChange::Update { id, peer_urls }
        }
        Change::Promote(id) => MemberChange::Promote { id },
    }
}

const REFUSALS: [(MemberRefusal, change_members_response::Refusal); 7] = {
    use change_members_response::Refusal;
    [
        (MemberRefusal::NotEnoughStarted, Refusal::NotEnoughStarted),
        (MemberRefusal::Unhealthy, Refusal::Unhealthy),
        (MemberRefusal::PeerUrlExists, Refusal::PeerUrlExists),
        (MemberRefusal::TooManyLearners, Refusal::TooManyLearners),
        (MemberRefusal::NotFound, Refusal::NotFound),
        (MemberRefusal::NotLearner, Refusal::NotLearner),
        (MemberRefusal::LearnerNotReady, Refusal::LearnerNotReady),
    ]
};

pub(super) fn refusal_message(refusal: MemberRefusal) -> change_members_response::Refusal {
    let found = REFUSALS.iter().find(|(ours, _)| *ours == refusal);
    found.map_or(change_members_response::Refusal::Unspecified, |(_, message)| *message)
}

pub(super) fn refusal(message: change_members_response::Refusal) -> Option<MemberRefusal> {
    REFUSALS.iter().find(|(_, other)| *other == message).map(|(ours, _)| *ours)
}

pub(super) fn denial_message(denial: Denial) -> change_members_response::Refusal {
    match denial {
        Denial::NoRight => change_members_response::Refusal::Denied,
        Denial::NoUser => change_members_response::Refusal::NoUser,
        Denial::OldUser => change_members_response::Refusal::OldUser,
    }
}

pub(super) fn denial(message: change_members_response::Refusal) -> Option<Denial> {
    use change_members_response::Refusal;
    match message {
        Refusal::Denied => Some(Denial::NoRight),
        Refusal::NoUser => Some(Denial::NoUser),
        Refusal::OldUser => Some(Denial::OldUser),
        _ => None,
    }
}
