//! Roles, the schema `tenancy`, and the host's own migrations: everything that is done with administrative credentials, before serving.
//!
//! | role | login | what it is for |
//! |---|---|---|
//! | `tenancy_owner` | no | owns the schema `tenancy` and every tenant table; migrations run as it |
//! | `tenancy_app` | yes | the application's pool: owns nothing, is a member of nothing, may only read and write rows |
//! | `tenancy_admin` | no | BYPASSRLS; work across tenants, entered for one transaction at a time |
//! | `tenancy_share` | no | BYPASSRLS; owns the views of `tenancy_views`, through which shared rows are read |
//! | `tenancy_backup` | no | BYPASSRLS; may read tenants' tables, and write nothing |
//! | `tenancy_restore` | no | stages what is restored; the tenant's rows are then written as `tenancy_app`, bound to that tenant |
//!
//! [Sealing](Schema::seal) adds `tenancy_sealer`, which owns the one function that binds a tenant.
//!
//! Roles belong to the whole server: two kits on one server that must not share them use different [prefixes](Roles::new).

use std::str::FromStr;
use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, SqlSafeStr};
use tenancy_core::{Error, ErrorKind, Result};

use crate::error::{from_sqlx, is_concurrent, is_denied};

mod guard;
mod seal;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Serialises migrators of one database, on any number of nodes. The letters "tenancy".
const LOCK: i64 = 0x0074_656e_616e_6379;
const LOCK_WAIT: Duration = Duration::from_secs(120);

const GRANTS: &str = "
    create schema if not exists tenancy authorization tenancy_owner;
    create schema if not exists tenancy_views authorization tenancy_share;
    do $$ begin if not pg_has_role('tenancy_owner', 'tenancy_share', 'member') then grant tenancy_share to tenancy_owner; end if; end $$;
    grant create, usage on schema public to tenancy_owner;
    do $$ begin execute format('grant create on database %I to tenancy_owner', current_database()); end $$;
    do $$ begin execute format('grant temporary on database %I to tenancy_restore', current_database()); end $$;
    grant execute on function pg_catalog.set_config(text, text, boolean) to tenancy_owner, tenancy_admin;";

/// What is taken from everybody, and how to see whether it is still there.
const REVOKES: [(&str, &str); 5] = [
    ("revoke create on schema public from public", "has_schema_privilege('public', 'public', 'create')"),
    (
        "revoke temporary, create on database {database} from public",
        "has_database_privilege('public', current_database(), 'temporary, create')",
    ),
    // Otherwise SQL injected into an expression could bind another tenant.
    (
        "revoke execute on function pg_catalog.set_config(text, text, boolean) from public",
        "has_function_privilege('public', 'pg_catalog.set_config(text, text, boolean)', 'execute')",
    ),
    // All tenants' sessions have one login, which could otherwise read each other's statements.
    (
        "revoke execute on function pg_catalog.pg_stat_get_activity(integer) from public",
        "has_function_privilege('public', 'pg_catalog.pg_stat_get_activity(integer)', 'execute')",
    ),
    (
        "revoke execute on function pg_catalog.pg_stat_get_backend_activity(integer) from public",
        "has_function_privilege('public', 'pg_catalog.pg_stat_get_backend_activity(integer)', 'execute')",
    ),
];

/// The names of the kit's roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    prefix: String,
}

impl Roles {
    /// Roles named `<prefix>_owner`, `<prefix>_app`, `<prefix>_admin`, and so on.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) unless `prefix` has 1 to 40 characters of `a-z`, `0-9` and `_`, beginning with a letter.
    pub fn new(prefix: impl Into<String>) -> Result<Self> {
        let prefix = prefix.into();
        let plain = prefix.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if !plain || prefix.len() > 40 || !prefix.starts_with(|c: char| c.is_ascii_lowercase()) || prefix.starts_with("pg_") {
            return Err(Error::invalid("role prefix", "must have 1 to 40 characters of a-z, 0-9 and '_', and begin with a letter"));
        }
        Ok(Self { prefix })
    }

    /// Owns the schema and the tenant tables.
    pub fn owner(&self) -> String {
        format!("{}_owner", self.prefix)
    }

    /// What the application logs in as.
    pub fn app(&self) -> String {
        format!("{}_app", self.prefix)
    }

    /// Work across tenants.
    pub fn admin(&self) -> String {
        format!("{}_admin", self.prefix)
    }

    /// Reads tenants' rows into backups.
    pub fn backup(&self) -> String {
        format!("{}_backup", self.prefix)
    }

    /// Stages what is restored.
    pub fn restore(&self) -> String {
        format!("{}_restore", self.prefix)
    }

