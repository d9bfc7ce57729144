//! What one tenant shows to another, or to whoever has a link: the words for it, and the rules that need no database.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Email, Error, Result, Role, Subject, TenantId};

/// The longest name of a [type](ResourceRef::kind), in bytes.
const MAX_KIND: usize = 40;
/// The most members that a share can be narrowed to.
const MAX_SUBJECTS: usize = 100;
/// The most addresses that links are sent to at once.
const MAX_RECIPIENTS: usize = 50;

/// One thing of a tenant that can be shared, as text `document:<uuid>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceRef {
    kind: Box<str>,
    id: Uuid,
}

impl ResourceRef {
    /// The thing of this type and id.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) unless `kind` has 1 to 40 characters of `a-z`, `0-9` and `_`, beginning with a letter.
    pub fn new(kind: &str, id: Uuid) -> Result<Self> {
        let plain = kind.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if plain && kind.len() <= MAX_KIND && kind.starts_with(|c: char| c.is_ascii_lowercase()) {
            Ok(Self { kind: kind.into(), id })
        } else {
            Err(Error::invalid("resource", "must be a type and an id: document:018f3a2c-7c1d-7000-8000-000000000000"))
        }
    }

    /// The type, as given to `tenancy.share_table`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Which one.
    pub const fn id(&self) -> Uuid {
        self.id
    }
}

impl FromStr for ResourceRef {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        // Only the canonical text of an id, so that one thing has one name.
        let parsed = s.split_once(':').and_then(|(kind, id)| Some((kind, Uuid::try_parse(id).ok().filter(|uuid| uuid.to_string() == id)?)));
        let (kind, id) = parsed.unwrap_or_default();
        Self::new(kind, id)
    }
}

impl TryFrom<String> for ResourceRef {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<ResourceRef> for String {
    fn from(resource: ResourceRef) -> Self {
        resource.to_string()
    }
}

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.id)
    }
}

/// What a share lets the other tenant do. Each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Perms {
    /// See it.
    Read,
    /// Add to it, where the host's tables let them.
    Comment,
    /// Change it.
    Write,
}

impl Perms {
    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Comment => "comment",
            Self::Write => "write",
        }
    }
}

impl FromStr for Perms {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::Read, Self::Comment, Self::Write]
            .into_iter()
            .find(|perms| perms.as_str() == s)
            .ok_or_else(|| Error::invalid("perms", "must be read, comment or write"))
    }
}

/// How far a share has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ShareState {
    /// Offered, and not answered: shows nothing yet.
    Offered,
    /// Accepted.
    Active,
    /// The other tenant did not want it.
    Declined,
    /// The owner took the offer back.
    Withdrawn,
    /// The owner ended it.
    Revoked,
    /// The other tenant ended it.
    Left,
    /// What was shared is gone.
    Gone,
    /// Its time is over.
    Expired,
}

impl ShareState {
    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Active => "active",
            Self::Declined => "declined",
            Self::Withdrawn => "withdrawn",
            Self::Revoked => "revoked",
            Self::Left => "left",
            Self::Gone => "gone",
            Self::Expired => "expired",
        }
    }
}

impl FromStr for ShareState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        use ShareState::{Active, Declined, Expired, Gone, Left, Offered, Revoked, Withdrawn};
        [Offered, Active, Declined, Withdrawn, Revoked, Left, Gone, Expired]
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| Error::invalid("state", "must be offered, active, declined, withdrawn, revoked, left, gone or expired"))
    }
}

/// What to offer to whom.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NewShare {
    /// What.
    pub resource: ResourceRef,
    /// To whom.
    pub target: TenantId,
    /// What they may do with it.
    pub perms: Perms,
    /// Only for members of the target with one of these roles; `None`: for everybody there.
    #[serde(default)]
    pub only_roles: Option<Vec<Role>>,
    /// Only for these members of the target.
    #[serde(default)]
    pub only_subjects: Option<Vec<Subject>>,
    /// Until when; `None`: for as long as the tenant's policy allows.
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
}

