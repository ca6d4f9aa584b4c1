//! Trees of settings: the form into which every source is decoded, merging them, and lookup by
//! dotted paths.

use serde_json::{Map, Value};

/// Deepest nesting of a tree. Deeper input is refused, so that walking a tree cannot exhaust the
/// stack.
pub(super) const DEPTH_MAX: usize = 64;

/// Merges `over` into `base`: tables are merged key by key, everything else is replaced.
pub(super) fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match base.get_mut(key) {
                    Some(below) => merge(below, value),
                    None => {
                        base.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// The segments of a dotted path; the empty path names the whole tree.
pub(super) fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('.').filter(|segment| !segment.is_empty())
}

/// The value at a dotted path, e.g. `db.hosts.0`; the empty path names the whole tree.
pub fn find<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    segments(path).try_fold(tree, |value, segment| match value {
        Value::Object(table) => table.get(segment),
        Value::Array(list) => list.get(segment.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Whether `tree` determines the value at `path`: it has a value there, or on the way a value that
/// is not a table and so replaces whatever lower layers have below it.
pub(super) fn decides(tree: &Value, path: &str) -> bool {
    let mut value = tree;
    for segment in segments(path) {
        let Value::Object(table) = value else { return true };
        match table.get(segment) {
            Some(below) => value = below,
            None => return false,
        }
    }
    true
}

/// The value of `tree` at a dotted path, or the value on the way that is not a table, and the
/// segments to it.
pub(super) fn reach<'t, 'p>(tree: &'t Value, path: &'p str) -> (Vec<&'p str>, &'t Value) {
    let (mut steps, mut value) = (Vec::new(), tree);
    for segment in segments(path) {
        let Some(below) = value.as_object().and_then(|table| table.get(segment)) else { break };
        steps.push(segment);
        value = below;
    }
    (steps, value)
}

/// A tree that holds `value` at `path`.
pub(super) fn place<'a>(path: impl DoubleEndedIterator<Item = &'a str>, value: Value) -> Value {
    path.rev().fold(value, |below, segment| {
        let mut table = Map::new();
        table.insert(segment.to_owned(), below);
        Value::Object(table)
    })
}

/// Whether the tree is nested deeper than [`DEPTH_MAX`].
pub(super) fn is_too_deep(tree: &Value) -> bool {
    let mut level = vec![tree];
    for _ in 0..=DEPTH_MAX {
        let mut below = Vec::new();
        for value in level {
            match value {
                Value::Object(table) => below.extend(table.values()),
                Value::Array(list) => below.extend(list),
                _ => {}
            }
        }
        if below.is_empty() {
            return false;
        }
        level = below;
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_are_merged_and_the_rest_is_replaced() {
        let mut base = json!({"a": {"x": 1, "y": [1, 2]}, "b": 1, "c": {"d": 1}});
        merge(&mut base, &json!({"a": {"y": [3]}, "b": {"e": 2}, "c": null}));
        assert_eq!(base, json!({"a": {"x": 1, "y": [3]}, "b": {"e": 2}, "c": null}));
    }

    #[test]
    fn a_path_leads_through_tables_and_lists() {
        let tree = json!({"a": {"b": [{"c": 1}]}});
        assert_eq!(find(&tree, "a.b.0.c"), Some(&json!(1)));
        assert_eq!(find(&tree, ""), Some(&tree));
        assert_eq!(find(&tree, "a.b.1"), None);
        assert_eq!(find(&tree, "a.x"), None);
    }

    #[test]
    fn what_replaces_a_table_decides_what_was_in_it() {
        assert!(decides(&json!({"a": null}), "a.b"));
        assert!(decides(&json!({"a": {"b": 1}}), "a"));
        assert!(!decides(&json!({"a": {"c": 1}}), "a.b"));
    }

    #[test]
    fn depth_is_limited() {
        let nested = |depth: usize| place(std::iter::repeat_n("a", depth), json!(1));
        assert!(!is_too_deep(&nested(DEPTH_MAX)));
        assert!(is_too_deep(&nested(DEPTH_MAX + 1)));
    }

    fn trees() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(json!(null)), any::<i8>().prop_map(|n| json!(n))];
        leaf.prop_recursive(3, 16, 3, |inner| {
            proptest::collection::btree_map("[abc]", inner, 0..3).prop_map(|table| json!(table))
        })
    }

    proptest! {
        /// Merging gives, at every path, the value of the highest layer that determines it.
        #[test]
        fn the_highest_layer_that_decides_wins(
            layers in proptest::collection::vec(trees(), 1..4),
            path in proptest::collection::vec("[abc]", 0..4),
        ) {
            let path = path.join(".");
            let mut merged = json!({});
            for layer in &layers {
                merge(&mut merged, layer);
            }
            let winner = layers.iter().rev().find(|layer| decides(layer, &path));
            let found = find(&merged, &path);
            match winner.map(|layer| find(layer, &path)) {
                // A table also shows what lower layers have in it.
                Some(Some(Value::Object(_))) => prop_assert!(matches!(found, Some(Value::Object(_)))),
                Some(expected) => prop_assert_eq!(found, expected),
                None => prop_assert!(found.is_none() || path.is_empty()),
            }
        }
    }
}
