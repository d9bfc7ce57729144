//! Whose keys seal backups: each tenant has its own, which are kept sealed by the platform's, and destroyed with the tenant.

use std::fmt;

use aes_gcm_siv::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use tenancy_core::{Actor, AuditEvent, Error, ErrorKind, Result, TenantId};
use uuid::Uuid;

use super::archive::ArchiveKey;
use crate::dangerous::begin_admin;
use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// The platform's keys, which seal those of tenants: keep them apart from the database and from the archives.
#[derive(Clone)]
pub struct BackupKeys {
    /// The first one seals; the others open what they once sealed.
    masters: Vec<(String, [u8; 32])>,
}

impl BackupKeys {
    /// The platform's key: 32 random bytes.
    pub fn new(current: [u8; 32]) -> Self {
        Self { masters: vec![(name(&current), current)] }
    }

    /// A key from before, until [`rewrap`](Self::rewrap) has sealed everything with the new one.
    #[must_use]
    pub fn with_older(mut self, older: [u8; 32]) -> Self {
        self.masters.push((name(&older), older));
        self
    }

    fn wrap(&self, tenant: TenantId, id: Uuid, key: &[u8; 32]) -> Result<(String, Vec<u8>)> {
        let (name, master) = &self.masters[0];
        let nonce: [u8; 12] = rand::random();
        let sealed = Aes256GcmSiv::new(&(*master).into())
            .encrypt(&Nonce::from(nonce), Payload { msg: key, aad: &bound(tenant, id) })
            .map_err(|_| Error::new(ErrorKind::Internal, "a key can't be sealed"))?;
        Ok((name.clone(), [nonce.as_slice(), &sealed].concat()))
    }

