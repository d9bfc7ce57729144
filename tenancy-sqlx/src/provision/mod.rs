//! Makes a tenant ready to serve, in steps that any node goes on with.
//!
//! A provisioning is an [operation](crate::operations) on a tenant in the status `provisioning`, which is refused everywhere. What comes of a
//! step is kept in the transaction of its effect, so that it has its effect once, wherever a node is killed. The tenant becomes active in
//! the transaction that ends the operation. `docs/lifecycle.md` tells the steps.
//!
//! ```no_run
//! # use tenancy_core::{NewTenant, Result};
//! # use tenancy_core::quota::Plans;
//! # async fn provision(db: tenancy_sqlx::TenantDb, plans: Plans, now: chrono::DateTime<chrono::Utc>) -> Result<()> {
//! use async_trait::async_trait;
//! use serde_json::{Value, json};
//! use tenancy_sqlx::operations::Operations;
//! use tenancy_sqlx::provision::{Provision, ProvisionHook, Provisioning};
//! use tenancy_sqlx::{TenantTx, from_sqlx};
//!
//! struct Welcome;
//!
//! #[async_trait]
//! impl ProvisionHook for Welcome {
//!     fn name(&self) -> &'static str {
//!         "welcome"
//!     }
//!
//!     async fn run(&self, of: &Provisioning<'_>, tx: &mut TenantTx) -> Result<Value> {
//!         let note = sqlx::query("insert into notes (body) values ($1)").bind(format!("Welcome, {}", of.tenant.name));
//!         note.execute(tx).await.map_err(from_sqlx)?;
//!         Ok(json!({ "notes": 1 }))
//!     }
//! }
//!
//! let mut tx = db.dangerous().begin_system("provision a tenant").await?;
//! let tenant = tx.create_tenant(NewTenant::new("acme".parse()?, "Acme"), now).await?;
//! tx.request_provisioning(tenant.id, &plans, Value::Null, None).await?;
//! tx.commit().await?;
//!
//! Operations::new(&db).with(Provision::KIND, Provision::new(&db, plans).with_hook(Welcome)).run_next().await?;
//! # Ok(()) }
//! ```

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::types::Json;
use tenancy_core::provision::Probe;
use tenancy_core::quota::Plans;
use tenancy_core::{Error, ErrorKind, Result, Tenant, TenantId, TenantStatus};
use uuid::Uuid;

use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::operations::Operation;
use crate::tx::{SystemTx, TenantTx};

mod run;
mod warm;

pub use warm::WarmPool;

/// The kit's own steps, in their order; those of the host come before the last one. A new run does these again, and the host's not.
const OWN: [&str; 4] = ["preflight", "quotas", "storage", "activate"];

/// What a step is about.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Provisioning<'a> {
    /// The tenant, which does not serve yet.
    pub tenant: &'a Tenant,
    /// What the request said beside.
    pub input: &'a Value,
    /// The time.
    pub now: DateTime<Utc>,
}

/// A step of the host, in the tenant's own transaction: the rows that a tenant begins with.
#[async_trait]
pub trait ProvisionHook: Send + Sync + 'static {
    /// The step's name, which no other one has.
    fn name(&self) -> &'static str;

    /// Does it. What it gives is kept with its rows, and it is not done again. Effects outside of `tx` may come twice.
    ///
    /// # Errors
    /// An [`Unavailable`](ErrorKind::Unavailable) or [`Retry`](ErrorKind::Retry) error has it tried again later; any other one ends the
    /// operation, and the tenant stays as it is.
    async fn run(&self, of: &Provisioning<'_>, tx: &mut TenantTx) -> Result<Value>;
}

/// A step of the host across tenants: what is the platform's business.
#[async_trait]
pub trait ProvisionStep: Send + Sync + 'static {
    /// The step's name, which no other one has.
    fn name(&self) -> &'static str;

    /// Does it, as [`ProvisionHook::run`] does. Keep it short: the claim on the operation is not renewed meanwhile.
    ///
    /// # Errors
    /// As [`ProvisionHook::run`].
    async fn run(&self, of: &Provisioning<'_>, tx: &mut SystemTx) -> Result<Value>;
}

#[derive(Clone)]
enum Step {
    Within(Arc<dyn ProvisionHook>),
    Across(Arc<dyn ProvisionStep>),
}

