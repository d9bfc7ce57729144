//! The database as a service sees it: nothing without a [`TenantContext`].

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{ConnectOptions, PgPool, Row};
use tenancy_core::{Clock, Error, ErrorKind, Result, SystemClock, TenantContext, TenantId, TenantStatus};

use crate::catalog::{CatalogCache, PgCatalog};
use crate::dangerous::Dangerous;
use crate::error::from_sqlx;
use crate::isolation::{self, Finding};
use crate::lease::Lease;
use crate::preflight;
use crate::schema::Roles;
use crate::seal::SealKey;
use crate::tx::{ForTenant, TenantTx, Tx};

const READ_ONLY: &str = "READ ONLY";
/// With its first snapshot a READ ONLY transaction can't be SET to READ WRITE any more. RESET is refused from PostgreSQL 16 on; what is
/// written because of it is never kept.
const SNAPSHOT: &str = "SELECT";

/// How to open a [`TenantDb`].
#[derive(Debug, Clone)]
pub struct Options {
    app: PgConnectOptions,
    admin: Option<PgConnectOptions>,
    roles: Roles,
    max_connections: u32,
    acquire_timeout: Duration,
    max_staleness: Duration,
    clock: Arc<dyn Clock>,
    seal_key: Option<SealKey>,
    scrub: bool,
}

impl Options {
    /// The database at `url`, whose user is the application's role: `postgres://tenancy_app@host/database`.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) if `url` is not one.
    pub fn new(url: &str) -> Result<Self> {
        Ok(Self {
            app: PgConnectOptions::from_str(url).map_err(from_sqlx)?,
            admin: None,
            roles: Roles::default(),
            max_connections: 10,
            acquire_timeout: Duration::from_secs(5),
            max_staleness: Duration::from_millis(900),
            clock: Arc::new(SystemClock),
            seal_key: None,
            scrub: true,
        })
    }

    /// Credentials for work across tenants, on a pool of its own: the login must be able to become `tenancy_admin`.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) if `url` is not one.
    pub fn with_admin_url(mut self, url: &str) -> Result<Self> {
        self.admin = Some(PgConnectOptions::from_str(url).map_err(from_sqlx)?);
        Ok(self)
    }

    /// The names of the kit's roles, if not the default ones.
    #[must_use]
    pub fn with_roles(mut self, roles: Roles) -> Self {
        self.roles = roles;
        self
    }

    /// The most connections for tenants' transactions: 10 unless said. The catalog has up to 3 of its own, so that tenants are still
    /// resolved when these are all busy; administrative work has up to 3.
    #[must_use]
    pub fn with_max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// How long `begin` waits for a free connection: 5 s unless said.
    #[must_use]
    pub fn with_acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// The longest that a change of the catalog made elsewhere (a suspension, say) may go unnoticed here: 900 ms unless said, at least
    /// 100 ms and at most an hour. It holds when notifications are lost, and when the database can't be reached: then nothing is served from
    /// the cache.
    #[must_use]
    pub fn with_max_staleness(mut self, staleness: Duration) -> Self {
        self.max_staleness = staleness.clamp(Duration::from_millis(100), Duration::from_hours(1));
        self
    }

    /// The clock that dates catalog rows.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The key of a database that was [sealed](crate::Schema::seal): each transaction is bound by a token signed with it.
    #[must_use]
    pub fn with_seal_key(mut self, key: SealKey) -> Self {
        self.seal_key = Some(key);
        self
    }

    /// Returns connections to the pool as sqlx does, dirty: what the tests' negative control needs, and nobody else.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn danger_without_scrub(mut self) -> Self {
        self.scrub = false;
        self
    }
}

/// How a transaction is isolated from others that run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees what was committed before it.
    #[default]
    ReadCommitted,
    /// All statements see one snapshot.
    RepeatableRead,
    /// As if transactions ran one after another; expect [`Retry`](tenancy_core::ErrorKind::Retry).
    Serializable,
}

impl Isolation {
    const fn begin(self) -> &'static str {
        match self {
            Self::ReadCommitted => "BEGIN",
            Self::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Self::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        }
    }
}

