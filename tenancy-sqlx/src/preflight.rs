//! What [`TenantDb::open`](crate::TenantDb::open) refuses to serve on, by name.
//!
//! Row-level security is silent about its own absence: a superuser, an owner or a role that may become one reads every tenant's rows
//! without a word. So nothing is served before each of these has been ruled out, in one query.

use std::fmt;

use sqlx::{AssertSqlSafe, PgConnection, Row};
use tenancy_core::{Error, ErrorKind, Result, TenantId};

use crate::error::from_sqlx;
use crate::isolation::{Severity, inspect_by};
use crate::schema::{Roles, required_version};
use crate::seal::SealKey;

/// Why a database or login can't be trusted to keep tenants apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The login is a superuser.
    Superuser,
    /// The login has BYPASSRLS.
    BypassRls,
    /// The login may create roles, and so give itself any.
    CreateRole,
    /// The login may replicate, and so read every row.
    Replication,
    /// The login is a member of another role, so what that one may do counts as well.
    Member,
    /// The login owns a relation, function or schema, and so may switch its protection off.
    Owner,
    /// The schema `tenancy` is missing, or of another version.
    SchemaVersion,
    /// A table with a `tenant_id` that the login can reach has no fence.
    UnprotectedTable,
    /// A tenant is set for the role or database, so that a connection without a tenant has one.
    DefaultTenant,
    /// The server can't run the kit's schema.
    ServerVersion,
    /// The database is sealed and the key is missing or wrong, or there is a key and no seal, or the login can break the seal.
    Seal,
    /// Another critical [rule](crate::isolation::RULES) of the isolation checker, by its name, is broken.
    Leak(&'static str),
}

impl Refusal {
    /// The kebab-case name, stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Superuser => "superuser",
            Self::BypassRls => "bypass-rls",
            Self::CreateRole => "create-role",
            Self::Replication => "replication",
            Self::Member => "member",
            Self::Owner => "owner",
            Self::SchemaVersion => "schema-version",
            Self::UnprotectedTable => "unprotected-table",
            Self::DefaultTenant => "default-tenant",
            Self::ServerVersion => "server-version",
            Self::Seal => "seal",
            Self::Leak(rule) => rule,
        }
    }
}

/// All refusals of one database: the source of the [`Misconfigured`](ErrorKind::Misconfigured) error of `open`.
#[derive(Debug, Clone)]
pub struct Refused(Vec<(Refusal, String)>);

