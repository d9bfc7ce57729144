//! A tenant and its lifecycle.
//!
//! ```text
//! provisioning ──► active ◄──► suspended ◄──► archived ──► erased
//!      │             │  └────────────────────────▲
//!      └──► erased   └──► moving, restoring ──► active, suspended
//! ```

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{DomainName, Error, ErrorKind, Result, TenantHint, TenantId, TenantSlug};

/// Where a tenant is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TenantStatus {
    /// Being set up: never serves.
    Provisioning,
    /// The only state that serves.
    Active,
    /// Refused everywhere, nothing removed.
    Suspended,
    /// Soft-deleted: kept for recovery, may be erased.
    Archived,
    /// Its data is gone; the row stays as a tombstone and its slug is free again.
    Erased,
    /// Being moved to another database.
    Moving,
    /// Being restored from a backup.
    Restoring,
}

impl TenantStatus {
    /// All states.
    pub const ALL: [Self; 7] =
        [Self::Provisioning, Self::Active, Self::Suspended, Self::Archived, Self::Erased, Self::Moving, Self::Restoring];

    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Archived => "archived",
            Self::Erased => "erased",
            Self::Moving => "moving",
            Self::Restoring => "restoring",
        }
    }

    /// Whether the lifecycle has an edge from this state to `next`.
    pub const fn can_become(self, next: Self) -> bool {
        use TenantStatus::{Active, Archived, Erased, Moving, Provisioning, Restoring, Suspended};
        matches!(
            (self, next),
            (Provisioning, Active | Erased)
                | (Active, Suspended | Archived | Moving | Restoring)
                | (Suspended, Active | Archived | Restoring)
                | (Archived, Suspended | Erased)
                | (Moving | Restoring, Active | Suspended)
        )
    }

    /// Whether it is soon over by itself.
    const fn is_passing(self) -> bool {
        matches!(self, Self::Moving | Self::Restoring)
    }
}

impl fmt::Display for TenantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TenantStatus {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|status| status.as_str() == s);
        known.ok_or_else(|| Error::invalid("status", "must be provisioning, active, suspended, archived, erased, moving or restoring"))
    }
}

/// One organisation on the platform, as its catalog row says.
///
/// This is data, which catalogs build from their rows: anybody can hold one. What serves requests is an [`ActiveTenant`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tenant {
    /// Who it is.
    pub id: TenantId,
    /// Its name in addresses; unique among the tenants that are not erased.
    pub slug: TenantSlug,
    /// Its name for people.
    pub name: String,
    /// Where it is in its life.
    pub status: TenantStatus,
    /// What it has can be read meanwhile, by [`into_readable`](Self::into_readable): true only while it is being moved or restored.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reads: bool,
    /// Theme, logo and the like: a JSON object of at most [`Tenant::MAX_OBJECT_LEN`] bytes. Its member `logo` names an object in the tenant's
    /// store: it comes and goes with that, and is passed over where a change or a new tenant brings one.
    pub branding: Map<String, Value>,
    /// Its own values of feature flags: a JSON object of at most [`Tenant::MAX_FLAGS`] members and [`Tenant::MAX_OBJECT_LEN`] bytes.
    pub flags: Map<String, Value>,
    /// The plan whose defaults it gets.
    pub plan: String,
    /// The domains of its own that it has proved, in their order.
    pub domains: Vec<DomainName>,
    /// When the row was made.
    pub created_at: DateTime<Utc>,
    /// When the row last changed.
    pub updated_at: DateTime<Utc>,
    /// Counts the changes of the row, from 1.
    pub version: u64,
}

impl Tenant {
    /// The longest name, in characters.
    pub const MAX_NAME_LEN: usize = 200;
    /// The largest `branding` and `flags`, in bytes of JSON text.
    pub const MAX_OBJECT_LEN: usize = 16 * 1024;
    /// The most flags that a tenant has values of its own of.
    pub const MAX_FLAGS: usize = 200;
    /// The plan of a tenant that names none.
    pub const DEFAULT_PLAN: &str = "standard";

    /// The first version of a tenant.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid), naming the field.
    pub fn new(new: NewTenant, now: DateTime<Utc>) -> Result<Self> {
        check_name(&new.name)?;
        check_plan(&new.plan)?;
        check_object("branding", &new.branding)?;
        check_flags(&new.flags)?;
        let now = now.trunc_subsecs(6); // what PostgreSQL keeps
        let mut branding = new.branding;
        branding.remove(LOGO);
        Ok(Self {
            id: new.id,
            slug: new.slug,
            name: new.name,
            status: new.status,
            reads: false,
            branding,
            flags: new.flags,
            plan: new.plan,
            domains: Vec::new(),
            created_at: now,
            updated_at: now,
            version: 1,
        })
    }

