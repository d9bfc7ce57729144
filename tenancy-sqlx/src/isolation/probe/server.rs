//! What is tried around the tables: without a tenant, on reused connections, as other roles, and against the server itself.

use futures_util::StreamExt as _;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tenancy_core::{Result, TenantId};

use super::attempts::{LIMITS, Prober, Reply, ask};
use super::facts::Relation;
use super::plant::Admin;
use super::report::{Crossing, Kind};
use crate::error::from_sqlx;
use crate::lease::Lease;

const UNBOUND: Kind = Kind {
    name: "no tenant",
    rules: &[
        "rls-off",
        "policy-open-when-unset",
        "partition-unprotected",
        "child-unprotected",
        "default-tenant-database",
        "default-tenant-role",
    ],
};
const UNKNOWN: Kind = Kind { name: "an unknown tenant", rules: &["rls-off", "policy-open", "fence-text"] };
const DEFAULT: Kind = Kind { name: "a default tenant", rules: &["default-tenant-database", "default-tenant-role"] };
const REUSED: Kind = Kind { name: "a reused connection", rules: &["rls-off", "tenant-function-immutable", "default-tenant-database"] };
const PREPARED: Kind = Kind { name: "a reused statement", rules: &["tenant-function-immutable", "tenant-function-body"] };
const ROLE: Kind =
    Kind { name: "another role", rules: &["app-becomes-owner", "app-becomes-bypass", "app-member-of-predefined", "app-superuser"] };
const DDL: Kind = Kind { name: "a change of the table", rules: &["app-owns-table", "app-becomes-owner", "app-superuser"] };
const TENANT_FUNCTION: Kind =
    Kind { name: "a change of the tenant function", rules: &["tenant-function-owner", "app-owns-function", "app-superuser"] };
const SCHEMA: Kind = Kind { name: "a table of its own", rules: &["grant-schema-create", "search-path-writable"] };
const DATABASE: Kind = Kind { name: "a schema of its own", rules: &["grant-database-create"] };
const TEMPORARY: Kind = Kind { name: "a temporary table", rules: &["grant-database-temp"] };
const ATTRIBUTES: Kind = Kind { name: "rights of its own giving", rules: &["app-createrole", "app-superuser"] };
const SET_CONFIG: Kind = Kind { name: "a setting from an expression", rules: &["function-set-config"] };
const ACTIVITY: Kind = Kind { name: "other sessions' statements", rules: &["function-stat-activity"] };
const FILES: Kind = Kind { name: "the server's files", rules: &["function-file-access"] };
const COPY: Kind = Kind {
    name: "a copy",
    rules: &[
        "rls-off",
        "partition-unprotected",
        "child-unprotected",
        "fence-missing",
        "fence-not-restrictive",
        "fence-text",
        "policy-open",
    ],
};
const DBLINK: Kind = Kind { name: "a connection from the server", rules: &["function-dblink"] };
const LARGE: Kind = Kind { name: "a large object", rules: &["large-objects"] };

/// A connection of the application's login that no pool gives.
struct Bare {
    options: PgConnectOptions,
    conn: PgConnection,
}

impl Bare {
    async fn connect(options: PgConnectOptions) -> Result<Self> {
        let conn = PgConnection::connect_with(&options).await.map_err(from_sqlx)?;
        Ok(Self { options, conn })
    }

    /// Runs `sql` after `begin`, rolls back, and replaces the connection if it was lost.
    async fn attempt(&mut self, begin: &str, sql: &str) -> Result<Reply> {
        let reply = ask(&mut self.conn, format!("{begin}; {LIMITS} {sql}")).await;
        if self.conn.execute("ROLLBACK").await.is_err() {
            self.conn = PgConnection::connect_with(&self.options).await.map_err(from_sqlx)?;
        }
        reply
    }
}

