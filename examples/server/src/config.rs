//! What can be configured: each setting is a flag and an environment variable, and `--help` prints its default.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::FromArgMatches as _;
use tenancy_core::{Error, ErrorKind, LinkBase, Result};

/// The server's settings. An empty text counts as absent.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct Config {
    /// The database, as the application's role: postgres://tenancy_app@host/database. Absent: an embedded PostgreSQL in the data folder
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true, global = true)]
    pub database_url: Option<Secret>,
    /// The same database, as an administrator: for migrations and for work across tenants. Without it, the operator API is off
    #[arg(long, env = "TENANCY_ADMIN_DATABASE_URL", value_name = "URL", hide_env_values = true, global = true)]
    pub admin_database_url: Option<Secret>,
    /// The address to listen on; port 0 takes a free one
    #[arg(long, env = "TENANCY_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:8080", global = true)]
    pub listen: String,
    /// The folder for the embedded database, the objects and the development secret
    #[arg(long, env = "TENANCY_DATA_DIR", value_name = "FOLDER", default_value = ".tenancy", global = true)]
    pub data_dir: PathBuf,
    /// The bearer token of operators. Absent: a new one is made and printed at each start
    #[arg(long, env = "TENANCY_OPERATOR_TOKEN", value_name = "TOKEN", hide_env_values = true, global = true)]
    pub operator_token: Option<Secret>,
    /// The HS256 secret of tenants' tokens, at least 32 bytes. Absent, and no JWK set: a development secret in the data folder
    #[arg(long, env = "TENANCY_JWT_SECRET", value_name = "SECRET", hide_env_values = true, global = true)]
    pub jwt_secret: Option<Secret>,
    /// The public keys of tenants' tokens (RS256, ES256, EdDSA): a JWK set's file, or its http(s) URL
    #[arg(long, env = "TENANCY_JWKS", value_name = "FILE|URL", global = true)]
    pub jwks: Option<String>,
    /// The `iss` of tenants' tokens
    #[arg(long, env = "TENANCY_JWT_ISSUER", value_name = "TEXT", default_value = "tenancy-server", global = true)]
    pub jwt_issuer: String,
    /// The `aud` of tenants' tokens
    #[arg(long, env = "TENANCY_JWT_AUDIENCE", value_name = "TEXT", default_value = "tenancy-server", global = true)]
    pub jwt_audience: String,
    /// Where attachments are: file:///absolute/folder, or memory: (gone at the end). Absent: the folder `objects` in the data folder
    #[arg(long, env = "TENANCY_OBJECTS", value_name = "URL", global = true)]
    pub objects: Option<String>,
    /// Each tenant has a host, its slug before this domain: a request's host must then name the tenant of its token
    #[arg(long, env = "TENANCY_BASE_DOMAIN", value_name = "DOMAIN", global = true)]
    pub base_domain: Option<String>,
    /// The most database connections for tenants' requests; a few more serve the catalog and operators
    #[arg(long, env = "TENANCY_MAX_CONNECTIONS", value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000), global = true)]
    pub max_connections: u32,
    /// The largest JSON body, in bytes
    #[arg(long, env = "TENANCY_MAX_BODY", value_name = "BYTES", default_value_t = 64 * 1024, global = true)]
    pub max_body: usize,
    /// The largest attachment, in bytes
    #[arg(long, env = "TENANCY_MAX_ATTACHMENT", value_name = "BYTES", default_value_t = 25 * 1024 * 1024, global = true)]
    pub max_attachment: u64,
    /// How long a request may take
    #[arg(long, env = "TENANCY_REQUEST_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration, global = true)]
    pub request_timeout: Duration,
    /// How long the upload of an attachment may take
    #[arg(long, env = "TENANCY_UPLOAD_TIMEOUT", value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration, global = true)]
    pub upload_timeout: Duration,
    /// How long /readyz says 503 before a stopping server takes no more connections
    #[arg(long, env = "TENANCY_DRAIN_DELAY", value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration, global = true)]
    pub drain_delay: Duration,
    /// Whether tokens are refused whose subject is no member of the tenant; otherwise their issuer's claims are enough
    #[arg(long, env = "TENANCY_MEMBERS_ONLY", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set, global = true)]
    pub members_only: bool,
    /// The mail server: smtp://user:password@host:port (tls=required unless ?tls=opportunistic or none), or smtps://. Absent: mail is kept in
    /// the folder `mailbox` in the data folder
    #[arg(long, env = "TENANCY_SMTP", value_name = "URL", hide_env_values = true, global = true)]
    pub smtp: Option<Secret>,
    /// The sender of mail
    #[arg(long, env = "TENANCY_MAIL_FROM", value_name = "ADDRESS", default_value = "no-reply@localhost", global = true)]
    pub mail_from: String,
    /// The secret that signs certificates of erasure, at least 32 bytes: the same one on every node. Absent: one in the data folder
    #[arg(long, env = "TENANCY_CERTIFICATE_KEY", value_name = "SECRET", hide_env_values = true, global = true)]
    pub certificate_key: Option<Secret>,
    /// The secret that tenants' backup keys are sealed with, at least 32 bytes: the same one on every node. Absent: one in the data folder
    #[arg(long, env = "TENANCY_BACKUP_KEY", value_name = "SECRET", hide_env_values = true, global = true)]
    pub backup_key: Option<Secret>,
    /// How fast a backup reads, in bytes a second; 0 is as fast as it can
    #[arg(long, env = "TENANCY_BACKUP_PACE", value_name = "BYTES", default_value_t = 10 * 1024 * 1024, global = true)]
    pub backup_pace: u64,
    /// How often tenants without a schedule of their own are backed up by themselves, in hours; 0 is never
    #[arg(long, env = "TENANCY_BACKUP_EVERY", value_name = "HOURS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=8760), global = true)]
    pub backup_every: u16,
    /// How often it is proved that those can be restored, in days; 0 is never
    #[arg(long, env = "TENANCY_DRILL_EVERY", value_name = "DAYS", default_value_t = 91, value_parser = clap::value_parser!(u16).range(..=3650), global = true)]
    pub drill_every: u16,
    /// Where browsers reach this server: links in mails begin with it. `{tenant}` in it stands for the tenant's slug. Absent: the address that it
    /// listens on
    #[arg(long, env = "TENANCY_PUBLIC_URL", value_name = "URL", global = true)]
    pub public_url: Option<String>,
    /// How long a session lasts, whatever is done in it
    #[arg(long, env = "TENANCY_SESSION_TTL", value_name = "TIME", default_value = "12h", value_parser = humantime::parse_duration, global = true)]
    pub session_ttl: Duration,
    /// The name server that is asked for the proofs of tenants' own domains. Absent: the system's
    #[arg(long, env = "TENANCY_DNS", value_name = "ADDRESS:PORT", global = true)]
    pub dns: Option<String>,
    /// Whether webhooks may go to this machine, also by http: for development
    #[arg(long, env = "TENANCY_WEBHOOKS_LOOPBACK", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set, global = true)]
    pub webhooks_loopback: bool,
    /// Where other installations reach this one: https://, a host, and the port if it is another one. Absent: TENANCY_PUBLIC_URL, if it can be that
    #[arg(long, env = "TENANCY_FEDERATION_ORIGIN", value_name = "ORIGIN", global = true)]
    pub federation_origin: Option<String>,
    /// The secret that signs what other installations are told, at least 32 bytes: the same one on every node. Absent: one in the data folder
    #[arg(long, env = "TENANCY_FEDERATION_KEY", value_name = "SECRET", hide_env_values = true, global = true)]
    pub federation_key: Option<Secret>,
    /// The secret that will take its place: other installations can learn its public key before it does
    #[arg(long, env = "TENANCY_FEDERATION_NEXT_KEY", value_name = "SECRET", hide_env_values = true, global = true)]
    pub federation_next_key: Option<Secret>,
    /// Whether other installations may be on this machine, also by http: for development
    #[arg(long, env = "TENANCY_FEDERATION_LOOPBACK", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set, global = true)]
    pub federation_loopback: bool,
    /// How many requests for links (/s/…) an address may make in a minute. Behind a proxy all have its address: set 0, for no limit, and let the
    /// proxy limit them
    #[arg(long, env = "TENANCY_LINK_RATE", value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=100_000), global = true)]
    pub link_rate: u32,
    /// How many tenants are made ahead, so that one that is created with `"provision": true` is active at once
    #[arg(long, env = "TENANCY_WARM_TENANTS", value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100), global = true)]
    pub warm_tenants: u32,
}