/// A PostgreSQL database that serves many tenants: cheap to clone, one for the whole process.
///
/// Nothing here reaches a tenant's row without a [`TenantContext`]; the pool itself can't be had.
#[derive(Debug, Clone)]
pub struct TenantDb(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) pool: PgPool,
    pub(crate) admin: Option<PgPool>,
    pub(crate) roles: Roles,
    pub(crate) catalog: Arc<CatalogCache>,
    pub(crate) clock: Arc<dyn Clock>,
    /// A pooler between us and the server may hand each transaction another server connection, which knows no named statement.
    pub(crate) named_statements: bool,
    seal_key: Option<SealKey>,
    pub(crate) scrub: bool,
}

impl TenantDb {
    /// Connects, makes sure that this login and this database keep tenants apart, and starts to follow the catalog.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) names each [`Refusal`](crate::Refusal) and what to do about it (its source is
    /// [`Refused`](crate::Refused)); [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Security
    /// Upholds I2: no request is served as a role that row-level security does not bind.
    pub async fn open(options: Options) -> Result<Self> {
        let Options { app, admin, roles, max_connections, acquire_timeout, max_staleness, clock, seal_key, scrub } = options;
        let named_statements = !behind_pooler(&app).await?;
        let mut first = app.clone().connect().await.map_err(from_sqlx)?;
        preflight::check(&mut first, &roles, seal_key.as_ref()).await?;
        let pool = |options: PgConnectOptions, most: u32, wait: Duration| {
            // Without `test_before_acquire`: BEGIN is the test, so a healthy connection costs no extra round trip.
            PgPoolOptions::new().max_connections(most).acquire_timeout(wait).test_before_acquire(false).connect_lazy_with(options)
        };
        let control = pool(app.clone(), 3, Duration::from_secs(2));
        let catalog = CatalogCache::start(control, max_staleness, named_statements).await?;
        Ok(Self(Arc::new(Inner {
            pool: pool(app, max_connections, acquire_timeout),
            admin: admin.map(|admin| pool(admin, 3, acquire_timeout)),
            roles,
            catalog,
            clock,
            named_statements,
            seal_key,
            scrub,
        })))
    }

    /// Begins a transaction for `cx`'s tenant. BEGIN and the tenant travel in one message: one round trip.
    ///
    /// It is READ ONLY if `cx` [is](TenantContext::is_read_only): a write is then [`Forbidden`](tenancy_core::ErrorKind::Forbidden), also
    /// by a function or after `SET TRANSACTION`, and the transaction ends by ROLLBACK whatever was done in it.
    ///
    /// # Errors
    /// - [`TenantInactive`](tenancy_core::ErrorKind::TenantInactive), [`TenantNotFound`](tenancy_core::ErrorKind::TenantNotFound): the tenant was active when `cx` was
    ///   established and is no longer, as of at most [`max_staleness`](Options::with_max_staleness) ago.
    /// - [`Unavailable`](tenancy_core::ErrorKind::Unavailable): no connection came free in time, the database is away, or the tenant is being
    ///   moved or restored, or was when `cx` was established: also where it [can be read](tenancy_core::Tenant::reads).
    ///
    /// # Cancel safety
    /// Safe at every point: a connection that was bound is cleaned before anybody else gets it.
    ///
    /// # Security
    /// Upholds I1, I3 and I29.
    pub async fn begin(&self, cx: &TenantContext) -> Result<TenantTx> {
        self.begin_with(cx, Isolation::ReadCommitted).await
    }

    /// [`begin`](TenantDb::begin), at another isolation level.
    ///
    /// # Errors
    /// As `begin`.
    ///
    /// # Cancel safety
    /// As `begin`.
    pub async fn begin_with(&self, cx: &TenantContext, isolation: Isolation) -> Result<TenantTx> {
        self.bind(cx, isolation.begin(), false).await
    }

