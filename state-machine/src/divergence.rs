//! Compares the state of members, and tells which differ from the majority. Replicas of one log
//! must never differ.

use std::collections::BTreeMap;

/// What a comparison of digests found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All members that answered agree.
    Equal,
    /// These members differ from more than half of all members.
    Outvoted(Vec<u64>),
    /// They differ, and there is no majority of all members to tell which are right.
    Split,
}

/// Compares the digests of the members that answered, out of `members` in total.
#[must_use]
pub fn judge(digests: &BTreeMap<u64, u64>, members: usize) -> Verdict {
    let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
    for digest in digests.values() {
        let count = votes.entry(*digest).or_default();
        *count = count.saturating_add(1);
    }
    if votes.len() <= 1 {
        return Verdict::Equal;
    }
    match votes.iter().find(|(_, count)| **count > members / 2) {
        Some((right, _)) => {
            let others = digests.iter().filter(|(_, digest)| *digest != right);
            Verdict::Outvoted(others.map(|(id, _)| *id).collect())
        }
        None => Verdict::Split,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_majority_of_all_members_is_right() {
        let judge =
            |digests: &[(u64, u64)], members| judge(&digests.iter().copied().collect(), members);
        assert_eq!(judge(&[], 3), Verdict::Equal);
        assert_eq!(judge(&[(1, 7), (2, 7)], 3), Verdict::Equal);
        assert_eq!(judge(&[(1, 7), (2, 7), (3, 8)], 3), Verdict::Outvoted(vec![3]));
        assert_eq!(judge(&[(1, 8), (2, 7), (3, 7)], 3), Verdict::Outvoted(vec![1]));
        assert_eq!(judge(&[(1, 7), (2, 8)], 3), Verdict::Split, "the third is not heard");
        assert_eq!(judge(&[(1, 7), (2, 8)], 2), Verdict::Split);
        assert_eq!(judge(&[(1, 7), (2, 8), (3, 9)], 3), Verdict::Split);
        let five = [(1, 7), (2, 7), (3, 7), (4, 8), (5, 9)];
        assert_eq!(judge(&five, 5), Verdict::Outvoted(vec![4, 5]));
    }
}
