//! The tenants of this database, and how every node hears of their changes within a second.
//!
//! A node asks the database "what changed since?" several times per [`max_staleness`](crate::Options::with_max_staleness), and at once
//! when a notification comes. The notification is only a hint: what holds the bound is that the cache serves nothing unless the last
//! answer is fresh. When answers stop, every look-up goes to the database, and fails with it.
//!
//! One node therefore costs the database a handful of tiny queries per second, however many tenants and requests there are.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use moka::future::Cache;
use serde_json::{Map, Value};
use sqlx::postgres::{PgListener, PgRow};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgPool, Row};
use tenancy_core::{
    Actor, AuditEvent, DomainName, Error, ErrorKind, NewTenant, Result, Tenant, TenantCatalog, TenantChange, TenantHint, TenantId,
    TenantPage, TenantQuery, TenantSlug, TenantStatus,
};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::platform::Platform;
use crate::tx::SystemTx;

const CHANNEL: &str = "tenancy_catalog";
/// How long one look-up may take; [`FLOOR_TTL`] must be longer.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the version of a changed tenant is remembered.
const FLOOR_TTL: Duration = Duration::from_secs(60);
const CAPACITY: u64 = 100_000;
/// How often a node says that it still follows; the database gives it up after three times as long.
const SAY_EVERY: Duration = Duration::from_secs(10);

const COLUMNS: &str = "id, slug, name, status, reads, branding, flags, plan, created_at, updated_at, version";
const DOMAINS: &str =
    "array(select d.domain from tenancy.domains d where d.tenant_id = tenants.id and d.state = 'verified' order by 1) as domains";

/// What this node knows of the catalog.
#[derive(Debug)]
pub(crate) struct CatalogCache {
    /// A secret of its own: whoever knows it could say for it that it has heard.
    node: Uuid,
    control: PgPool,
    max_staleness: Duration,
    named_statements: bool,
    by_id: Cache<TenantId, Arc<Tenant>>,
    by_slug: Cache<TenantSlug, TenantId>,
    by_domain: Cache<DomainName, TenantId>,
    /// Answers of the database, for a short while: what was not there, and one answer for all who ask at the same moment.
    answers: Cache<TenantHint, Option<Arc<Tenant>>>,
    /// The lowest version to believe of tenants that changed lately, for answers that were under way at the change.
    floors: Cache<TenantId, u64>,
    following: tokio::sync::Mutex<Following>,
    /// What operators have set for all tenants.
    platform: Mutex<Arc<Platform>>,
    started: Instant,
    /// When the last answered question was asked, in microseconds since `started`; 0: never.
    fresh_at: AtomicU64,
    follower: Mutex<Option<JoinHandle<()>>>,
    failing: AtomicBool,
}

/// How far a node follows the catalog.
#[derive(Debug, Default)]
struct Following {
    /// Where the next question "what changed since?" starts.
    horizon: Option<u64>,
    /// When it last said what it has heard, and whether somebody waits to hear that again.
    said: Option<Instant>,
    owes: bool,
}

impl CatalogCache {
    /// Starts to follow the catalog.
    pub(crate) async fn start(control: PgPool, max_staleness: Duration, named_statements: bool) -> Result<Arc<Self>> {
        let cache = Arc::new(Self {
            node: Uuid::new_v4(),
            control,
            max_staleness,
            named_statements,
            by_id: Cache::builder().max_capacity(CAPACITY).time_to_idle(Duration::from_secs(3600)).build(),
            by_slug: Cache::builder().max_capacity(CAPACITY).time_to_idle(Duration::from_secs(3600)).build(),
            by_domain: Cache::builder().max_capacity(CAPACITY).time_to_idle(Duration::from_secs(3600)).build(),
            answers: Cache::builder().max_capacity(10_000).time_to_live(max_staleness).build(),
            floors: Cache::builder().time_to_live(FLOOR_TTL).build(),
            following: tokio::sync::Mutex::default(),
            platform: Mutex::default(),
            started: Instant::now(),
            fresh_at: AtomicU64::new(0),
            follower: Mutex::default(),
            failing: AtomicBool::new(false),
        });
        cache.refresh().await?;
        let follower = tokio::spawn(follow(Arc::downgrade(&cache)));
        *cache.follower.lock().unwrap_or_else(PoisonError::into_inner) = Some(follower);
        Ok(cache)
    }

