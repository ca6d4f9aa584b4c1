//! Reads bbolt databases, the format in which etcd keeps its store. (`pages` writes one.)
//!
//! The file is an array of pages. The first two are meta pages, of which the newer valid one
//! counts: it names the root of a tree of buckets. A tree has branch pages with (key, page) and
//! leaf pages with (key, value); content too large for one page continues in the following ones. A
//! bucket is a leaf element whose value names the root of another tree or, for a small bucket,
//! contains its only page.
//!
//! Whatever the bytes are, reading terminates, does not panic, and takes no more memory than the
//! length of the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::format::damaged;

/// Magic number and version in a meta page.
pub(super) const MAGIC: u32 = 0xED0C_DAED;
pub(super) const VERSION: u32 = 2;
pub(super) const PAGE_HEADER_BYTES: usize = 16;
pub(super) const ELEMENT_BYTES: usize = 16;
/// Bytes of a meta page after the header; the checksum is at the end.
const META_BYTES: usize = 64;
pub(super) const BRANCH: u16 = 1;
pub(super) const LEAF: u16 = 2;
pub(super) const META: u16 = 4;
pub(super) const FREELIST: u16 = 16;
/// Flag of an element that is a bucket.
pub(super) const BUCKET: u32 = 1;
const BUCKET_HEADER_BYTES: usize = 16;
/// Range of page sizes that bbolt tries.
const PAGE_BYTES_MIN: u64 = 1 << 10;
const PAGE_BYTES_MAX: u64 = 1 << 25;
/// Most bytes of a page with those it continues in: bbolt's largest value is 2 GiB, etcd's a few
/// MiB.
const WHOLE_PAGE_BYTES_MAX: u64 = 1 << 30;
/// A tree of depth 64 would have more leaves than the file has bytes.
const DEPTH_MAX: usize = 64;
/// etcd has about a dozen.
const BUCKETS_MAX: usize = 1_024;

/// A database.
#[derive(Debug)]
pub(super) struct Bolt {
    file: File,
    page_bytes: u64,
    /// Number of pages in use; later ones are unused.
    pages: u64,
    root: u64,
    transaction: u64,
}

/// A tree of keys and values.
#[derive(Clone, Debug)]
pub(super) enum Bucket {
    /// Page id of the root.
    Tree(u64),
    /// The bytes of its only page.
    Inline(Vec<u8>),
}

impl Bolt {
    /// Opens a file; `None` if it is not a bbolt database.
    pub(super) fn open(file: File, bytes: u64) -> io::Result<Option<Self>> {
        let first = read_meta(&file, 0, bytes)?;
        let sizes = (0..).map(|shift| PAGE_BYTES_MIN << shift);
        let sizes: Vec<u64> = match &first {
            Some(Ok(meta)) => vec![meta.page_bytes],
            _ => sizes.take_while(|size| *size <= PAGE_BYTES_MAX).collect(),
        };
        let mut seconds = Vec::new();
        for at in sizes {
            seconds.push(
                read_meta(&file, at, bytes)?
                    .filter(|meta| meta.as_ref().map_or(true, |meta| meta.page_bytes == at)),
            );
        }
        let all = || seconds.iter().flatten().chain(&first);
        let newest = all().flatten().max_by_key(|meta| meta.transaction);
        let Some(meta) = newest else {
            return if all().next().is_some() {
                Err(damaged("both of its meta pages are damaged"))
            } else {
                Ok(None)
            };
        };
        if meta.pages.checked_mul(meta.page_bytes).is_none_or(|used| used > bytes) {
            return Err(damaged("it was cut off"));
        }
        let Meta { page_bytes, pages, root, transaction } = *meta;
        Ok(Some(Self { file, page_bytes, pages, root, transaction }))
    }

    /// Id of the last transaction that wrote to it.
    pub(super) fn transaction(&self) -> u64 {
        self.transaction
    }

    /// Bytes of all pages in use.
    pub(super) fn bytes(&self) -> u64 {
        self.pages.saturating_mul(self.page_bytes)
    }

