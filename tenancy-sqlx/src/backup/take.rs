//! Takes a backup. An attempt that is stopped is begun anew, from a snapshot of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::{TryStreamExt as _, stream};
use object_store::ObjectStore as _;
use object_store::path::Path;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tenancy_core::objects::{delete_all, into_error};
use tenancy_core::{Error, ErrorKind, Result, TenantId, TenantStatus};
use uuid::Uuid;

use super::Backups;
use super::archive::{ArchiveKey, ArchiveWriter, Header, Kind};
use super::details::{self, Counted, Details};
use super::objects::{self, Listed, Seen};
use super::pace::Pace;
use super::record::Backup;
use super::session::begin_snapshot;
use super::tables::{self, Table, quoted};
use crate::error::from_sqlx;
use crate::operations::{Operation, Progress};
use crate::tx::SystemTx;

/// The segment with the list of objects. Tables have a point in their names.
pub(super) const OBJECTS: &str = "objects";
/// How often it says how far it is, at the most.
const TELL: Duration = Duration::from_millis(500);
/// How often it looks again where rows name objects that were deleted meanwhile.
const TRIES: usize = 3;

/// Says how far it is, now and then.
pub(super) struct Teller<'a> {
    progress: &'a Progress,
    told: Option<Instant>,
}

impl<'a> Teller<'a> {
    pub(super) const fn new(progress: &'a Progress) -> Self {
        Self { progress, told: None }
    }

    pub(super) async fn tell(&mut self, step: &str, done: u64, total: Option<u64>, unit: &str) -> Result<()> {
        if self.told.is_some_and(|told| told.elapsed() < TELL) {
            return Ok(());
        }
        self.told = Some(Instant::now());
        self.progress.at(step, done, total, unit).await
    }
}

/// Makes sure of the tenant's state.
pub(super) async fn may_be_backed_up(tx: &mut SystemTx, tenant: TenantId) -> Result<()> {
    match tx.lock_tenant(tenant).await?.status {
        TenantStatus::Active | TenantStatus::Suspended | TenantStatus::Archived | TenantStatus::Restoring => Ok(()),
        TenantStatus::Erased => Err(Error::not_found()),
        other => Err(Error::new(ErrorKind::Conflict, format!("a tenant that is {other} can't be backed up"))),
    }
}

impl Backups {
    pub(super) async fn take(&self, operation: &Operation, progress: &Progress) -> Result<Value> {
        let reason = operation.input["reason"].as_str().unwrap_or("asked");
        let backup = self.taken(operation, progress, operation.id, reason).await?;
        let mut tx = progress.begin().await?;
        tx.insert_backup(&backup).await?;
        self.thin_out(&mut tx, TenantId::from_uuid(backup.tenant_id)?).await?;
        let result = json!(backup);
        progress.tell(&mut tx, "done", backup.rows.cast_unsigned(), Some(backup.rows.cast_unsigned()), "rows").await?;
        progress.done(&mut tx, &result).await?;
        tx.commit().await?;
        self.tidy(&backup).await?;
        Ok(result)
    }

    /// Writes the archive of a backup that is not recorded yet.
    pub(super) async fn taken(&self, operation: &Operation, progress: &Progress, id: Uuid, reason: &str) -> Result<Backup> {
        let tenant = TenantId::from_uuid(operation.tenant_id)?;
        let mut tx = progress.begin().await?;
        may_be_backed_up(&mut tx, tenant).await?;
        let key = self.keys.current_key(&mut tx, tenant).await?;
        tx.commit().await?;
        self.begin_journal(tenant, progress).await?;
        for _ in 1..TRIES {
            match self.attempt((tenant, &key), operation, progress, id, reason).await {
                Err(error) if error.field() == Some(OBJECTS) => {
                    tracing::info!(%tenant, "objects were deleted while a backup began: it begins anew");
                }
                done => return done,
            }
        }
        self.attempt((tenant, &key), operation, progress, id, reason).await
    }

