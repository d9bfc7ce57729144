//! Waits until nobody can write on behalf of a tenant any more, once its status says that nobody should.
//!
//! A node may begin transactions of the tenant for as long as its catalog may be stale; those that are open then may still write, also
//! such as have written nothing yet and so have no transaction id. Each open transaction holds the lock of its virtual id, which any role
//! can see.

use std::collections::BTreeSet;
use std::time::Duration;

use tenancy_core::Result;

use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::operations::Progress;
use crate::tx::SystemTx;

/// The class of advisory locks by which transactions of administrative logins say that they write nothing of a tenant's before its fence
/// is up. The letters "tncy".
pub(crate) const BYSTANDER: i32 = 0x746e_6379;

/// Waits, and tells how it goes on.
pub(crate) async fn settle(db: &TenantDb, progress: &Progress) -> Result<()> {
    heard(db, progress).await?;
    let mut open = open_transactions(&mut progress.read().await?).await?;
    let total = open.len() as u64;
    while !open.is_empty() {
        let done = total - open.len() as u64;
        progress.at("waiting for older transactions", done, Some(total), "transactions").await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = open_transactions(&mut progress.read().await?).await?;
        open.retain(|id| now.contains(id));
    }
    Ok(())
}

/// Waits until every node knows how the tenant's status is now.
pub(crate) async fn heard(db: &TenantDb, progress: &Progress) -> Result<()> {
    progress.at("waiting until every node knows", 0, None, "").await?;
    tokio::time::sleep(db.inner().catalog.max_staleness()).await;
    Ok(())
}

/// The transactions that are open in this database, and prepared ones: but this one and bystanders.
pub(crate) async fn open_transactions(tx: &mut SystemTx) -> Result<BTreeSet<String>> {
    let open = sqlx::query_scalar(
        // Not pg_stat_activity, which an administrator may have closed: it shows others' statements.
        "select l.virtualxid from pg_locks l
           join (select pg_stat_get_backend_pid(b) as pid, pg_stat_get_backend_dbid(b) as db, pg_stat_get_backend_userid(b) as login
                   from pg_stat_get_backend_idset() b) a on a.pid = l.pid
          where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and l.granted and l.pid <> pg_backend_pid()
            and a.login <> 0 and a.db = (select oid from pg_database where datname = current_database())
            and not (a.login = (select oid from pg_roles where rolname = session_user)
                     and exists (select from pg_locks k where k.pid = l.pid and k.locktype = 'advisory' and k.granted and k.classid = $1::oid))
         union all select 'prepared ' || p.transaction from pg_prepared_xacts p where p.database = current_database()",
    );
    let class = sqlx::postgres::types::Oid(BYSTANDER.cast_unsigned());
    Ok(open.bind(class).fetch_all(tx).await.map_err(from_sqlx)?.into_iter().collect())
}