    /// The next version of this tenant, if `change` is legal.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) naming the field; [`Conflict`](ErrorKind::Conflict) for an edge that the lifecycle doesn't
    /// have; [`VersionMismatch`](ErrorKind::VersionMismatch) if `expected` is another version than this one;
    /// [`NotFound`](ErrorKind::NotFound) for an erased tenant.
    pub fn changed(&self, change: TenantChange, expected: Option<u64>, now: DateTime<Utc>) -> Result<Self> {
        if self.status == TenantStatus::Erased {
            return Err(Error::not_found());
        }
        if expected.is_some_and(|version| version != self.version) {
            return Err(Error::new(ErrorKind::VersionMismatch, "the tenant has changed since it was read: read it again"));
        }
        let mut next = self.clone();
        if let Some(slug) = change.slug {
            next.slug = slug;
        }
        if let Some(name) = change.name {
            check_name(&name)?;
            next.name = name;
        }
        if let Some(plan) = change.plan {
            check_plan(&plan)?;
            next.plan = plan;
        }
        if let Some(mut branding) = change.branding {
            check_object("branding", &branding)?;
            branding.remove(LOGO);
            branding.extend(next.branding.remove_entry(LOGO));
            next.branding = branding;
        }
        if let Some(flags) = change.flags {
            check_flags(&flags)?;
            next.flags = flags;
        }
        if let Some(status) = change.status.filter(|status| *status != self.status) {
            if !self.status.can_become(status) {
                return Err(Error::new(ErrorKind::Conflict, format!("a tenant that is {} can't become {status}", self.status)));
            }
            next.status = status;
            next.reads = false;
        }
        if let Some(reads) = change.reads {
            if reads && !next.status.is_passing() {
                return Err(Error::invalid("reads", "goes with a tenant that is being moved or restored"));
            }
            next.reads = reads;
        }
        next.version += 1;
        next.updated_at = now.trunc_subsecs(6);
        Ok(next)
    }

    /// Whether `object` may be the branding of a tenant.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) at `branding`.
    pub fn check_branding(object: &Map<String, Value>) -> Result<()> {
        check_object("branding", object)
    }

    /// Whether `hint` points at this tenant.
    pub fn is(&self, hint: &TenantHint) -> bool {
        match hint {
            TenantHint::Id(id) => *id == self.id,
            TenantHint::Slug(slug) => *slug == self.slug,
            TenantHint::Domain(domain) => self.domains.contains(domain),
        }
    }

    /// The evidence that a context needs.
    ///
    /// # Errors
    /// [`TenantInactive`](ErrorKind::TenantInactive), naming the state; [`Unavailable`](ErrorKind::Unavailable) while it is being moved or
    /// restored, which is soon over.
    ///
    /// # Security
    /// This and [`into_readable`](Self::into_readable) are the only ways to an [`ActiveTenant`], and so to a
    /// [`TenantContext`](crate::TenantContext).
    pub fn into_active(self: Arc<Self>) -> Result<ActiveTenant> {
        match self.status {
            TenantStatus::Active => Ok(ActiveTenant(self)),
            status if status.is_passing() => Err(Error::new(ErrorKind::Unavailable, format!("the tenant is {status}: try again soon"))),
            status => Err(Error::new(ErrorKind::TenantInactive, format!("the tenant is {status}"))),
        }
    }

    /// [`into_active`](Self::into_active) for what only reads: it goes on where the tenant's [`reads`](Self::reads) do. The context is
    /// read-only then.
    ///
    /// # Errors
    /// As `into_active`.
    pub fn into_readable(self: Arc<Self>) -> Result<ActiveTenant> {
        if self.status.is_passing() && self.reads { Ok(ActiveTenant(self)) } else { self.into_active() }
    }
}

/// A tenant that was active when its catalog row was read, or could be read. Made by [`Tenant::into_active`] and [`Tenant::into_readable`]
/// alone.
#[derive(Debug, Clone)]
pub struct ActiveTenant(Arc<Tenant>);

impl Deref for ActiveTenant {
    type Target = Tenant;

    fn deref(&self) -> &Tenant {
        &self.0
    }
}

/// What a new tenant starts with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NewTenant {
    /// Who it is.
    pub id: TenantId,
    /// Its name in addresses.
    pub slug: TenantSlug,
    /// Its name for people: 1 to [`Tenant::MAX_NAME_LEN`] characters, none of them control characters.
    pub name: String,
    /// The state it starts in.
    pub status: TenantStatus,
    /// The plan whose defaults it gets: 1 to 64 characters of `a-z`, `0-9`, `-` and `_`.
    pub plan: String,
    /// See [`Tenant::branding`].
    pub branding: Map<String, Value>,
    /// See [`Tenant::flags`].
    pub flags: Map<String, Value>,
}

