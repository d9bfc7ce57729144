//! Switching the guard on and off.

use sqlx::{AssertSqlSafe, Executor};
use tenancy_core::Result;

use super::{Schema, misconfigured};
use crate::error::{from_sqlx, is_denied};

/// The guard: an event trigger that confines tables when they are made, and refuses what would open them again.
///
/// | statement | outcome |
/// |---|---|
/// | a new table with `tenant_id uuid not null` (also a partition, a child, `CREATE TABLE AS`) | protected at once |
/// | any other new table | the application sees nothing of it, until it has the column or is declared global |
/// | `DISABLE ROW LEVEL SECURITY`, `NO FORCE …`, `DROP POLICY`, `ALTER POLICY`, a new name for the tenant column | refused |
/// | `DROP COLUMN tenant_id CASCADE`, `DROP FUNCTION tenancy.current_tenant() CASCADE` | refused: they drop policies |
/// | `OWNER TO` a role of the application | refused |
///
/// A migration that means it says `set local tenancy.guard = 'off'` first; this counts for logins that are members of `tenancy_owner`
/// only. It is a guard against mistakes: whoever may migrate may also lift it.
impl Schema {
    /// Installs the guard, or brings it to this version. Tables that are there already stay as they are.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) if the login is no superuser: event triggers are theirs alone.
    ///
    /// # Cancel safety
    /// Safe: it is one transaction.
    pub async fn install_guard(&mut self) -> Result<()> {
        self.guard(include_str!("guard.sql")).await
    }

    /// Removes the guard. Does nothing where there is none.
    ///
    /// # Errors
    /// As [`install_guard`](Schema::install_guard).
    ///
    /// # Cancel safety
    /// Safe: it is one transaction.
    pub async fn remove_guard(&mut self) -> Result<()> {
        self.guard("drop event trigger if exists tenancy_guard_ddl; drop event trigger if exists tenancy_guard_drop; drop schema if exists tenancy_guard cascade").await
    }

    async fn guard(&mut self, sql: &str) -> Result<()> {
        let sql = self.roles.rename(sql);
        self.conn.execute(AssertSqlSafe(sql)).await.map(drop).map_err(|error| {
            if is_denied(&error) {
                misconfigured("the guard needs a superuser: event triggers are theirs alone".to_owned()).with_source(error)
            } else {
                from_sqlx(error)
            }
        })
    }
}
