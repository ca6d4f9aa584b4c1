//! Builds the pages of a bbolt database from elements in key order, with little memory and in one
//! pass.
//!
//! A tree emits a page as soon as it is full, and after the pages of a branch the branch itself. So
//! a tree keeps only one page per level, several trees may grow at the same time, and page ids
//! follow from the elements alone: after building the same pages once, the caller knows the
//! contents of the meta pages, which come first. Every page before the end is in use, as bbolt's
//! own check demands. There is no I/O here.

#[cfg(test)]
mod tests;

use super::bolt::{
    BRANCH, BUCKET, ELEMENT_BYTES, FREELIST, LEAF, MAGIC, META, PAGE_HEADER_BYTES, VERSION, fnv1a,
};

/// etcd's page size on most machines. bbolt takes the size from the file.
pub(super) const PAGE_BYTES: usize = 4 << 10;
/// Two meta pages, and the freelist, which is empty.
const FIRST_PAGES: u64 = 3;
const FREELIST_PAGE: u64 = 2;
/// A branch with a single child page would be useless.
const BRANCH_COUNT_MIN: usize = 2;

/// Emitted pages that were not taken yet, and the id of the next page.
#[derive(Debug)]
pub(super) struct Pages {
    next: u64,
    bytes: Vec<u8>,
}

impl Pages {
    /// Starts a new database.
    pub(super) fn new() -> Self {
        Self { next: FIRST_PAGES, bytes: Vec::new() }
    }

    /// Total number of pages, including the first ones.
    pub(super) fn count(&self) -> u64 {
        self.next
    }

    /// Takes the bytes of the pages emitted since the last call.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Adds a page with its element headers and their content. Returns its id.
    fn add(&mut self, flags: u16, count: usize, heads: &[u8], content: &[u8]) -> u64 {
        let id = self.next;
        let start = self.bytes.len();
        let length = PAGE_HEADER_BYTES + heads.len() + content.len();
        let pages = length.div_ceil(PAGE_BYTES);
        let count = u16::try_from(count).expect("a page has a few hundred elements");
        push_header(&mut self.bytes, id, flags, (count, pages));
        self.bytes.extend_from_slice(heads);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(start + pages * PAGE_BYTES, 0);
        self.next += pages as u64;
        id
    }
}

/// The pages before all others. `root` is the page id of the root bucket, `count` the total number
/// of pages.
pub(super) fn first_pages(root: u64, count: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PAGE_BYTES * 3);
    for id in [0, 1] {
        push_header(&mut bytes, id, META, (0, 1));
        let meta_at = bytes.len();
        for number in [MAGIC, VERSION, PAGE_BYTES as u32, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        // Root and its sequence, the freelist, the end, and the transaction id.
        for number in [root, 0, FREELIST_PAGE, count, id] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = fnv1a(&bytes[meta_at..]);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
    }
    push_header(&mut bytes, FREELIST_PAGE, FREELIST, (0, 1));
    bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
    bytes
}

fn push_header(bytes: &mut Vec<u8>, id: u64, flags: u16, (count, pages): (u16, usize)) {
    bytes.extend_from_slice(&id.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&number(pages - 1).to_le_bytes());
}

fn number(length: usize) -> u32 {
    u32::try_from(length).expect("keys and values are smaller than 4 GiB")
}

/// A tree that grows at its end.
#[derive(Debug, Default)]
pub(super) struct Tree {
    leaf: Leaf,
    /// Branches that are not full yet, lowest level first.
    branches: Vec<Branch>,
}

impl Tree {
    /// Adds an element, whose key must be after that of the last one.
    pub(super) fn push(&mut self, pages: &mut Pages, key: &[u8], value: &[u8]) {
        self.push_element(pages, 0, key, value);
    }

    fn push_element(&mut self, pages: &mut Pages, flags: u32, key: &[u8], value: &[u8]) {
        let more = ELEMENT_BYTES + key.len() + value.len();
        if !self.leaf.elements.is_empty() && self.leaf.bytes() + more > PAGE_BYTES {
            let below = self.leaf.give(pages);
            self.push_page(pages, 0, below);
        }
        self.leaf.elements.push((flags, number(key.len()), number(value.len())));
        self.leaf.content.extend_from_slice(key);
        self.leaf.content.extend_from_slice(value);
    }

    /// Adds a page to the branch at `level`; a branch that becomes full is added to the one above.
    fn push_page(&mut self, pages: &mut Pages, mut level: usize, mut below: Below) {
        loop {
            if level == self.branches.len() {
                self.branches.push(Branch::default());
            }
            let branch = &mut self.branches[level];
            branch.push(below);
            let fitting = branch.fitting();
            // The rest must be enough for another page.
            if branch.below.len() < fitting + BRANCH_COUNT_MIN {
                return;
            }
            below = branch.give(pages, fitting);
            level += 1;
        }
    }

