//! Domains of tenants' own: a name that can be one, and the proof in the DNS that it is theirs.
//!
//! Any number of tenants may claim a domain. The one that proves it first holds it, and nobody learns of another's claim.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A host name that a tenant may bring.
///
/// - Lower-case ASCII, two labels or more, at most [`MAX_LEN`](DomainName::MAX_LEN) bytes; no address, port, wildcard or trailing dot.
/// - Never below a name that means another thing on each machine: `localhost`, `.local`, `.internal`, `.test` and the like.
/// - An internationalised name is its ASCII form (`xn--…`), and nothing else: what it looks like is never compared.
/// - A public suffix (`co.uk`) is a name as any other: nobody can prove that it is theirs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(Box<str>);

impl DomainName {
    /// The longest name, in bytes: the name of the proof is longer, and must be one as well.
    pub const MAX_LEN: usize = 253 - CHALLENGE.len();
    /// The last labels that no tenant can have.
    pub const RESERVED: [&str; 16] = [
        "alt",
        "arpa",
        "corp",
        "domain",
        "example",
        "home",
        "host",
        "internal",
        "intranet",
        "invalid",
        "lan",
        "local",
        "localdomain",
        "localhost",
        "onion",
        "test",
    ];

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `base` or a name below it.
    pub fn is_within(&self, base: &str) -> bool {
        self.0.strip_suffix(base).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// Where the proof is looked for.
    pub fn challenge(&self) -> String {
        format!("{CHALLENGE}{}", self.0)
    }
}

const CHALLENGE: &str = "_tenancy-challenge.";
const VALUE: &str = "tenancy-verify=";

impl FromStr for DomainName {
    type Err = Error;

    /// Upper-case letters are made lower-case.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &'static str| Err(Error::invalid("domain", why));
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && (label.get(2..4) != Some("--") || label.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("xn--")))
        };
        if !text.is_ascii() {
            return refuse("must be in its ASCII form (xn--…)");
        }
        if text.len() > Self::MAX_LEN || !text.contains('.') || !text.split('.').all(label) {
            return refuse("must be a host name such as shop.example.com, without port, wildcard or trailing dot");
        }
        let name = text.to_ascii_lowercase();
        let last = name.rsplit('.').next().unwrap_or_default();
        // What ends in a number is an IPv4 address to some parsers: 1.2.3.4, 0x7f.1.
        if !last.starts_with(|c: char| c.is_ascii_lowercase()) || last.len() < 2 {
            return refuse("must be a host name, and not an address");
        }
        if Self::RESERVED.binary_search(&last).is_ok() {
            return refuse("must be a name of the public DNS");
        }
        Ok(Self(name.into()))
    }
}

impl TryFrom<String> for DomainName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far a tenant has come with a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DomainState {
    /// Claimed, and not proved.
    Pending,
    /// Proved: requests to it are this tenant's.
    Verified,
    /// The proof was gone at several checks in a row: whoever proves it next holds it.
    Lost,
}

impl DomainState {
    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Verified => "verified",
            Self::Lost => "lost",
        }
    }
}

impl FromStr for DomainState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = [Self::Pending, Self::Verified, Self::Lost].into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| Error::invalid("state", "must be pending, verified or lost"))
    }
}

/// A tenant's claim of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Domain {
    /// The name.
    pub domain: DomainName,
    /// How far it has come.
    pub state: DomainState,
    /// What the owner of the domain must publish, and keep.
    pub record: Challenge,
    /// Why the last check found no proof.
    pub problem: Option<String>,
    /// When it was claimed.
    pub created_at: DateTime<Utc>,
    /// When it was proved.
    pub verified_at: Option<DateTime<Utc>>,
    /// When the proof was last looked for.
    pub checked_at: Option<DateTime<Utc>>,
}

impl Domain {
    /// The most claims of one tenant.
    pub const MAX: u32 = 20;

    /// The claim of `domain` with `token`, as it begins.
    pub fn new(domain: DomainName, token: &str, created_at: DateTime<Utc>) -> Self {
        let record = Challenge::new(&domain, token);
        Self { domain, state: DomainState::Pending, record, problem: None, created_at, verified_at: None, checked_at: None }
    }
}

