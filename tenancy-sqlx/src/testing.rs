//! A database per test: fresh, with our roles, used as the role that owns nothing.
//!
//! ```no_run
//! # async fn test() -> tenancy_core::Result<()> {
//! use tenancy_sqlx::testing::TestDatabase;
//!
//! let database = TestDatabase::with_migrations(&sqlx::migrate!("./migrations")).await?; // your folder
//! let db = database.open().await?;
//! let (acme, globex) = (database.tenant(&db, "acme").await?, database.tenant(&db, "globex").await?);
//!
//! let mut tx = db.begin(&acme).await?;
//! sqlx::query("insert into projects (name) values ('secret')").execute(&mut tx).await.map_err(tenancy_sqlx::from_sqlx)?;
//! tx.commit().await?;
//!
//! let mut tx = db.read(&globex).await?;
//! let seen: i64 = sqlx::query_scalar("select count(*) from projects").fetch_one(&mut tx).await.map_err(tenancy_sqlx::from_sqlx)?;
//! assert_eq!(seen, 0);
//! # Ok(()) }
//! ```
//!
//! All tests of a user share one throw-away [embedded] server; migrations run once, into a template from which each
//! database is copied. The server is gone two seconds after the last test process. Superusers skip row-level security, so a test that
//! connects as one proves nothing: [`TestDatabase::open`] connects as `tenancy_app`.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection};
use tenancy_core::{Actor, Error, NewTenant, Principal, Result, Role, TenantCatalog, TenantContext};

use crate::db::{Options, TenantDb};
use crate::embedded::{self, Server};
use crate::error::from_sqlx;
use crate::isolation::{AllowList, Finding, Report, Severity, probe};
use crate::schema::{self, Roles, Schema};

const SUPERUSER: &str = "postgres";

/// A database of its own, dropped with this value.
#[derive(Debug)]
pub struct TestDatabase {
    server: Server,
    name: String,
}

impl TestDatabase {
    /// A fresh database with the kit's schema.
    ///
    /// # Errors
    /// Those of [`embedded::start`], [`Schema::migrate`] and [`Schema::apply`].
    ///
    /// # Cancel safety
    /// Safe; a database may stay until the server stops.
    pub async fn new() -> Result<Self> {
        Self::create(None).await
    }

    /// A fresh database with the kit's schema and the host's own migrations, run as the owner.
    ///
    /// # Errors
    /// As [`new`](TestDatabase::new).
    ///
    /// # Cancel safety
    /// As [`new`](TestDatabase::new).
    pub async fn with_migrations(migrations: &Migrator) -> Result<Self> {
        Self::create(Some(migrations)).await
    }

    async fn create(migrations: Option<&Migrator>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let server = embedded::start(embedded::Options::new(server_dir()).throw_away()).await?;
        let template = template(&server, migrations).await?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{}_{number}_{:08x}", std::process::id(), rand::random::<u32>());
        let mut conn = superuser(&server.url(SUPERUSER, SUPERUSER)).await?;
        run(&mut conn, &format!("create database {name} template {template}")).await?;
        // Privileges on the database itself are not copied from a template.
        run(&mut conn, &format!("revoke temporary, create on database {name} from public")).await?;
        run(&mut conn, &format!("grant temporary on database {name} to {}", Roles::default().restore())).await?;
        Ok(Self { server, name })
    }

    /// The URL for the application's role, which owns nothing.
    pub fn app_url(&self) -> String {
        self.server.url(&Roles::default().app(), &self.name)
    }

    /// The URL for a superuser: for set-up, and for looking at what a test left behind.
    pub fn admin_url(&self) -> String {
        self.server.url(SUPERUSER, &self.name)
    }

    /// The options that [`open`](TestDatabase::open) uses, to change before [`TenantDb::open`].
    pub fn options(&self) -> Options {
        let options = Options::new(&self.app_url()).and_then(|options| options.with_admin_url(&self.admin_url()));
        options.expect("our own URLs are valid")
    }

    /// Opens it as a service would.
    ///
    /// # Errors
    /// Those of [`TenantDb::open`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn open(&self) -> Result<TenantDb> {
        TenantDb::open(self.options()).await
    }

    /// A superuser's connection, which row-level security does not bind: the test's own eye.
    ///
    /// # Errors
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn superuser(&self) -> Result<PgConnection> {
        superuser(&self.admin_url()).await
    }

    /// Creates an active tenant, and gives the context of its owner.
    ///
    /// # Errors
    /// Those of the [catalog](TenantCatalog::create).
    ///
    /// # Cancel safety
    /// Safe; the tenant may stay.
    pub async fn tenant(&self, db: &TenantDb, slug: &str) -> Result<TenantContext> {
        let tenant = db.catalog().create(NewTenant::new(slug.parse()?, slug).active(), &Actor::System).await?;
        let owner = Principal::Member { subject: "owner".parse()?, role: Role::Owner };
        Ok(TenantContext::establish(tenant.into_active()?, owner))
    }
}

