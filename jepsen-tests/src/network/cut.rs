//! Which ways between members a partition takes away.

/// From a member to a member, by their places in the cluster.
pub type Way = (usize, usize);

/// No way to the member and none from it.
#[must_use]
pub fn isolated(member: usize, size: usize) -> Vec<Way> {
    [mute(member, size), deaf(member, size)].concat()
}

/// The member hears the others and is not heard.
#[must_use]
pub fn mute(member: usize, size: usize) -> Vec<Way> {
    others(member, size).map(|other| (member, other)).collect()
}

/// The member is heard by the others and does not hear them.
#[must_use]
pub fn deaf(member: usize, size: usize) -> Vec<Way> {
    others(member, size).map(|other| (other, member)).collect()
}

/// The others hear nobody but the member in the middle, which hears them all.
#[must_use]
pub fn bridge(middle: usize, size: usize) -> Vec<Way> {
    let ways = others(middle, size)
        .flat_map(|from| others(middle, size).map(move |to| (from, to)))
        .filter(|(from, to)| from != to);
    ways.collect()
}

fn others(member: usize, size: usize) -> impl Iterator<Item = usize> {
    (0..size).filter(move |&other| other != member)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_takes_its_ways_away() {
        assert_eq!(mute(1, 3), [(1, 0), (1, 2)]);
        assert_eq!(deaf(1, 3), [(0, 1), (2, 1)]);
        assert_eq!(isolated(1, 3), [(1, 0), (1, 2), (0, 1), (2, 1)]);
        assert_eq!(bridge(1, 3), [(0, 2), (2, 0)]);
        assert_eq!(bridge(0, 4).len(), 6);
    }
}
