//! Settings that must not appear in logs.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

/// The text shown instead of a secret.
pub(super) const REDACTED: &str = "(secret)";
/// The newtype name by which a [`Secret`] tells this crate's deserializer what it is.
pub(super) const NAME: &str = "$conclave::Secret";

/// A setting that is shown as `(secret)` in debug output, in [explanations](super::Explanation), in
/// [changes](super::Change) and in errors about bad values. It has no `Display` and cannot be
/// serialized, so that it is not written by accident.
///
/// ```
/// use conclave_client::config::Secret;
///
/// #[derive(Debug, serde::Deserialize)]
/// struct Database { user: String, password: Secret<String> }
///
/// let text = r#"{"user": "app", "password": "hunter2"}"#;
/// let database: Database = serde_json::from_str(text).unwrap();
/// assert_eq!(database.password.expose(), "hunter2");
/// assert!(!format!("{database:?}").contains("hunter2"));
/// ```
///
/// Inside a `#[serde(flatten)]`, or an enum that is `untagged` or has a `tag`, serde hides that a
/// field is a secret. The value itself stays redacted, but an explanation of its path shows what
/// the sources hold.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// Unwraps the value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(NAME, Visitor(std::marker::PhantomData))
    }
}

struct Visitor<T>(std::marker::PhantomData<T>);

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
    type Value = Secret<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        // The original error would quote the value.
        T::deserialize(deserializer)
            .map(Secret)
            .map_err(|_quotes_it| de::Error::custom("the secret is not of the right type"))
    }
}