    /// Stops to follow, and closes the connections. Nothing is served from the cache any more.
    pub(crate) async fn stop(&self) {
        let follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(follower) = follower {
            follower.abort();
            let _ = follower.await; // gone before its connections are
        }
        let _asked = self.following.lock().await; // nobody asks any more
        self.fresh_at.store(0, Ordering::Release);
        // A courtesy: else a fence that is raised soon is waited for a little longer.
        let _ = self.ask(format!("select tenancy.catalog_left('{}')", self.node)).await;
        self.control.close().await;
    }

    /// Asks the database what changed, forgets it, and says so if somebody waits for that.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let mut following = self.following.lock().await;
        let asked_at = self.started.elapsed();
        // Without a horizon nothing is cached yet: only where to start is asked.
        let since = following.horizon.map_or("pg_snapshot_xmax(pg_current_snapshot())".to_owned(), |xid| format!("'{xid}'::xid8"));
        let question = format!(
            "select horizon::text, heard::text, listed, id, version, fenced, tenancy.platform_version() as platform
               from tenancy.catalog_changes({since}, '{}')",
            self.node
        );
        let answer = self.ask(question).await?;
        let Some(first) = answer.first() else { return Err(Error::new(ErrorKind::Internal, "the catalog gives no horizon")) };
        // Before the horizon moves: a failure here makes the next refresh ask for the same again.
        if first.try_get::<i64, _>("platform").map_err(from_sqlx)? != self.known_platform().version {
            let rows = self.ask("select * from tenancy.platform_settings()".to_owned()).await?;
            let platform = rows.first().map(Platform::read).transpose()?.unwrap_or_default();
            *self.platform.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(platform);
        }
        let horizon: String = first.try_get("horizon").map_err(from_sqlx)?;
        let horizon =
            horizon.parse().map_err(|e| Error::new(ErrorKind::Internal, "the catalog's horizon is not a number").with_source(e))?;
        following.horizon = Some(horizon);
        let mut changed = false;
        for row in &answer {
            let Some(id) = row.try_get::<Option<Uuid>, _>("id").map_err(from_sqlx)? else { continue };
            let id = TenantId::from_uuid(id)?;
            let version = row.try_get::<i64, _>("version").map_err(from_sqlx)?.unsigned_abs();
            // A transaction that is still open elsewhere makes the same change be told again and again: only a newer one counts.
            if self.floors.get(&id).await.is_none_or(|floor| floor < version) {
                self.floors.insert(id, version).await;
                self.by_id.invalidate(&id).await;
                changed = true;
                following.owes |= row.try_get::<bool, _>("fenced").map_err(from_sqlx)?;
            }
        }
        if changed {
            self.answers.invalidate_all();
        }
        let listed: bool = first.try_get("listed").map_err(from_sqlx)?;
        if following.owes || !listed || following.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.say(&first.try_get::<String, _>("heard").map_err(from_sqlx)?).await?;
            following.said = Some(Instant::now());
            following.owes = false;
        }
        self.fresh_at.store(u64::try_from(asked_at.as_micros()).unwrap_or(u64::MAX).max(1), Ordering::Release);
        Ok(())
    }

    /// Says what this node goes by from now on: a snapshot, as PostgreSQL writes one.
    async fn say(&self, heard: &str) -> Result<()> {
        let (node, staleness) = (self.node, self.max_staleness.as_millis());
        // Also where transactions of this login are read-only by default.
        let sql = format!(
            "set local transaction_read_only = off; select tenancy.catalog_heard('{node}', '{heard}', interval '{staleness} milliseconds')"
        );
        self.ask(sql).await.map(drop)
    }

    fn known_platform(&self) -> Arc<Platform> {
        Arc::clone(&self.platform.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What operators have set for all tenants, no older than the bound.
    pub(crate) async fn platform(&self) -> Result<Arc<Platform>> {
        if !self.is_fresh() {
            self.refresh().await?;
        }
        Ok(self.known_platform())
    }

    fn is_fresh(&self) -> bool {
        let fresh_at = Duration::from_micros(self.fresh_at.load(Ordering::Acquire));
        !fresh_at.is_zero() && self.started.elapsed().saturating_sub(fresh_at) <= self.max_staleness
    }

    /// The warm path: two look-ups in memory, no waiting.
    pub(crate) fn peek(&self, hint: &TenantHint) -> Option<Arc<Tenant>> {
        self.cached(hint).now_or_never().flatten()
    }

    async fn cached(&self, hint: &TenantHint) -> Option<Arc<Tenant>> {
        if !self.is_fresh() {
            return None;
        }
        let id = match hint {
            TenantHint::Id(id) => *id,
            TenantHint::Slug(slug) => self.by_slug.get(slug).await?,
            TenantHint::Domain(domain) => self.by_domain.get(domain).await?,
            _ => return None,
        };
        let tenant = self.by_id.get(&id).await?;
        (tenant.is(hint) && self.is_current(&tenant).await).then_some(tenant)
    }

    async fn is_current(&self, tenant: &Tenant) -> bool {
        self.floors.get(&tenant.id).await.is_none_or(|floor| tenant.version >= floor)
    }

    pub(crate) async fn find(&self, hint: &TenantHint) -> Result<Option<Arc<Tenant>>> {
        if let Some(tenant) = self.cached(hint).await {
            return Ok(Some(tenant));
        }
        if !self.is_fresh() {
            return self.look_up(hint).await;
        }
        // A flood of requests for one cold tenant is one question.
        let answer = self.answers.try_get_with(hint.clone(), self.look_up(hint)).await;
        let found = answer.map_err(|e: Arc<Error>| Error::new(e.kind(), e.message().to_owned()).with_source(e))?;
        let Some(tenant) = found else { return Ok(None) };
        self.by_slug.insert(tenant.slug.clone(), tenant.id).await;
        if let TenantHint::Domain(domain) = hint {
            self.by_domain.insert(domain.clone(), tenant.id).await;
        }
        self.by_id.insert(tenant.id, Arc::clone(&tenant)).await;
        // In this order: `refresh` raises the floor before it forgets, so a tenant that changed while we asked is caught by one of us.
        if !self.is_current(&tenant).await {
            self.by_id.invalidate(&tenant.id).await;
            return self.look_up(hint).await;
        }
        Ok(Some(tenant))
    }

    /// Asks the database.
    async fn look_up(&self, hint: &TenantHint) -> Result<Option<Arc<Tenant>>> {
        let arguments = match hint {
            TenantHint::Id(id) => format!("'{id}', null, null"),
            TenantHint::Slug(slug) => format!("null, '{slug}', null"),
            TenantHint::Domain(domain) => format!("null, null, '{domain}'"),
            _ => return Ok(None),
        };
        let rows = self.ask(format!("select * from tenancy.resolve_tenant({arguments})")).await?;
        rows.first().map(|row| tenant(row).map(Arc::new)).transpose()
    }

    /// Asks in one message, which works on whichever server connection a pooler gives it. `sql` is ours: a [`TenantId`] prints as hex and
    /// hyphens, a [`TenantSlug`] as lower-case letters, digits and hyphens, a [`DomainName`] as those and dots.
    pub(crate) async fn ask(&self, sql: String) -> Result<Vec<PgRow>> {
        let question = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&self.control);
        tokio::time::timeout(LOOKUP_TIMEOUT, question).await.map_err(|_| away())?.map_err(from_sqlx)
    }

    /// Logs the first failure of a row of them, and its end.
    fn report(&self, outcome: &Result<()>) {
        let failing = outcome.is_err();
        if self.failing.swap(failing, Ordering::Relaxed) != failing {
            match outcome {
                Err(error) => tracing::error!(?error, "the catalog can't be followed: tenants are looked up in the database meanwhile"),
                Ok(()) => tracing::info!("the catalog is followed again"),
            }
        }
    }
}