/// Fails the test unless tenants are apart in `db`: one call in a host's suite, which every later migration must then pass.
///
/// The version of the server is not judged: the one that tests run on is not the one that serves.
///
/// ```no_run
/// # async fn test() -> tenancy_core::Result<()> {
/// use tenancy_sqlx::testing::{TestDatabase, assert_isolated};
///
/// let database = TestDatabase::with_migrations(&sqlx::migrate!("./migrations")).await?; // your folder
/// assert_isolated(&database.open().await?).await;
/// # Ok(()) }
/// ```
///
/// With [administrative credentials](Options::with_admin_url), as [`TestDatabase::open`] has them, it also [probes](probe): it tries to cross.
///
/// # Panics
/// With the [report](Report) if anything is found that is a [`Warning`](Severity::Warning) or worse, and if `db` can't be inspected.
///
/// # Cancel safety
/// Safe.
pub async fn assert_isolated(db: &TenantDb) {
    assert_isolated_except(db, &AllowList::default()).await;
}

/// [`assert_isolated`], but for what `allow` accepts.
///
/// ```no_run
/// # async fn test(db: tenancy_sqlx::TenantDb) -> tenancy_core::Result<()> {
/// let allow = std::fs::read_to_string("isolation.json").expect("readable").parse()?;
/// tenancy_sqlx::testing::assert_isolated_except(&db, &allow).await;
/// # Ok(()) }
/// ```
///
/// # Panics
/// As [`assert_isolated`]; also once an entry of the list has expired.
///
/// # Cancel safety
/// Safe.
pub async fn assert_isolated_except(db: &TenantDb, allow: &AllowList) {
    let mut findings = db.inspect().await.unwrap_or_else(|error| panic!("this database can't be inspected: {error}"));
    if db.inner().admin.is_some() {
        let probed = probe(db).await.unwrap_or_else(|error| panic!("this database can't be probed: {error}"));
        let told =
            |finding: &Finding| findings.iter().any(|f| (f.rule, &f.schema, &f.object) == (finding.rule, &finding.schema, &finding.object));
        let crossed: Vec<Finding> = probed.findings.into_iter().filter(|finding| !told(finding)).collect();
        findings.extend(crossed);
    }
    findings.retain(|finding| finding.rule != "server-version");
    let report = Report::apply(findings, allow, db.inner().clock.now());
    assert!(report.worst() < Some(Severity::Warning), "tenants are not apart:\n{report}");
}

impl Drop for TestDatabase {
    /// Blocks until the database is gone, so that a long run of tests does not fill the disk.
    fn drop(&mut self) {
        let (url, name) = (self.server.url(SUPERUSER, SUPERUSER), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|e| Error::new(tenancy_core::ErrorKind::Internal, "no runtime").with_source(e))?.block_on(async {
                let mut conn = superuser(&url).await?;
                run(&mut conn, &format!("drop database if exists {name} with (force)")).await
            })
        });
        if let Ok(Err(error)) = dropped.join() {
            tracing::warn!(?error, "a test's database could not be dropped");
        }
    }
}

/// The template of these migrations, made by the first process that needs it.
async fn template(server: &Server, migrations: Option<&Migrator>) -> Result<String> {
    let name = format!("template_{:016x}", schema::fingerprint(migrations));
    let mut conn = superuser(&server.url(SUPERUSER, SUPERUSER)).await?;
    sqlx::query("select pg_advisory_lock(hashtext($1))").bind(&name).execute(&mut conn).await.map_err(from_sqlx)?;
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1 and not datallowconn)")
        .bind(&name)
        .fetch_one(&mut conn)
        .await
        .map_err(from_sqlx)?;
    if !exists {
        run(&mut conn, &format!("drop database if exists {name} with (force)")).await?; // half-made by a process that was killed
        run(&mut conn, &format!("create database {name}")).await?;
        let mut schema = Schema::connect(&server.url(SUPERUSER, &name), Roles::default()).await?;
        schema.migrate().await?;
        if let Some(migrations) = migrations {
            schema.apply(migrations).await?;
        }
        drop(schema);
        run(&mut conn, &format!("alter database {name} with allow_connections false")).await?;
    }
    Ok(name) // the lock goes with the connection
}

async fn superuser(url: &str) -> Result<PgConnection> {
    PgConnectOptions::from_str(url).map_err(from_sqlx)?.connect().await.map_err(from_sqlx)
}

async fn run(conn: &mut PgConnection, sql: &str) -> Result<()> {
    conn.execute(AssertSqlSafe(sql)).await.map(drop).map_err(from_sqlx)
}

fn server_dir() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("tenancy-test")
}
