//! An AVL tree of key spans, ordered by (start, end). Every node knows how far its subtree reaches,
//! so that a search for a key skips subtrees that end before it.
//!
//! Nodes are in one vector and refer to each other by index: no pointers, no `unsafe`, one
//! allocation. Existing crates need numeric keys or build the tree only once, hence our own.

use std::cmp::Ordering;

use bytes::Bytes;

use super::End;

/// Index that means "no node".
const NONE: u32 = u32::MAX;
/// Greater than the height of an AVL tree of 2^32 nodes (1.44 * 32).
const HEIGHT_MAX: usize = 48;

#[derive(Clone, Debug)]
pub(super) struct IntervalTree<V> {
    nodes: Vec<Node<V>>,
    root: u32,
}

#[derive(Clone, Debug)]
struct Node<V> {
    start: Bytes,
    end: End,
    value: V,
    links: Links,
}

/// What belongs to the position in the tree and not to the span.
#[derive(Clone, Debug)]
struct Links {
    left: u32,
    right: u32,
    height: u8,
    /// Farthest end in the subtree.
    reach: End,
}

/// The nodes from the root to a position, each with whether the path continues to the right.
type Path = Vec<(u32, bool)>;

impl<V> Default for IntervalTree<V> {
    fn default() -> Self {
        IntervalTree { nodes: Vec::new(), root: NONE }
    }
}

