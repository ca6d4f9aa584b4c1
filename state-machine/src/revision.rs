//! Position of one change in the history of the store: a main revision and a place inside it.

/// Position of a change: `main` is the revision that clients see, `sub` orders changes within it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision {
    /// Revision of the store that the change created.
    pub main: i64,
    /// Index of the change within its revision, from 0.
    pub sub: u32,
}

impl Revision {
    /// First position of `main`.
    #[must_use]
    pub fn first_of(main: i64) -> Revision {
        Revision { main, sub: 0 }
    }

    /// First position after all of `main`.
    #[must_use]
    pub fn after(main: i64) -> Revision {
        Revision { main: main.saturating_add(1), sub: 0 }
    }

    /// The position right after this one.
    #[must_use]
    pub fn next(self) -> Revision {
        match self.sub.checked_add(1) {
            Some(sub) => Revision { main: self.main, sub },
            None => Revision::after(self.main),
        }
    }

    /// Key of the row of [`crate::read::Table::Rev`]; sorts as the revision does.
    #[must_use]
    pub fn row_key(self) -> [u8; 12] {
        let mut key = [0; 12];
        let (main, sub) = key.split_at_mut(8);
        main.copy_from_slice(&self.main.to_be_bytes());
        sub.copy_from_slice(&self.sub.to_be_bytes());
        key
    }

    /// The inverse of [`Revision::row_key`]; `None` for anything else.
    #[must_use]
    pub fn from_row_key(key: &[u8]) -> Option<Revision> {
        let (main, sub) = key.split_at_checked(8)?;
        let main = i64::from_be_bytes(main.try_into().ok()?);
        let sub = u32::from_be_bytes(sub.try_into().ok()?);
        (main >= 0).then_some(Revision { main, sub })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_keys_sort_as_revisions_do() {
        let order = [(1, 0), (1, 1), (1, 256), (2, 0), (256, 0), (i64::MAX, u32::MAX)]
            .map(|(main, sub)| Revision { main, sub });
        for pair in order.windows(2) {
            assert!(pair[0].row_key() < pair[1].row_key(), "{pair:?}");
        }
        for revision in order {
            assert_eq!(Revision::from_row_key(&revision.row_key()), Some(revision));
        }
        assert_eq!(Revision::from_row_key(b"short"), None);
        assert_eq!(Revision::from_row_key(&[0xff; 12]), None, "revisions are not negative");
    }

    #[test]
    fn next_carries_into_the_main_revision() {
        assert_eq!(Revision { main: 4, sub: 0 }.next(), Revision { main: 4, sub: 1 });
        assert_eq!(Revision { main: 4, sub: u32::MAX }.next(), Revision { main: 5, sub: 0 });
    }
}