impl NewShare {
    /// An offer to everybody of `target`, for as long as the policy allows.
    pub const fn new(resource: ResourceRef, target: TenantId, perms: Perms) -> Self {
        Self { resource, target, perms, only_roles: None, only_subjects: None, expires_at: None }
    }

    /// What can be said without the database.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), with the field.
    pub fn check(&self) -> Result<()> {
        if self.only_roles.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("only_roles", "must name a role, or be left out"));
        }
        match &self.only_subjects {
            Some(subjects) if !(1..=MAX_SUBJECTS).contains(&subjects.len()) => {
                Err(Error::invalid("only_subjects", "must name 1 to 100 members, or be left out"))
            }
            _ => Ok(()),
        }
    }
}

/// A share, as either side sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// Which.
    pub id: Uuid,
    /// Whose the resource is.
    pub owner: TenantId,
    /// To whom it is shown.
    pub target: TenantId,
    /// What.
    pub resource: ResourceRef,
    /// What the target may do with it.
    pub perms: Perms,
    /// Only for these roles of the target.
    pub only_roles: Option<Vec<Role>>,
    /// Only for these members of the target.
    pub only_subjects: Option<Vec<Subject>>,
    /// How far it has come.
    pub state: ShareState,
    /// When it was offered.
    pub created_at: DateTime<Utc>,
    /// When it was accepted or declined.
    pub answered_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Until when it lasts; after that it shows nothing, whatever its state.
    pub expires_at: Option<DateTime<Utc>>,
    /// Counts the changes.
    pub version: u64,
}

impl Share {
    /// A share as a store gave it back.
    pub fn new(id: Uuid, of: NewShare, owner: TenantId, state: ShareState, created_at: DateTime<Utc>) -> Self {
        let NewShare { resource, target, perms, only_roles, only_subjects, expires_at } = of;
        Self {
            id,
            owner,
            target,
            resource,
            perms,
            only_roles,
            only_subjects,
            state,
            created_at,
            answered_at: None,
            ended_at: None,
            expires_at,
            version: 1,
        }
    }
}

/// What a tenant lets its admins share. Nothing, unless said.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SharingPolicy {
    /// Its resources may be offered to other tenants.
    pub offers: bool,
    /// Others may offer theirs to it.
    pub accepts: bool,
    /// Links may be made.
    pub links: bool,
    /// Which types of resources may be shared.
    pub types: Vec<String>,
    /// With whom; `None`: with every tenant that accepts.
    pub targets: Option<Vec<TenantId>>,
    /// How long a share or link may last, in seconds; `None`: as long as the platform allows.
    pub max_lifetime_seconds: Option<u32>,
    /// Counts the changes; 0 if it was never set.
    pub version: u64,
}

/// What the platform lets tenants share. Nothing, unless said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct PlatformSharing {
    /// Shares between tenants.
    pub enabled: bool,
    /// Links.
    pub links: bool,
    /// How long a share or link may last, in seconds; `None`: shares without an end, links 30 days.
    pub max_lifetime_seconds: Option<u32>,
}

/// What a link is to show.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NewLink {
    /// What.
    pub resource: ResourceRef,
    /// What its makers call it.
    #[serde(default)]
    pub label: String,
    /// Until when; `None`: for as long as the tenant's policy allows.
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
    /// How often it may be opened; `None`: as often as one likes.
    #[serde(default)]
    pub max_uses: Option<u32>,
    /// What must be said to open it.
    #[serde(default)]
    pub passphrase: Option<String>,
    /// Who is sent it: each of them one of their own. Empty: it is told to whoever makes it.
    #[serde(default)]
    pub recipients: Vec<Email>,
}

impl NewLink {
    /// A link for as long as the policy allows.
    pub const fn new(resource: ResourceRef) -> Self {
        Self { resource, label: String::new(), expires_at: None, max_uses: None, passphrase: None, recipients: Vec::new() }
    }

    /// Sent to each of these addresses: one link for each, with a token of its own.
    #[must_use]
    pub fn with_recipients(self, recipients: Vec<Email>) -> Self {
        Self { recipients, ..self }
    }

