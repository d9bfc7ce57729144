//! The people of the platform: what each may do across tenants, and when one may act inside a tenant.
//!
//! Their roles are apart from those of tenants: an [`OperatorRole`] is no [`Role`], and neither is made of the other.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Email, Error, ErrorKind, Principal, Result, Role, Subject};

/// What an operator may do on the platform. Each role can do what the ones before it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorRole {
    /// Reads tenants, quotas, usage and operations.
    Viewer,
    /// Also reads audit logs, has messages delivered again, and looks at a tenant from inside.
    Support,
    /// Everything.
    Admin,
}

impl OperatorRole {
    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Support => "support",
            Self::Admin => "admin",
        }
    }

    /// Passes for this role and those above it.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden).
    pub fn require(self, needed: Self) -> Result<()> {
        if self >= needed { Ok(()) } else { Err(Error::new(ErrorKind::Forbidden, format!("this needs the operators' role {needed}"))) }
    }
}

impl fmt::Display for OperatorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for OperatorRole {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::Viewer, Self::Support, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == s)
            .ok_or_else(|| Error::invalid("role", "must be viewer, support or admin"))
    }
}

/// A person of the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Operator {
    /// The id, by which audit logs name them.
    pub id: Uuid,
    /// Who it is, for people.
    pub name: String,
    /// Their address.
    pub email: Email,
    /// What they may do.
    pub role: OperatorRole,
    /// When their token ends.
    pub expires_at: DateTime<Utc>,
    /// When their token was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// Since when they may do nothing.
    pub disabled_at: Option<DateTime<Utc>>,
    /// When they were added.
    pub created_at: DateTime<Utc>,
    /// When they were last changed.
    pub updated_at: DateTime<Utc>,
    /// Counts the changes.
    pub version: u64,
}

impl Operator {
    /// How audit logs name whoever has the bootstrap credential, which is no row.
    pub const BOOTSTRAP: &str = "operator";

    /// A new one, whose token ends at `expires_at`.
    pub fn new(id: Uuid, new: NewOperator, now: DateTime<Utc>, expires_at: DateTime<Utc>) -> Self {
        let NewOperator { name, email, role, .. } = new;
        let (last_used_at, disabled_at) = (None, None);
        Self { id, name, email, role, expires_at, last_used_at, disabled_at, created_at: now, updated_at: now, version: 1 }
    }

    /// Whether `change` may be made, where `other_admins` are left that can sign in. `bootstrap`: by whoever has the bootstrap credential,
    /// who can always make another admin.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) names the field; [`Conflict`](ErrorKind::Conflict) if no admin would be left.
    pub fn permit_change(&self, change: &OperatorChange, other_admins: usize, bootstrap: bool) -> Result<()> {
        change.name.as_deref().map_or(Ok(()), check_name)?;
        let is_admin = self.role == OperatorRole::Admin && self.disabled_at.is_none();
        let stays = change.role.unwrap_or(self.role) == OperatorRole::Admin && change.disabled != Some(true);
        if is_admin && !stays && other_admins == 0 && !bootstrap {
            return Err(Error::new(ErrorKind::Conflict, "this is the last admin: make another one first"));
        }
        Ok(())
    }
}

/// An operator to add.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewOperator {
    /// Who it is, for people.
    pub name: String,
    /// Their address.
    pub email: Email,
    /// What they may do.
    pub role: OperatorRole,
    /// How long their token lasts.
    pub lasts: TokenDays,
}

impl NewOperator {
    /// An operator whose token lasts for [`TokenDays::default`].
    pub fn new(name: impl Into<String>, email: Email, role: OperatorRole) -> Self {
        Self { name: name.into(), email, role, lasts: TokenDays::default() }
    }

    /// Their token lasts this long.
    #[must_use]
    pub fn with_token_for(mut self, lasts: TokenDays) -> Self {
        self.lasts = lasts;
        self
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) names the field.
    pub fn check(&self) -> Result<()> {
        check_name(&self.name)
    }
}

/// A change of an operator; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OperatorChange {
    /// Who it is, for people.
    pub name: Option<String>,
    /// Their address.
    pub email: Option<Email>,
    /// What they may do.
    pub role: Option<OperatorRole>,
    /// Whether they may do nothing.
    pub disabled: Option<bool>,
}

impl OperatorChange {
    /// They may do nothing any more.
    pub fn disable() -> Self {
        Self { disabled: Some(true), ..Self::default() }
    }
}

/// How many days an operator's token lasts: 1 to 366, and 90 unless told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenDays(u16);

impl TokenDays {
    /// So many days.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid): they are none, or more than a year.
    pub fn new(days: u16) -> Result<Self> {
        if (1..=366).contains(&days) { Ok(Self(days)) } else { Err(Error::invalid("expires_in_days", "must be 1 to 366")) }
    }

    /// When a token ends that is made now.
    pub fn after(self, now: DateTime<Utc>) -> DateTime<Utc> {
        now + TimeDelta::days(self.0.into())
    }
}

impl Default for TokenDays {
    fn default() -> Self {
        Self(90)
    }
}

/// An operator's wish to act inside a tenant for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewImpersonation {
    /// Why: the tenant reads it.
    pub reason: String,
    /// For how many minutes.
    pub minutes: u16,
    /// Whether they may change anything.
    pub write: bool,
}

impl NewImpersonation {
    /// The longest one, in minutes.
    pub const MAX_MINUTES: u16 = 60;