    /// Returns the buckets by name.
    pub(super) fn buckets(&self) -> io::Result<BTreeMap<Vec<u8>, Bucket>> {
        let mut buckets = BTreeMap::new();
        self.visit(&Bucket::Tree(self.root), &mut |element| {
            if !element.is_bucket {
                return Err(damaged("there is a value beside the buckets"));
            }
            let header = element.value.get(..BUCKET_HEADER_BYTES);
            let header = header.ok_or_else(|| damaged("a bucket is cut short"))?;
            let bucket = match u64_at(header, 0) {
                Some(0) => Bucket::Inline(element.value[BUCKET_HEADER_BYTES..].to_vec()),
                root => Bucket::Tree(root.unwrap_or(u64::MAX)),
            };
            buckets.insert(element.key.to_vec(), bucket);
            if buckets.len() > BUCKETS_MAX {
                return Err(damaged("it has too many buckets"));
            }
            Ok(())
        })?;
        Ok(buckets)
    }

    /// Visits the elements of a bucket in ascending order of keys.
    pub(super) fn visit(
        &self,
        bucket: &Bucket,
        visit: &mut dyn FnMut(Element<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let root = self.root_page(bucket)?;
        let mut last_key: Option<Vec<u8>> = None;
        let mut path = vec![(root, 0)];
        let mut pages_left = self.pages;
        while let Some((page, next)) = path.last_mut() {
            if *next >= page.count {
                path.pop();
                continue;
            }
            let place = *next;
            *next += 1;
            if page.is_leaf {
                let element = page.leaf(place)?;
                if last_key.as_deref().is_some_and(|last| last >= element.key) {
                    return Err(damaged("its keys are out of order"));
                }
                match &mut last_key {
                    Some(last) => {
                        last.clear();
                        last.extend_from_slice(element.key);
                    }
                    None => last_key = Some(element.key.to_vec()),
                }
                visit(element)?;
                continue;
            }
            let below = page.branch(place)?;
            pages_left =
                pages_left.checked_sub(1).ok_or_else(|| damaged("its pages form a circle"))?;
            if path.len() >= DEPTH_MAX {
                return Err(damaged("its pages lie too deep"));
            }
            let below = self.page(below)?;
            path.push((below, 0));
        }
        Ok(())
    }

    /// Looks up a key in a bucket by descending its tree.
    pub(super) fn find(&self, bucket: &Bucket, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut page = self.root_page(bucket)?;
        for _ in 0..DEPTH_MAX {
            if page.is_leaf {
                for place in 0..page.count {
                    let element = page.leaf(place)?;
                    if element.key == key {
                        return Ok(Some(element.value.to_vec()));
                    }
                }
                return Ok(None);
            }
            let mut below = None;
            for place in 0..page.count {
                // The first page also covers keys below its first key.
                if below.is_some() && page.branch_key(place)? > key {
                    break;
                }
                below = Some(page.branch(place)?);
            }
            let Some(below) = below else { return Ok(None) };
            page = self.page(below)?;
        }
        Err(damaged("its pages lie too deep"))
    }

    fn root_page(&self, bucket: &Bucket) -> io::Result<Page> {
        match bucket {
            Bucket::Tree(root) => self.page(*root),
            Bucket::Inline(page) => Page::new(page.clone()),
        }
    }

    /// Reads a page with the ones it continues in.
    fn page(&self, id: u64) -> io::Result<Page> {
        if id < 2 || id >= self.pages {
            return Err(damaged("a page lies outside of the file"));
        }
        let at = id * self.page_bytes;
        let mut header = [0; PAGE_HEADER_BYTES];
        self.file.read_exact_at(&mut header, at)?;
        let more = u64::from(u32_at(&header, 12).unwrap_or(u32::MAX));
        if u64_at(&header, 0) != Some(id) || more >= self.pages - id {
            return Err(damaged("a page is not what it should be"));
        }
        let bytes = (more + 1).saturating_mul(self.page_bytes);
        let bytes = usize::try_from(bytes).ok().filter(|_| bytes <= WHOLE_PAGE_BYTES_MAX);
        let mut page = vec![0; bytes.ok_or_else(|| damaged("a page is too large"))?];
        self.file.read_exact_at(&mut page, at)?;
        Page::new(page)
    }
}

/// An element of a leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    is_bucket: bool,
}