    /// `sql` with our names in place of the default ones.
    fn rename(&self, sql: &str) -> String {
        if *self == Self::default() {
            return sql.to_owned();
        }
        let names = [
            ("tenancy_owner", self.owner()),
            ("tenancy_app", self.app()),
            ("tenancy_admin", self.admin()),
            ("tenancy_share", format!("{}_share", self.prefix)),
            ("tenancy_backup", self.backup()),
            ("tenancy_restore", self.restore()),
            ("tenancy_sealer", format!("{}_sealer", self.prefix)),
        ];
        names.iter().fold(sql.to_owned(), |sql, (from, to)| sql.replace(from, to))
    }
}

impl Default for Roles {
    /// `tenancy_owner`, `tenancy_app`, `tenancy_admin`, and so on.
    fn default() -> Self {
        Self { prefix: "tenancy".to_owned() }
    }
}

/// An administrative connection to one database, for setting it up.
#[derive(Debug)]
pub struct Schema {
    conn: PgConnection,
    roles: Roles,
}

impl Schema {
    /// Connects to the database at `url` as a role that may create roles and schemas: a superuser, or on a managed service the
    /// service's own administrator.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) for a bad URL or login, [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn connect(url: &str, roles: Roles) -> Result<Self> {
        let options = PgConnectOptions::from_str(url).map_err(from_sqlx)?;
        Ok(Self { conn: options.connect().await.map_err(from_sqlx)?, roles })
    }

    /// Brings roles, database privileges and the schema `tenancy` to this version of the kit. Safe to call at every start, from any
    /// number of nodes at once; does nothing where nothing is missing.
    ///
    /// # Returns
    /// Privileges that this login could not revoke, each with the statement for an administrator to run. Empty when all is well.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if the login lacks a right (the message names it), or if the database was migrated
    /// by a newer kit.
    ///
    /// # Cancel safety
    /// Safe: each migration is one transaction, and a later call goes on.
    pub async fn migrate(&mut self) -> Result<Vec<String>> {
        self.lock().await?;
        let roles = self.roles.rename(include_str!("schema/roles.sql"));
        self.conn.execute(AssertSqlSafe(roles)).await.map_err(|e| {
            let detail = e.as_database_error().map(ToString::to_string).unwrap_or_default();
            misconfigured(format!("the roles could not be set up; run this as a superuser once: {detail}")).with_source(e)
        })?;
        self.conn.execute(AssertSqlSafe(self.roles.rename(GRANTS))).await.map_err(|e| {
            let detail = e.as_database_error().map(ToString::to_string).unwrap_or_default();
            misconfigured(format!("the schema could not be set up; run this as the database's owner or a superuser once: {detail}"))
                .with_source(e)
        })?;
        let mut left = self.revoke().await?;
        left.extend(self.let_restore().await?);
        let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().map(|m| self.renamed(m)).collect());
        migrator.dangerous_set_table_name("tenancy.migrations");
        self.run(&mut migrator).await?;
        self.unlock().await?;
        Ok(left)
    }

    /// Runs the host's own migrations as `tenancy_owner`, so that no table belongs to a role that serves requests.
    ///
    /// ```no_run
    /// # async fn run(admin_url: &str) -> tenancy_core::Result<()> {
    /// use tenancy_sqlx::{Roles, Schema};
    /// let mut schema = Schema::connect(admin_url, Roles::default()).await?;
    /// schema.migrate().await?;
    /// schema.apply(&sqlx::migrate!("./migrations")).await?; // your folder
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured), with the migration that failed and why.
    ///
    /// # Cancel safety
    /// Safe for migrations that run in a transaction, which is the default.
    pub async fn apply(&mut self, migrations: &Migrator) -> Result<()> {
        self.lock().await?;
        let mut migrator = Migrator::with_migrations(migrations.iter().cloned().collect());
        migrator.dangerous_set_table_name(migrations.table_name.clone());
        self.run(&mut migrator).await?;
        self.unlock().await
    }

    /// Takes from everybody what opens a way around the fence. Where this login may not, PostgreSQL refuses or only warns: what counts is
    /// whether the privilege is still there afterwards.
    async fn revoke(&mut self) -> Result<Vec<String>> {
        let database: String =
            sqlx::query_scalar("select quote_ident(current_database())").fetch_one(&mut self.conn).await.map_err(from_sqlx)?;
        let mut left = Vec::new();
        for (statement, still_open) in REVOKES {
            let statement = statement.replace("{database}", &database);
            match self.conn.execute(AssertSqlSafe(statement.as_str())).await {
                Err(e) if !is_denied(&e) => return Err(from_sqlx(e)),
                _ => {}
            }
            let open: bool =
                sqlx::query_scalar(AssertSqlSafe(format!("select {still_open}"))).fetch_one(&mut self.conn).await.map_err(from_sqlx)?;
            if open {
                left.push(format!("{statement};"));
            }
        }
        Ok(left)
    }

    /// Lets restores write rows without firing triggers: what those did is in the backup already. PostgreSQL can be told so from 15 on; a
    /// service that restores nothing needs it not.
    async fn let_restore(&mut self) -> Result<Option<String>> {
        let asked = "select current_setting('server_version_num')::int >= 150000";
        if !sqlx::query_scalar::<_, bool>(asked).fetch_one(&mut self.conn).await.map_err(from_sqlx)? {
            return Ok(None);
        }
        let role = self.roles.restore();
        let grant = format!("grant set on parameter session_replication_role to {role}");
        for _ in 0..20 {
            let may = sqlx::query_scalar("select has_parameter_privilege($1, 'session_replication_role', 'set')").bind(&role);
            if may.fetch_one(&mut self.conn).await.map_err(from_sqlx)? {
                return Ok(None);
            }
            match self.conn.execute(AssertSqlSafe(grant.as_str())).await {
                Err(e) if is_denied(&e) => break,
                // Rights on parameters are the whole server's: another database's migration may be in the way, for a moment.
                Err(e) if !is_concurrent(&e) => return Err(from_sqlx(e)),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Ok(_) => {}
            }
        }
        Ok(Some(format!("{grant};")))
    }

    async fn run(&mut self, migrator: &mut Migrator) -> Result<()> {
        migrator.set_locking(false); // ours is held
        self.conn.execute(AssertSqlSafe(format!("set role {}", self.roles.owner()))).await.map_err(from_sqlx)?;
        let done = migrator.run_direct(None, &mut self.conn, false).await;
        self.conn.execute("reset role").await.map_err(from_sqlx)?;
        done.map_err(|e| {
            let why = match &e {
                MigrateError::VersionMissing(version) => {
                    format!("migration {version} was applied by a newer version: run that version, or a later one")
                }
                MigrateError::VersionMismatch(version) => {
                    format!("migration {version} was changed after it was applied: restore it, and add a new one instead")
                }
                MigrateError::ExecuteMigration(sqlx::Error::Database(db), version) => format!("migration {version} failed: {db}"),
                other => format!("the migrations failed: {other}"),
            };
            misconfigured(why).with_source(e)
        })
    }

    fn renamed(&self, migration: &Migration) -> Migration {
        let sql = AssertSqlSafe(self.roles.rename(migration.sql.as_str())).into_sql_str();
        Migration::new(migration.version, migration.description.clone(), migration.migration_type, sql, migration.no_tx)
    }

    /// Polls: a session that *waits* for a lock holds a snapshot, which CREATE INDEX CONCURRENTLY of the lock's holder would wait for.
    async fn lock(&mut self) -> Result<()> {
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            let got: bool =
                sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut self.conn).await.map_err(from_sqlx)?;
            if got {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::new(ErrorKind::Unavailable, "another migration of this database has been running for two minutes"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn unlock(&mut self) -> Result<()> {
        sqlx::query("select pg_advisory_unlock($1)").bind(LOCK).execute(&mut self.conn).await.map(drop).map_err(from_sqlx)
    }
}

/// The version of the schema that this kit needs.
pub(crate) fn required_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Tells sets of migrations apart: the kit's and the host's.
#[cfg(feature = "testing")]
pub(crate) fn fingerprint(host: Option<&Migrator>) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hash = DefaultHasher::new();
    include_str!("schema/roles.sql").hash(&mut hash);
    GRANTS.hash(&mut hash);
    REVOKES.hash(&mut hash);
    for migration in MIGRATIONS.iter().chain(host.into_iter().flat_map(Migrator::iter)) {
        (migration.version, &migration.checksum).hash(&mut hash);
    }
    hash.finish()
}

fn misconfigured(message: String) -> Error {
    Error::new(ErrorKind::Misconfigured, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_plain_name() {
        for bad in ["", "1a", "a-b", "A", "a b", "a\"b", "pg_x", &"a".repeat(41)] {
            assert!(Roles::new(bad).is_err(), "{bad}");
        }
        let roles = Roles::new("acme_eu").expect("plain");
        assert_eq!(
            roles.rename("grant x to tenancy_app, tenancy_admin; create tenancy.t"),
            "grant x to acme_eu_app, acme_eu_admin; create tenancy.t"
        );
    }
}