    /// A wish to look, for 30 minutes.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), minutes: 30, write: false }
    }

    /// For so many minutes.
    #[must_use]
    pub fn with_minutes(mut self, minutes: u16) -> Self {
        self.minutes = minutes;
        self
    }

    /// Also to change things.
    #[must_use]
    pub fn with_write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// Whether an operator with `role` may have it.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden); [`Invalid`](ErrorKind::Invalid) names the field.
    pub fn permit(&self, role: OperatorRole) -> Result<()> {
        role.require(if self.write { OperatorRole::Admin } else { OperatorRole::Support })?;
        let length = self.reason.chars().count();
        if !(8..=500).contains(&length) || self.reason.trim() != self.reason || self.reason.chars().any(char::is_control) {
            let why = "must have 8 to 500 characters, no control characters, and no white space around it: the tenant reads it";
            return Err(Error::invalid("reason", why));
        }
        if !(1..=Self::MAX_MINUTES).contains(&self.minutes) {
            return Err(Error::invalid("ttl_minutes", format!("must be 1 to {}", Self::MAX_MINUTES)));
        }
        Ok(())
    }

    /// Whom `operator` is inside the tenant: a viewer, or with `write` a member; never who manages others.
    pub fn principal(operator: Subject, write: bool) -> Principal {
        Principal::Impersonator { operator, role: if write { Role::Member } else { Role::Viewer } }
    }
}

fn check_name(name: &str) -> Result<()> {
    let length = name.chars().count();
    if (1..=200).contains(&length) && name.trim() == name && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::invalid("name", "must have 1 to 200 characters, no control characters, and no white space around it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clock as _, SystemClock};

    const ALL: [OperatorRole; 3] = [OperatorRole::Viewer, OperatorRole::Support, OperatorRole::Admin];

    fn someone(role: OperatorRole) -> Operator {
        let now = SystemClock.now();
        let new = NewOperator::new("Ada", "ada@example.com".parse().expect("an address"), role);
        Operator::new(Uuid::now_v7(), new, now, TokenDays::default().after(now))
    }

    fn kind(done: Result<()>) -> Option<ErrorKind> {
        done.err().map(|error| error.kind())
    }

    #[test]
    fn each_role_can_do_what_the_ones_before_it_can() {
        for (n, role) in ALL.into_iter().enumerate() {
            assert_eq!(role.as_str().parse::<OperatorRole>().expect("a role"), role);
            for (m, needed) in ALL.into_iter().enumerate() {
                assert_eq!(kind(role.require(needed)), (n < m).then_some(ErrorKind::Forbidden), "{role} {needed}");
            }
        }
        // A tenant's roles are others.
        for not in ["owner", "member", "Admin", ""] {
            assert_eq!(not.parse::<OperatorRole>().expect_err(not).field(), Some("role"));
        }
    }

    #[test]
    fn an_admin_is_left_unless_the_bootstrap_credential_says_otherwise() {
        let lower = OperatorChange { role: Some(OperatorRole::Viewer), ..OperatorChange::default() };
        let admin = someone(OperatorRole::Admin);
        for change in [&lower, &OperatorChange::disable()] {
            assert_eq!(kind(admin.permit_change(change, 0, false)), Some(ErrorKind::Conflict));
            assert_eq!(kind(admin.permit_change(change, 1, false)), None);
            assert_eq!(kind(admin.permit_change(change, 0, true)), None);
            assert_eq!(kind(someone(OperatorRole::Support).permit_change(change, 0, false)), None);
            let disabled = Operator { disabled_at: Some(admin.created_at), ..admin.clone() };
            assert_eq!(kind(disabled.permit_change(change, 0, false)), None);
        }
        let rename = |name: &str| OperatorChange { name: Some(name.to_owned()), ..OperatorChange::default() };
        assert_eq!(kind(admin.permit_change(&rename("Eve"), 0, false)), None);
        assert_eq!(admin.permit_change(&rename(" "), 1, false).expect_err("blank").field(), Some("name"));
    }

    #[test]
    fn who_may_be_inside_a_tenant_and_for_how_long() {
        let look = NewImpersonation::new("ticket 4711");
        for (role, may_look, may_write) in
            [(OperatorRole::Viewer, false, false), (OperatorRole::Support, true, false), (OperatorRole::Admin, true, true)]
        {
            assert_eq!(look.permit(role).is_ok(), may_look);
            assert_eq!(look.clone().with_write(true).permit(role).is_ok(), may_write);
        }
        let field = |wish: NewImpersonation| wish.permit(OperatorRole::Admin).expect_err("refused").field().map(str::to_owned);
        for minutes in [0, 61, u16::MAX] {
            assert_eq!(field(look.clone().with_minutes(minutes)).as_deref(), Some("ttl_minutes"));
        }
        for reason in ["", "why", "  ticket 4711", "ticket\n4711", &"x".repeat(501)] {
            assert_eq!(field(NewImpersonation::new(reason)).as_deref(), Some("reason"));
        }
        assert!(look.clone().with_minutes(60).permit(OperatorRole::Support).is_ok());
        let who = || "o-1".parse().expect("a subject");
        for (write, role) in [(false, Role::Viewer), (true, Role::Member)] {
            assert_eq!(NewImpersonation::principal(who(), write), Principal::Impersonator { operator: who(), role });
        }
    }

    #[test]
    fn tokens_end() {
        let now = SystemClock.now();
        assert_eq!(TokenDays::new(1).expect("a day").after(now), now + TimeDelta::hours(24));
        for days in [0, 367] {
            assert_eq!(TokenDays::new(days).expect_err("refused").field(), Some("expires_in_days"));
        }
    }
}
