//! The evidence that a request, job or session acts for one tenant.
//!
//! A [`TenantContext`] is passed explicitly, by reference. It is not a task-local: what is implicit is lost on `spawn`, kept by
//! mistake on a reused worker, and invisible in a signature. It is immutable and costs one `Arc` to clone.
//!
//! There are two ways to one, and `grep` finds them: [`TenantContext::establish`] and [`JobEnvelope::establish`].

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::storage::TenantCatalog;
use crate::{ActiveTenant, Actor, Error, ErrorKind, Result, TenantId, TenantStatus};

/// What a member may do in their tenant. Each role can do what the ones before it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads and writes.
    Member,
    /// Also manages members, configuration and shares.
    Admin,
    /// Also ends the tenant.
    Owner,
}

impl Role {
    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::Viewer, Self::Member, Self::Admin, Self::Owner]
            .into_iter()
            .find(|role| role.as_str() == s)
            .ok_or_else(|| Error::invalid("role", "must be viewer, member, admin or owner"))
    }
}

/// The stable name of whoever acts: 1 to 255 visible ASCII characters, as in a token's `sub`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subject(Box<str>);

impl Subject {
    /// The subject as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Subject {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if (1..=255).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(s.into()))
        } else {
            Err(Error::invalid("subject", "must have 1 to 255 visible ASCII characters"))
        }
    }
}

impl TryFrom<String> for Subject {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> Self {
        subject.0.into()
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who acts for a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Principal {
    /// Somebody who proved nothing: the tenant was named by a host or path alone. May do nothing that needs a role.
    Visitor,
    /// A person of the tenant.
    Member {
        /// Who.
        subject: Subject,
        /// What they may do.
        role: Role,
    },
    /// A person of the platform, acting inside the tenant.
    Operator {
        /// Who.
        subject: Subject,
    },
    /// A person of the platform who looks at the tenant as one of its members would, for a while and in its sight.
    Impersonator {
        /// Who.
        operator: Subject,
        /// What they may do.
        role: Role,
    },
    /// Another program of the tenant, by a token with scopes and no role.
    Service {
        /// Which.
        subject: Subject,
    },
    /// Background work of the tenant.
    Job {
        /// Which kind of work.
        name: String,
        /// Who caused it.
        on_behalf_of: Actor,
    },
}

impl Principal {
    /// How this principal is named in audit events.
    pub fn actor(&self) -> Actor {
        match self {
            Self::Visitor => Actor::Visitor,
            Self::Member { subject, .. } => Actor::Member(subject.clone()),
            Self::Operator { subject } | Self::Impersonator { operator: subject, .. } => Actor::Operator(subject.clone()),
            Self::Service { subject } => Actor::Service(subject.clone()),
            Self::Job { on_behalf_of, .. } => on_behalf_of.clone(),
        }
    }

    /// The role, of those who have one.
    pub const fn role(&self) -> Option<Role> {
        match self {
            Self::Member { role, .. } | Self::Impersonator { role, .. } => Some(*role),
            _ => None,
        }
    }
}

/// The evidence that what runs now acts for one active tenant: or, where it [can only be read](crate::Tenant::reads) for a while, one that is
/// read-only.
///
/// - Immutable, `Send + Sync`, one `Arc` to clone.
/// - No `Default`, no `Deserialize`, no `From`: it can be neither guessed nor sent.
/// - A context says who *was* resolved. Each `begin` of tenancy-sqlx asks again whether the tenant is still active.
#[derive(Clone)]
pub struct TenantContext(Arc<Inner>);

struct Inner {
    tenant: ActiveTenant,
    principal: Principal,
    scopes: BTreeSet<String>,
    read_only: bool,
    /// Made when first asked for: randomness costs more than everything else here.
    request_id: OnceLock<Uuid>,
}

impl TenantContext {
    /// A context for `principal` in `tenant`, with a new request id and no scopes. Where the tenant can only be read, it is
    /// [read-only](Self::read_only).
    ///
    /// # Security
    /// The caller vouches that `principal` was authenticated, and belongs to `tenant`.
    pub fn establish(tenant: ActiveTenant, principal: Principal) -> Self {
        let read_only = tenant.status != TenantStatus::Active;
        Self(Arc::new(Inner { tenant, principal, scopes: BTreeSet::new(), read_only, request_id: OnceLock::new() }))
    }