    /// Emits what is left. Returns the page id of the root.
    pub(super) fn finish(mut self, pages: &mut Pages) -> u64 {
        let last = self.leaf.give(pages);
        if self.branches.is_empty() {
            return last.page;
        }
        self.push_page(pages, 0, last);
        let mut level = 0;
        loop {
            let branch = &mut self.branches[level];
            let count = branch.below.len();
            // If all but one fit, a branch with a single child would be left.
            let fitting = match branch.fitting() {
                fitting if fitting + 1 == count && count >= 2 * BRANCH_COUNT_MIN => {
                    count - BRANCH_COUNT_MIN
                }
                fitting if fitting + 1 == count => count,
                fitting => fitting,
            };
            let is_all = fitting == count;
            let below = branch.give(pages, fitting);
            if is_all && level + 1 == self.branches.len() {
                return below.page;
            }
            self.push_page(pages, level + 1, below);
            if is_all {
                level += 1;
            }
        }
    }
}

/// The root of a database: its buckets.
#[derive(Debug, Default)]
pub(super) struct Root(Tree);

impl Root {
    /// Adds a bucket, whose name must be after that of the last one.
    pub(super) fn push(&mut self, pages: &mut Pages, name: &str, root: u64) {
        let value = [root.to_le_bytes(), [0; 8]].concat();
        self.0.push_element(pages, BUCKET, name.as_bytes(), &value);
    }

    /// Completes the root. Returns its page id.
    pub(super) fn finish(self, pages: &mut Pages) -> u64 {
        self.0.finish(pages)
    }
}

/// A page that was emitted.
#[derive(Debug)]
struct Below {
    first_key: Vec<u8>,
    page: u64,
}

/// A leaf that is being filled.
#[derive(Debug, Default)]
struct Leaf {
    /// Flags, length of the key, length of the value.
    elements: Vec<(u32, u32, u32)>,
    content: Vec<u8>,
}

impl Leaf {
    fn bytes(&self) -> usize {
        PAGE_HEADER_BYTES + self.elements.len() * ELEMENT_BYTES + self.content.len()
    }

    /// Emits the leaf and starts the next.
    fn give(&mut self, pages: &mut Pages) -> Below {
        let count = self.elements.len();
        let mut heads = Vec::with_capacity(count * ELEMENT_BYTES);
        let mut content_at = 0;
        for (place, (flags, key, value)) in self.elements.iter().enumerate() {
            let position = number((count - place) * ELEMENT_BYTES + content_at);
            for field in [*flags, position, *key, *value] {
                heads.extend_from_slice(&field.to_le_bytes());
            }
            content_at += *key as usize + *value as usize;
        }
        let first = self.elements.first().map_or(0, |(_, key, _)| *key as usize);
        let first_key = self.content[..first].to_vec();
        let page = pages.add(LEAF, count, &heads, &self.content);
        self.elements.clear();
        self.content.clear();
        Below { first_key, page }
    }
}

/// A branch that is being filled.
#[derive(Debug, Default)]
struct Branch {
    below: Vec<Below>,
    key_bytes: usize,
}

impl Branch {
    fn push(&mut self, below: Below) {
        self.key_bytes += below.first_key.len();
        self.below.push(below);
    }

    /// How many of its child pages fit into one page, but at least [`BRANCH_COUNT_MIN`].
    fn fitting(&self) -> usize {
        let count = self.below.len();
        let mut bytes = PAGE_HEADER_BYTES + count * ELEMENT_BYTES + self.key_bytes;
        let mut fitting = count;
        while bytes > PAGE_BYTES && fitting > BRANCH_COUNT_MIN {
            fitting -= 1;
            bytes -= ELEMENT_BYTES + self.below[fitting].first_key.len();
        }
        fitting
    }

    /// Emits a branch page with the first `count` children.
    fn give(&mut self, pages: &mut Pages, count: usize) -> Below {
        let (mut heads, mut keys) = (Vec::new(), Vec::new());
        for (place, Below { first_key, page }) in self.below[..count].iter().enumerate() {
            let position = number((count - place) * ELEMENT_BYTES + keys.len());
            heads.extend_from_slice(&position.to_le_bytes());
            heads.extend_from_slice(&number(first_key.len()).to_le_bytes());
            heads.extend_from_slice(&page.to_le_bytes());
            keys.extend_from_slice(first_key);
        }
        self.key_bytes -= keys.len();
        let page = pages.add(BRANCH, count, &heads, &keys);
        let first = self.below.drain(..count).next();
        Below { first_key: first.map(|below| below.first_key).unwrap_or_default(), page }
    }
}
