//! Keys of tenants' backups, sealed under the platform's.

use std::fmt;

use aes_gcm_siv::Aes256GcmSiv;
use aes_gcm_siv::aead::{Aead as _, KeyInit as _, Payload};
use tenancy_core::{Actor, AuditEvent, Error, ErrorKind, Result, TenantId, TenantStatus};
use uuid::Uuid;

use super::archive::ArchiveKey;
use crate::dangerous::begin_admin;
use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// How many keys are sealed again in one transaction.
const BATCH: i64 = 500;
/// The nonce of a sealed key, which comes before it.
const NONCE: usize = 12;

/// The master keys of the platform: 32 random bytes each, which are kept where the database's password is kept, and not in the database.
///
/// Each tenant has data keys of its own, made when they are needed and kept in the database, sealed under a master key. They go when the
/// tenant is erased: what was sealed with them can't be read any more, wherever copies of it are.
#[derive(Clone)]
pub struct BackupKeys {
    current: Master,
    older: Vec<Master>,
}

#[derive(Clone)]
struct Master {
    id: String,
    key: [u8; 32],
}

impl Master {
    fn new(key: [u8; 32]) -> Self {
        let id = blake3::Hash::from_bytes(blake3::derive_key("tenancy 1 backup master id", &key)).to_hex()[..16].to_owned();
        Self { id, key }
    }

    fn cipher(&self) -> Aes256GcmSiv {
        Aes256GcmSiv::new(&blake3::derive_key("tenancy 1 backup master", &self.key).into())
    }