    /// Begins a READ ONLY transaction for `cx`'s tenant: drop it when done. The rollback happens in the background, so that a read costs
    /// two round trips of waiting instead of three.
    ///
    /// While the tenant is being moved or restored and [can be read](tenancy_core::Tenant::reads), this goes on, for any context, as if that
    /// were read-only: nothing writes, whatever is tried. It costs a round trip more then.
    ///
    /// # Errors
    /// As [`begin`](TenantDb::begin).
    ///
    /// # Cancel safety
    /// As [`begin`](TenantDb::begin).
    pub async fn read(&self, cx: &TenantContext) -> Result<TenantTx> {
        self.bind(cx, "BEGIN READ ONLY", true).await
    }

    async fn bind(&self, cx: &TenantContext, begin: &str, read_only: bool) -> Result<TenantTx> {
        self.bind_and(cx, begin, None, read_only).await
    }

    /// `also`: more statements of ours, after the tenant is bound.
    pub(crate) async fn bind_and(&self, cx: &TenantContext, begin: &str, also: Option<&str>, read_only: bool) -> Result<TenantTx> {
        self.start_for(cx, &self.begin_text(cx, begin, also), read_only).await
    }

    /// A transaction that comes after another one, also for a context that may change nothing: `first` is what that one does, with its
    /// COMMIT, and what then begins. All of it is one message, whose rows come along.
    pub(crate) async fn begin_after(
        &self,
        cx: &TenantContext,
        first: &str,
        read_only: bool,
        refused: impl FnOnce(sqlx::Error) -> Error,
    ) -> Result<(TenantTx, Vec<PgRow>)> {
        let tenant_id = cx.tenant_id();
        self.admitted(cx, false).await?;
        let text = format!("{}; {first}", self.0.begin_for("BEGIN", tenant_id));
        let (lease, rows) = Lease::begin_asking(&self.0.pool, &text, self.0.scrub).await.map_err(refused)?;
        self.admitted(cx, false).await?; // again: see `start_for`
        let scope = ForTenant { tenant_id, request_id: cx.request_id() };
        let tx = Tx::new(lease, scope, read_only, self.0.named_statements);
        Ok((if cx.is_read_only() { tx.unchanging() } else { tx }, rows))
    }

    /// Makes sure that the tenant is active, as of the bound on staleness, or for a reader that it can be read: whether it can only be read.
    async fn admitted(&self, cx: &TenantContext, reader: bool) -> Result<bool> {
        let tenant = self.0.catalog.find(&cx.tenant_id().into()).await?.ok_or_else(Error::tenant_not_found)?;
        if reader {
            return Ok(tenant.into_readable()?.status != TenantStatus::Active);
        }
        tenant.into_active()?;
        match cx.tenant().status {
            TenantStatus::Active => Ok(false),
            // It was let in to read. Not Forbidden: the next one may write.
            status => Err(Error::new(ErrorKind::Unavailable, format!("the tenant was {status} when this began: try again"))),
        }
    }

    /// Makes sure that the tenant is served, and sends `begin`.
    async fn start_for(&self, cx: &TenantContext, begin: &str, read_only: bool) -> Result<TenantTx> {
        self.admitted(cx, read_only).await?;
        let mut tx = self.start(ForTenant { tenant_id: cx.tenant_id(), request_id: cx.request_id() }, begin, read_only).await?;
        // Again: the connection may have been long in coming. Whoever raises a fence sees this transaction, or this sees the fence.
        let fenced = self.admitted(cx, read_only).await?;
        if fenced && !cx.is_read_only() {
            tx.control(SNAPSHOT).await.map_err(from_sqlx)?;
        }
        Ok(if fenced || cx.is_read_only() { tx.unchanging() } else { tx })
    }

    /// What begins a transaction of `cx`'s tenant.
    pub(crate) fn begin_text(&self, cx: &TenantContext, begin: &str, also: Option<&str>) -> String {
        let mut text = self.0.begin_for(&begin_text(begin, cx.is_read_only()), cx.tenant_id());
        if let Some(also) = also {
            text.push_str("; ");
            text.push_str(also);
        }
        if cx.is_read_only() {
            text.push_str("; ");
            text.push_str(SNAPSHOT);
        }
        text
    }

