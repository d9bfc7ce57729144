//! Backups of single tenants, in tables that all tenants share, and their restoration without touching another one.
//!
//! A backup, a restore, a clone and a drill are [operations](crate::operations): any node does them, and goes on where another one
//! stopped. What is taken comes from the catalog: every table that is protected, and the tenant's objects. `docs/backup.md` tells how
//! they work, and `docs/backup-format.md` what an archive looks like.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use tenancy_core::{Result, TenantId, objects::TenantObjects};
//! # use tenancy_sqlx::backup::BackupKeys;
//! # async fn back_up(db: tenancy_sqlx::TenantDb, store: Arc<dyn object_store::ObjectStore>, keys: BackupKeys, objects: TenantObjects, tenant: TenantId) -> Result<()> {
//! use tenancy_sqlx::backup::{Backups, NewRestore};
//! use tenancy_sqlx::operations::Operations;
//!
//! let backups = Backups::new(&db, store, "backups".into(), keys).with_objects(objects);
//! let worker = backups.does(Operations::new(&db));
//!
//! let mut tx = db.dangerous().begin_system("back up a tenant").await?;
//! let queued = tx.request_backup(tenant, None).await?;
//! tx.commit().await?;
//! worker.run_next().await?;
//!
//! let mut tx = db.dangerous().begin_system("restore a tenant").await?;
//! tx.request_restore(tenant, &NewRestore::new(queued.id).dry_run(), None).await?;
//! tx.commit().await?;
//! worker.run_next().await?; // its result says what would change
//! # Ok(()) }
//! ```

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::ObjectStore;
use object_store::path::Path;
use serde_json::Value;
use tenancy_core::backup::Schedule;
use tenancy_core::objects::TenantObjects;
use tenancy_core::{Error, ErrorKind, Result, TenantId};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::db::TenantDb;
use crate::operations::{Handler, Operation, Operations, Progress};

pub mod archive;
mod as_of;
mod clone;
mod details;
mod drill;
mod fit;
mod journal;
mod keys;
mod link;
mod objects;
mod pace;
mod record;
mod references;
mod renew;
mod request;
mod restore;
mod schedule;
mod scratch;
mod session;
mod sweep;
mod tables;
mod take;

pub use keys::BackupKeys;
pub use link::BackupLink;
pub use record::Backup;
pub use request::{NewClone, NewRestore};
pub use schedule::Standing;

use archive::{ArchiveKey, ArchiveReader, Blobs, Expect};

/// The backups of all tenants: takes them, restores them, and removes them. A clone is another handle to them.
#[derive(Clone)]
pub struct Backups {
    db: TenantDb,
    store: Arc<dyn ObjectStore>,
    root: Path,
    keys: BackupKeys,
    objects: Option<TenantObjects>,
    pace: Option<NonZeroU64>,
    encrypted: bool,
    schedule: Schedule,
    halt_after: Option<(&'static str, Arc<Notify>)>,
}

impl Backups {
    /// The kind of operation that takes a backup.
    pub const TAKE: &str = "backup";
    /// The kind of operation that restores one.
    pub const RESTORE: &str = "restore";
    /// The kind of operation that makes another tenant of one.
    pub const CLONE: &str = "clone";
    /// The kind of operation that proves that one can be restored.
    pub const DRILL: &str = "drill";
    /// The kind of operation that removes what was deleted.
    pub const SWEEP: &str = "sweep";
    /// How fast a backup reads unless [said](Backups::with_pace), in bytes a second.
    pub const PACE: NonZeroU64 = NonZeroU64::new(10 * 1024 * 1024).unwrap();

    /// Archives in `store`, below `root`, which must not be below the root of the tenants' objects.
    pub fn new(db: &TenantDb, store: Arc<dyn ObjectStore>, root: Path, keys: BackupKeys) -> Self {
        Self {
            db: db.clone(),
            store,
            root,
            keys,
            objects: None,
            pace: Some(Self::PACE),
            encrypted: true,
            schedule: Schedule::NONE,
            halt_after: None,
        }
    }

    /// The tenants' objects come along.
    #[must_use]
    pub fn with_objects(mut self, objects: TenantObjects) -> Self {
        self.objects = Some(objects);
        self
    }