    /// The same context with these scopes instead.
    #[must_use]
    pub fn with_scopes(self, scopes: BTreeSet<String>) -> Self {
        let mut inner = self.into_inner();
        inner.scopes = scopes;
        Self(Arc::new(inner))
    }

    /// The same context with at most this role and these scopes; `None` takes no scope away. It can only lower what a token says.
    #[must_use]
    pub fn limited_to(self, most: Role, scopes: Option<&[String]>) -> Self {
        let mut inner = self.into_inner();
        if let Principal::Member { role, .. } | Principal::Impersonator { role, .. } = &mut inner.principal {
            *role = most.min(*role);
        }
        if let Some(scopes) = scopes {
            inner.scopes.retain(|scope| scopes.contains(scope));
        }
        Self(Arc::new(inner))
    }

    /// The same context, under which nothing of the tenant can be changed. There is no way back from it.
    ///
    /// # Security
    /// Not a matter of good will: the transactions of tenancy-sqlx are READ ONLY then, so that PostgreSQL refuses each write, and the
    /// tenant's object store refuses them too. Upholds I29.
    #[must_use]
    pub fn read_only(self) -> Self {
        let mut inner = self.into_inner();
        inner.read_only = true;
        Self(Arc::new(inner))
    }

    /// The same context under the id that the caller's edge gave to the request.
    #[must_use]
    pub fn with_request_id(self, request_id: Uuid) -> Self {
        let mut inner = self.into_inner();
        inner.request_id = request_id.into();
        Self(Arc::new(inner))
    }

    fn into_inner(self) -> Inner {
        Arc::try_unwrap(self.0).unwrap_or_else(|shared| Inner {
            tenant: shared.tenant.clone(),
            principal: shared.principal.clone(),
            scopes: shared.scopes.clone(),
            read_only: shared.read_only,
            request_id: shared.request_id.clone(),
        })
    }

    /// Which tenant.
    pub fn tenant_id(&self) -> TenantId {
        self.0.tenant.id
    }

    /// The tenant's catalog row, as it was when the context was established.
    pub fn tenant(&self) -> &ActiveTenant {
        &self.0.tenant
    }

    /// Who acts.
    pub fn principal(&self) -> &Principal {
        &self.0.principal
    }

    /// The scopes of the token.
    pub fn scopes(&self) -> &BTreeSet<String> {
        &self.0.scopes
    }

    /// Whether nothing of the tenant can be changed under this context.
    pub fn is_read_only(&self) -> bool {
        self.0.read_only
    }

    /// Ties log lines, spans and audit events of one request together.
    pub fn request_id(&self) -> Uuid {
        *self.0.request_id.get_or_init(Uuid::now_v7)
    }

    /// Deny by default: passes for members and impersonators with at least `role`, and for nobody else.
    ///
    /// # Errors
    /// [`Unauthenticated`](ErrorKind::Unauthenticated) for a visitor, else [`Forbidden`](ErrorKind::Forbidden).
    pub fn require(&self, role: Role) -> Result<()> {
        match &self.0.principal {
            Principal::Member { role: has, .. } | Principal::Impersonator { role: has, .. } if *has >= role => Ok(()),
            Principal::Visitor => Err(Error::new(ErrorKind::Unauthenticated, "sign in first")),
            _ => Err(Error::new(ErrorKind::Forbidden, format!("this needs the role {role}"))),
        }
    }

    /// Deny by default: passes if the token has `scope`.
    ///
    /// # Errors
    /// [`Unauthenticated`](ErrorKind::Unauthenticated) for a visitor, else [`Forbidden`](ErrorKind::Forbidden).
    pub fn require_scope(&self, scope: &str) -> Result<()> {
        match &self.0.principal {
            Principal::Visitor => Err(Error::new(ErrorKind::Unauthenticated, "sign in first")),
            _ if self.0.scopes.contains(scope) => Ok(()),
            _ => Err(Error::new(ErrorKind::Forbidden, format!("this needs the scope {scope}"))),
        }
    }
}

impl fmt::Debug for TenantContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantContext")
            .field("tenant_id", &self.0.tenant.id)
            .field("slug", &self.0.tenant.slug)
            .field("principal", &self.0.principal)
            .field("read_only", &self.0.read_only)
            .field("request_id", &self.request_id())
            .finish_non_exhaustive()
    }
}