impl Drop for CatalogCache {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            follower.abort();
        }
    }
}

/// Refreshes at each notification and four times per bound, until the cache is gone.
async fn follow(cache: Weak<CatalogCache>) {
    let Some((control, interval, session)) = cache.upgrade().map(|c| (c.control.clone(), c.max_staleness / 4, c.named_statements)) else {
        return;
    };
    let mut listener = None;
    loop {
        // A pooler that shares server connections delivers no notifications: the interval has to do.
        if session && listener.is_none() {
            listener = listen(&control).await;
        }
        let hint = async {
            match &mut listener {
                Some(listener) => listener.recv().await.map(drop),
                None => std::future::pending().await,
            }
        };
        if let Ok(Err(_)) = tokio::time::timeout(interval, hint).await {
            listener = None;
        }
        let Some(cache) = cache.upgrade() else { return };
        cache.report(&cache.refresh().await);
    }
}

async fn listen(control: &PgPool) -> Option<PgListener> {
    let mut listener = PgListener::connect_with(control).await.ok()?;
    listener.listen(CHANNEL).await.ok()?;
    Some(listener)
}

fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "the database is away or busy: try again later")
}

fn tenant(row: &PgRow) -> Result<Tenant> {
    let read = || -> Result<Tenant, sqlx::Error> {
        let decode = |e: Error| sqlx::Error::Decode(Box::new(e));
        let Json(branding) = row.try_get("branding")?;
        let Json(flags) = row.try_get("flags")?;
        Ok(Tenant {
            id: TenantId::from_uuid(row.try_get("id")?).map_err(decode)?,
            slug: row.try_get::<&str, _>("slug")?.parse().map_err(decode)?,
            name: row.try_get("name")?,
            status: row.try_get::<&str, _>("status")?.parse().map_err(decode)?,
            reads: row.try_get("reads")?,
            branding,
            flags,
            plan: row.try_get("plan")?,
            domains: row
                .try_get::<Vec<String>, _>("domains")?
                .into_iter()
                .map(DomainName::try_from)
                .collect::<Result<_>>()
                .map_err(decode)?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            version: row.try_get::<i64, _>("version")?.unsigned_abs(),
        })
    };
    read().map_err(from_sqlx)
}

