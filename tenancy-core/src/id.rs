//! Names of tenants: what is established ([`TenantId`], [`TenantSlug`]) and what is only claimed ([`TenantHint`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::DomainName;
use crate::{Error, Result};

/// The identity of a tenant: a UUID, version 7 when made here.
///
/// - Never nil: "no tenant" has no representation.
/// - There is no `From<Uuid>`: untrusted input is parsed, and arrives as a [`TenantHint`].
/// - `Display` is the lower-case hyphenated form, safe inside a SQL literal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Uuid", into = "Uuid")]
pub struct TenantId(Uuid);

impl TenantId {
    /// A new identity, ordered by time.
    #[expect(clippy::new_without_default, reason = "an identity is not a default value")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The identity that a store gave back.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for the nil UUID.
    pub fn from_uuid(uuid: Uuid) -> Result<Self> {
        if uuid.is_nil() {
            return Err(Error::invalid("tenant_id", "must not be the nil UUID"));
        }
        Ok(Self(uuid))
    }

    /// The UUID, to bind to a query.
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl FromStr for TenantId {
    type Err = Error;

    /// Accepts the hyphenated form only, in either case: 36 characters.
    fn from_str(s: &str) -> Result<Self> {
        if s.len() != 36 {
            return Err(Error::invalid("tenant_id", "must be a UUID of 36 characters"));
        }
        let uuid = Uuid::try_parse(s).map_err(|_| Error::invalid("tenant_id", "must be a UUID of 36 characters"))?;
        Self::from_uuid(uuid)
    }
}

impl TryFrom<Uuid> for TenantId {
    type Error = Error;

    fn try_from(uuid: Uuid) -> Result<Self> {
        Self::from_uuid(uuid)
    }
}

impl From<TenantId> for Uuid {
    fn from(id: TenantId) -> Self {
        id.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The human name of a tenant in addresses: a lower-case DNS label.
///
/// - 3 to 40 characters of `a-z`, `0-9` and `-`; begins with a letter, ends with a letter or digit.
/// - No `--` at the third place (`xn--…` would be another script's name).
/// - Not one of the [reserved words](TenantSlug::RESERVED), which a platform needs for itself.
///
/// `parse` rejects; it never repairs.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantSlug(Box<str>);

impl TenantSlug {
    /// The shortest slug, in characters.
    pub const MIN_LEN: usize = 3;
    /// The longest slug, in characters.
    pub const MAX_LEN: usize = 40;
    /// Words that a platform keeps for its own hosts and paths.
    pub const RESERVED: &[&str] = &[
        "about",
        "abuse",
        "account",
        "accounts",
        "admin",
        "administrator",
        "api",
        "app",
        "apps",
        "assets",
        "auth",
        "autoconfig",
        "autodiscover",
        "billing",
        "blog",
        "cdn",
        "console",
        "dashboard",
        "dev",
        "dns",
        "docs",
        "email",
        "ftp",
        "global",
        "graphql",
        "health",
        "healthz",
        "help",
        "host",
        "hostmaster",
        "imap",
        "info",
        "internal",
        "localhost",
        "login",
        "logout",
        "mail",
        "metrics",
        "mta-sts",
        "mx1",
        "news",
        "null",
        "oauth",
        "operator",
        "pop3",
        "postmaster",
        "public",
        "readyz",
        "root",
        "saml",
        "security",
        "share",
        "shared",
        "signin",
        "signup",
        "smtp",
        "sso",
        "staging",
        "static",
        "status",
        "support",
        "system",
        "template",
        "tenancy",
        "tenant",
        "tenants",
        "test",
        "undefined",
        "user",
        "users",
        "webmail",
        "webmaster",
        "wpad",
        "www",
    ];

    /// The slug as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(s: &str) -> Result<(), &'static str> {
        let bytes = s.as_bytes();
        if !(Self::MIN_LEN..=Self::MAX_LEN).contains(&bytes.len()) {
            return Err("must have 3 to 40 characters");
        }
        if !bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err("may contain only a-z, 0-9 and '-'");
        }
        if !bytes[0].is_ascii_lowercase() || bytes[bytes.len() - 1] == b'-' {
            return Err("must begin with a letter and end with a letter or digit");
        }
        if bytes.get(2..4) == Some(b"--") {
            return Err("must not have '--' as its third and fourth characters");
        }
        if Self::RESERVED.binary_search(&s).is_ok() {
            return Err("is a reserved word: choose another");
        }
        Ok(())
    }
}

impl FromStr for TenantSlug {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::check(s).map_err(|why| Error::invalid("slug", why))?;
        Ok(Self(s.into()))
    }
}