#[derive(Debug)]
struct Page {
    bytes: Vec<u8>,
    is_leaf: bool,
    count: usize,
}

impl Page {
    fn new(bytes: Vec<u8>) -> io::Result<Self> {
        let header = u16_at(&bytes, 8).zip(u16_at(&bytes, 10));
        let (flags, count) = header.ok_or_else(|| damaged("a page is cut short"))?;
        if flags != BRANCH && flags != LEAF {
            return Err(damaged("a page is of another kind than it should be"));
        }
        Ok(Self { bytes, is_leaf: flags == LEAF, count: count.into() })
    }

    /// Byte offset of an element's header.
    fn at(place: usize) -> usize {
        PAGE_HEADER_BYTES + place * ELEMENT_BYTES
    }

    fn leaf(&self, place: usize) -> io::Result<Element<'_>> {
        let number = |field: usize| u32_at(&self.bytes, Self::at(place) + 4 * field);
        let element = || {
            let (flags, position) = (number(0)?, number(1)? as usize);
            let (key_bytes, value_bytes) = (number(2)? as usize, number(3)? as usize);
            let rest = self.bytes.get(Self::at(place).checked_add(position)?..)?;
            let (key, rest) = rest.split_at_checked(key_bytes)?;
            let value = rest.get(..value_bytes)?;
            Some(Element { key, value, is_bucket: flags & BUCKET != 0 })
        };
        element().ok_or_else(|| damaged("an element lies outside of its page"))
    }

    /// The first key of the child page.
    fn branch_key(&self, place: usize) -> io::Result<&[u8]> {
        let number = |field: usize| u32_at(&self.bytes, Self::at(place) + 4 * field);
        let key = || {
            let (position, key_bytes) = (number(0)? as usize, number(1)? as usize);
            self.bytes.get(Self::at(place).checked_add(position)?..)?.get(..key_bytes)
        };
        key().ok_or_else(|| damaged("an element lies outside of its page"))
    }

    /// Page id of the child page.
    fn branch(&self, place: usize) -> io::Result<u64> {
        let page = u64_at(&self.bytes, Self::at(place) + 8);
        page.ok_or_else(|| damaged("an element lies outside of its page"))
    }
}

#[derive(Debug)]
struct Meta {
    page_bytes: u64,
    root: u64,
    pages: u64,
    transaction: u64,
}

/// Reads the meta page at `at`: `None` if there is none, an inner error if it is damaged.
fn read_meta(file: &File, at: u64, bytes: u64) -> io::Result<Option<Result<Meta, ()>>> {
    let mut page = [0; PAGE_HEADER_BYTES + META_BYTES];
    if at.saturating_add(page.len() as u64) > bytes {
        return Ok(None);
    }
    file.read_exact_at(&mut page, at)?;
    let (header, meta) = page.split_at(PAGE_HEADER_BYTES);
    if u32_at(meta, 0) != Some(MAGIC) {
        return Ok(None);
    }
    let is_right = u16_at(header, 8).is_some_and(|flags| flags & META != 0)
        && u32_at(meta, 4) == Some(VERSION)
        && u64_at(meta, META_BYTES - 8) == Some(fnv1a(&meta[..META_BYTES - 8]));
    let meta = || {
        let page_bytes = u64::from(u32_at(meta, 8)?);
        let is_size =
            page_bytes.is_power_of_two() && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes);
        let (root, pages) = (u64_at(meta, 16)?, u64_at(meta, 40)?);
        let transaction = u64_at(meta, 48)?;
        (is_right && is_size).then_some(Meta { page_bytes, root, pages, transaction })
    };
    Ok(Some(meta().ok_or(())))
}

/// bbolt's checksum: 64-bit FNV-1a.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