/// The catalog in PostgreSQL: `find` from this node's cache, the rest through [`Dangerous`](crate::Dangerous), audited.
///
/// To change the catalog and something else in one transaction, use [`SystemTx::create_tenant`] and [`SystemTx::update_tenant`].
#[derive(Debug, Clone)]
pub struct PgCatalog {
    db: TenantDb,
}

impl PgCatalog {
    pub(crate) fn new(db: TenantDb) -> Self {
        Self { db }
    }

    /// Learns now what was committed before, instead of within [`max_staleness`](crate::Options::with_max_staleness).
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn refresh(&self) -> Result<()> {
        self.db.inner().catalog.refresh().await
    }

    async fn begin(&self, reason: &str, by: &Actor) -> Result<SystemTx> {
        self.db.dangerous().on_behalf_of(by.clone()).begin_system(reason).await
    }
}

#[async_trait]
impl TenantCatalog for PgCatalog {
    fn peek(&self, hint: &TenantHint) -> Option<Arc<Tenant>> {
        self.db.inner().catalog.peek(hint)
    }

    async fn find(&self, hint: &TenantHint) -> Result<Option<Arc<Tenant>>> {
        self.db.inner().catalog.find(hint).await
    }

    async fn list(&self, query: &TenantQuery, by: &Actor) -> Result<TenantPage> {
        query.check()?;
        let mut tx = self.begin("list tenants", by).await?;
        tx.list_tenants(query).await
    }

    async fn create(&self, new: NewTenant, by: &Actor) -> Result<Arc<Tenant>> {
        let tenant = Tenant::new(new, self.db.inner().clock.now())?;
        let mut tx = self.begin("create a tenant", by).await?;
        tx.insert_tenant(&tenant).await?;
        tx.commit().await?;
        self.refresh().await?;
        Ok(Arc::new(tenant))
    }

    async fn update(&self, id: TenantId, change: TenantChange, expected: Option<u64>, by: &Actor) -> Result<Arc<Tenant>> {
        let mut tx = self.begin("change a tenant", by).await?;
        let tenant = tx.update_tenant(id, change, expected, self.db.inner().clock.now()).await?;
        tx.commit().await?;
        self.refresh().await?;
        Ok(Arc::new(tenant))
    }
}

/// The catalog, as part of a larger transaction. After the commit, [`PgCatalog::refresh`] makes this node see it at once.
impl SystemTx {
    /// Adds a tenant, with its audit event.
    ///
    /// # Errors
    /// As [`TenantCatalog::create`].
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn create_tenant(&mut self, new: NewTenant, now: chrono::DateTime<chrono::Utc>) -> Result<Tenant> {
        let tenant = Tenant::new(new, now)?;
        self.insert_tenant(&tenant).await?;
        Ok(tenant)
    }