impl Default for Config {
    /// The defaults that `--help` prints; the environment is not read.
    fn default() -> Self {
        let command = <Self as clap::Args>::augment_args(clap::Command::new("defaults"));
        let matches = command.mut_args(|arg| arg.env(clap::builder::Resettable::Reset)).try_get_matches_from(["defaults"]);
        matches.and_then(|matches| Self::from_arg_matches(&matches)).expect("every setting is optional or has a default")
    }
}

impl Config {
    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured): the message names the variables, and what to do.
    pub fn check(&self) -> Result<()> {
        let refuse = |why: &str| Err(Error::new(ErrorKind::Misconfigured, why.to_owned()));
        if given(&self.admin_database_url).is_some() && given(&self.database_url).is_none() {
            return refuse(
                "TENANCY_ADMIN_DATABASE_URL is set and DATABASE_URL is not: set DATABASE_URL too, with the role tenancy_app as its user",
            );
        }
        for (variable, url) in [("DATABASE_URL", &self.database_url), ("TENANCY_ADMIN_DATABASE_URL", &self.admin_database_url)] {
            if given(url).is_some_and(|url| !url.starts_with("postgres://") && !url.starts_with("postgresql://")) {
                return refuse(&format!("{variable} must be postgres://user@host:port/database"));
            }
        }
        if given(&self.jwt_secret).is_some() && text(&self.jwks).is_some() {
            return refuse("TENANCY_JWT_SECRET and TENANCY_JWKS are both set: unset one of them");
        }
        if let Some(token) = given(&self.operator_token)
            && !token.bytes().all(|b| b.is_ascii_graphic())
        {
            return refuse("TENANCY_OPERATOR_TOKEN must be visible ASCII characters, without white space");
        }
        if self.jwt_issuer.is_empty() || self.jwt_audience.is_empty() {
            return refuse("TENANCY_JWT_ISSUER and TENANCY_JWT_AUDIENCE must not be empty");
        }
        if text(&self.public_url).is_some_and(|url| LinkBase::new(url.replace("{tenant}", "x")).is_err()) {
            return refuse("TENANCY_PUBLIC_URL must be such as https://app.example.com or https://{tenant}.example.com");
        }
        Ok(())
    }
}