/// Carries a tenant through a queue: what a job needs to be [established](JobEnvelope::establish) again where it runs.
///
/// The context itself can't be serialised, so a worker can't act for a tenant that was suspended meanwhile, and a retry can't run
/// without its tenant or with the previous job's.
///
/// # Security
/// Whoever can write to the queue can name any tenant. Keep the queue as private as the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobEnvelope {
    tenant_id: TenantId,
    name: String,
    #[serde(default)]
    payload: Value,
    on_behalf_of: Actor,
    request_id: Uuid,
    #[serde(default = "first")]
    attempt: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    read_only: bool,
}

const fn first() -> u32 {
    1
}

impl JobEnvelope {
    /// An envelope for a job of kind `name`, caused by whoever acts in `cx`.
    pub fn new(cx: &TenantContext, name: impl Into<String>) -> Self {
        Self {
            tenant_id: cx.tenant_id(),
            name: name.into(),
            payload: Value::Null,
            on_behalf_of: cx.principal().actor(),
            request_id: cx.request_id(),
            attempt: first(),
            read_only: cx.is_read_only(),
        }
    }

    /// The same job with what it is to work on.
    #[must_use]
    pub fn with_payload(mut self, payload: Value) -> Self {
        self.payload = payload;
        self
    }

    /// The same job at its `attempt`th try, from 1.
    #[must_use]
    pub fn with_attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Which kind of work.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is to work on.
    pub fn payload(&self) -> &Value {
        &self.payload
    }

    /// The request that caused it.
    pub fn request_id(&self) -> Uuid {
        self.request_id
    }

    /// The how-manieth try this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Which tenant the job is for.
    pub fn tenant_id(&self) -> TenantId {
        self.tenant_id
    }

    /// The context to run the job under, if the tenant is active now.
    ///
    /// # Errors
    /// [`TenantNotFound`](ErrorKind::TenantNotFound), [`TenantInactive`](ErrorKind::TenantInactive), [`Unavailable`](ErrorKind::Unavailable)
    /// while it is being moved or restored, whoever reads meanwhile, and what the catalog says.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn establish(&self, catalog: &dyn TenantCatalog) -> Result<TenantContext> {
        let tenant = catalog.find(&self.tenant_id.into()).await?.ok_or_else(Error::tenant_not_found)?;
        let principal = Principal::Job { name: self.name.clone(), on_behalf_of: self.on_behalf_of.clone() };
        let cx = TenantContext::establish(tenant.into_active()?, principal).with_request_id(self.request_id);
        Ok(if self.read_only { cx.read_only() } else { cx })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryCatalog;
    use crate::{NewTenant, TenantChange, TenantStatus};

    async fn acme(catalog: &MemoryCatalog, principal: Principal) -> TenantContext {
        let tenant = catalog.create(NewTenant::new("acme".parse().expect("slug"), "Acme").active(), &Actor::System).await.expect("create");
        TenantContext::establish(tenant.into_active().expect("active"), principal)
    }

    fn ada() -> Subject {
        "ada".parse().expect("subject")
    }

    #[tokio::test]
    async fn a_job_is_established_again_and_a_suspended_tenants_job_is_refused() {
        let catalog = MemoryCatalog::new();
        let cx = acme(&catalog, Principal::Member { subject: ada(), role: Role::Admin }).await;
        let queued = serde_json::to_string(&JobEnvelope::new(&cx, "reindex")).expect("to the queue");
        let envelope: JobEnvelope = serde_json::from_str(&queued).expect("from the queue");
        let job = envelope.establish(&catalog).await.expect("active");
        assert_eq!((job.tenant_id(), job.request_id()), (cx.tenant_id(), cx.request_id()));
        assert_eq!(job.principal().actor(), Actor::Member(ada()));
        assert_eq!(job.require(Role::Viewer).expect_err("a job has no role").kind(), ErrorKind::Forbidden);

        let suspend = TenantChange::status(TenantStatus::Suspended);
        catalog.update(cx.tenant_id(), suspend, None, &Actor::System).await.expect("suspend");
        assert_eq!(envelope.establish(&catalog).await.expect_err("suspended").kind(), ErrorKind::TenantInactive);
        assert_eq!(envelope.establish(&MemoryCatalog::new()).await.expect_err("elsewhere").kind(), ErrorKind::TenantNotFound);
        assert!(serde_json::from_str::<JobEnvelope>(&queued.replace("\"name\"", "\"nome\"")).is_err());
        let nobodys = queued.replacen(&format!("\"tenant_id\":\"{}\",", cx.tenant_id()), "", 1);
        let error = serde_json::from_str::<JobEnvelope>(&nobodys).expect_err("a job without a tenant").to_string();
        assert!(error.contains("missing field `tenant_id`"), "{error}");
    }