    fn wrap(&self, tenant: TenantId, id: Uuid, key: &[u8; 32]) -> Result<Vec<u8>> {
        let nonce: [u8; NONCE] = rand::random();
        let about = about(tenant, id);
        let sealed = self.cipher().encrypt(&nonce.into(), Payload { msg: key, aad: &about });
        let sealed = sealed.map_err(|_| Error::new(ErrorKind::Internal, "a backup key could not be sealed"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    fn unwrap(&self, tenant: TenantId, id: Uuid, wrapped: &[u8]) -> Result<[u8; 32]> {
        let changed = || Error::new(ErrorKind::Internal, "a backup key was changed in the database");
        let (nonce, sealed) = wrapped.split_first_chunk::<NONCE>().ok_or_else(changed)?;
        let about = about(tenant, id);
        let key = self.cipher().decrypt(&(*nonce).into(), Payload { msg: sealed, aad: &about }).map_err(|_| changed())?;
        key.try_into().map_err(|_| changed())
    }
}

/// What a key is sealed for: in another row it is of no use.
fn about(tenant: TenantId, id: Uuid) -> Vec<u8> {
    [&b"tenancy backup key 1"[..], tenant.as_uuid().as_bytes(), id.as_bytes()].concat()
}

type Row = (Uuid, String, Vec<u8>);

impl BackupKeys {
    /// With this master key, which must be random.
    pub fn new(current: [u8; 32]) -> Self {
        Self { current: Master::new(current), older: Vec::new() }
    }

    /// With one that was the current one before. Once nothing is sealed under it any more, it can go: see [`rewrap`](BackupKeys::rewrap).
    #[must_use]
    pub fn with_older(mut self, key: [u8; 32]) -> Self {
        self.older.push(Master::new(key));
        self
    }

    /// The key that new backups of the tenant are sealed with. The first one is made here.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) without such a tenant, or for one that was erased; [`Misconfigured`](ErrorKind::Misconfigured) without
    /// the master key that it is sealed under.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn current_key(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<ArchiveKey> {
        hold(tx, tenant).await?;
        let found = "select id, master_id, wrapped from tenancy.backup_keys where tenant_id = $1 and retired_at is null";
        let found: Option<Row> = sqlx::query_as(found).bind(tenant.as_uuid()).fetch_optional(&mut *tx).await.map_err(from_sqlx)?;
        match found {
            Some(row) => self.open(tenant, row),
            None => self.make(tx, tenant, "backup_key.create").await,
        }
    }

    /// A key of the tenant's, also one that was replaced.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound): there is none, or no more since the tenant was erased, or it is another tenant's;
    /// [`Misconfigured`](ErrorKind::Misconfigured) without the master key that it is sealed under.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Security
    /// I40.
    pub async fn tenant_key(&self, db: &TenantDb, tenant: TenantId, id: Uuid) -> Result<ArchiveKey> {
        let mut tx = begin_admin(db.inner(), Actor::System).await?;
        let found = "select id, master_id, wrapped from tenancy.backup_keys where tenant_id = $1 and id = $2";
        let found = sqlx::query_as(found).bind(tenant.as_uuid()).bind(id).fetch_optional(&mut tx).await.map_err(from_sqlx)?;
        tx.rollback().await?;
        self.open(tenant, found.ok_or_else(Error::not_found)?)
    }

    /// Gives the tenant another key for what comes. The ones before go on opening what was sealed with them.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) without such a tenant, or for one that was erased.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn rotate_tenant_key(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<ArchiveKey> {
        hold(tx, tenant).await?;
        let retire = "update tenancy.backup_keys set retired_at = clock_timestamp() where tenant_id = $1 and retired_at is null";
        sqlx::query(retire).bind(tenant.as_uuid()).execute(&mut *tx).await.map_err(from_sqlx)?;
        self.make(tx, tenant, "backup_key.rotate").await
    }

    /// Seals all tenants' keys under the current master key, and returns how many were not. The older ones are of no use after it.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) without a master key that one is sealed under.
    ///
    /// # Cancel safety
    /// Some may be sealed again, and some not: do it again.
    pub async fn rewrap(&self, db: &TenantDb) -> Result<u64> {
        let mut count = 0;
        loop {
            let mut tx = db.dangerous().begin_system("backup keys are sealed under another master key").await?;
            let rows = "select tenant_id, id, master_id, wrapped from tenancy.backup_keys where master_id <> $1
                         order by tenant_id, id limit $2 for update";
            let rows: Vec<(Uuid, Uuid, String, Vec<u8>)> =
                sqlx::query_as(rows).bind(&self.current.id).bind(BATCH).fetch_all(&mut tx).await.map_err(from_sqlx)?;
            if rows.is_empty() {
                tx.rollback().await?;
                return Ok(count);
            }
            count += rows.len() as u64;
            let (mut tenants, mut ids, mut wrapped) = (Vec::new(), Vec::new(), Vec::new());
            for (tenant_id, id, master, sealed) in rows {
                let tenant = TenantId::from_uuid(tenant_id)?;
                let key = self.master(&master)?.unwrap(tenant, id, &sealed)?;
                wrapped.push(self.current.wrap(tenant, id, &key)?);
                tenants.push(tenant_id);
                ids.push(id);
            }
            let update = "update tenancy.backup_keys k set master_id = $1, wrapped = n.wrapped
                            from unnest($2::uuid[], $3::uuid[], $4::bytea[]) n (tenant_id, id, wrapped)
                           where k.tenant_id = n.tenant_id and k.id = n.id";
            let update = sqlx::query(update).bind(&self.current.id).bind(&tenants).bind(&ids).bind(&wrapped);
            update.execute(&mut tx).await.map_err(from_sqlx)?;
            let event = AuditEvent::new(tx.actor().clone(), "backup_key.rewrap", &*self.current.id);
            tx.audit(&event.with_detail(serde_json::json!({ "keys": ids.len() }))).await?;
            tx.commit().await?;
        }
    }

    async fn make(&self, tx: &mut SystemTx, tenant: TenantId, action: &str) -> Result<ArchiveKey> {
        let (id, key) = (Uuid::now_v7(), rand::random());
        let wrapped = self.current.wrap(tenant, id, &key)?;
        let insert = sqlx::query("insert into tenancy.backup_keys (tenant_id, id, master_id, wrapped) values ($1, $2, $3, $4)");
        let insert = insert.bind(tenant.as_uuid()).bind(id).bind(&self.current.id).bind(wrapped);
        insert.execute(&mut *tx).await.map_err(from_sqlx)?;
        tx.audit(&AuditEvent::new(tx.actor().clone(), action, id.to_string()).with_tenant(tenant)).await?;
        Ok(ArchiveKey::new(id, key))
    }

    fn open(&self, tenant: TenantId, (id, master, wrapped): Row) -> Result<ArchiveKey> {
        Ok(ArchiveKey::new(id, self.master(&master)?.unwrap(tenant, id, &wrapped)?))
    }

    fn master(&self, id: &str) -> Result<&Master> {
        std::iter::once(&self.current).chain(&self.older).find(|master| master.id == id).ok_or_else(|| {
            Error::new(
                ErrorKind::Misconfigured,
                format!("the master key {id}, which backup keys are sealed under, is not set up: add it as an older one"),
            )
        })
    }
}

/// Keeps the tenant as it is: of two that want a first key, one makes it, and who was erased gets none.
async fn hold(tx: &mut SystemTx, tenant: TenantId) -> Result<()> {
    if tx.lock_tenant(tenant).await?.status == TenantStatus::Erased { Err(Error::not_found()) } else { Ok(()) }
}

impl fmt::Debug for BackupKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let older: Vec<&str> = self.older.iter().map(|master| master.id.as_str()).collect();
        f.debug_struct("BackupKeys").field("current", &self.current.id).field("older", &older).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_under_its_master_for_its_row_alone() {
        let (master, tenant, id) = (Master::new([1; 32]), TenantId::new(), Uuid::now_v7());
        let wrapped = master.wrap(tenant, id, &[9; 32]).expect("wrapped");
        assert_eq!(wrapped.len(), 60);
        assert_eq!(master.unwrap(tenant, id, &wrapped).expect("unwrapped"), [9; 32]);
        assert!(Master::new([2; 32]).unwrap(tenant, id, &wrapped).is_err(), "another master");
        assert!(master.unwrap(TenantId::new(), id, &wrapped).is_err(), "another tenant's row");
        assert!(master.unwrap(tenant, Uuid::now_v7(), &wrapped).is_err(), "another row");
        for at in 0..wrapped.len() {
            let mut bad = wrapped.clone();
            bad[at] ^= 1;
            assert!(master.unwrap(tenant, id, &bad).is_err(), "{at}");
        }
        assert!(master.unwrap(tenant, id, &wrapped[..20]).is_err());
    }

    #[test]
    fn keys_are_not_shown() {
        let keys = BackupKeys::new([7; 32]).with_older([8; 32]);
        let shown = format!("{keys:?} {:?}", ArchiveKey::new(Uuid::nil(), [7; 32]));
        assert!(!shown.contains("7, 7") && !shown.contains("0707"), "{shown}");
    }
}
