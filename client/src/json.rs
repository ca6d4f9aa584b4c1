//! Values in JSON.

use conclave_proto::{etcdserverpb::RangeResponse, mvccpb::KeyValue};
use serde::{Serialize, de::DeserializeOwned};

use crate::{client::Client, error::Error, kv::Put, reply::Reply};

/// Decodes the JSON value of a key into a type of the program.
///
/// ```no_run
/// # async fn example(client: conclave_client::Client) -> Result<(), conclave_client::Error> {
/// use conclave_client::Json as _;
///
/// #[derive(Debug, serde::Serialize, serde::Deserialize)]
/// struct Order { item: String, count: u32 }
///
/// client.put_json("orders/17", &Order { item: "tea".into(), count: 2 })?.await?;
/// let order: Option<Order> = client.get("orders/17").await?.json()?;
/// for kv in &client.get("orders/").prefix().await?.kvs {
///     println!("{:?}", kv.json::<Order>()?);
/// }
/// # Ok(()) }
/// ```
pub trait Json {
    /// Decodes the value.
    ///
    /// # Errors
    /// [`Error::Decode`] if it is not JSON, or does not fit the type.
    fn json<T: DeserializeOwned>(&self) -> Result<T, Error>;
}

impl Json for KeyValue {
    fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.value).map_err(|error| Error::Decode {
            key: String::from_utf8_lossy(&self.key).into_owned(),
            message: error.to_string(),
        })
    }
}

impl Reply<RangeResponse> {
    /// Decodes the value of the first key; `None` if there is no key. See [`Json`].
    ///
    /// # Errors
    /// [`Error::Decode`] if it is not JSON, or does not fit the type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        self.kvs.first().map(Json::json).transpose()
    }
}

impl Client {
    /// Writes `value` as JSON; see [`Json`].
    ///
    /// # Errors
    /// [`Error::Decode`] if it cannot be written as JSON, such as a map whose keys are not strings.
    pub fn put_json(
        &self,
        key: impl Into<Vec<u8>>,
        value: &impl Serialize,
    ) -> Result<Put<Self>, Error> {
        let key = key.into();
        match serde_json::to_vec(value) {
            Ok(value) => Ok(self.put(key, value)),
            Err(error) => Err(Error::Decode {
                key: String::from_utf8_lossy(&key).into_owned(),
                message: error.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_names_its_key() {
        let kv = |value: &str| KeyValue {
            key: "orders/17".into(),
            value: value.to_owned().into(),
            ..KeyValue::default()
        };
        assert_eq!(kv("[1, 2]").json::<Vec<u8>>().unwrap(), [1, 2]);
        let error = kv("[1, 2000]").json::<Vec<u8>>().unwrap_err().to_string();
        assert!(error.starts_with("orders/17: "), "{error}");
        assert!(error.contains("line 1 column 8"), "{error}");
    }
}