    fn unwrap(&self, tenant: TenantId, id: Uuid, master: &str, wrapped: &[u8]) -> Result<ArchiveKey> {
        let refuse = |why: &'static str| Error::new(ErrorKind::Misconfigured, why);
        let (_, master) = self
            .masters
            .iter()
            .find(|(name, _)| name == master)
            .ok_or_else(|| refuse("the tenant's backup key is sealed with a platform key that was not given"))?;
        let (nonce, sealed) = wrapped.split_first_chunk::<12>().ok_or_else(|| refuse("the tenant's backup key is damaged"))?;
        let key = Aes256GcmSiv::new(&(*master).into())
            .decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad: &bound(tenant, id) })
            .map_err(|_| refuse("the tenant's backup key is damaged, or another one's"))?;
        Ok(ArchiveKey::new(id, key.try_into().map_err(|_| refuse("the tenant's backup key is damaged"))?))
    }

    /// The key that seals the tenant's next backup; its first one makes it.
    pub(super) async fn current_key(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<ArchiveKey> {
        let query = sqlx::query_as(
            "select id, master, wrapped from tenancy.backup_keys where tenant_id = $1 and retired_at is null order by created_at desc limit 1",
        );
        let found: Option<(Uuid, String, Vec<u8>)> = query.bind(tenant.as_uuid()).fetch_optional(&mut *tx).await.map_err(from_sqlx)?;
        match found {
            Some((id, master, wrapped)) => self.unwrap(tenant, id, &master, &wrapped),
            None => self.made(tx, tenant).await,
        }
    }

    async fn made(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<ArchiveKey> {
        let (id, key): (Uuid, [u8; 32]) = (Uuid::now_v7(), rand::random());
        let (master, wrapped) = self.wrap(tenant, id, &key)?;
        let query = sqlx::query("insert into tenancy.backup_keys (tenant_id, id, master, wrapped) values ($1, $2, $3, $4)");
        query.bind(tenant.as_uuid()).bind(id).bind(master).bind(wrapped).execute(&mut *tx).await.map_err(from_sqlx)?;
        let event = AuditEvent::new(tx.actor().clone(), "backup.key", id.to_string()).with_tenant(tenant);
        tx.audit(&event).await?;
        Ok(ArchiveKey::new(id, key))
    }

    /// A key of the tenant that sealed something.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) at `archive` if it was destroyed.
    pub(super) async fn tenant_key(&self, db: &TenantDb, tenant: TenantId, id: Uuid) -> Result<ArchiveKey> {
        let mut tx = begin_admin(db.inner(), Actor::System).await?;
        let query = sqlx::query_as("select master, wrapped from tenancy.backup_keys where tenant_id = $1 and id = $2");
        let found: Option<(String, Vec<u8>)> = query.bind(tenant.as_uuid()).bind(id).fetch_optional(&mut tx).await.map_err(from_sqlx)?;
        let (master, wrapped) = found.ok_or_else(|| Error::invalid("archive", "can't be read any more: its key was destroyed"))?;
        self.unwrap(tenant, id, &master, &wrapped)
    }

    /// Gives the tenant a new key: what is backed up from now on is sealed with it. What was sealed before can still be read.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn rotate(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<Uuid> {
        let query = sqlx::query("update tenancy.backup_keys set retired_at = clock_timestamp() where tenant_id = $1 and retired_at is null");
        query.bind(tenant.as_uuid()).execute(&mut *tx).await.map_err(from_sqlx)?;
        Ok(self.made(tx, tenant).await?.id())
    }

    /// Seals up to `most` tenants' keys anew that an older platform key has sealed, and gives how many there were: none, and the older one
    /// is needed no more.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) for one that no given key opens.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn rewrap(&self, tx: &mut SystemTx, most: i64) -> Result<usize> {
        let query = sqlx::query_as(
            "select tenant_id, id, master, wrapped from tenancy.backup_keys where master <> $1 order by tenant_id, id limit $2 for update",
        );
        let found: Vec<(Uuid, Uuid, String, Vec<u8>)> = query.bind(&self.masters[0].0).bind(most).fetch_all(&mut *tx).await.map_err(from_sqlx)?;
        for (tenant, id, master, wrapped) in &found {
            let tenant = TenantId::from_uuid(*tenant)?;
            let key = self.unwrap(tenant, *id, master, wrapped)?;
            let (master, wrapped) = self.wrap(tenant, *id, key.bytes())?;
            let query = sqlx::query("update tenancy.backup_keys set master = $3, wrapped = $4 where tenant_id = $1 and id = $2");
            query.bind(tenant.as_uuid()).bind(id).bind(master).bind(wrapped).execute(&mut *tx).await.map_err(from_sqlx)?;
        }
        Ok(found.len())
    }
}

/// What a sealed key is for: it opens for nothing else.
fn bound(tenant: TenantId, id: Uuid) -> Vec<u8> {
    [tenant.as_uuid().as_bytes().as_slice(), id.as_bytes()].concat()
}

/// Tells the platform's keys apart, and nothing else about them.
fn name(master: &[u8; 32]) -> String {
    blake3::derive_key("tenancy 2026 backup platform key name", master)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Debug for BackupKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.masters.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_key_opens_for_that_tenant_with_the_platforms_key_alone() {
        let (keys, tenant, id) = (BackupKeys::new([7; 32]), TenantId::new(), Uuid::now_v7());
        let (master, wrapped) = keys.wrap(tenant, id, &[9; 32]).expect("sealed");
        assert_eq!(keys.unwrap(tenant, id, &master, &wrapped).expect("opened").bytes(), &[9; 32]);
        assert!(keys.unwrap(TenantId::new(), id, &master, &wrapped).is_err());
        assert!(keys.unwrap(tenant, Uuid::now_v7(), &master, &wrapped).is_err());
        assert!(BackupKeys::new([8; 32]).unwrap(tenant, id, &master, &wrapped).is_err());
        assert!(BackupKeys::new([8; 32]).with_older([7; 32]).unwrap(tenant, id, &master, &wrapped).is_ok());
        assert!(keys.unwrap(tenant, id, &master, &wrapped[..11]).is_err());
        assert!(!format!("{keys:?}").contains("7, 7"));
    }
}