    async fn attempt(
        &self,
        (tenant, key): (TenantId, &ArchiveKey),
        operation: &Operation,
        progress: &Progress,
        id: Uuid,
        reason: &str,
    ) -> Result<Backup> {
        let pace = Pace::new(self.pace, progress.bytes());
        let mut teller = Teller::new(progress);
        // What is there before the snapshot is stored before it: so the less can be deleted between the two.
        let mut seen = self.known(tenant, &mut teller).await?;
        self.look(&mut seen, (tenant, key), &pace, &mut teller).await?;
        self.halted("objects").await;

        let mut tx = begin_snapshot(self.db.inner(), self.pace.is_some()).await?;
        let tables = tables::read(&mut tx).await?;
        let (taken_at, server, was, journal) = details::read(&mut tx, tenant.as_uuid()).await?;
        let header = Header::new(tenant, id, key, self.encrypted, self.db.inner().clock.now());
        let at = self.at(tenant, id, operation.attempts);
        let mut archive = ArchiveWriter::create(std::sync::Arc::clone(&self.store), at, header, key).await?;
        let written = async {
            let mut total = 0;
            for table in &tables {
                archive.begin(Kind::Rows, &table.sql)?;
                let (mut rows, mut read) = (Counter::default(), 0);
                {
                    let copy = table.copy_out(&tenant.to_string());
                    let mut copied = std::pin::pin!(tx.copy_out(&copy).await?);
                    while let Some(bytes) = copied.try_next().await.map_err(from_sqlx)? {
                        rows.count(&bytes);
                        read += bytes.len() as u64;
                        archive.write(&bytes).await?;
                        pace.read(bytes.len()).await;
                        teller.tell(&format!("reading {}", table.sql), total + rows.rows(), None, "rows").await?;
                    }
                }
                let counted = rows.rows();
                tracing::debug!(table = %table.sql, rows = counted, bytes = read, "a table was backed up");
                total += counted;
                archive.end(counted).await?;
            }
            let named = named(&mut tx, tenant, &tables).await?;
            tx.rollback().await?; // the snapshot holds back vacuum: it is needed no more
            self.halted("rows").await;

            let objects = self.listed(seen, &named, (tenant, key), &pace, &mut teller).await?;
            archive.begin(Kind::Objects, OBJECTS)?;
            let mut counted = Counted::default();
            for listed in objects.values() {
                let mut line = serde_json::to_vec(listed).map_err(unwritable)?;
                line.push(b'\n');
                archive.write(&line).await?;
                counted = Counted { count: counted.count + 1, bytes: counted.bytes + listed.size };
            }
            archive.end(counted.count).await?;
            Ok((total, counted))
        };
        let (rows, objects) = match written.await {
            Ok(written) => written,
            Err(error) => {
                archive.abort().await;
                return Err(error);
            }
        };
        let details = Details { taken_at, server, tenant: was, tables, objects, journal };
        let finished = archive.finish(serde_json::to_value(&details).map_err(unwritable)?).await?;
        self.halted("archive").await;
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(Backup {
            id,
            tenant_id: tenant.as_uuid(),
            taken_at,
            reason: reason.to_owned(),
            key_id: key.id(),
            rows: signed(rows),
            bytes: signed(finished.bytes),
            objects: signed(objects.count),
            object_bytes: signed(objects.bytes),
            hash: finished.hash,
            kit: env!("CARGO_PKG_VERSION").to_owned(),
            created_by: operation.created_by.clone(),
            hold: None,
            attempt: operation.attempts,
        })
    }

