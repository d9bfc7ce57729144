//! Invitations to become a member, and who may send which.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::member::{check_name, check_scopes, manages, only_owners};
use crate::{Email, Error, NewMember, Principal, Result, Role};

/// An invitation that can be accepted until it expires. Its token is known to whoever was sent it, and to nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Invite {
    /// Which.
    pub id: Uuid,
    /// The address that it was sent to.
    pub email: Email,
    /// What the member will be called.
    pub name: String,
    /// What the member may do, at most.
    pub role: Role,
    /// The only scopes that the member's tokens can have; `None` is no restriction.
    pub scopes: Option<Vec<String>>,
    /// When it was first sent.
    pub created_at: DateTime<Utc>,
    /// When it is good no more.
    pub expires_at: DateTime<Utc>,
}

impl Invite {
    /// How long an invitation is good, if nothing else is said.
    pub const TTL: Duration = Duration::from_secs(7 * 24 * 3600);

    /// An invitation as a store gave it back.
    pub fn new(id: Uuid, email: Email, name: String, role: Role, created_at: DateTime<Utc>, expires_at: DateTime<Utc>) -> Self {
        Self { id, email, name, role, scopes: None, created_at, expires_at }
    }

    /// Whether `by` may send it again or revoke it.
    ///
    /// # Errors
    /// [`Forbidden`](crate::ErrorKind::Forbidden).
    pub fn permit_change(&self, by: &Principal) -> Result<()> {
        if self.role > manages(by)? { Err(only_owners()) } else { Ok(()) }
    }
}

/// Where a mailed link leads: the address of a page, to which the token is appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkBase(Box<str>);

impl LinkBase {
    /// Links that begin with `base`, such as `https://app.example.com/welcome/`.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) unless it is `http` or `https`, of at most 1000 visible ASCII characters.
    pub fn new(base: impl Into<String>) -> Result<Self> {
        let base = base.into();
        let web = ["https://", "http://"].iter().any(|scheme| base.len() > scheme.len() && base.starts_with(scheme));
        if !web || base.len() > 1000 || !base.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::invalid("link", "must be an http(s) address of at most 1000 visible ASCII characters"));
        }
        Ok(Self(base.into()))
    }

    /// The link with `token`.
    pub fn with(&self, token: &str) -> String {
        format!("{}{token}", self.0)
    }
}

/// An invitation to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewInvite {
    /// Where it goes; only who reads mail there can accept it.
    pub email: Email,
    /// What the member may do, at most.
    pub role: Role,
    /// Where its link leads.
    pub link: LinkBase,
    /// What the member will be called; what is before the address's `@` if it is not said.
    pub name: Option<String>,
    /// The only scopes that the member's tokens can have; `None` is no restriction.
    pub scopes: Option<Vec<String>>,
    /// How long it is good.
    pub ttl: Duration,
}

impl NewInvite {
    /// An invitation that is good for [`Invite::TTL`], with no restriction of scopes.
    pub fn new(email: Email, role: Role, link: LinkBase) -> Self {
        Self { email, role, link, name: None, scopes: None, ttl: Invite::TTL }
    }

    /// With this name.
    #[must_use]
    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// With these scopes at most.
    #[must_use]
    pub fn with_scopes(self, scopes: Vec<String>) -> Self {
        Self { scopes: Some(scopes), ..self }
    }

    /// Good for so long.
    #[must_use]
    pub fn with_ttl(self, ttl: Duration) -> Self {
        Self { ttl, ..self }
    }

    /// Who becomes a member when it is accepted.
    pub fn member(&self) -> NewMember {
        let local = self.email.as_str().split('@').next().unwrap_or_default();
        let mut new = NewMember::new(self.email.clone(), self.name.as_deref().unwrap_or(local), self.role);
        new.scopes.clone_from(&self.scopes);
        new
    }

    /// Whether it can be sent at all, whoever sends it.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the field.
    pub fn check(&self) -> Result<()> {
        check_name(&self.member().name)?;
        self.scopes.as_deref().map_or(Ok(()), check_scopes)?;
        check_ttl(self.ttl)
    }

    /// Whether `by` may send it: the rules are those of adding the member.
    ///
    /// # Errors
    /// [`Forbidden`](crate::ErrorKind::Forbidden), [`Invalid`](crate::ErrorKind::Invalid).
    pub fn permit(&self, by: &Principal) -> Result<()> {
        self.member().permit(by)?;
        self.check()
    }
}

/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) unless an invitation may be good for so long.
pub fn check_ttl(ttl: Duration) -> Result<()> {
    let day = 24 * 3600;
    if (60..=30 * day).contains(&ttl.as_secs()) { Ok(()) } else { Err(Error::invalid("ttl", "must be 1 minute to 30 days")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn new(role: Role) -> NewInvite {
        let link = LinkBase::new("https://app.example.com/welcome/").expect("an address");
        NewInvite::new("Ada.L@example.com".parse().expect("an address"), role, link)
    }

    fn by(role: Role) -> Principal {
        Principal::Member { subject: "me".parse().expect("a subject"), role }
    }

    #[test]
    fn the_rules_are_those_of_members() {
        let roles = [Role::Viewer, Role::Member, Role::Admin, Role::Owner];
        for actor in roles {
            for role in roles {
                let may = actor >= Role::Admin && role <= actor;
                let refused = (!may).then_some(ErrorKind::Forbidden);
                assert_eq!(new(role).permit(&by(actor)).err().map(|e| e.kind()), refused, "{actor} invites a {role}");
                let sent = Invite::new(Uuid::now_v7(), new(role).email, "Ada".to_owned(), role, DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH);
                assert_eq!(sent.permit_change(&by(actor)).err().map(|e| e.kind()), refused, "{actor} revokes a {role}'s");
            }
        }
        assert_eq!(new(Role::Viewer).permit(&Principal::Visitor).expect_err("nobody").kind(), ErrorKind::Unauthenticated);
    }

    #[test]
    fn names_times_and_links_are_checked() {
        assert_eq!(new(Role::Viewer).member().name, "ada.l");
        let refused = |new: NewInvite| new.check().expect_err("refused").field().map(str::to_owned);
        assert_eq!(refused(new(Role::Viewer).with_name(" x")).as_deref(), Some("name"));
        assert_eq!(refused(new(Role::Viewer).with_ttl(Duration::from_secs(59))).as_deref(), Some("ttl"));
        assert_eq!(refused(new(Role::Viewer).with_ttl(Duration::from_secs(30 * 24 * 3600 + 1))).as_deref(), Some("ttl"));
        assert_eq!(refused(new(Role::Viewer).with_scopes(vec![String::new()])).as_deref(), Some("scopes"));
        for bad in ["", "https://", "javascript:alert(1)//", "https://a.example/ x", "https://a.example/\r\n", "ftp://a.example/"] {
            assert_eq!(LinkBase::new(bad).expect_err(bad).field(), Some("link"));
        }
        assert_eq!(LinkBase::new("https://a.example/w/").expect("fine").with("t"), "https://a.example/w/t");
    }
}