impl Refused {
    /// The refusals, each with what it found and what to do.
    pub fn refusals(&self) -> impl Iterator<Item = (Refusal, &str)> {
        self.0.iter().map(|(refusal, text)| (*refusal, text.as_str()))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this database can't be trusted to keep tenants apart:")?;
        for (refusal, text) in &self.0 {
            write!(f, "\n  {}: {text}", refusal.name())?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

const OLDEST_MAJOR: i32 = 14;

/// The first minor version of each major without the row-security holes that no schema closes.
const FIRST_SOUND: [(i32, i32); 5] = [(14, 25), (15, 20), (16, 16), (17, 12), (18, 7)];

/// Rules out every [`Refusal`] for the login of `conn`.
pub(crate) async fn check(conn: &mut PgConnection, roles: &Roles, seal_key: Option<&SealKey>) -> Result<()> {
    // In one message, as everything that may run behind a pooler and outside of a transaction.
    let facts = sqlx::raw_sql(
        "select current_user::text as login, current_setting('server_version_num')::int as server, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolreplication,
            array(select m.roleid::regrole::text from pg_auth_members m where m.member = r.oid order by 1) as member_of,
            array(select * from (
                select c.oid::regclass::text from pg_class c where c.relowner = r.oid and c.relnamespace::regnamespace::text !~ '^pg_temp'
                union all select p.oid::regprocedure::text from pg_proc p where p.proowner = r.oid
                union all select 'schema ' || n.oid::regnamespace::text from pg_namespace n where n.nspowner = r.oid and n.nspname !~ '^pg_'
                union all select 'database ' || quote_ident(d.datname) from pg_database d where d.datname = current_database() and d.datdba = r.oid
            ) o(name) order by 1 limit 5) as owns,
            exists (select from pg_class c where c.relname = 'migrations' and c.relnamespace = (select oid from pg_namespace where nspname = 'tenancy')) as migrated,
            exists (select from pg_proc p where p.proname = 'enter' and p.pronamespace = (select oid from pg_namespace where nspname = 'tenancy')) as sealed,
            array(select s.setrole::regrole::text || ' in ' || coalesce(d.datname, 'every database')
                    from pg_db_role_setting s left join pg_database d on d.oid = s.setdatabase, unnest(s.setconfig) c
                   where c like 'tenancy.tenant_id=%' and s.setrole in (0, r.oid) and s.setdatabase in (0, (select oid from pg_database where datname = current_database()))) as defaults
         from pg_roles r where r.rolname = current_user",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(from_sqlx)?;
    let version: Option<i64> = if facts.get("migrated") {
        sqlx::raw_sql("select max(version) from tenancy.migrations").fetch_one(&mut *conn).await.map(|row| row.get(0)).map_err(|e| {
            let message = format!("the schema tenancy does not know this login: connect as {}, which migrating creates", roles.app());
            Error::new(ErrorKind::Misconfigured, message).with_source(e)
        })?
    } else {
        None
    };

    let login: String = facts.get("login");
    let app = roles.app();
    let mut refused = Vec::new();
    let mut refuse = |refusal, text: String| refused.push((refusal, text));
    let attributes = [
        ("rolsuper", Refusal::Superuser, "is a superuser, and row-level security does not apply to it"),
        ("rolbypassrls", Refusal::BypassRls, "has BYPASSRLS, and row-level security does not apply to it"),
        ("rolcreaterole", Refusal::CreateRole, "has CREATEROLE, and can make itself a member of any role"),
        ("rolreplication", Refusal::Replication, "has REPLICATION, and can read every row"),
    ];
    for (column, refusal, why) in attributes {
        if facts.get(column) {
            refuse(refusal, format!("the login {login} {why}: connect as {app} (give this login to the administrative URL only)"));
        }
    }
    let superuser: bool = facts.get("rolsuper");
    let list = |column: &str| facts.get::<Vec<String>, _>(column).join(", ");
    if !superuser && !list("member_of").is_empty() {
        let others = list("member_of");
        refuse(Refusal::Member, format!("the login {login} is a member of {others}: REVOKE {others} FROM {login}, or connect as {app}"));
    }
    if !list("owns").is_empty() && !superuser {
        let owns = list("owns");
        refuse(Refusal::Owner, format!("the login {login} owns {owns}: ALTER … OWNER TO {}, or connect as {app}", roles.owner()));
    }
    for setting in facts.get::<Vec<String>, _>("defaults") {
        refuse(Refusal::DefaultTenant, format!("tenancy.tenant_id is set for {setting}: ALTER ROLE or DATABASE … RESET tenancy.tenant_id"));
    }
    let needs = required_version();
    match version {
        Some(version) if version >= needs => {}
        Some(version) => {
            refuse(Refusal::SchemaVersion, format!("the schema tenancy has version {version} and this kit needs {needs}: migrate first"));
        }
        None => refuse(Refusal::SchemaVersion, "the schema tenancy is missing: migrate first".to_owned()),
    }
    // Without the schema there is nothing to ask, and a superuser's every right would be told one by one.
    if version >= Some(needs) && !superuser {
        for finding in inspect_by(conn, roles, &login, |rule| rule.severity == Severity::Critical || rule.id == "rls-not-forced").await? {
            let refusal = match finding.rule {
                "rls-off" | "rls-not-forced" | "partition-unprotected" | "child-unprotected" => Refusal::UnprotectedTable,
                rule if rule.starts_with("fence-") => Refusal::UnprotectedTable,
                // Said above, in the login's own terms.
                rule if rule.starts_with("app-") || rule.starts_with("default-tenant-") || rule == "seal-weak" => continue,
                rule => Refusal::Leak(rule),
            };
            refuse(refusal, format!("{}: {}", finding.explanation, finding.mend));
        }
    }
    let server: i32 = facts.get("server");
    let (major, minor) = (server / 10_000, server % 10_000);
    if major < OLDEST_MAJOR {
        refuse(Refusal::ServerVersion, format!("PostgreSQL {major} is too old: {OLDEST_MAJOR} is the oldest that can run the schema"));
    } else if let Some((_, sound)) = FIRST_SOUND.iter().find(|(of, sound)| *of == major && minor < *sound) {
        tracing::warn!(
            "PostgreSQL {major}.{minor} has known holes in row-level security: upgrade to {major}.{sound} or later in production"
        );
    }
    match (facts.get::<bool, _>("sealed"), seal_key) {
        (false, None) => {}
        (false, Some(_)) => {
            let text = "there is a seal key and the database is not sealed: Schema::seal it, or open it without Options::with_seal_key";
            refuse(Refusal::Seal, text.to_owned());
        }
        (true, None) => refuse(Refusal::Seal, "the database is sealed: give its key with Options::with_seal_key".to_owned()),
        (true, Some(key)) => {
            for text in broken_seal(conn, key, &login).await? {
                refuse(Refusal::Seal, text);
            }
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let refused = Refused(refused);
    Err(Error::new(ErrorKind::Misconfigured, refused.to_string()).with_source(refused))
}

/// Why the seal does not hold for this key and login.
async fn broken_seal(conn: &mut PgConnection, key: &SealKey, login: &str) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    let enter = format!("select tenancy.enter('{}')", key.token(TenantId::new()));
    if let Err(error) = sqlx::raw_sql(AssertSqlSafe(enter)).execute(&mut *conn).await {
        match error.as_database_error().filter(|db| db.code().as_deref() == Some("28000")) {
            Some(db) if db.message().contains("expired") => {
                broken.push("the clocks of this machine and the database differ by more than half a minute: set them right".to_owned());
            }
            Some(db) => broken.push(format!("the database does not take this seal key ({}): give its own", db.message())),
            None => return Err(from_sqlx(error)),
        }
    }
    let open = "select has_parameter_privilege('backtrace_functions', 'set'), has_schema_privilege('tenancy_private', 'usage'),
                       has_function_privilege('pg_stat_get_activity(integer)', 'execute') or has_function_privilege('pg_stat_get_backend_activity(integer)', 'execute')";
    let open = sqlx::raw_sql(open).fetch_one(&mut *conn).await.map_err(from_sqlx)?;
    let ways = [
        ("set the tenant itself", format!("REVOKE SET ON PARAMETER backtrace_functions FROM {login}, PUBLIC")),
        ("reach the keys", format!("REVOKE USAGE ON SCHEMA tenancy_private FROM {login}, PUBLIC")),
        (
            "read other sessions' tokens",
            format!("REVOKE EXECUTE ON FUNCTION pg_stat_get_activity(integer), pg_stat_get_backend_activity(integer) FROM {login}, PUBLIC"),
        ),
    ];
    for (column, (what, mend)) in ways.into_iter().enumerate() {
        if open.get(column) {
            broken.push(format!("the login {login} can {what}: {mend}"));
        }
    }
    Ok(broken)
}
