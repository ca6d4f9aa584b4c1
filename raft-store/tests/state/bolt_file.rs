//! Files of bbolt, made by hand: right ones, and such as no bbolt would make.

/// Of all pages.
pub(crate) const PAGE_BYTES: usize = 1_024;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const META: u16 = 4;

/// One element of a leaf.
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    is_bucket: bool,
}

impl Element {
    pub(crate) fn new(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), value: value.into(), is_bucket: false }
    }

    /// A bucket with a tree of its own.
    pub(crate) fn bucket(name: &str, root: u64) -> Self {
        let value = [root.to_le_bytes(), [0; 8]].concat();
        Self { key: name.into(), value, is_bucket: true }
    }

    /// A bucket whose only page is in its value.
    pub(crate) fn inline(name: &str, elements: &[Element]) -> Self {
        let mut value = vec![0; 16];
        value.extend(page_bytes(0, LEAF, elements.len(), &leaf(elements)));
        Self { key: name.into(), value, is_bucket: true }
    }
}

/// A file with the pages added so far.
pub(crate) struct BoltFile {
    /// From page 2 on; a page may be as long as several.
    pages: Vec<u8>,
}

impl BoltFile {
    pub(crate) fn new() -> Self {
        Self { pages: Vec::new() }
    }

    /// The number of the next page.
    pub(crate) fn next(&self) -> u64 {
        2 + (self.pages.len() / PAGE_BYTES) as u64
    }

    pub(crate) fn leaf(&mut self, elements: &[Element]) -> u64 {
        self.page(LEAF, elements.len(), &leaf(elements))
    }

    /// A page above others, by the first key of each.
    pub(crate) fn branch(&mut self, below: &[(&[u8], u64)]) -> u64 {
        let mut table = Vec::new();
        let mut keys = Vec::new();
        for (place, (key, page)) in below.iter().enumerate() {
            let position = (below.len() - place) * 16 + keys.len();
            table.extend_from_slice(&(position as u32).to_le_bytes());
            table.extend_from_slice(&(key.len() as u32).to_le_bytes());
            table.extend_from_slice(&page.to_le_bytes());
            keys.extend_from_slice(key);
        }
        table.extend(keys);
        self.page(BRANCH, below.len(), &table)
    }

    fn page(&mut self, flags: u16, count: usize, content: &[u8]) -> u64 {
        let id = self.next();
        let mut page = page_bytes(id, flags, count, content);
        page.resize(page.len().next_multiple_of(PAGE_BYTES), 0);
        let more = (page.len() / PAGE_BYTES - 1) as u32;
        page[12..16].copy_from_slice(&more.to_le_bytes());
        self.pages.extend(page);
        id
    }

    /// The whole file; `root` is a leaf with the buckets.
    pub(crate) fn finish(&self, root: u64) -> Vec<u8> {
        let mut file = Vec::new();
        for (place, transaction) in [(0, 7), (1, 8)] {
            // The older one knows nothing.
            let root = if place == 1 { root } else { u64::MAX };
            file.extend(self.meta(place, root, transaction));
        }
        file.extend_from_slice(&self.pages);
        file
    }

    fn meta(&self, place: u64, root: u64, transaction: u64) -> Vec<u8> {
        let mut meta = Vec::new();
        for number in [0xED0C_DAED_u32, 2, PAGE_BYTES as u32, 0] {
            meta.extend_from_slice(&number.to_le_bytes());
        }
        for number in [root, 0, u64::MAX, self.next(), transaction] {
            meta.extend_from_slice(&number.to_le_bytes());
        }
        let hash = meta.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        meta.extend_from_slice(&hash.to_le_bytes());
        let mut page = page_bytes(place, META, 0, &meta);
        page.resize(PAGE_BYTES, 0);
        page
    }
}

fn page_bytes(id: u64, flags: u16, count: usize, content: &[u8]) -> Vec<u8> {
    let mut page = id.to_le_bytes().to_vec();
    page.extend_from_slice(&flags.to_le_bytes());
    page.extend_from_slice(&(count as u16).to_le_bytes());
    page.extend_from_slice(&0_u32.to_le_bytes());
    page.extend_from_slice(content);
    page
}

fn leaf(elements: &[Element]) -> Vec<u8> {
    let mut table = Vec::new();
    let mut content: Vec<u8> = Vec::new();
    for (place, element) in elements.iter().enumerate() {
        let position = (elements.len() - place) * 16 + content.len();
        let sizes = [element.key.len(), element.value.len()];
        for number in [usize::from(element.is_bucket), position, sizes[0], sizes[1]] {
            table.extend_from_slice(&(number as u32).to_le_bytes());
        }
        content.extend_from_slice(&element.key);
        content.extend_from_slice(&element.value);
    }
    table.extend(content);
    table
}