impl NewTenant {
    /// A tenant that starts in `provisioning`, with a new identity.
    pub fn new(slug: TenantSlug, name: impl Into<String>) -> Self {
        Self {
            id: TenantId::new(),
            slug,
            name: name.into(),
            status: TenantStatus::Provisioning,
            plan: Tenant::DEFAULT_PLAN.to_owned(),
            branding: Map::new(),
            flags: Map::new(),
        }
    }

    /// Nothing is to be provisioned: it starts active.
    #[must_use]
    pub fn active(mut self) -> Self {
        self.status = TenantStatus::Active;
        self
    }
}

/// What to change of a tenant; `None` leaves a field as it is, an object replaces the whole object.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TenantChange {
    /// See [`NewTenant::slug`].
    pub slug: Option<TenantSlug>,
    /// See [`NewTenant::name`].
    pub name: Option<String>,
    /// See [`NewTenant::plan`].
    pub plan: Option<String>,
    /// See [`Tenant::branding`].
    pub branding: Option<Map<String, Value>>,
    /// See [`Tenant::flags`].
    pub flags: Option<Map<String, Value>>,
    /// The state to go to, along an edge of the lifecycle.
    pub status: Option<TenantStatus>,
    /// See [`Tenant::reads`]. Another state ends them, unless this says otherwise.
    pub reads: Option<bool>,
}

impl TenantChange {
    /// Go to `status`.
    pub fn status(status: TenantStatus) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// Have reads go on, or end them.
    #[must_use]
    pub fn with_reads(mut self, reads: bool) -> Self {
        self.reads = Some(reads);
        self
    }
}

/// See [`Tenant::branding`].
const LOGO: &str = "logo";

fn check_name(name: &str) -> Result<()> {
    let len = name.chars().count();
    if len == 0 || len > Tenant::MAX_NAME_LEN || name.trim() != name || name.chars().any(char::is_control) {
        return Err(Error::invalid("name", "must have 1 to 200 characters, no control characters, and no white space around it"));
    }
    Ok(())
}

fn check_plan(plan: &str) -> Result<()> {
    let fits = (1..=64).contains(&plan.len()) && plan.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
    if fits { Ok(()) } else { Err(Error::invalid("plan", "must have 1 to 64 characters of a-z, 0-9, '-' and '_'")) }
}

fn check_object(field: &'static str, object: &Map<String, Value>) -> Result<()> {
    let text = serde_json::to_string(object).map_err(|e| Error::invalid(field, "must be a JSON object").with_source(e))?;
    if text.len() > Tenant::MAX_OBJECT_LEN {
        return Err(Error::invalid(field, "must have at most 16 KiB of JSON text"));
    }
    if text.contains("\\u0000") {
        return Err(Error::invalid(field, "must not contain the character U+0000"));
    }
    Ok(())
}