    /// Changes a tenant, with its audit event.
    ///
    /// # Errors
    /// As [`TenantCatalog::update`].
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn update_tenant(
        &mut self,
        id: TenantId,
        change: TenantChange,
        expected: Option<u64>,
        now: chrono::DateTime<chrono::Utc>,
    ) -> Result<Tenant> {
        let before = self.lock_tenant(id).await?;
        let after = before.changed(change, expected, now)?;
        sqlx::query(
            "update tenancy.tenants set slug = $2, name = $3, status = $4, reads = $5, branding = $6, flags = $7, plan = $8, updated_at = $9,
                    version = $10
              where id = $1",
        )
        .bind(id.as_uuid())
        .bind(after.slug.as_str())
        .bind(&after.name)
        .bind(after.status.as_str())
        .bind(after.reads)
        .bind(Json(&after.branding))
        .bind(Json(&after.flags))
        .bind(&after.plan)
        .bind(after.updated_at)
        .bind(after.version.cast_signed())
        .execute(&mut *self)
        .await
        .map_err(slug_taken)?;
        let action = if before.status == after.status { "tenant.update" } else { "tenant.status" };
        let (was, is) = differences(&before, &after);
        let detail =
            serde_json::json!({ "version": after.version, "status": after.status, "from": before.status, "before": was, "after": is });
        let event = AuditEvent::new(self.actor().clone(), action, id.to_string()).with_tenant(id).with_detail(detail);
        self.audit(&event).await?;
        if after.status == TenantStatus::Active && before.status != after.status {
            // What was posted for it meanwhile has waited.
            sqlx::query("select pg_notify('tenancy_outbox', '')").execute(&mut *self).await.map_err(from_sqlx)?;
        }
        Ok(after)
    }

    /// Gives a tenant the branding and the flags that a backup had, its logo among them, which comes with the backup's objects.
    #[cfg(feature = "backup")]
    pub(crate) async fn restore_looks(
        &mut self,
        id: TenantId,
        (branding, flags): (&Map<String, Value>, &Map<String, Value>),
        now: chrono::DateTime<chrono::Utc>,
    ) -> Result<()> {
        let before = self.lock_tenant(id).await?;
        if (&before.branding, &before.flags) == (branding, flags) {
            return Ok(());
        }
        let after = Tenant { branding: branding.clone(), flags: flags.clone(), version: before.version + 1, ..before.clone() };
        let query = "update tenancy.tenants set branding = $2, flags = $3, updated_at = $4, version = $5 where id = $1";
        sqlx::query(query)
            .bind(id.as_uuid())
            .bind(Json(branding))
            .bind(Json(flags))
            .bind(chrono::SubsecRound::trunc_subsecs(now, 6))
            .bind(after.version.cast_signed())
            .execute(&mut *self)
            .await
            .map_err(from_sqlx)?;
        let (was, is) = differences(&before, &after);
        let detail = serde_json::json!({ "version": after.version, "before": was, "after": is });
        self.audit(&AuditEvent::new(self.actor().clone(), "tenant.update", id.to_string()).with_tenant(id).with_detail(detail)).await
    }

    /// The tenant's row, which nobody else changes before the transaction ends.
    pub(crate) async fn lock_tenant(&mut self, id: TenantId) -> Result<Tenant> {
        let query = AssertSqlSafe(format!("select {COLUMNS}, {DOMAINS} from tenancy.tenants where id = $1 for update"));
        let row = sqlx::query(query).bind(id.as_uuid()).fetch_optional(&mut *self).await.map_err(from_sqlx)?;
        row.map(|row| tenant(&row)).transpose()?.ok_or_else(Error::not_found)
    }

