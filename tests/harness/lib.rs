//! What the integration tests share: a kit on a fresh database with two tenants, and detectors for what must never happen.

pub mod actors;
pub mod app;
pub mod defects;
pub mod dns;
pub mod pgbouncer;
pub mod program;
pub mod proxy;
pub mod receiver;
pub mod smtp;
pub mod stats;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row};
use tenancy_core::TenantContext;
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{Options, TenantDb};

use crate::pgbouncer::PgBouncer;

/// The tests' own tables.
pub static MIGRATIONS: Migrator = sqlx::migrate!("./integration/migrations");

/// How a kit reaches its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Straight.
    Direct,
    /// Through a PgBouncer in transaction mode, whose clients share its few connections.
    Pooled,
}

/// A kit on a database of its own, with two tenants: every isolation test needs both.
#[derive(Debug)]
pub struct Kit {
    /// The database as a service sees it.
    pub db: TenantDb,
    /// One tenant's owner.
    pub acme: TenantContext,
    /// The other tenant's owner.
    pub globex: TenantContext,
    /// What is between the kit and its database, if anything is.
    pub bouncer: Option<PgBouncer>,
    /// Dropped last.
    pub database: TestDatabase,
}

impl Kit {
    /// A kit with the default options.
    pub async fn new() -> Self {
        Self::with_options(|options| options).await
    }

    /// A kit whose options the test changes.
    pub async fn with_options(change: impl FnOnce(Options) -> Options) -> Self {
        Self::on_with(Route::Direct, change).await.expect("nothing is in the way")
    }

    /// A kit with the default options on this route; `None` where the machine has no PgBouncer for it.
    pub async fn on(route: Route) -> Option<Self> {
        Self::on_with(route, |options| options).await
    }

    /// A kit whose options the test changes on this route; `None` where the machine has no PgBouncer for it.
    pub async fn on_with(route: Route, change: impl FnOnce(Options) -> Options) -> Option<Self> {
        let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("a test database");
        Self::on_database(route, database, change).await
    }

    /// A kit on a database that the test has prepared.
    pub async fn on_database(route: Route, database: TestDatabase, change: impl FnOnce(Options) -> Options) -> Option<Self> {
        let bouncer = match route {
            Route::Direct => None,
            Route::Pooled => Some(PgBouncer::start(&database.app_url()).await?),
        };
        let db = TenantDb::open(change(options(&database, bouncer.as_ref()))).await.expect("open");
        let acme = database.tenant(&db, "acme").await.expect("acme");
        let globex = database.tenant(&db, "globex").await.expect("globex");
        Some(Self { db, acme, globex, bouncer, database })
    }

    /// The URL of the application's role, by the kit's route.
    pub fn app_url(&self) -> String {
        self.bouncer.as_ref().map_or_else(|| self.database.app_url(), PgBouncer::url)
    }

    /// The options of another service on the same database, by the kit's route.
    pub fn options(&self) -> Options {
        options(&self.database, self.bouncer.as_ref())
    }

    /// A superuser's connection: the test's own eye, which no policy binds.
    pub async fn superuser(&self) -> PgConnection {
        self.database.superuser().await.expect("a superuser's connection")
    }

    /// Adds a note, as `cx`.
    pub async fn note(&self, cx: &TenantContext, body: &str) -> uuid::Uuid {
        let mut tx = self.db.begin(cx).await.expect("begin");
        let id =
            sqlx::query_scalar("insert into notes (body) values ($1) returning id").bind(body).fetch_one(&mut tx).await.expect("insert");
        tx.commit().await.expect("commit");
        id
    }

    /// All notes that `cx` sees.
    pub async fn notes(&self, cx: &TenantContext) -> Vec<String> {
        let mut tx = self.db.read(cx).await.expect("read");
        sqlx::query_scalar("select body from notes order by body").fetch_all(&mut tx).await.expect("select")
    }

    /// Waits until no session of the application is inside a transaction, and fails if that takes longer than five seconds.
    pub async fn db_settles(&self) {
        let mut eye = self.superuser().await;
        for _ in 0..250 {
            if dirty_sessions(&mut eye).await == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("a session of the application stays inside a transaction");
    }
}

/// Executes `sql`; again while another test changes the same rights of the whole server, as those on parameters are.
pub async fn insist(eye: &mut PgConnection, sql: &str) {
    for _ in 0..100 {
        match eye.execute(AssertSqlSafe(sql)).await {
            Ok(_) => return,
            Err(sqlx::Error::Database(db)) if db.message().starts_with("tuple concurrently") => {}
            Err(error) => panic!("{sql}: {error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{sql}: others are in the way for two seconds");
}

fn options(database: &TestDatabase, bouncer: Option<&PgBouncer>) -> Options {
    let Some(bouncer) = bouncer else { return database.options() };
    let options = Options::new(&bouncer.url()).and_then(|options| options.with_admin_url(&database.admin_url()));
    options.expect("our own URLs are valid")
}

/// Makes two tests of each body `async fn name(route: Route)`: `name::direct`, straight to PostgreSQL, and `name::pooled`, through
/// PgBouncer. Each is given the attribute that runs it. A body gets its kit from [`Kit::on`] or its like, and returns without one.
#[macro_export]
macro_rules! on_each_route {
    ($($(#[$attribute:meta])* $name:ident;)*) => {
        $(mod $name {
            $(#[$attribute])*
            async fn direct() {
                super::$name($crate::Route::Direct).await;
            }

            $(#[$attribute])*
            async fn pooled() {
                super::$name($crate::Route::Pooled).await;
            }
        })*
    };
}

/// How many of the application's sessions in this database are inside a transaction.
pub async fn dirty_sessions(eye: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_stat_activity where usename = 'tenancy_app' and datname = current_database() and state <> 'idle'",
    )
    .fetch_one(eye)
    .await
    .expect("pg_stat_activity")
}

/// How many transactions were kept in part: a debit without its credit, or the other way round.
pub async fn unbalanced(eye: &mut PgConnection) -> i64 {
    let row = sqlx::query("select count(*) from (select from entries group by tenant_id, id having count(*) <> 2) one_sided")
        .fetch_one(eye)
        .await
        .expect("entries");
    row.get(0)
}

/// Polls `future` at most `polls` times, then drops it: a client that hangs up at exactly that await.
pub async fn drop_after<F: Future>(future: F, polls: u32) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