/// A TXT record. Its value is public once it is published: it binds the domain to one tenant, and opens nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Challenge {
    /// The record's name.
    pub name: String,
    /// The record's type.
    pub r#type: &'static str,
    /// The record's value.
    pub value: String,
}

impl Challenge {
    /// The record that proves `domain` by `token`.
    pub fn new(domain: &DomainName, token: &str) -> Self {
        Self { name: domain.challenge(), r#type: "TXT", value: format!("{VALUE}{token}") }
    }

    /// What tells this claim from others of the same domain.
    pub fn token(&self) -> &str {
        self.value.strip_prefix(VALUE).unwrap_or_default()
    }

    /// Looks for it.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn look(&self, resolver: &dyn TxtResolver) -> Proof {
        match resolver.txt(&self.name).await {
            Ok(texts) if texts.iter().any(|text| text.trim() == self.value) => Proof::Found,
            Ok(texts) if texts.is_empty() => Proof::Missing("there is no such TXT record".to_owned()),
            Ok(_) => Proof::Missing("the TXT record has another value".to_owned()),
            Err(error) => Proof::Unknown(error.message().to_owned()),
        }
    }
}

/// What a look into the DNS has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Proof {
    /// The record is there.
    Found,
    /// The DNS says that it is not, and in which way.
    Missing(String),
    /// The DNS could not be asked: it says nothing about the record.
    Unknown(String),
}

/// Reads TXT records.
///
/// # Contract
/// - The texts are those of the name and of where a CNAME at it leads; the strings of one record are joined.
/// - A name without TXT records, or that does not exist, is no error: it has none.
/// - It answers within ten seconds.
#[async_trait]
pub trait TxtResolver: Send + Sync + 'static {
    /// The TXT records of `name`.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the DNS did not say whether there are any; the message says why.
    ///
    /// # Cancel safety
    /// Safe.
    async fn txt(&self, name: &str) -> Result<Vec<String>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_public_host_names() {
        assert!(DomainName::RESERVED.is_sorted());
        for (text, name) in [
            ("example.com", "example.com"),
            ("Shop.Example.COM", "shop.example.com"),
            ("xn--bcher-kva.example.com", "xn--bcher-kva.example.com"),
            ("a-b.c1.xn--p1ai", "a-b.c1.xn--p1ai"),
            ("1.example.com", "1.example.com"),
            ("local.example.com", "local.example.com"),
        ] {
            assert_eq!(text.parse::<DomainName>().expect(text).as_str(), name);
        }
        let long = format!("{}.example.com", "a.".repeat(120));
        for bad in [
            "",
            ".",
            "example",
            "localhost",
            "example.com.",
            ".example.com",
            "a..example.com",
            "*.example.com",
            "example.com:443",
            "http://example.com",
            "example.com/x",
            "a_b.example.com",
            "-a.example.com",
            "a-.example.com",
            "a b.example.com",
            "exa\u{301}mple.com",
            "bücher.example.com",
            "ab--c.example.com",
            "1.2.3.4",
            "0x7f.1",
            "127.1",
            "example.0x1",
            "::1",
            "[::1]",
            "a.b.c",
            "printer.local",
            "x.LOCALHOST",
            "db.internal",
            "a.test",
            "a.example",
            "4.3.2.1.in-addr.arpa",
            "x.onion",
            "example.com\0",
            "example.com\n",
            "' or 1=1.example.com",
            &long,
        ] {
            assert_eq!(bad.parse::<DomainName>().expect_err(bad).field(), Some("domain"), "{bad}");
        }
    }

    #[test]
    fn what_looks_alike_is_not_the_same() {
        let (latin, cyrillic): (DomainName, DomainName) =
            ("apple.example.com".parse().expect("a name"), "xn--80ak6aa92e.example.com".parse().expect("a name"));
        assert_ne!(latin, cyrillic);
        assert_eq!(cyrillic.challenge(), "_tenancy-challenge.xn--80ak6aa92e.example.com");
    }

    #[test]
    fn below_a_base_are_only_its_own() {
        let within = |name: &str, base| name.parse::<DomainName>().expect(name).is_within(base);
        assert!(within("example.com", "example.com") && within("a.b.example.com", "example.com"));
        assert!(
            !within("badexample.com", "example.com")
                && !within("example.com", "a.example.com")
                && !within("example.com.evil.net", "example.com")
        );
    }
}
