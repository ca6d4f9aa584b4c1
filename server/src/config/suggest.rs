//! Suggests a known name for a mistyped one.

/// Names with more differences count as unrelated.
const DISTANCE_MAX: usize = 3;

/// The known name most similar to `name`, if one is similar enough.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = known.into_iter().map(|known| (distance(name, known), known));
    let (distance, nearest) = distances.min()?;
    (distance <= DISTANCE_MAX.min(name.len() / 3)).then_some(nearest)
}

/// Letters to insert, remove or replace to get from one word to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_slips_are_understood() {
        let known = ["data-dir", "wal-dir", "name", "listen-client-urls"];
        let nearest = |name| nearest(name, known);
        assert_eq!(nearest("datadir"), Some("data-dir"));
        assert_eq!(nearest("listen-client-url"), Some("listen-client-urls"));
        assert_eq!(nearest("nmae"), None, "two differences in four letters");
        assert_eq!(nearest("namee"), Some("name"));
        assert_eq!(nearest("no-such-flag"), None);
    }
}
