//! Access of the load generator to servers: TLS for `https://` endpoints, and the token of a user.
//! The options have etcdctl's names.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use conclave_proto::etcdserverpb::AuthenticateRequest;
use conclave_proto::etcdserverpb::auth_client::AuthClient;
use conclave_transport::{Client, ClientTls, Followed, Pair, Verification};
use http::HeaderValue;

use crate::connection::Connection;

/// TLS settings and token for each connection of a run; none by default.
#[derive(Clone, Default)]
pub struct Access {
    pub(crate) tls: Option<Arc<Followed<ClientTls>>>,
    pub(crate) token: Option<HeaderValue>,
}

impl fmt::Debug for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Prints neither keys nor tokens.
        let mut fields = formatter.debug_struct("Access");
        fields.field("tls", &self.tls.is_some()).field("token", &self.token.is_some()).finish()
    }
}

impl Access {
    /// Access with TLS, from the files of `client`.
    ///
    /// # Errors
    /// If a file cannot be read or is invalid.
    pub fn by_tls(client: Client) -> Result<Self> {
        Ok(Self { tls: Some(Arc::new(client.follow()?)), token: None })
    }

    /// Adds the token that `endpoint` issues for `user`'s password.
    ///
    /// # Errors
    /// If the endpoint cannot be reached or rejects the password.
    pub async fn log_in(self, endpoint: &str, user: &User) -> Result<Self> {
        let connection = Connection::open_by(endpoint, &self).await?;
        let origin = connection.origin();
        let request =
            AuthenticateRequest { name: user.name.clone(), password: user.password.clone() };
        let answer = AuthClient::with_origin(connection, origin).authenticate(request).await;
        let token = answer.with_context(|| format!("log in as {}", user.name))?.into_inner().token;
        // Like etcd's Go client: a header value, which HTTP/2 sends once per connection and then
        // refers to by index.
        let token = HeaderValue::from_str(&token).context("a token without line breaks")?;
        Ok(Self { token: Some(token), ..self })
    }
}

/// A user name and its password.
#[derive(Clone)]
pub struct User {
    pub(crate) name: String,
    pub(crate) password: String,
}

impl fmt::Debug for User {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("User").field(&self.name).finish()
    }
}

impl User {
    pub(crate) fn new(name: &str, password: &str) -> Self {
        Self { name: name.to_owned(), password: password.to_owned() }
    }

    /// Parses `NAME:PASSWORD`; the password may contain colons.
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((name, password)) if !name.is_empty() => Ok(Self::new(name, password)),
            _ => Err("expected NAME:PASSWORD".to_owned()),
        }
    }
}

/// Options for servers with authentication or TLS.
#[derive(Clone, Debug, Args)]
pub struct AccessOptions {
    /// Call as this user, `NAME:PASSWORD`; one token serves all connections.
    #[arg(long, value_parser = User::parse)]
    user: Option<User>,
    /// Authorities that sign the servers' certificates; without it those of the system.
    #[arg(long)]
    cacert: Option<PathBuf>,
    /// Certificate to present.
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
}

impl AccessOptions {
    /// Reads the files if an endpoint uses TLS, and logs in at the first endpoint if there is a
    /// user.
    ///
    /// # Errors
    /// If a file cannot be used or the user is rejected.
    pub fn open(self, endpoints: &[String]) -> Result<Access> {
        let mut access = Access::default();
        if endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            let verification = self.cacert.map_or(Verification::System, Verification::Ca);
            let identity = self.cert.zip(self.key).map(|(cert, key)| Pair { cert, key });
            access = Access::by_tls(Client { verification, identity, ..Client::default() })?;
        }
        let (Some(user), Some(first)) = (self.user, endpoints.first()) else { return Ok(access) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(access.log_in(first, &user))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        access: AccessOptions,
    }

    fn parse(arguments: &[&str]) -> Result<AccessOptions, clap::Error> {
        let all = std::iter::once(&"bench").chain(arguments);
        Options::try_parse_from(all).map(|options| options.access)
    }

    #[test]
    fn a_password_may_hold_colons_and_is_not_printed() {
        let options = parse(&["--user", "alice:se:cret"]).unwrap();
        let user = options.user.as_ref().unwrap();
        assert_eq!((user.name.as_str(), user.password.as_str()), ("alice", "se:cret"));
        assert!(!format!("{options:?}").contains("se:cret"), "{options:?}");
        for bad in ["alice", ":secret", ""] {
            assert!(parse(&["--user", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_needs_its_key() {
        assert!(parse(&["--cert", "a.pem"]).is_err());
        assert!(parse(&["--key", "a.pem"]).is_err());
        assert!(parse(&["--cert", "a.pem", "--key", "b.pem", "--cacert", "c.pem"]).is_ok());
    }
}