impl<V> IntervalTree<V> {
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.nodes.iter().map(|node| &node.value)
    }

    pub(super) fn get_or_insert_with(
        &mut self,
        start: &Bytes,
        end: &End,
        make: impl FnOnce() -> V,
    ) -> &mut V {
        let (found, path) = self.find(start, end);
        let index = if found == NONE {
            let index = self.push(start, end, make());
            self.relink(&path, index);
            self.rebalance(&path);
            index
        } else {
            found
        };
        &mut self.node_mut(index).value
    }

    pub(super) fn get_mut(&mut self, start: &Bytes, end: &End) -> Option<&mut V> {
        let (found, _) = self.find(start, end);
        (found != NONE).then(|| &mut self.node_mut(found).value)
    }

    pub(super) fn remove(&mut self, start: &Bytes, end: &End) -> Option<V> {
        let (mut doomed, mut path) = self.find(start, end);
        if doomed == NONE {
            return None;
        }
        let links = &self.node(doomed).links;
        if links.left != NONE && links.right != NONE {
            doomed = self.exchange_with_successor(doomed, &mut path);
        }
        let links = &self.node(doomed).links;
        let child = if links.left == NONE { links.right } else { links.left };
        self.relink(&path, child);
        self.rebalance(&path);
        Some(self.take(doomed))
    }

    /// Visits the value of every span that contains `key`.
    pub(super) fn stab<'a>(&'a self, key: &[u8], mut visit: impl FnMut(&'a V)) {
        // Depth first; the postponed branches are never more than the levels of the tree.
        let mut waiting = [NONE; HEIGHT_MAX + 1];
        let mut count = 1;
        waiting[0] = self.root;
        while count > 0 {
            count -= 1;
            let index = waiting[count];
            if index == NONE {
                continue;
            }
            let node = self.node(index);
            if !node.links.reach.is_after(key) {
                continue;
            }
            if node.start <= key {
                if node.end.is_after(key) {
                    visit(&node.value);
                }
                waiting[count] = node.links.right;
                count += 1;
            }
            waiting[count] = node.links.left;
            count += 1;
        }
    }

    /// Returns the node of this span or [`NONE`], and the path to it or to where it belongs.
    fn find(&self, start: &Bytes, end: &End) -> (u32, Path) {
        let mut path = Vec::with_capacity(HEIGHT_MAX);
        let mut at = self.root;
        while at != NONE {
            let node = self.node(at);
            match (start, end).cmp(&(&node.start, &node.end)) {
                Ordering::Equal => break,
                Ordering::Less => {
                    path.push((at, false));
                    at = node.links.left;
                }
                Ordering::Greater => {
                    path.push((at, true));
                    at = node.links.right;
                }
            }
        }
        (at, path)
    }

    fn push(&mut self, start: &Bytes, end: &End, value: V) -> u32 {
        let index = u32::try_from(self.nodes.len()).expect("invariant: fewer than 2^32 spans");
        // Copied, because both may be slices of a large request.
        let end = match end {
            End::Before(key) => End::Before(Bytes::copy_from_slice(key)),
            End::Infinity => End::Infinity,
        };
        let links = Links { left: NONE, right: NONE, height: 1, reach: end.clone() };
        self.nodes.push(Node { start: Bytes::copy_from_slice(start), end, value, links });
        index
    }

    /// Swaps the span at `index`, which has two children, with its successor. Returns the index
    /// that now has the span to remove, and extends `path` to it.
    fn exchange_with_successor(&mut self, index: u32, path: &mut Path) -> u32 {
        path.push((index, true));
        let mut successor = self.node(index).links.right;
        while self.node(successor).links.left != NONE {
            path.push((successor, false));
            successor = self.node(successor).links.left;
        }
        self.nodes.swap(index as usize, successor as usize);
        // The spans were swapped; their positions in the tree must not be.
        let links = self.node(index).links.clone();
        self.node_mut(index).links = self.node(successor).links.clone();
        self.node_mut(successor).links = links;
        successor
    }

    /// Attaches `child` where `path` ends.
    fn relink(&mut self, path: &[(u32, bool)], child: u32) {
        match path.last() {
            None => self.root = child,
            Some((parent, true)) => self.node_mut(*parent).links.right = child,
            Some((parent, false)) => self.node_mut(*parent).links.left = child,
        }
    }

    /// Restores heights, reaches and balance from the end of `path` up to the root.
    fn rebalance(&mut self, path: &[(u32, bool)]) {
        for depth in (0..path.len()).rev() {
            let (index, _) = path[depth];
            self.refresh(index);
            let top = match self.balance(index) {
                2.. => self.rotate_heavy_left(index),
                ..=-2 => self.rotate_heavy_right(index),
                _ => index,
            };
            self.relink(&path[..depth], top);
        }
    }

    fn rotate_heavy_left(&mut self, index: u32) -> u32 {
        let left = self.node(index).links.left;
        if self.balance(left) < 0 {
            let top = self.rotate_left(left);
            self.node_mut(index).links.left = top;
        }
        self.rotate_right(index)
    }

    fn rotate_heavy_right(&mut self, index: u32) -> u32 {
        let right = self.node(index).links.right;
        if self.balance(right) > 0 {
            let top = self.rotate_right(right);
            self.node_mut(index).links.right = top;
        }
        self.rotate_left(index)
    }

    fn rotate_right(&mut self, index: u32) -> u32 {
        let top = self.node(index).links.left;
        self.node_mut(index).links.left = self.node(top).links.right;
        self.node_mut(top).links.right = index;
        self.refresh(index);
        self.refresh(top);
        top
    }

    fn rotate_left(&mut self, index: u32) -> u32 {
        let top = self.node(index).links.right;
        self.node_mut(index).links.right = self.node(top).links.left;
        self.node_mut(top).links.left = index;
        self.refresh(index);
        self.refresh(top);
        top
    }

    /// Recomputes height and reach of a node from its children.
    fn refresh(&mut self, index: u32) {
        let node = self.node(index);
        let (left, right) = (node.links.left, node.links.right);
        let height = 1 + self.height(left).max(self.height(right));
        let mut reach = &node.end;
        for child in [left, right] {
            if child != NONE {
                reach = reach.max(&self.node(child).links.reach);
            }
        }
        let reach = reach.clone();
        let links = &mut self.node_mut(index).links;
        links.height = height;
        links.reach = reach;
    }

    /// Removes an unlinked node from the vector; the last node moves into its slot.
    fn take(&mut self, index: u32) -> V {
        let last = u32::try_from(self.nodes.len() - 1).expect("invariant: fewer than 2^32 spans");
        if index != last {
            let moved = self.node(last);
            let (found, path) = self.find(&moved.start, &moved.end);
            assert!(found == last, "invariant: every node but the removed one is linked");
            self.relink(&path, index);
        }
        self.nodes.swap_remove(index as usize).value
    }

    fn height(&self, index: u32) -> u8 {
        if index == NONE { 0 } else { self.node(index).links.height }
    }

    /// Height of the left subtree minus that of the right one.
    fn balance(&self, index: u32) -> i16 {
        let links = &self.node(index).links;
        i16::from(self.height(links.left)) - i16::from(self.height(links.right))
    }

    fn node(&self, index: u32) -> &Node<V> {
        &self.nodes[index as usize]
    }

    fn node_mut(&mut self, index: u32) -> &mut Node<V> {
        &mut self.nodes[index as usize]
    }

    /// Checks order, balance, heights and reaches of the whole tree.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        let mut order = Vec::new();
        let mut waiting = Vec::new();
        let mut at = self.root;
        while at != NONE || !waiting.is_empty() {
            while at != NONE {
                waiting.push(at);
                at = self.node(at).links.left;
            }
            at = waiting.pop().unwrap();
            order.push(at);
            assert!(self.balance(at).abs() <= 1, "balanced");
            let links = &self.node(at).links;
            let height = 1 + self.height(links.left).max(self.height(links.right));
            assert_eq!(links.height, height);
            let children = [links.left, links.right].into_iter().filter(|c| *c != NONE);
            let reach = children.map(|c| &self.node(c).links.reach).chain([&self.node(at).end]);
            assert_eq!(Some(&links.reach), reach.max());
            at = links.right;
        }
        assert_eq!(order.len(), self.nodes.len());
        let spans: Vec<_> =
            order.iter().map(|i| (&self.node(*i).start, &self.node(*i).end)).collect();
        assert!(spans.is_sorted_by(|a, b| a < b), "in order");
    }
}