fn check_flags(flags: &Map<String, Value>) -> Result<()> {
    if flags.len() > Tenant::MAX_FLAGS {
        return Err(Error::invalid("flags", "must have at most 200 members"));
    }
    check_object("flags", flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 123_456_789).expect("a time")
    }

    fn acme() -> Tenant {
        Tenant::new(NewTenant::new("acme".parse().expect("slug"), "Acme"), now()).expect("valid")
    }

    #[test]
    fn only_active_serves() {
        for status in TenantStatus::ALL {
            let tenant = Arc::new(Tenant { status, ..acme() });
            let active = tenant.into_active();
            assert_eq!(active.is_ok(), status == TenantStatus::Active, "{status}");
            if let Err(error) = active {
                let passes = matches!(status, TenantStatus::Moving | TenantStatus::Restoring);
                assert_eq!(error.kind(), if passes { ErrorKind::Unavailable } else { ErrorKind::TenantInactive });
            }
        }
    }

    #[test]
    fn reads_go_on_only_where_it_was_said_and_only_while_it_is_moved_or_restored() {
        for status in TenantStatus::ALL {
            let passes = matches!(status, TenantStatus::Moving | TenantStatus::Restoring);
            for reads in [false, true] {
                let tenant = Arc::new(Tenant { status, reads, ..acme() });
                assert_eq!(tenant.clone().into_active().is_ok(), status == TenantStatus::Active, "{status} {reads}");
                let readable = tenant.into_readable();
                assert_eq!(readable.is_ok(), status == TenantStatus::Active || passes && reads, "{status} {reads}");
                if let Err(error) = readable {
                    assert_eq!(error.kind(), if passes { ErrorKind::Unavailable } else { ErrorKind::TenantInactive });
                }
            }
            let there = Tenant { status, ..acme() };
            let asked = there.changed(TenantChange::default().with_reads(true), None, now());
            match asked {
                Ok(next) => assert!(passes && next.reads, "{status}"),
                Err(error) if status == TenantStatus::Erased => assert_eq!(error.kind(), ErrorKind::NotFound),
                Err(error) => assert!(!passes && error.field() == Some("reads"), "{status}"),
            }
        }
        let active = Tenant { status: TenantStatus::Active, ..acme() };
        let change = |tenant: &Tenant, change| tenant.changed(change, None, now()).expect("legal");
        let restoring = change(&active, TenantChange::status(TenantStatus::Restoring).with_reads(true));
        assert!(restoring.reads && change(&restoring, TenantChange::default()).reads, "they stay until somebody ends them");
        assert!(!change(&restoring, TenantChange::default().with_reads(false)).reads);
        let over = change(&restoring, TenantChange::status(TenantStatus::Active));
        assert!(!over.reads && !change(&over, TenantChange::status(TenantStatus::Moving)).reads, "they are over with the state");
        let text = |tenant: &Tenant| serde_json::to_value(tenant).expect("JSON");
        assert_eq!((text(&restoring).get("reads"), text(&active).get("reads")), (Some(&Value::Bool(true)), None));
    }

    #[test]
    fn erased_has_no_way_back_and_no_state_is_stuck() {
        for from in TenantStatus::ALL {
            assert!(!from.can_become(from));
            let ways = TenantStatus::ALL.into_iter().filter(|to| from.can_become(*to)).count();
            assert_eq!(ways == 0, from == TenantStatus::Erased, "{from}");
        }
        let erased = Tenant { status: TenantStatus::Erased, ..acme() };
        let error = erased.changed(TenantChange::default(), None, now()).expect_err("a tombstone");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_change_counts_and_a_stale_one_is_refused() {
        let one = acme();
        let two = one.changed(TenantChange { name: Some("Acme Ltd".into()), ..TenantChange::default() }, Some(1), now()).expect("legal");
        assert_eq!((two.version, two.name.as_str(), two.slug.as_str()), (2, "Acme Ltd", "acme"));
        let stale = two.changed(TenantChange::default(), Some(1), now()).expect_err("stale");
        assert_eq!(stale.kind(), ErrorKind::VersionMismatch);
        let jump = two.changed(TenantChange::status(TenantStatus::Archived), None, now()).expect_err("no such edge");
        assert_eq!((jump.kind(), jump.to_string().as_str()), (ErrorKind::Conflict, "a tenant that is provisioning can't become archived"));
    }

    #[test]
    fn a_logo_is_neither_brought_nor_lost() {
        let object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).expect("an object");
        let mut new = NewTenant::new("acme".parse().expect("slug"), "Acme");
        new.branding = object(r#"{"logo":"theirs","a":1}"#);
        let mut tenant = Tenant::new(new, now()).expect("valid");
        assert_eq!(tenant.branding, object(r#"{"a":1}"#));
        tenant.branding.insert(LOGO.into(), "ours".into());
        let change = TenantChange { branding: Some(object(r#"{"logo":"theirs","b":2}"#)), ..TenantChange::default() };
        assert_eq!(tenant.changed(change, None, now()).expect("legal").branding, object(r#"{"b":2,"logo":"ours"}"#));
    }

    #[test]
    fn names_and_objects_are_bounded() {
        for name in ["", " a", "a\n", "a\0", &"x".repeat(201)] {
            let error = Tenant::new(NewTenant::new("acme".parse().expect("slug"), name), now()).expect_err(name);
            assert_eq!(error.field(), Some("name"));
        }
        let mut new = NewTenant::new("acme".parse().expect("slug"), "Acme");
        new.branding.insert("logo".into(), "x".repeat(Tenant::MAX_OBJECT_LEN).into());
        assert_eq!(Tenant::new(new.clone(), now()).expect_err("too large").field(), Some("branding"));
        new.flags = (0..=Tenant::MAX_FLAGS).map(|n| (n.to_string(), true.into())).collect();
        new.branding.clear();
        assert_eq!(Tenant::new(new.clone(), now()).expect_err("too many").message(), "must have at most 200 members");
        new.flags.clear();
        new.branding.insert("logo".into(), "\0".into());
        assert_eq!(Tenant::new(new, now()).expect_err("NUL").field(), Some("branding"));
    }
}