/// The secret, if there is one that is not empty.
pub(crate) fn given(secret: &Option<Secret>) -> Option<&str> {
    secret.as_ref().map(Secret::expose).filter(|text| !text.is_empty())
}

/// The text, if there is one that is not empty.
pub(crate) fn text(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// A text that must not be printed: `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = Config::default();
        assert_eq!((config.listen.as_str(), config.data_dir.to_str()), ("127.0.0.1:8080", Some(".tenancy")));
        assert_eq!((config.max_body, config.max_attachment), (65_536, 26_214_400));
        assert_eq!((config.request_timeout, config.jwt_issuer.as_str()), (Duration::from_secs(30), "tenancy-server"));
        assert!(config.check().is_ok() && config.database_url.is_none());
    }

    #[test]
    fn contradictions_are_refused_with_what_to_set() {
        let says = |config: Config| config.check().expect_err("refused").to_string();
        let admin_only = Config { admin_database_url: Some("postgres://x".into()), ..Config::default() };
        assert!(says(admin_only).contains("set DATABASE_URL too"));
        let other = Config { database_url: Some("mysql://u:hunter2@h/d".into()), ..Config::default() };
        assert!(says(other.clone()).contains("must be postgres://") && !says(other).contains("hunter2"));
        let both = Config { jwt_secret: Some("s".into()), jwks: Some("f".into()), ..Config::default() };
        assert!(says(both).contains("unset one"));
        let spaced = Config { operator_token: Some("a b".into()), ..Config::default() };
        assert!(says(spaced).contains("TENANCY_OPERATOR_TOKEN"));
        // Compose files set what they don't know to the empty text.
        let empty =
            Config { admin_database_url: Some("".into()), jwks: Some(String::new()), jwt_secret: Some("s".into()), ..Config::default() };
        assert!(empty.check().is_ok());
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = Config { database_url: Some("postgres://u:hunter2@h/d".into()), ..Config::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