    #[tokio::test]
    async fn roles_and_scopes_are_denied_by_default() {
        let catalog = MemoryCatalog::new();
        let cx = acme(&catalog, Principal::Member { subject: ada(), role: Role::Member }).await;
        assert!(cx.require(Role::Viewer).is_ok() && cx.require(Role::Member).is_ok());
        assert_eq!(cx.require(Role::Admin).expect_err("less").kind(), ErrorKind::Forbidden);
        assert_eq!(cx.require_scope("notes:read").expect_err("none").kind(), ErrorKind::Forbidden);
        let id = cx.request_id();
        let scoped = cx.clone().with_scopes(BTreeSet::from(["notes:read".to_owned()]));
        assert!(scoped.require_scope("notes:read").is_ok() && scoped.require_scope("notes").is_err());
        assert_eq!(scoped.request_id(), id, "the same request");

        let limited = scoped.clone().limited_to(Role::Viewer, Some(&["notes:write".to_owned()]));
        assert!(limited.require(Role::Viewer).is_ok() && limited.require(Role::Member).is_err() && limited.scopes().is_empty());
        let raised = scoped.limited_to(Role::Owner, None);
        assert!(raised.require(Role::Admin).is_err() && raised.require_scope("notes:read").is_ok(), "it can only lower");

        let tenant = cx.tenant().clone();
        for principal in [Principal::Service { subject: ada() }, Principal::Operator { subject: ada() }] {
            assert_eq!(
                TenantContext::establish(tenant.clone(), principal).require(Role::Viewer).expect_err("no role").kind(),
                ErrorKind::Forbidden
            );
        }
        let visitor = TenantContext::establish(tenant, Principal::Visitor).with_scopes(BTreeSet::from(["x".to_owned()]));
        assert_eq!(visitor.require(Role::Viewer).expect_err("nobody").kind(), ErrorKind::Unauthenticated);
        assert_eq!(visitor.require_scope("x").expect_err("nobody").kind(), ErrorKind::Unauthenticated);
        assert!(!format!("{visitor:?}").is_empty());
    }

    #[tokio::test]
    async fn what_is_read_only_stays_so() {
        let catalog = MemoryCatalog::new();
        let cx = acme(&catalog, Principal::Impersonator { operator: ada(), role: Role::Viewer }).await;
        assert!(!cx.is_read_only());
        let kept = cx.clone();
        let cx = cx.read_only();
        let again = cx.clone().with_scopes(BTreeSet::new()).limited_to(Role::Owner, None).with_request_id(Uuid::now_v7());
        assert!(cx.is_read_only() && again.is_read_only() && !kept.is_read_only());
        assert!(cx.require(Role::Viewer).is_ok() && cx.require(Role::Member).is_err());
        assert_eq!((cx.principal().actor(), cx.principal().role()), (Actor::Operator(ada()), Some(Role::Viewer)));
        // A job of theirs writes no more than they do.
        for (cx, expected) in [(&cx, true), (&kept, false)] {
            let queued = serde_json::to_string(&JobEnvelope::new(cx, "export")).expect("to the queue");
            let envelope: JobEnvelope = serde_json::from_str(&queued).expect("from the queue");
            assert_eq!(envelope.establish(&catalog).await.expect("active").is_read_only(), expected, "{queued}");
        }
        // So is one of a tenant that can only be read; and no job begins then.
        let fence = TenantChange::status(TenantStatus::Restoring).with_reads(true);
        let fenced = catalog.update(cx.tenant_id(), fence, None, &Actor::System).await.expect("fenced");
        let reader = TenantContext::establish(fenced.into_readable().expect("readable"), kept.principal().clone());
        assert!(reader.is_read_only() && reader.clone().limited_to(Role::Owner, None).is_read_only());
        let refused = JobEnvelope::new(&reader, "export").establish(&catalog).await.expect_err("fenced");
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
    }
}