    /// What can be said without the database.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), with the field.
    pub fn check(&self) -> Result<()> {
        if self.label.chars().count() > 200 || self.label.chars().any(char::is_control) {
            return Err(Error::invalid("label", "must have at most 200 characters, and no control characters"));
        }
        if self.max_uses == Some(0) {
            return Err(Error::invalid("max_uses", "must be at least 1, or be left out"));
        }
        if self.recipients.len() > MAX_RECIPIENTS {
            return Err(Error::invalid("recipients", "must be at most 50"));
        }
        if let Some(n) = (1..self.recipients.len()).find(|n| self.recipients[..*n].contains(&self.recipients[*n])) {
            return Err(Error::invalid(format!("recipients[{n}]"), "is there twice"));
        }
        match &self.passphrase {
            Some(phrase) if !(8..=200).contains(&phrase.chars().count()) => {
                Err(Error::invalid("passphrase", "must have 8 to 200 characters, or be left out"))
            }
            _ => Ok(()),
        }
    }
}

/// A link, as its tenant sees it: without its token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Link {
    /// Which.
    pub id: Uuid,
    /// What it shows.
    pub resource: ResourceRef,
    /// What its makers call it.
    pub label: String,
    /// Who was sent it.
    pub recipient: Option<Email>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Until when it lasts.
    pub expires_at: DateTime<Utc>,
    /// How often it may be opened.
    pub max_uses: Option<u32>,
    /// How often it was.
    pub uses: u64,
    /// Whether a passphrase is asked for.
    pub has_passphrase: bool,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

impl Link {
    /// A link as a store gave it back.
    pub const fn new(id: Uuid, resource: ResourceRef, created_at: DateTime<Utc>, expires_at: DateTime<Utc>) -> Self {
        Self {
            id,
            resource,
            label: String::new(),
            recipient: None,
            created_at,
            expires_at,
            max_uses: None,
            uses: 0,
            has_passphrase: false,
            revoked_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_has_one_name() {
        let id = "018f3a2c-7c1d-7000-8000-00000000abcd";
        let resource: ResourceRef = format!("document:{id}").parse().expect("a resource");
        assert_eq!((resource.kind(), resource.to_string()), ("document", format!("document:{id}")));
        for bad in [
            String::new(),
            id.to_owned(),
            format!(":{id}"),
            format!("Document:{id}"),
            format!("document:{}", id.to_uppercase()),
            format!("document:{{{id}}}"),
            format!("document:{}", id.replace('-', "")),
            format!("document:{id} "),
            format!("{}:{id}", "d".repeat(41)),
            format!("document:{id}:x"),
        ] {
            assert!(bad.parse::<ResourceRef>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_field() {
        let resource: ResourceRef = "note:018f3a2c-7c1d-7000-8000-00000000abcd".parse().expect("a resource");
        let addresses = |most: usize| (0..most).map(|n| format!("{n}@example.com").parse().expect("an address")).collect::<Vec<Email>>();
        NewLink::new(resource.clone()).with_recipients(addresses(50)).check().expect("fifty");
        let mut share = NewShare::new(resource.clone(), TenantId::new(), Perms::Read);
        share.check().expect("plain");
        share.only_roles = Some(vec![]);
        assert_eq!(share.check().expect_err("nobody").field(), Some("only_roles"));
        for (link, field) in [
            (NewLink { label: "a\r\nb".to_owned(), ..NewLink::new(resource.clone()) }, "label"),
            (NewLink { max_uses: Some(0), ..NewLink::new(resource.clone()) }, "max_uses"),
            (NewLink { passphrase: Some("short".to_owned()), ..NewLink::new(resource.clone()) }, "passphrase"),
            (NewLink::new(resource.clone()).with_recipients(addresses(51)), "recipients"),
            (NewLink::new(resource.clone()).with_recipients([addresses(3), addresses(1)].concat()), "recipients[3]"),
        ] {
            assert_eq!(link.check().expect_err(field).field(), Some(field));
        }
    }
}
