//! The people of a tenant, and who may change whom.
//!
//! Nothing about a person is global: who belongs to several tenants is a member of each, apart.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Error, ErrorKind, Principal, Result, Role, Subject};

/// An address that mail can be sent to, in lower case.
///
/// - At most 254 bytes of visible ASCII, so no white space and no line that ends early; one `@`.
/// - Before it 1 to 64 of letters, digits and ``!#$%&'*+-/=?^_`{|}~.``; after it two or more DNS labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Email(Box<str>);

impl Email {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Email {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let local = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        match s.split_once('@') {
            Some((name, domain))
                if s.len() <= 254
                    && (1..=64).contains(&name.len())
                    && name.bytes().all(local)
                    && domain.contains('.')
                    && domain.split('.').all(label) =>
            {
                Ok(Self(s.to_ascii_lowercase().into()))
            }
            _ => Err(Error::invalid("email", "must be an address such as ada@example.com, of at most 254 ASCII characters")),
        }
    }
}

impl TryFrom<String> for Email {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<Email> for String {
    fn from(email: Email) -> Self {
        email.0.into()
    }
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A person of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Member {
    /// Which.
    pub id: Uuid,
    /// The `sub` of their tokens, if that is known. Their id counts as one as well.
    pub subject: Option<Subject>,
    /// Where mail reaches them.
    pub email: Email,
    /// What they are called.
    pub name: String,
    /// What they may do, at most.
    pub role: Role,
    /// The only scopes that their tokens can have; `None` is no restriction.
    pub scopes: Option<Vec<String>>,
    /// When they were added.
    pub created_at: DateTime<Utc>,
    /// When they were last changed.
    pub updated_at: DateTime<Utc>,
    /// Counts the changes.
    pub version: u64,
}

impl Member {
    /// A member as a store gave it back.
    pub fn new(id: Uuid, email: Email, name: String, role: Role, created_at: DateTime<Utc>) -> Self {
        Self { id, subject: None, email, name, role, scopes: None, created_at, updated_at: created_at, version: 1 }
    }

    /// Whether this is who acts as `subject`.
    pub fn is(&self, subject: &Subject) -> bool {
        self.subject.as_ref() == Some(subject) || self.id.to_string() == subject.as_str()
    }

    /// Whether `by` may make this change, if there are `other_owners` beside this member.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden); [`Conflict`](ErrorKind::Conflict) if no owner would be left; [`Invalid`](ErrorKind::Invalid).
    pub fn permit_change(&self, change: &MemberChange, by: &Principal, other_owners: usize) -> Result<()> {
        let may = manages(by)?;
        change.name.as_deref().map_or(Ok(()), check_name)?;
        change.scopes.as_ref().and_then(Option::as_deref).map_or(Ok(()), check_scopes)?;
        let role = change.role.unwrap_or(self.role);
        if self.role > may || role > may {
            return Err(only_owners());
        }
        let own = matches!(by, Principal::Member { subject, .. } if self.is(subject));
        if own && (role > self.role || change.scopes.as_ref().is_some_and(|scopes| *scopes != self.scopes)) {
            return Err(Error::new(ErrorKind::Forbidden, "nobody raises their own role or changes their own scopes"));
        }
        if role != Role::Owner { self.leaves_an_owner(other_owners) } else { Ok(()) }
    }

    /// Whether `by` may remove this member, if there are `other_owners` beside them.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden); [`Conflict`](ErrorKind::Conflict) if no owner would be left.
    pub fn permit_removal(&self, by: &Principal, other_owners: usize) -> Result<()> {
        if self.role > manages(by)? {
            return Err(only_owners());
        }
        self.leaves_an_owner(other_owners)
    }

    fn leaves_an_owner(&self, other_owners: usize) -> Result<()> {
        if self.role == Role::Owner && other_owners == 0 {
            return Err(Error::new(ErrorKind::Conflict, "this is the last owner: make another member an owner first"));
        }
        Ok(())
    }
}

/// A member to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewMember {
    /// Where mail reaches them.
    pub email: Email,
    /// What they are called.
    pub name: String,
    /// What they may do, at most.
    pub role: Role,
    /// The `sub` of their tokens, if that is known.
    pub subject: Option<Subject>,
    /// The only scopes that their tokens can have; `None` is no restriction.
    pub scopes: Option<Vec<String>>,
}

impl NewMember {
    /// A member with no subject yet, and no restriction of scopes.
    pub fn new(email: Email, name: impl Into<String>, role: Role) -> Self {
        Self { email, name: name.into(), role, subject: None, scopes: None }
    }

    /// With this `sub`.
    #[must_use]
    pub fn with_subject(self, subject: Subject) -> Self {
        Self { subject: Some(subject), ..self }
    }