    /// Leaves a tombstone of the tenant: an id and two dates.
    pub(crate) async fn bury_tenant(&mut self, id: TenantId, detail: serde_json::Value, now: chrono::DateTime<chrono::Utc>) -> Result<()> {
        let version: i64 = sqlx::query_scalar(
            "update tenancy.tenants set status = 'erased', slug = 'erased-' || replace(id::text, '-', ''), name = 'erased', branding = '{}', flags = '{}',
                    updated_at = $2, version = version + 1
              where id = $1 returning version",
        )
        .bind(id.as_uuid())
        .bind(chrono::SubsecRound::trunc_subsecs(now, 6))
        .fetch_one(&mut *self)
        .await
        .map_err(from_sqlx)?;
        let detail = serde_json::json!({ "version": version, "status": TenantStatus::Erased, "erased": detail });
        self.audit(&AuditEvent::new(self.actor().clone(), "tenant.erase", id.to_string()).with_tenant(id).with_detail(detail)).await
    }

    async fn insert_tenant(&mut self, tenant: &Tenant) -> Result<()> {
        let query = format!("insert into tenancy.tenants ({COLUMNS}) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)");
        sqlx::query(AssertSqlSafe(query))
            .bind(tenant.id.as_uuid())
            .bind(tenant.slug.as_str())
            .bind(&tenant.name)
            .bind(tenant.status.as_str())
            .bind(tenant.reads)
            .bind(Json(&tenant.branding))
            .bind(Json(&tenant.flags))
            .bind(&tenant.plan)
            .bind(tenant.created_at)
            .bind(tenant.updated_at)
            .bind(tenant.version.cast_signed())
            .execute(&mut *self)
            .await
            .map_err(slug_taken)?;
        let event = AuditEvent::new(self.actor().clone(), "tenant.create", tenant.id.to_string())
            .with_tenant(tenant.id)
            .with_detail(serde_json::json!({ "slug": tenant.slug, "plan": tenant.plan, "status": tenant.status }));
        self.audit(&event).await
    }

    async fn list_tenants(&mut self, query: &TenantQuery) -> Result<TenantPage> {
        let sql = format!(
            "select {COLUMNS}, {DOMAINS} from tenancy.tenants
              where ($1::uuid is null or id < $1)
                and case when $2::text is null then status not in ('archived', 'erased') else status = $2 and status <> 'erased' end
                and ($3::text is null or strpos(slug, lower($3)) > 0 or strpos(lower(name), lower($3)) > 0)
              order by id desc limit $4"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(query.after.map(TenantId::as_uuid))
            .bind(query.status.map(TenantStatus::as_str))
            .bind(&query.search)
            .bind(i64::try_from(query.limit + 1).unwrap_or(i64::MAX))
            .fetch_all(&mut *self)
            .await
            .map_err(from_sqlx)?;
        let tenants = rows.iter().map(|row| tenant(row).map(Arc::new)).collect::<Result<_>>()?;
        Ok(TenantPage::from_one_more(tenants, query.limit))
    }
}

/// The fields that a change changed: as they were, and as they are.
fn differences(before: &Tenant, after: &Tenant) -> (Map<String, Value>, Map<String, Value>) {
    let fields = |tenant: &Tenant| {
        [
            ("slug", Value::from(tenant.slug.as_str())),
            ("name", Value::from(tenant.name.as_str())),
            ("status", Value::from(tenant.status.as_str())),
            ("reads", Value::from(tenant.reads)),
            ("branding", Value::from(tenant.branding.clone())),
            ("flags", Value::from(tenant.flags.clone())),
            ("plan", Value::from(tenant.plan.as_str())),
        ]
    };
    let changed = fields(before).into_iter().zip(fields(after)).filter(|((_, was), (_, is))| was != is);
    changed.map(|((name, was), (_, is))| ((name.to_owned(), was), (name.to_owned(), is))).unzip()
}

fn slug_taken(error: sqlx::Error) -> Error {
    match error.as_database_error().and_then(|db| db.constraint()) {
        Some("tenants_slug_key") => Error::new(ErrorKind::Conflict, "the slug is taken: choose another").with_source(error),
        Some("tenants_pkey") => Error::new(ErrorKind::Conflict, "the id is taken").with_source(error),
        _ if error.as_database_error().is_some_and(|db| db.code().as_deref() == Some("55006")) => {
            // Of the kit's own triggers: it is being erased, or not provisioned yet.
            let why = error.as_database_error().map_or("", |db| db.message()).trim_start_matches("tenancy: ").to_owned();
            Error::new(ErrorKind::Conflict, why).with_source(error)
        }
        _ => from_sqlx(error),
    }
}