impl TryFrom<String> for TenantSlug {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<TenantSlug> for String {
    fn from(slug: TenantSlug) -> Self {
        slug.0.into()
    }
}

impl fmt::Display for TenantSlug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantSlug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// An untrusted pointer at a tenant: well-formed, and nothing more is known of it.
///
/// A catalog turns it into a [`Tenant`](crate::Tenant); only an active one becomes a context.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TenantHint {
    /// By identity.
    Id(TenantId),
    /// By slug.
    Slug(TenantSlug),
    /// By a domain of its own, which it has proved.
    Domain(DomainName),
}

impl FromStr for TenantHint {
    type Err = Error;

    /// A UUID, or else a slug. Reserved words parse to no hint: no tenant can have them.
    fn from_str(s: &str) -> Result<Self> {
        match s.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => s.parse().map(Self::Slug).map_err(|_| Error::invalid("tenant", "must be a tenant's UUID or slug")),
        }
    }
}

impl From<TenantId> for TenantHint {
    fn from(id: TenantId) -> Self {
        Self::Id(id)
    }
}

impl From<TenantSlug> for TenantHint {
    fn from(slug: TenantSlug) -> Self {
        Self::Slug(slug)
    }
}

impl From<DomainName> for TenantHint {
    fn from(domain: DomainName) -> Self {
        Self::Domain(domain)
    }
}

impl fmt::Display for TenantHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Slug(slug) => slug.fmt(f),
            Self::Domain(domain) => domain.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_words_are_sorted_and_refused() {
        assert!(TenantSlug::RESERVED.is_sorted());
        for word in TenantSlug::RESERVED {
            assert!(word.parse::<TenantSlug>().is_err(), "{word}");
        }
    }

    #[test]
    fn slugs_are_dns_labels() {
        for good in ["acme", "a-b", "a1b", "abc-def-9", &"a".repeat(40)] {
            assert!(good.parse::<TenantSlug>().is_ok(), "{good}");
        }
        let bad = [
            "",
            "ab",
            "Acme",
            "1ab",
            "-ab",
            "ab-",
            "a.b",
            "a_b",
            "a b",
            "acmé",
            "xn--abc",
            "a\0b",
            "acme\n",
            "../x",
            "a'b",
            &"a".repeat(41),
        ];
        for bad in bad {
            let error = bad.parse::<TenantSlug>().expect_err(bad);
            assert_eq!(error.field(), Some("slug"), "{bad}");
        }
    }

    #[test]
    fn ids_are_hyphenated_and_never_nil() {
        let id = TenantId::new();
        assert_eq!(id.to_string().parse::<TenantId>().expect("own form"), id);
        assert_eq!(id.to_string().to_uppercase().parse::<TenantId>().expect("upper case"), id);
        for bad in ["", "00000000-0000-0000-0000-000000000000", &id.as_uuid().simple().to_string(), &format!("{{{id}}}"), "' or true --"] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<TenantId>("\"00000000-0000-0000-0000-000000000000\"").is_err());
    }

    #[test]
    fn a_hint_is_an_id_or_a_slug() {
        let id = TenantId::new();
        assert_eq!(id.to_string().parse::<TenantHint>().expect("id"), TenantHint::Id(id));
        assert!(matches!("acme".parse(), Ok(TenantHint::Slug(_))));
        assert!("a b".parse::<TenantHint>().is_err());
    }
}