    /// With these scopes at most.
    #[must_use]
    pub fn with_scopes(self, scopes: Vec<String>) -> Self {
        Self { scopes: Some(scopes), ..self }
    }

    /// Whether `by` may add this member.
    ///
    /// # Security
    /// A subject's tokens may carry the role of an owner, and a member's row lowers it: so only owners name a subject.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden), [`Invalid`](ErrorKind::Invalid).
    pub fn permit(&self, by: &Principal) -> Result<()> {
        let may = manages(by)?;
        check_name(&self.name)?;
        self.scopes.as_deref().map_or(Ok(()), check_scopes)?;
        if self.role > may || (self.subject.is_some() && may < Role::Owner) {
            return Err(only_owners());
        }
        match by {
            Principal::Member { subject, .. } if self.subject.as_ref() == Some(subject) && (self.role != may || self.scopes.is_some()) => {
                Err(Error::new(ErrorKind::Forbidden, "who adds themselves keeps their role and their scopes"))
            }
            _ => Ok(()),
        }
    }
}

/// What to change of a member; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberChange {
    /// Another name.
    pub name: Option<String>,
    /// Another role.
    pub role: Option<Role>,
    /// Other scopes; `Some(None)` lifts the restriction.
    pub scopes: Option<Option<Vec<String>>>,
}

impl MemberChange {
    /// A change of the role alone.
    pub fn role(role: Role) -> Self {
        Self { role: Some(role), ..Self::default() }
    }

    /// With this name, role and scopes, where there are any.
    pub fn new(name: Option<String>, role: Option<Role>, scopes: Option<Option<Vec<String>>>) -> Self {
        Self { name, role, scopes }
    }
}

/// What the members say of the subject of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// There is no such member.
    Unknown,
    /// They were a member, and are none any more.
    Removed,
    /// They are a member.
    Active {
        /// Which.
        id: Uuid,
        /// What they may do, at most.
        role: Role,
        /// The only scopes that their tokens can have; `None` is no restriction.
        scopes: Option<Vec<String>>,
    },
}

/// The highest role that `by` may give, take and touch.
pub(crate) fn manages(by: &Principal) -> Result<Role> {
    match by {
        Principal::Member { role, .. } if *role >= Role::Admin => Ok(*role),
        Principal::Operator { .. } => Ok(Role::Owner),
        Principal::Visitor => Err(Error::new(ErrorKind::Unauthenticated, "sign in first")),
        _ => Err(Error::new(ErrorKind::Forbidden, "this needs the role admin")),
    }
}

pub(crate) fn only_owners() -> Error {
    Error::new(ErrorKind::Forbidden, "only an owner may make or change an owner, or name a subject")
}

/// Whether people may read this as a name.
///
/// # Errors
/// [`Invalid`](ErrorKind::Invalid).
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.chars().count() > 200 || name.trim() != name || name.chars().any(char::is_control) {
        return Err(Error::invalid("name", "must have 1 to 200 characters, no control characters, and no white space around it"));
    }
    Ok(())
}

