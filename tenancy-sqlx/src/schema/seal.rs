//! Switching the sealed mode on and off, and its keys.

use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tenancy_core::{Error, Result};

use super::{Schema, misconfigured};
use crate::error::{from_sqlx, is_concurrent};
use crate::seal::SealKey;

/// GRANT SET ON PARAMETER, which the seal rests on, came with it.
const OLDEST_SEALABLE: i32 = 150_000;

/// The sealed mode: tenants are kept apart even when the application's role runs SQL that an attacker wrote.
///
/// Without it, such SQL can say `SET LOCAL tenancy.tenant_id` itself. Sealed, a transaction serves a tenant only by a token that is
/// signed with a key which the role can't read, once, and the tenant is kept where the role can't write. Needs a superuser and
/// PostgreSQL 15 or later, and costs about a tenth of a millisecond a transaction. `docs/isolation-modes.md` says what it holds against.
impl Schema {
    /// Seals this database with `key`. Does nothing where it is sealed with this key; call it after [`migrate`](Schema::migrate).
    ///
    /// From here on only a [`TenantDb`](crate::TenantDb) that was opened [with the key](crate::Options::with_seal_key) serves tenants: others see
    /// no rows, and have to be restarted with it.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured): the login is no superuser, the server is too old or uses the setting
    /// `backtrace_functions`, or the database is sealed with another key.
    ///
    /// # Cancel safety
    /// Safe: it is one transaction.
    pub async fn seal(&mut self, key: &SealKey) -> Result<()> {
        let facts = "select current_setting('server_version_num')::int, rolsuper, current_setting('backtrace_functions')
                       from pg_roles where rolname = current_user";
        let facts = sqlx::raw_sql(facts).fetch_one(&mut self.conn).await.map_err(from_sqlx)?;
        let (version, superuser, used): (i32, bool, String) = (facts.get(0), facts.get(1), facts.get(2));
        if version < OLDEST_SEALABLE {
            return Err(misconfigured(format!("PostgreSQL {} can't be sealed: it needs 15 or later", version / 10_000)));
        }
        if !superuser {
            return Err(misconfigured("sealing needs a superuser: GRANT SET ON PARAMETER is theirs alone".to_owned()));
        }
        if !used.is_empty() {
            return Err(misconfigured("sealing needs the setting backtrace_functions for itself: ALTER SYSTEM RESET it".to_owned()));
        }
        self.lock().await?;
        let mut done = self.install_seal(key).await;
        // Rights on parameters are the whole server's: sealing another database at the same moment is in the way, for a moment.
        for _ in 0..20 {
            if !done.as_ref().is_err_and(was_in_the_way) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            done = self.install_seal(key).await;
        }
        self.unlock().await?;
        done
    }

    async fn install_seal(&mut self, key: &SealKey) -> Result<()> {
        let sql = self.roles.rename(include_str!("seal.sql"));
        let mut tx = self.conn.begin().await.map_err(from_sqlx)?;
        tx.execute(AssertSqlSafe(sql)).await.map_err(from_sqlx)?;
        let (ipad, opad) = key.pads();
        let insert = "insert into tenancy_private.seal_keys values ('current', $1, $2) on conflict do nothing";
        sqlx::query(insert).bind(&ipad).bind(&opad).execute(&mut *tx).await.map_err(from_sqlx)?;
        let same = "select ipad = $1 from tenancy_private.seal_keys where slot = 'current'";
        if !sqlx::query_scalar::<_, bool>(same).bind(&ipad).fetch_one(&mut *tx).await.map_err(from_sqlx)? {
            tx.rollback().await.map_err(from_sqlx)?;
            return Err(misconfigured("this database is sealed with another key: Schema::rotate_seal_key changes it".to_owned()));
        }
        tx.commit().await.map_err(from_sqlx)
    }

    /// Goes back to the plain mode, and forgets the keys.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) if the database is not sealed.
    ///
    /// # Cancel safety
    /// Safe: it is one transaction.
    pub async fn unseal(&mut self) -> Result<()> {
        self.require_sealed().await?;
        let sql = self.roles.rename(include_str!("unseal.sql"));
        self.conn.execute(AssertSqlSafe(sql)).await.map(drop).map_err(from_sqlx)
    }

    /// Makes `key` the current one; the one before stays valid until the next rotation. So no node stops: rotate, give the key to the
    /// nodes one after another, then [retire](Schema::retire_seal_key) the old one.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) if the database is not sealed.
    ///
    /// # Cancel safety
    /// Safe: it is one transaction. Rotating to the key that is current already changes nothing.
    pub async fn rotate_seal_key(&mut self, key: &SealKey) -> Result<()> {
        self.require_sealed().await?;
        let (ipad, opad) = key.pads();
        let mut tx = self.conn.begin().await.map_err(from_sqlx)?;
        tx.execute("lock tenancy_private.seal_keys").await.map_err(from_sqlx)?;
        let same = "select ipad = $1 from tenancy_private.seal_keys where slot = 'current'";
        if sqlx::query_scalar::<_, bool>(same).bind(&ipad).fetch_one(&mut *tx).await.map_err(from_sqlx)? {
            return tx.rollback().await.map_err(from_sqlx);
        }
        let shift = "delete from tenancy_private.seal_keys where slot = 'previous';
                     update tenancy_private.seal_keys set slot = 'previous'";
        tx.execute(shift).await.map_err(from_sqlx)?;
        let insert = "insert into tenancy_private.seal_keys values ('current', $1, $2)";
        sqlx::query(insert).bind(&ipad).bind(&opad).execute(&mut *tx).await.map_err(from_sqlx)?;
        tx.commit().await.map_err(from_sqlx)
    }

    /// Refuses the key before the current one from now on: the end of a rotation, or at once when the old key is known to others.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) if the database is not sealed.
    ///
    /// # Cancel safety
    /// Safe: it is one statement.
    pub async fn retire_seal_key(&mut self) -> Result<()> {
        self.require_sealed().await?;
        self.conn.execute("delete from tenancy_private.seal_keys where slot = 'previous'").await.map(drop).map_err(from_sqlx)
    }

    async fn require_sealed(&mut self) -> Result<()> {
        let sealed = "select to_regprocedure('tenancy.enter(text)') is not null";
        if sqlx::query_scalar(sealed).fetch_one(&mut self.conn).await.map_err(from_sqlx)? {
            return Ok(());
        }
        Err(misconfigured("this database is not sealed: Schema::seal seals it".to_owned()))
    }
}

/// Whether a row of a shared catalog was changed by somebody else meanwhile: PostgreSQL does not wait for it, nor give it a code of its own.
fn was_in_the_way(error: &Error) -> bool {
    std::error::Error::source(error).and_then(|source| source.downcast_ref::<sqlx::Error>()).is_some_and(is_concurrent)
}
