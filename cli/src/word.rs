//! Arguments that need not be valid text.

use std::{borrow::Cow, ffi::OsString, os::unix::ffi::OsStringExt as _};

use bytes::Bytes;

/// An argument as it was given: keys and values may be any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word(Vec<u8>);

impl Word {
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text for people to read.
    pub(crate) fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl From<OsString> for Word {
    fn from(argument: OsString) -> Self {
        Self(argument.into_vec())
    }
}
