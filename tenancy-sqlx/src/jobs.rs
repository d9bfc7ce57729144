//! Background work of a tenant, which runs as that tenant.
//!
//! A job is a [message](crate::outbox) with the topic `job.<name>`: queued in the transaction that causes it, and delivered by a
//! [`Worker`](crate::outbox::Worker) to [`Jobs`], which establishes the tenant's context again and runs the host's [`JobHandler`] in a transaction
//! of that tenant. The job is marked as done in the same transaction, so what it writes is written once, however often it is delivered.
//!
//! ```no_run
//! # use tenancy_core::{JobEnvelope, Result, TenantContext};
//! # use tenancy_sqlx::{TenantDb, TenantTx, from_sqlx};
//! # async fn jobs(db: TenantDb, cx: TenantContext) -> Result<()> {
//! use std::sync::Arc;
//!
//! use async_trait::async_trait;
//! use tenancy_sqlx::jobs::{JobHandler, Jobs};
//! use tenancy_sqlx::outbox::{Worker, WorkerOptions};
//!
//! struct Count;
//!
//! #[async_trait]
//! impl JobHandler for Count {
//!     async fn run(&self, _: &TenantContext, job: &JobEnvelope, tx: &mut TenantTx) -> Result<()> {
//!         let sql = "insert into notes (body) select 'there are ' || count(*) || ', says ' || $1 from notes";
//!         sqlx::query(sql).bind(job.name()).execute(tx).await.map(drop).map_err(from_sqlx)
//!     }
//! }
//!
//! let worker = Worker::start(&db, Arc::new(Jobs::new(&db).with("count", Count)), WorkerOptions::default()).await?;
//!
//! let mut tx = db.begin(&cx).await?;
//! tx.enqueue(&JobEnvelope::new(&cx, "count"), "count:2026-07-01").await?;
//! tx.commit().await?;
//! # worker.shutdown().await;
//! # Ok(()) }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tenancy_core::outbox::{Delivery, DeliveryError, Message, Sink};
use tenancy_core::{Error, ErrorKind, JobEnvelope, Result, TenantCatalog as _, TenantContext, TenantId, TenantStatus};

use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::tx::TenantTx;

/// What the topics of jobs begin with.
const TOPIC: &str = "job.";

impl TenantTx {
    /// Queues a job of this tenant, as part of this transaction. Returns whether it is new: of several with the same name and `key`, the
    /// first is kept.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) at `tenant_id` for a job of another tenant, at `topic` for a name that is not of a-z and '_', at `key`.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn enqueue(&mut self, job: &JobEnvelope, key: &str) -> Result<bool> {
        if job.tenant_id() != self.tenant_id() {
            return Err(Error::invalid("tenant_id", "must be the tenant of the transaction"));
        }
        let payload = serde_json::to_value(job).map_err(|e| Error::new(ErrorKind::Internal, "the job can't be written").with_source(e))?;
        self.post(&Message::new(format!("{TOPIC}{}", job.name()), key, payload)?).await
    }
}

/// Does jobs of one kind.
#[async_trait]
pub trait JobHandler: Send + Sync + 'static {
    /// Does the job of `cx`'s tenant. What it writes in `tx` is kept once; effects outside of it may come twice.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) gives the job up. After any other error it is tried again, as the worker's policy says.
    async fn run(&self, cx: &TenantContext, job: &JobEnvelope, tx: &mut TenantTx) -> Result<()>;
}

/// A [`Sink`] that runs jobs, each as its own tenant.
///
/// - A job of a tenant that is not active is held: this counts as no try, and it runs once the tenant is active again.
/// - A job of a tenant that is archived is given up, with that as its reason.
/// - A job that names another tenant than the one whose transaction queued it is given up.
pub struct Jobs {
    db: TenantDb,
    handlers: BTreeMap<String, Arc<dyn JobHandler>>,
    beside: Option<Arc<dyn Sink>>,
}

impl Jobs {
    /// Runs no job yet.
    pub fn new(db: &TenantDb) -> Self {
        Self { db: db.clone(), handlers: BTreeMap::new(), beside: None }
    }

    /// Runs jobs of this name.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, handler: impl JobHandler) -> Self {
        self.handlers.insert(name.into(), Arc::new(handler));
        self
    }

    /// Gives messages that are no jobs to this sink.
    #[must_use]
    pub fn beside(mut self, sink: impl Sink) -> Self {
        self.beside = Some(Arc::new(sink));
        self
    }

    async fn run(&self, delivery: &Delivery, name: &str) -> Result<(), DeliveryError> {
        let refused = |why: &str| DeliveryError::Refused(why.to_owned());
        let tenant = delivery.tenant_id.ok_or_else(|| refused("a job belongs to a tenant"))?;
        let job: JobEnvelope = serde_json::from_value(delivery.payload.clone()).map_err(|_| refused("this is no job"))?;
        // The database knows whose transaction queued it; what the message says of that is only said.
        if job.tenant_id() != tenant || job.name() != name {
            return Err(refused("the job names another tenant, or another kind of work"));
        }
        let job = job.with_attempt(delivery.attempt);
        let handler = self.handlers.get(name).ok_or_else(|| DeliveryError::Retry(format!("nothing here does jobs named {name}")))?;
        match self.work(&job, handler.as_ref(), delivery.id).await {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::TenantInactive | ErrorKind::TenantNotFound | ErrorKind::Unavailable) => {
                Err(self.absent(tenant, &error).await)
            }
            Err(error) if error.kind() == ErrorKind::Invalid => Err(DeliveryError::Refused(error.to_string())),
            Err(error) => Err(DeliveryError::Retry(error.to_string())),
        }
    }

    async fn work(&self, job: &JobEnvelope, handler: &dyn JobHandler, message: i64) -> Result<()> {
        let cx = job.establish(&self.db.catalog()).await?;
        let mut tx = self.db.begin(&cx).await?;
        handler.run(&cx, job, &mut tx).await?;
        let finish = sqlx::query_scalar("select tenancy.job_finish($1)").bind(message);
        if finish.fetch_one(&mut tx).await.map_err(from_sqlx)? {
            return tx.commit().await;
        }
        // Another worker was faster.
        tx.rollback().await
    }

    /// What becomes of a job whose tenant is not active, or can't be served at the moment.
    async fn absent(&self, tenant: TenantId, why: &Error) -> DeliveryError {
        match self.db.catalog().find(&tenant.into()).await {
            Ok(Some(tenant)) if tenant.status == TenantStatus::Active => DeliveryError::Retry(why.to_string()),
            Ok(Some(tenant)) if tenant.status == TenantStatus::Archived => DeliveryError::Refused("the tenant is archived".to_owned()),
            Ok(Some(tenant)) => DeliveryError::Held(format!("the tenant is {}", tenant.status)),
            Ok(None) => DeliveryError::Refused("the tenant is erased".to_owned()),
            Err(error) => DeliveryError::Held(error.to_string()),
        }
    }
}

#[async_trait]
impl Sink for Jobs {
    async fn deliver(&self, delivery: &Delivery) -> Result<(), DeliveryError> {
        match (delivery.topic.strip_prefix(TOPIC), &self.beside) {
            (Some(name), _) => self.run(delivery, name).await,
            (None, Some(sink)) => sink.deliver(delivery).await,
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("names", &self.handlers.keys()).field("beside", &self.beside.is_some()).finish_non_exhaustive()
    }
}