    /// How fast a backup may read, in bytes a second; `None` is as fast as it can. Slower is kinder to others, but a snapshot that is open
    /// for long holds back vacuum.
    #[must_use]
    pub fn with_pace(mut self, pace: Option<NonZeroU64>) -> Self {
        self.pace = pace;
        self
    }

    /// Archives are signed but can be read by whoever has them: where the store encrypts. What was encrypted stays so.
    #[must_use]
    pub fn without_encryption(mut self) -> Self {
        self.encrypted = false;
        self
    }

    /// When tenants that have [none of their own](crate::SystemTx::set_backup_schedule) are backed up and drilled. Unless said, they are not.
    #[must_use]
    pub const fn with_schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Stands still for ever once a step is finished, so that a test can kill it there, and says that it does.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn halting_after(mut self, step: &'static str, there: Arc<Notify>) -> Self {
        self.halt_after = Some((step, there));
        self
    }

    /// The worker, which does backups and all that is done with them from here on.
    #[must_use]
    pub fn does(&self, worker: Operations) -> Operations {
        [Self::TAKE, Self::RESTORE, Self::CLONE, Self::DRILL, Self::SWEEP]
            .into_iter()
            .fold(worker, |worker, kind| worker.with(kind, self.clone()))
    }

    async fn halted(&self, step: &str) {
        if let Some((after, there)) = &self.halt_after
            && *after == step
        {
            there.notify_one();
            std::future::pending::<()>().await;
        }
    }

    fn blobs(&self) -> Blobs {
        let blobs = Blobs::new(Arc::clone(&self.store), self.root.clone());
        if self.encrypted { blobs } else { blobs.without_encryption() }
    }

    /// Where the archive of an attempt is: another node's that was given up writes elsewhere.
    fn at(&self, tenant: TenantId, backup: Uuid, attempt: i64) -> Path {
        self.of(tenant, backup).join(attempt.to_string())
    }

    fn of(&self, tenant: TenantId, backup: Uuid) -> Path {
        self.archives(tenant).join(backup.to_string())
    }

    fn archives(&self, tenant: TenantId) -> Path {
        self.root.clone().join(tenant.to_string()).join("archives")
    }

    /// Opens the archive of a backup: nothing of it is used before it is known to be this one, whole and unchanged.
    async fn open(&self, backup: &Backup) -> Result<(ArchiveReader, ArchiveKey)> {
        let tenant = TenantId::from_uuid(backup.tenant_id)?;
        let key = self.keys.tenant_key(&self.db, tenant, backup.key_id).await?;
        let at = self.at(tenant, backup.id, backup.attempt);
        let expect = Expect { tenant, backup: backup.id, bytes: backup.bytes.cast_unsigned(), hash: backup.hash.clone() };
        let reader = ArchiveReader::open(Arc::clone(&self.store), at, expect, &key).await?;
        Ok((reader, key))
    }
}

#[async_trait]
impl Handler for Backups {
    async fn run(&self, operation: &Operation, progress: &Progress) -> Result<Value> {
        match operation.kind.as_str() {
            Self::TAKE => self.take(operation, progress).await,
            Self::RESTORE => self.restore(operation, progress).await,
            Self::CLONE => self.clone_tenant(operation, progress).await,
            Self::DRILL => self.drill(operation, progress).await,
            Self::SWEEP => self.sweep(TenantId::from_uuid(operation.tenant_id)?).await,
            other => Err(Error::new(ErrorKind::Internal, format!("{other} is not for backups to do"))),
        }
    }

    async fn cancel(&self, operation: &Operation, progress: &Progress) -> Result<bool> {
        match operation.kind.as_str() {
            Self::RESTORE => self.cancel_restore(TenantId::from_uuid(operation.tenant_id)?, progress).await,
            Self::CLONE => self.discard_clone(progress).await.map(|()| true),
            _ => Ok(true), // what a backup left is swept
        }
    }
}

impl fmt::Debug for Backups {
    /// Leaves out the store, whose own text may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backups").field("root", &self.root.as_ref()).field("objects", &self.objects.is_some()).finish_non_exhaustive()
    }
}
