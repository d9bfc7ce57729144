//! One tenant's rows and objects as files that anybody can read (feature `export`).
//!
//! An export is an [operation](crate::operations). Its rows come from one snapshot, read as the application's role under the tenant's row-level
//! security: there is nothing of another tenant in it, and nothing that the tenant could not see. `docs/lifecycle.md` tells the files.
//!
//! ```no_run
//! # use tenancy_core::{Result, TenantId};
//! # async fn export(db: tenancy_sqlx::TenantDb, tenant: TenantId) -> Result<()> {
//! use std::sync::Arc;
//!
//! use object_store::memory::InMemory;
//! use object_store::path::Path;
//! use tenancy_sqlx::export::{Export, Exports, NewExport};
//! use tenancy_sqlx::operations::Operations;
//!
//! let mut tx = db.dangerous().begin_system("export a tenant").await?;
//! let queued = tx.request_export(tenant, &NewExport::default(), None).await?;
//! tx.commit().await?;
//!
//! let exports = Exports::new(Arc::new(InMemory::new()), Path::from("exports"));
//! Operations::new(&db).with(Export::KIND, Export::new(&db, exports.clone())).run_next().await?;
//! let mut tx = db.dangerous().begin_system("read an export").await?;
//! let manifest = exports.file(&tx.operation(queued.id).await?, "manifest.json").await?;
//! # Ok(()) }
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};
use tenancy_core::objects::TenantObjects;
use tenancy_core::{Error, ErrorKind, Result, TenantId, TenantStatus};
use uuid::Uuid;

use crate::db::TenantDb;
use crate::operations::Operation;
use crate::tx::SystemTx;

mod csv;
mod run;
mod store;

pub use store::Exports;

/// Does exports: the handler of [`Export::KIND`].
#[derive(Clone)]
pub struct Export {
    db: TenantDb,
    exports: Exports,
    objects: Option<TenantObjects>,
}

impl Export {
    /// The kind of operation that it does.
    pub const KIND: &str = "export";

    /// Writes the tenant's rows into `exports`.
    pub fn new(db: &TenantDb, exports: Exports) -> Self {
        Self { db: db.clone(), exports, objects: None }
    }

    /// Writes the tenant's objects as well.
    #[must_use]
    pub fn with_objects(mut self, objects: TenantObjects) -> Self {
        self.objects = Some(objects);
        self
    }
}

/// What an export's files of rows are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// A JSON object a line.
    #[default]
    Ndjson,
    /// A line with the names of the columns, and one for each row, as RFC 4180 says. NULL is nothing, and an empty text `""`.
    Csv,
}

impl Format {
    const fn extension(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }
}

/// What to export.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NewExport {
    /// What the files of rows are: NDJSON unless said.
    #[serde(default)]
    pub format: Format,
}

impl NewExport {
    /// Files of rows in this format.
    #[must_use]
    pub const fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("exports", &self.exports).field("objects", &self.objects.is_some()).finish_non_exhaustive()
    }
}

impl SystemTx {
    /// Queues the export of a tenant that is active, suspended or archived.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Conflict`](ErrorKind::Conflict) for a tenant in another state, and one with another operation
    /// under way.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn request_export(&mut self, tenant: TenantId, export: &NewExport, request_id: Option<Uuid>) -> Result<Operation> {
        may_be_exported(self, tenant).await?;
        self.queue_operation(tenant, Export::KIND, serde_json::json!(export), request_id).await
    }
}

async fn may_be_exported(tx: &mut SystemTx, tenant: TenantId) -> Result<()> {
    match tx.lock_tenant(tenant).await?.status {
        TenantStatus::Active | TenantStatus::Suspended | TenantStatus::Archived => Ok(()),
        TenantStatus::Erased => Err(Error::not_found()),
        other => Err(Error::new(ErrorKind::Conflict, format!("a tenant that is {other} can't be exported"))),
    }
}