    /// What the newest backup has already.
    async fn known(&self, tenant: TenantId, teller: &mut Teller<'_>) -> Result<Seen> {
        let mut seen = Seen::default();
        if self.objects.is_none() {
            return Ok(seen);
        }
        let newest = teller.progress.read().await?.backups(tenant, None, 1).await?;
        let Some(newest) = newest.first() else { return Ok(seen) };
        // One that can't be read any more is no reason not to take another: all is stored again.
        let read = async {
            let (archive, _) = self.open(newest).await?;
            let mut lines = objects::lines(archive.segment(OBJECTS)?);
            while let Some(listed) = lines.try_next().await? {
                seen.0.insert(listed.path.clone(), listed);
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = read.await {
            tracing::warn!(%tenant, backup = %newest.id, ?error, "the last backup can't be built upon");
            seen = Seen::default();
        }
        Ok(seen)
    }

    async fn look(
        &self,
        seen: &mut Seen,
        key: (TenantId, &ArchiveKey),
        pace: &Pace,
        teller: &mut Teller<'_>,
    ) -> Result<BTreeMap<String, Listed>> {
        let Some(objects) = &self.objects else { return Ok(BTreeMap::new()) };
        let store = objects.dangerous_scope(key.0)?;
        seen.look(&store, &self.blobs(), key, pace, teller).await
    }

    /// The objects that belong to the snapshot: those that are there now, and those that its rows name and that were there.
    async fn listed(
        &self,
        mut seen: Seen,
        named: &BTreeSet<String>,
        key: (TenantId, &ArchiveKey),
        pace: &Pace,
        teller: &mut Teller<'_>,
    ) -> Result<BTreeMap<String, Listed>> {
        if self.objects.is_none() {
            return Ok(seen.0);
        }
        let gone = self.look(&mut seen, key, pace, teller).await?;
        for (path, listed) in gone {
            if named.contains(&path) {
                seen.0.entry(path).or_insert(listed);
            }
        }
        let missing: Vec<&String> = named.iter().filter(|path| !seen.0.contains_key(*path)).collect();
        if missing.is_empty() { Ok(seen.0) } else { Err(objects::missing(&missing)) }
    }

    /// Removes what earlier attempts left.
    async fn tidy(&self, backup: &Backup) -> Result<()> {
        let tenant = TenantId::from_uuid(backup.tenant_id)?;
        let keep = self.at(tenant, backup.id, backup.attempt);
        let below = self.of(tenant, backup.id);
        let stale: Vec<Path> = self.store.list(Some(&below)).map_ok(|meta| meta.location).try_collect().await.map_err(into_error)?;
        delete_all(&*self.store, stream::iter(stale.into_iter().filter(move |at| *at != keep).map(Ok))).await
    }
}

/// Counts the rows of a binary COPY as its bytes come by: a header, then for each row a number of fields, and each field's length.
#[derive(Debug, Default)]
struct Counter {
    rows: u64,
}

impl Counter {
    /// PostgreSQL sends one message for each row; the header comes with the first, and the trailer alone.
    fn count(&mut self, message: &[u8]) {
        if !message.is_empty() {
            self.rows += 1;
        }
    }

    /// Without the message that ends it.
    const fn rows(&self) -> u64 {
        self.rows.saturating_sub(1)
    }
}

/// The objects that the snapshot's rows name, where the host declared how.
async fn named(tx: &mut SystemTx, tenant: TenantId, tables: &[Table]) -> Result<BTreeSet<String>> {
    let declared = tables::object_columns(&mut *tx).await?;
    let mut named = BTreeSet::new();
    for (sql, column, path) in declared {
        let Some(table) = tables.iter().find(|table| table.sql == sql) else { continue };
        let query = format!(
            "select replace($2, '{{}}', t.{0}::text) from {1} t where t.{2} = $1 and t.{0} is not null",
            quoted(&column),
            table.from(),
            quoted(&table.tenant_column)
        );
        let mut paths = sqlx::query_scalar::<_, String>(AssertSqlSafe(query)).bind(tenant.as_uuid()).bind(path).fetch(&mut *tx);
        while let Some(path) = paths.try_next().await.map_err(from_sqlx)? {
            named.insert(path);
        }
    }
    Ok(named)
}

pub(super) fn unwritable(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Internal, "can't be written").with_source(error)
}