impl Bare {
    /// What `COPY … TO STDOUT` gives after `begin`; empty where it is refused. Afterwards the connection is a new one: sqlx loses step with
    /// the server's answers when a COPY fails.
    async fn copy(&mut self, begin: &str, sql: &str) -> Result<Vec<u8>> {
        let mut copied = Vec::new();
        if self.conn.execute(AssertSqlSafe(format!("{begin}; {LIMITS}"))).await.is_ok()
            && let Ok(mut rows) = self.conn.copy_out_raw(sql).await
        {
            while let Some(Ok(chunk)) = rows.next().await {
                copied.extend_from_slice(&chunk);
            }
        }
        self.conn = PgConnection::connect_with(&self.options).await.map_err(from_sqlx)?;
        Ok(copied)
    }
}

impl Prober<'_> {
    /// All attempts that are not about one table as one tenant.
    pub(super) async fn run_around(&mut self, admin: &mut Admin) -> Result<()> {
        let inner = self.db.inner();
        let mut bare = Bare::connect((*inner.pool.connect_options()).clone()).await?;
        self.default_tenant(&mut bare).await?;
        self.without_tenant(&mut bare).await?;
        self.copies(&mut bare).await?;
        self.prepared(&mut bare).await?;
        self.reused(&mut bare).await?;
        self.roles(&mut bare).await?;
        self.definitions(&mut bare).await?;
        self.functions(&mut bare).await?;
        self.activity().await?;
        self.large_objects(admin).await?;
        // A farewell is a courtesy.
        let _ = bare.conn.close().await;
        Ok(())
    }

    async fn bare(&mut self, bare: &mut Bare, begin: &str, sql: &str) -> Result<Reply> {
        self.attempts += 1;
        bare.attempt(begin, sql).await
    }

    fn about(&mut self, kind: &'static Kind, schema: Option<&str>, object: &str, sql: &str, evidence: &str) {
        let (schema, object) = (schema.map(ToOwned::to_owned), object.to_owned());
        self.crossed.push(Crossing { kind, schema, object, sql: sql.to_owned(), evidence: evidence.to_owned() });
    }

    async fn default_tenant(&mut self, bare: &mut Bare) -> Result<()> {
        let sql = "select count(*) from (select tenancy.current_tenant() as id) x where id is not null";
        if self.bare(bare, "BEGIN", sql).await?.count() > 0 {
            self.about(&DEFAULT, None, &current(bare), sql, "a session that was told no tenant has one");
        }
        Ok(())
    }

    async fn without_tenant(&mut self, bare: &mut Bare) -> Result<()> {
        let facts = self.facts;
        for relation in facts.relations.iter().filter(|r| r.tenant.is_some()) {
            let any = format!("select count(*) from (select from {} limit 1) x", relation.sql);
            if self.bare(bare, "BEGIN", &any).await?.count() > 0 {
                self.crossed(&UNBOUND, relation, &any, "rows are seen");
            }
            let unknown = self.db.inner().begin_for("BEGIN", TenantId::new());
            if self.bare(bare, &unknown, &any).await?.count() > 0 {
                self.crossed(&UNKNOWN, relation, &any, "rows are seen");
            }
            let delete = format!("delete from {}", relation.sql);
            let reply = self.bare(bare, "BEGIN", &delete).await?;
            if reply.affected > 0 || reply.failed_with(&["23503"]) {
                self.crossed(&UNBOUND, relation, &delete, "rows are deleted");
            }
        }
        let marked = |r: &Relation| self.victim.1.marks.seen_in(&r.readable_text());
        let views: Vec<_> = facts
            .relations
            .iter()
            .filter(|r| r.tenant.is_none() && r.select)
            .map(|r| (r, format!("select count(*) from {} x where {}", r.sql, marked(r))))
            .collect();
        for (view, sql) in views {
            if self.bare(bare, "BEGIN", &sql).await?.count() > 0 {
                self.crossed(&UNBOUND, view, &sql, "rows of a tenant are seen");
            }
        }
        Ok(())
    }

    /// Tables as COPY gives them, to the attacker and to nobody.
    async fn copies(&mut self, bare: &mut Bare) -> Result<()> {
        let facts = self.facts;
        let victim = self.victim.1.marks.tenant.clone().into_bytes();
        let begins = [self.db.inner().begin_for("BEGIN", self.attacker.0.tenant_id()), "BEGIN".to_owned()];
        for relation in facts.relations.iter().filter(|relation| relation.tenant.is_some()) {
            // A partitioned table is copied by a query alone.
            for sql in [format!("copy {} to stdout", relation.sql), format!("copy (select * from {}) to stdout", relation.sql)] {
                for begin in &begins {
                    self.attempts += 1;
                    let copied = bare.copy(begin, &sql).await?;
                    if copied.windows(victim.len()).any(|bytes| bytes == victim) {
                        self.crossed(&COPY, relation, &sql, "rows of another tenant were copied");
                    }
                }
            }
        }
        Ok(())
    }

    /// The same named statement for one tenant after another.
    async fn prepared(&mut self, bare: &mut Bare) -> Result<()> {
        let inner = self.db.inner();
        for relation in self.facts.relations.iter().filter(|r| r.tenant.is_some() && r.select) {
            let (Some(tenant), Some(_)) = (&relation.tenant, self.attacker.1.row(relation.oid)) else { continue };
            // Only whether there are rows of one's own is asked, which the policy alone decides.
            let sql = format!("select count(*) from {} x where x.{tenant} <> '{}'", relation.sql, self.victim.1.marks.tenant);
            let mut seen = 0_i64;
            for (round, cx) in [self.attacker.0, self.attacker.0, self.victim.0].into_iter().enumerate() {
                self.attempts += 1;
                bare.conn.execute(AssertSqlSafe(inner.begin_for("BEGIN", cx.tenant_id()))).await.map_err(from_sqlx)?;
                let query = sqlx::query_scalar(AssertSqlSafe(sql.as_str())).persistent(inner.named_statements);
                let count: sqlx::Result<i64> = query.fetch_one(&mut bare.conn).await;
                bare.conn.execute("ROLLBACK").await.map_err(from_sqlx)?;
                seen = if round == 2 { count.unwrap_or_default() } else { 0 };
            }
            // Said anew, it must answer otherwise: what crosses without being prepared is another finding.
            let own = inner.begin_for("BEGIN", self.victim.0.tenant_id());
            if seen > 0 && self.bare(bare, &own, &sql).await?.count() == 0 {
                self.crossed(&PREPARED, relation, &sql, "prepared for one tenant, it answers another with the first one's rows");
            }
        }
        Ok(())
    }

    /// What a connection remembers of the tenant that it served.
    async fn reused(&mut self, bare: &mut Bare) -> Result<()> {
        let inner = self.db.inner();
        let attacker = self.attacker.0;
        // Ended in three ways: rolled back, cancelled in a statement, cancelled before its first.
        let mut tx = self.db.begin(attacker).await?;
        let part = tx.savepoint().await?;
        drop(part);
        tx.rollback().await?;
        let mut tx = self.db.begin(attacker).await?;
        let slow = sqlx::raw_sql("select pg_sleep(0.3)").execute(&mut tx);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(20), slow).await;
        drop(tx);
        let _ = tokio::time::timeout(std::time::Duration::from_micros(200), self.db.begin(attacker)).await;
        let bound = "select count(*) from (select tenancy.current_tenant() as id) x where id is not null";
        let default = self.crossed.iter().any(|crossing| std::ptr::eq(crossing.kind, &DEFAULT));
        for _ in 0..=inner.pool.size() {
            self.attempts += 1;
            let mut lease = Lease::begin(&inner.pool, "BEGIN", inner.scrub).await.map_err(from_sqlx)?;
            let reply = ask(lease.conn(), bound.to_owned()).await?;
            lease.end("ROLLBACK").await.map_err(from_sqlx)?;
            if reply.count() > 0 && !default {
                self.about(&REUSED, None, &current(bare), bound, "a connection of the pool still serves the tenant before");
                break;
            }
        }
        let facts = self.facts;
        for relation in facts.relations.iter().filter(|r| r.tenant.is_some() && r.select) {
            let sql = format!("select count(*) from (select from {} limit 1) x", relation.sql);
            let told = |crossing: &Crossing| std::ptr::eq(crossing.kind, &UNBOUND) && crossing.sql == sql;
            if self.crossed.iter().any(told) {
                continue; // on any connection
            }
            let own = inner.begin_for("BEGIN", attacker.tenant_id());
            self.bare(bare, &own, &sql).await?;
            if self.bare(bare, "BEGIN", &sql).await?.count() > 0 {
                self.crossed(&REUSED, relation, &sql, "after another tenant's transaction, rows are seen without a tenant");
            }
        }
        Ok(())
    }

    async fn roles(&mut self, bare: &mut Bare) -> Result<()> {
        let app = current(bare);
        for (role, unbound) in &self.facts.roles {
            let begin = self.db.inner().begin_for("BEGIN", self.attacker.0.tenant_id());
            for sql in [format!("set local role {role}"), format!("set local session authorization {role}")] {
                let counted = format!("{sql}; select 1::bigint");
                if self.bare(bare, &begin, &counted).await?.error.is_some() {
                    continue;
                }
                let mut more = *unbound;
                for relation in self.facts.relations.iter().filter(|r| r.tenant.is_some()) {
                    let marked = self.victim.1.marks.seen_in("x::text");
                    let read = format!("{sql}; select count(*) from {} x where {marked}", relation.sql);
                    more = more || self.bare(bare, &begin, &read).await?.count() > 0;
                }
                if more {
                    self.about(&ROLE, None, &app, &sql, "it can become a role that the policies don't bind");
                }
            }
        }
        Ok(())
    }

    async fn definitions(&mut self, bare: &mut Bare) -> Result<()> {
        let facts = self.facts;
        let app = current(bare);
        for relation in facts.relations.iter().filter(|r| r.tenant.is_some()) {
            let table = &relation.sql;
            let attempts = [
                format!("alter table {table} disable row level security"),
                format!("alter table {table} no force row level security"),
                format!("drop policy if exists tenancy_fence on {table}"),
                format!("create policy tenancy_probe on {table} using (true)"),
            ];
            for sql in attempts {
                if self.bare(bare, "BEGIN", &sql).await?.error.is_none() {
                    self.crossed(&DDL, relation, &sql, "the application's role changed what confines it");
                }
            }
        }
        let mut schemas: Vec<_> = facts.relations.iter().map(|r| r.schema.as_str()).chain(["public", "tenancy"]).collect();
        schemas.sort_unstable();
        schemas.dedup();
        for schema in schemas {
            let sql = format!("create table \"{}\".tenancy_probe (id int)", schema.replace('"', "\"\""));
            if self.bare(bare, "BEGIN", &sql).await?.error.is_none() {
                self.about(&SCHEMA, None, schema, &sql, "rows can be kept where every tenant reads them, and names be taken");
            }
        }
        let owner = self.db.inner().roles.owner();
        let database = bare.options.get_database().unwrap_or_default().to_owned();
        let attempts = [
            (&TENANT_FUNCTION, Some("tenancy"), "tenancy.current_tenant()", "alter function tenancy.current_tenant() immutable".to_owned()),
            (&DATABASE, None, database.as_str(), "create schema tenancy_probe".to_owned()),
            (&TEMPORARY, None, database.as_str(), "create temporary table tenancy_probe (id int)".to_owned()),
            (&ATTRIBUTES, None, app.as_str(), format!("alter role \"{app}\" bypassrls")),
            (&ATTRIBUTES, None, app.as_str(), "create role tenancy_probe_role".to_owned()),
            (&ATTRIBUTES, None, app.as_str(), format!("grant {owner} to \"{app}\"")),
        ];
        for (kind, schema, object, sql) in attempts {
            if self.bare(bare, "BEGIN", &sql).await?.error.is_none() {
                self.about(kind, schema, object, &sql, "the application's role may do it");
            }
        }
        Ok(())
    }

    async fn functions(&mut self, bare: &mut Bare) -> Result<()> {
        let their = self.victim.0.tenant_id();
        let begin = self.db.inner().begin_for("BEGIN", self.attacker.0.tenant_id());
        let set = format!("select set_config('tenancy.tenant_id', '{their}', true)");
        if self.bare(bare, &begin, &set).await?.error.is_none() {
            let object = "set_config(text,text,boolean)";
            self.about(&SET_CONFIG, Some("pg_catalog"), object, &set, "an expression, as injected SQL can be one, changes the tenant");
        }
        let files = [
            ("pg_read_file(text)", "select pg_read_file('PG_VERSION')"),
            ("pg_read_file(text,bigint,bigint)", "select pg_read_file('PG_VERSION', 0, 1)"),
            ("pg_read_binary_file(text)", "select pg_read_binary_file('PG_VERSION')"),
            ("pg_ls_dir(text)", "select pg_ls_dir('.')"),
            ("pg_stat_file(text)", "select pg_stat_file('PG_VERSION')"),
        ];
        for (object, sql) in files {
            if self.bare(bare, &begin, sql).await?.error.is_none() {
                self.about(
                    &FILES,
                    Some("pg_catalog"),
                    object,
                    sql,
                    "the server's own files can be read, and every tenant's rows are in them",
                );
            }
        }
        let large = "select count(*) from pg_catalog.pg_largeobject";
        if self.bare(bare, &begin, large).await?.error.is_none() {
            self.about(&LARGE, Some("pg_catalog"), "pg_largeobject", large, "all large objects can be read");
        }
        // Only dblink's own answers like this without being given a connection.
        let linked = "select n.nspname || '.dblink_get_connections()' from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                       where p.proname = 'dblink_get_connections' and has_function_privilege(p.oid, 'execute') and has_schema_privilege(n.oid, 'usage')";
        for call in self.bare(bare, &begin, linked).await?.lines {
            let sql = format!("select count(*) from {call} x");
            if self.bare(bare, &begin, &sql).await?.error.is_none() {
                self.about(&DBLINK, None, &call, &sql, "the server connects elsewhere, and back to itself, for the application's role");
            }
        }
        Ok(())
    }

    /// Another session of the same login, whose last statement has a secret in it.
    async fn activity(&mut self) -> Result<()> {
        let inner = self.db.inner();
        let mut other = PgConnection::connect_with(&inner.pool.connect_options()).await.map_err(from_sqlx)?;
        let secret = format!("{:016x}", rand::random::<u64>());
        ask(&mut other, format!("select 'statement {secret}'")).await?;
        let attempts = [
            (
                "pg_stat_get_activity(integer)",
                "select count(*) from pg_stat_get_activity(null) where query like '%{}%' and pid <> pg_backend_pid()",
            ),
            (
                "pg_stat_get_backend_activity(integer)",
                "select count(*) from pg_stat_get_backend_idset() b where pg_stat_get_backend_pid(b) <> pg_backend_pid() and pg_stat_get_backend_activity(b) like '%{}%'",
            ),
        ];
        for (object, sql) in attempts {
            let sql = sql.replace("{}", &format!("statement {secret}"));
            if self.attempt(self.attacker.0, &sql).await?.count() > 0 {
                self.about(&ACTIVITY, Some("pg_catalog"), object, &sql, "what another session runs, with its values, can be read");
            }
        }
        let _ = other.close().await;
        Ok(())
    }

    /// One of the administrator's making, which is removed again, and those that are there.
    async fn large_objects(&mut self, admin: &mut Admin) -> Result<()> {
        let mut all: Vec<(i64, bool)> = self.facts.large_objects.iter().map(|oid| (*oid, false)).collect();
        let planted = ask(&mut admin.conn, "select lo_from_bytea(0, 'canary')::bigint".to_owned()).await?;
        all.extend(planted.number.map(|oid| (oid, true)));
        let mut crossed = Vec::new();
        for (oid, ours) in &all {
            let sql = format!("select lo_get({oid})");
            if self.attempt(self.attacker.0, &sql).await?.error.is_none() {
                let evidence = if *ours {
                    "one that was made for another tenant can be read"
                } else {
                    "it belongs to no tenant, so every tenant reads it"
                };
                crossed.push((format!("large object {oid}"), sql, evidence));
            }
        }
        if let Some(oid) = planted.number {
            ask(&mut admin.conn, format!("select lo_unlink({oid})::bigint")).await?;
        }
        for (object, sql, evidence) in crossed {
            self.about(&LARGE, None, &object, &sql, evidence);
        }
        Ok(())
    }
}

/// The application's login.
fn current(bare: &Bare) -> String {
    bare.options.get_username().to_owned()
}