/// Whether these can be scopes.
///
/// # Errors
/// [`Invalid`](ErrorKind::Invalid).
pub fn check_scopes(scopes: &[String]) -> Result<()> {
    if scopes.len() > 50 || !scopes.iter().all(|scope| (1..=100).contains(&scope.len()) && scope.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(Error::invalid("scopes", "must be at most 50, each of 1 to 100 visible ASCII characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(role: Role) -> Principal {
        Principal::Member { subject: "me".parse().expect("a subject"), role }
    }

    fn someone(role: Role) -> Member {
        Member::new(Uuid::now_v7(), "ada@example.com".parse().expect("an address"), "Ada".to_owned(), role, DateTime::UNIX_EPOCH)
    }

    fn kind(done: Result<()>) -> Option<ErrorKind> {
        done.err().map(|error| error.kind())
    }

    const ROLES: [Role; 4] = [Role::Viewer, Role::Member, Role::Admin, Role::Owner];

    #[test]
    fn addresses_are_parsed_and_nothing_slips_into_a_header() {
        assert_eq!("Ada.L+x@Example.COM".parse::<Email>().expect("valid").as_str(), "ada.l+x@example.com");
        for bad in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "ada@localhost",
            "a@b@c.de",
            "a b@c.de",
            " a@c.de",
            "a@c.de ",
            "a@c.de\r\nBcc: x@y.z",
            "a\n@c.de",
            "a@-c.de",
            "a@c-.de",
            "a@c..de",
            "a@.de",
            "a@ü.de",
            "ä@c.de",
            "a@c.de,b@c.de",
            "<a@c.de>",
            "\"a\"@c.de",
            "a@c_d.de",
            "a\0@c.de",
        ] {
            assert_eq!(bad.parse::<Email>().expect_err(bad).field(), Some("email"), "{bad}");
        }
        let long = |n: usize| format!("{}@{}.de", "a".repeat(n), [&*"b".repeat(60); 4].join("."));
        assert!(long(7).len() == 254 && long(7).parse::<Email>().is_ok() && long(8).parse::<Email>().is_err());
        assert!(format!("{}@c.de", "a".repeat(65)).parse::<Email>().is_err());
    }

    #[test]
    fn who_may_change_whom() {
        for actor in ROLES {
            for target in ROLES {
                for new in ROLES {
                    let done = someone(target).permit_change(&MemberChange::role(new), &by(actor), 1);
                    let may = actor >= Role::Admin && target <= actor && new <= actor;
                    assert_eq!(kind(done), (!may).then_some(ErrorKind::Forbidden), "{actor} makes a {target} a {new}");
                    let added = NewMember::new("a@b.de".parse().expect("an address"), "A", new);
                    let may = actor >= Role::Admin && new <= actor;
                    assert_eq!(kind(added.permit(&by(actor))), (!may).then_some(ErrorKind::Forbidden), "{actor} adds a {new}");
                }
                let may = actor >= Role::Admin && target <= actor;
                assert_eq!(kind(someone(target).permit_removal(&by(actor), 1)), (!may).then_some(ErrorKind::Forbidden));
            }
        }
        let service = Principal::Service { subject: "me".parse().expect("a subject") };
        assert_eq!(kind(someone(Role::Viewer).permit_removal(&service, 1)), Some(ErrorKind::Forbidden));
        assert_eq!(kind(someone(Role::Viewer).permit_removal(&Principal::Visitor, 1)), Some(ErrorKind::Unauthenticated));
    }

    #[test]
    fn an_owner_is_left() {
        let owner = someone(Role::Owner);
        assert_eq!(kind(owner.permit_removal(&by(Role::Owner), 0)), Some(ErrorKind::Conflict));
        assert_eq!(kind(owner.permit_change(&MemberChange::role(Role::Admin), &by(Role::Owner), 0)), Some(ErrorKind::Conflict));
        let named = MemberChange::new(Some("Other".to_owned()), None, None);
        assert_eq!(kind(owner.permit_change(&named, &by(Role::Owner), 0)), None);
        assert_eq!(kind(someone(Role::Admin).permit_removal(&by(Role::Owner), 0)), None, "not an owner");
    }

    #[test]
    fn nobody_raises_themselves() {
        // A token can carry more than the row: the row is what is raised.
        let mut me = someone(Role::Member);
        me.subject = Some("me".parse().expect("a subject"));
        me.scopes = Some(vec!["a".to_owned()]);
        assert_eq!(kind(me.permit_change(&MemberChange::role(Role::Admin), &by(Role::Admin), 1)), Some(ErrorKind::Forbidden));
        assert_eq!(kind(me.permit_change(&MemberChange::role(Role::Viewer), &by(Role::Admin), 1)), None, "lower");
        let free = MemberChange::new(None, None, Some(None));
        assert_eq!(kind(me.permit_change(&free, &by(Role::Admin), 1)), Some(ErrorKind::Forbidden));
        assert_eq!(kind(someone(Role::Member).permit_change(&free, &by(Role::Admin), 1)), None, "somebody else's");
        let mut by_id = someone(Role::Member);
        by_id.id = Uuid::now_v7();
        let as_id = Principal::Member { subject: by_id.id.to_string().parse().expect("a subject"), role: Role::Owner };
        assert_eq!(kind(by_id.permit_change(&MemberChange::role(Role::Owner), &as_id, 1)), Some(ErrorKind::Forbidden), "by the id as well");
        let myself = |role| NewMember::new("a@b.de".parse().expect("an address"), "A", role).with_subject("me".parse().expect("a subject"));
        assert_eq!(kind(myself(Role::Owner).permit(&by(Role::Owner))), None);
        assert_eq!(kind(myself(Role::Viewer).permit(&by(Role::Owner))), Some(ErrorKind::Forbidden));
        assert_eq!(kind(myself(Role::Viewer).permit(&by(Role::Admin))), Some(ErrorKind::Forbidden), "only owners name a subject");
    }

    #[test]
    fn names_and_scopes_are_plain() {
        let new = |name: &str| NewMember::new("a@b.de".parse().expect("an address"), name, Role::Viewer);
        for bad in ["", " a", "a\r\nb", &"x".repeat(201)] {
            assert_eq!(new(bad).permit(&by(Role::Admin)).expect_err(bad).field(), Some("name"));
        }
        for bad in ["", "a b", "ä", &"x".repeat(101)] {
            let scoped = new("A").with_scopes(vec![bad.to_owned()]);
            assert_eq!(scoped.permit(&by(Role::Admin)).expect_err(bad).field(), Some("scopes"));
        }
    }
}