    /// Begins a transaction for a tenant that need not be active: for operations on it, which nobody else does at the time.
    pub(crate) async fn begin_unserved(&self, scope: ForTenant, begin: &str, read_only: bool) -> Result<TenantTx> {
        let begin = self.0.begin_for(begin, scope.tenant_id);
        self.start(scope, &begin, read_only).await
    }

    async fn start(&self, scope: ForTenant, begin: &str, read_only: bool) -> Result<TenantTx> {
        let lease = Lease::begin(&self.0.pool, begin, self.0.scrub).await.map_err(from_sqlx)?;
        Ok(Tx::new(lease, scope, read_only, self.0.named_statements))
    }

    /// The catalog of this database's tenants.
    pub fn catalog(&self) -> PgCatalog {
        PgCatalog::new(self.clone())
    }

    /// The way around the fence, for work across tenants.
    pub fn dangerous(&self) -> Dangerous {
        Dangerous::new(self.clone())
    }

    /// Whether the database answers, and the catalog is fresh: for a readiness probe.
    ///
    /// # Errors
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ping(&self) -> Result<()> {
        self.0.catalog.refresh().await
    }

    /// What the [checker](crate::isolation) finds in this database, worst first, about the role that this service logs in as. It reads the
    /// catalogs only: on the administrative pool, if there is one.
    ///
    /// # Errors
    /// Those of [`isolation::inspect`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn inspect(&self) -> Result<Vec<Finding>> {
        let pool = self.0.admin.as_ref().unwrap_or(&self.0.pool);
        // Not BEGIN: the checker has its own. It only proves that the connection is alive.
        let mut lease = Lease::begin(pool, "SELECT", self.0.scrub).await.map_err(from_sqlx)?;
        let login = self.0.pool.connect_options().get_username().to_owned();
        isolation::inspect(lease.conn(), &self.0.roles, &login).await
    }

    /// Closes all connections, once the transactions that hold them have ended.
    pub async fn close(&self) {
        self.0.catalog.stop().await;
        self.0.pool.close().await;
        if let Some(admin) = &self.0.admin {
            admin.close().await;
        }
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }
}

impl Inner {
    /// `begin`, and the tenant that it is for.
    pub(crate) fn begin_for(&self, begin: &str, tenant_id: TenantId) -> String {
        // The text is ours: a UUID prints as 36 characters of hex and hyphens, a token as hex, hyphens and points.
        match &self.seal_key {
            None => format!("{begin}; SET LOCAL tenancy.tenant_id = '{tenant_id}'"),
            // RESET ALL: against a search_path, say, that somebody else's SQL left in the session. A default of READ ONLY has taken effect
            // at BEGIN already.
            Some(key) => {
                let writes = if begin.contains(READ_ONLY) { "" } else { "SET TRANSACTION READ WRITE; " };
                format!("{begin}; RESET ALL; {writes}SELECT tenancy.enter('{}')", key.token(tenant_id))
            }
        }
    }
}

/// `begin`, which says READ ONLY if it must.
fn begin_text(begin: &str, read_only: bool) -> String {
    if read_only && !begin.ends_with(READ_ONLY) { format!("{begin} {READ_ONLY}") } else { begin.to_owned() }
}

/// Whether something between us and PostgreSQL shares server connections: it does not pass a session's start-up options on.
async fn behind_pooler(app: &PgConnectOptions) -> Result<bool> {
    let nonce = format!("n{}", rand::random::<u64>());
    let probe = app.clone().options([("tenancy.session", nonce.as_str())]);
    let mut conn = match probe.connect().await {
        Ok(conn) => conn,
        // PgBouncer refuses start-up options that it does not know, unless told to ignore them.
        Err(sqlx::Error::Database(e)) if e.message().contains("startup parameter") => return Ok(true),
        Err(e) => return Err(from_sqlx(e)),
    };
    let row = sqlx::raw_sql("select current_setting('tenancy.session', true)").fetch_one(&mut conn).await.map_err(from_sqlx)?;
    let seen: Option<String> = row.try_get(0).map_err(from_sqlx)?;
    Ok(seen.as_deref() != Some(nonce.as_str()))
}