impl Step {
    fn name(&self) -> &'static str {
        match self {
            Self::Within(hook) => hook.name(),
            Self::Across(step) => step.name(),
        }
    }
}

/// Provisions tenants: the handler of [`Provision::KIND`].
#[derive(Clone)]
pub struct Provision {
    db: TenantDb,
    plans: Plans,
    storage: Option<Arc<dyn Probe>>,
    steps: Vec<Step>,
    remembers: bool,
    halt_after: Option<&'static str>,
}

impl Provision {
    /// The kind of operation that it does.
    pub const KIND: &str = "provision";

    /// Gives tenants the quotas of their plan, which must be one of `plans`, and activates them.
    pub fn new(db: &TenantDb, plans: Plans) -> Self {
        Self { db: db.clone(), plans, storage: None, steps: Vec::new(), remembers: true, halt_after: None }
    }

    /// Also makes sure that the tenant's objects can be kept.
    #[must_use]
    pub fn with_storage(mut self, storage: impl Probe) -> Self {
        self.storage = Some(Arc::new(storage));
        self
    }

    /// Then does this, in the tenant's own transaction. Steps are done in the order in which they were given.
    #[must_use]
    pub fn with_hook(mut self, hook: impl ProvisionHook) -> Self {
        self.steps.push(Step::Within(Arc::new(hook)));
        self
    }

    /// Then does this, in a transaction across tenants.
    #[must_use]
    pub fn with_step(mut self, step: impl ProvisionStep) -> Self {
        self.steps.push(Step::Across(Arc::new(step)));
        self
    }

    /// Keeps nothing of the host's steps: what the tests' negative control needs, and nobody else.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn danger_without_memory(mut self) -> Self {
        self.remembers = false;
        self
    }

    /// Stands still for ever once a step is finished, so that a test can kill it there.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn halting_after(mut self, step: &'static str) -> Self {
        self.halt_after = Some(step);
        self
    }
}

impl fmt::Debug for Provision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<_> = self.steps.iter().map(Step::name).collect();
        f.debug_struct("Provision").field("storage", &self.storage.is_some()).field("steps", &steps).finish_non_exhaustive()
    }
}

impl SystemTx {
    /// Queues the provisioning of a tenant that is in the status `provisioning`. `input` is for the host's own steps. If an earlier run failed,
    /// what its steps did is not done again, and its input counts where this one is null.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) at `plan` for one that `plans` don't have;
    /// [`Conflict`](ErrorKind::Conflict) for a tenant in another state, and one with another operation under way.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn request_provisioning(
        &mut self,
        tenant: TenantId,
        plans: &Plans,
        input: Value,
        request_id: Option<Uuid>,
    ) -> Result<Operation> {
        let tenant = to_be_provisioned(self, tenant).await?;
        plans.plan(&tenant.plan)?;
        let earlier = sqlx::query(
            "select input, steps - $2::text[] from tenancy.operations where tenant_id = $1 and kind = 'provision' order by created_at desc limit 1",
        );
        let earlier = earlier.bind(tenant.id.as_uuid()).bind(&OWN[..]).fetch_optional(&mut *self).await.map_err(from_sqlx)?;
        let (said, steps): (Value, Value) = match &earlier {
            Some(row) => (row.try_get(0).map_err(from_sqlx)?, row.try_get(1).map_err(from_sqlx)?),
            None => (Value::Null, json!({})),
        };
        let input = if input.is_null() { said } else { input };
        let queued = self.queue_operation(tenant.id, Provision::KIND, input, request_id).await?;
        let keep = sqlx::query("update tenancy.operations set steps = $2 where id = $1").bind(queued.id).bind(Json(steps));
        keep.execute(self).await.map_err(from_sqlx)?;
        Ok(queued)
    }
}

/// The tenant, whose row is locked, if it is still to be made.
async fn to_be_provisioned(tx: &mut SystemTx, tenant: TenantId) -> Result<Tenant> {
    let tenant = tx.lock_tenant(tenant).await?;
    match tenant.status {
        TenantStatus::Provisioning => Ok(tenant),
        TenantStatus::Erased => Err(Error::not_found()),
        other => Err(Error::new(ErrorKind::Conflict, format!("a tenant that is {other} can't be provisioned"))),
    }
}
