//! The running server: what its handlers share, how it starts, and how it stops.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::serve::ListenerExt as _;
use chrono::{DateTime, SubsecRound as _, Utc};
use object_store::ObjectStore;
use tenancy_core::backup::Schedule;
use tenancy_core::federation::Origin;
use tenancy_core::objects::TenantObjects;
use tenancy_core::{Clock as _, Error, ErrorKind, LinkBase, Result, SystemClock, TenantSlug, TxtResolver};
use tenancy_sqlx::backup::Backups;
use tenancy_sqlx::config::Configs;
use tenancy_sqlx::erase::Erase;
use tenancy_sqlx::export::{Export, Exports};
use tenancy_sqlx::federation::Federation;
use tenancy_sqlx::flags::Flags;
use tenancy_sqlx::operations::Operations;
use tenancy_sqlx::outbox::Worker;
use tenancy_sqlx::provision::{Provision, WarmPool};
use tenancy_sqlx::quota::{Meter, MeterOptions};
use tenancy_sqlx::{DedicatedRuntime, Options, PgCatalog, TenantDb};
use tenancy_tower::{AllAgree, ExtensionResolver, FirstOf, HostResolver};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tracing::Instrument as _;

use crate::anchors::Sealing;
use crate::attachment_store;
use crate::config::{Config, Secret, given, text};
use crate::credentials::{self, OperatorToken};
use crate::database::Database;
use crate::dns::Dns;
use crate::domains;
use crate::link_rate::LinkRate;
use crate::mailer::{self, Mailbox};
use crate::metrics;
use crate::plans::plans;
use crate::routes;
use crate::settings;
use crate::welcome::Welcome;

/// The page where an invitation is accepted.
pub(crate) const WELCOME: &str = "/welcome/";
/// How long requests in flight may take to finish when the server stops.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// How long messages under way may take to be delivered then.
const WORKER_LIMIT: Duration = Duration::from_secs(5);
/// How many requests for links to sign in with are worked on at once.
const LINK_REQUESTS: usize = 16;
/// How often a node that has none looks for long work.
const WORK_INTERVAL: Duration = Duration::from_millis(250);
/// How many connections long work has for tenants' transactions, beside the administrative ones.
const WORK_CONNECTIONS: u32 = 3;
/// How often it is looked whether a backup or a drill is due.
const DUE_INTERVAL: Duration = Duration::from_secs(2);
/// How often backups that were deleted are looked for, and journals pruned.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Does what operators have queued.
pub(crate) fn operations(db: &TenantDb, store: &Arc<dyn ObjectStore>, config: &Config) -> Result<Operations> {
    let (objects, exports) = (attachment_store::open(Arc::clone(store))?, attachment_store::exports(Arc::clone(store)));
    let backups = backups(db, store, config)?;
    let erase = Erase::new(db, credentials::certificate_key(config)?).with_objects((objects.clone(), (exports.clone(), backups.clone())));
    let export = Export::new(db, exports).with_objects(objects.clone());
    let provision = Provision::new(db, plans().clone()).with_storage(objects).with_hook(Welcome);
    let worker = Operations::new(db).with(Erase::KIND, erase).with(Provision::KIND, provision).with(Export::KIND, export);
    Ok(backups.does(worker))
}

/// The backups of tenants, in the operators' part of `store`.
pub(crate) fn backups(db: &TenantDb, store: &Arc<dyn ObjectStore>, config: &Config) -> Result<Backups> {
    let backups = Backups::new(db, Arc::clone(store), "backups".into(), credentials::backup_keys(config)?);
    let mut schedule = Schedule::NONE;
    if config.backup_every > 0 {
        schedule.every_hours = Some(config.backup_every);
        schedule.drill_days = Some(config.drill_every).filter(|days| *days > 0);
    }
    let backups = backups.with_objects(attachment_store::open(Arc::clone(store))?).with_schedule(schedule);
    Ok(backups.with_pace(NonZeroU64::new(config.backup_pace)))
}

/// Does what operators have queued, and what is due, where requests don't feel it.
async fn work_apart(options: Options, store: Arc<dyn ObjectStore>, config: Config) -> Result<DedicatedRuntime> {
    let begin = async move |db: TenantDb| {
        let (operations, backups) = (operations(&db, &store, &config)?, backups(&db, &store, &config)?);
        Ok(async move {
            tokio::join!(operations.run(WORK_INTERVAL), sweep(backups.clone()), keep_schedules(backups));
        })
    };
    DedicatedRuntime::start("operations", options.with_max_connections(WORK_CONNECTIONS), begin).await
}

/// Has backups and drills done when they are due.
async fn keep_schedules(backups: Backups) {
    loop {
        if let Err(error) = backups.queue_due().await {
            tracing::error!(?error, "whether a backup is due is not known");
        }
        tokio::time::sleep(DUE_INTERVAL).await;
    }
}

/// Has removed what was deleted of backups, and what is too old in journals.
async fn sweep(backups: Backups) {
    loop {
        match backups.queue_sweep().await {
            Ok(Some(_)) => {}
            Ok(None) => {
                if let Err(error) = backups.prune_journals().await {
                    tracing::error!(?error, "journals have what is older than their windows");
                }
                tokio::time::sleep(SWEEP_INTERVAL).await;
            }
            Err(error) => {
                tracing::error!(?error, "backups that were deleted are still there");
                tokio::time::sleep(SWEEP_INTERVAL).await;
            }
        }
    }
}

/// What the handlers share.
pub(crate) struct App {
    pub(crate) db: TenantDb,
    pub(crate) catalog: PgCatalog,
    pub(crate) meter: Meter,
    pub(crate) configs: Configs,
    pub(crate) flags: Flags,
    pub(crate) objects: TenantObjects,
    pub(crate) exports: Exports,
    pub(crate) backups: Backups,
    pub(crate) operator_token: OperatorToken,
    pub(crate) max_body: usize,
    pub(crate) max_attachment: u64,
    pub(crate) request_timeout: Duration,
    pub(crate) upload_timeout: Duration,
    pub(crate) members_only: bool,
    pub(crate) session_ttl: Duration,
    /// As `TENANCY_PUBLIC_URL`, without a slash at its end.
    public_url: String,
    /// How many may ask for links at once.
    pub(crate) link_requests: Arc<Semaphore>,
    /// What the routes of the mailbox show; nothing where there are none.
    pub(crate) mailbox: Option<Mailbox>,
    /// The platform's own domain.
    pub(crate) base_domain: Option<String>,
    pub(crate) dns: Arc<dyn TxtResolver>,
    pub(crate) webhooks_loopback: bool,
    /// None where this installation has no name, or no key.
    federation: Option<Federation>,
    /// How often one client may ask for what links show; nothing: as often as it likes.
    pub(crate) link_rate: Option<LinkRate>,
    draining: AtomicBool,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("db", &self.db).finish_non_exhaustive()
    }
}

impl App {
    pub(crate) fn now(&self) -> DateTime<Utc> {
        SystemClock.now().trunc_subsecs(6) // what PostgreSQL keeps
    }

    /// Has this node go by what was committed before. If it can't, it will within the bound on staleness.
    pub(crate) async fn catch_up(&self) {
        if let Err(error) = self.catalog.refresh().await {
            tracing::warn!(?error, "the catalog was not refreshed after a change");
        }
    }

    /// What links to `page` begin with, for a tenant's people.
    pub(crate) fn link(&self, tenant: &TenantSlug, page: &str) -> Result<LinkBase> {
        link(&self.public_url, tenant, page)
    }

    /// This installation, as others know it.
    pub(crate) fn federation(&self) -> Result<&Federation> {
        let off = "this installation has no name or no key: set TENANCY_FEDERATION_ORIGIN and TENANCY_FEDERATION_KEY";
        self.federation.as_ref().ok_or_else(|| Error::new(ErrorKind::Conflict, off))
    }

    /// Whether requests should go to another node.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

fn link(public_url: &str, tenant: &TenantSlug, page: &str) -> Result<LinkBase> {
    LinkBase::new(format!("{}{page}", public_url.trim_end_matches('/').replace("{tenant}", tenant.as_str())))
}

/// This installation under the name that is set, or else at its `public_url`, if that can be a name.
fn federation(db: &TenantDb, config: &Config, public_url: &str) -> Result<Option<Federation>> {
    let origin: Origin = match text(&config.federation_origin) {
        Some(origin) => {
            let wrong = |why| Error::new(ErrorKind::Misconfigured, format!("TENANCY_FEDERATION_ORIGIN {why}"));
            origin.parse().map_err(|error: Error| wrong(error.message().to_owned()).with_source(error))?
        }
        None => match public_url.parse() {
            Ok(origin) => origin,
            Err(_) => return Ok(None),
        },
    };
    let (key, next) = match credentials::federation_keys(config) {
        // Nobody has asked for it, so it is no reason not to start.
        Err(error) if text(&config.federation_origin).is_none() && given(&config.federation_key).is_none() => {
            tracing::warn!(?error, "this installation has no key for others");
            return Ok(None);
        }
        keys => keys?,
    };
    let federation = Federation::new(db, origin, key, config.federation_loopback)?;
    Ok(Some(match next {
        Some(next) => federation.with_next_key(next),
        None => federation,
    }))
}

/// What links to accept an invitation begin with, where the server is at `public_url`.
pub(crate) fn welcome(public_url: &str, tenant: &TenantSlug) -> Result<LinkBase> {
    link(public_url, tenant, WELCOME)
}

/// Runs `work` to its end, also when the client goes away meanwhile.
///
/// # Errors
/// Those of `work`; [`Internal`](ErrorKind::Internal) if it panics.
pub(crate) async fn uncancelled<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let done = tokio::spawn(work.in_current_span()).await;
    done.map_err(|source| Error::new(ErrorKind::Internal, "the work was interrupted").with_source(source))?
}

/// A server that takes requests.
#[derive(Debug)]
pub struct Running {
    app: Arc<App>,
    address: SocketAddr,
    new_operator_token: Option<Secret>,
    notices: Vec<String>,
    drain_delay: Duration,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
    /// Delivers the outbox, where there are administrative credentials.
    worker: Option<Worker>,
    /// The audit log is sealed for as long as this is held.
    _sealing: Option<Sealing>,
    /// What is looked after, until this is dropped.
    work: JoinSet<()>,
    /// Long work, until this is dropped: another node goes on.
    operations: Option<DedicatedRuntime>,
    /// The embedded server runs for as long as this is held.
    _database: Database,
}

impl Running {
    /// Brings the database up to date if it may, checks everything, and begins to take requests.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) says what to change; [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe: nothing serves yet.
    pub async fn start(config: &Config) -> Result<Self> {
        config.check()?;
        metrics::install();
        let store = attachment_store::store(config)?;
        let objects = attachment_store::open(Arc::clone(&store))?;
        let exports = attachment_store::exports(Arc::clone(&store));
        let (tokens, token_notice) = credentials::token_resolver(config).await?;
        // What `signed_in` or `impersonation` has looked up, or signed tokens.
        let proofs = FirstOf::new(ExtensionResolver).then(tokens);
        let host = text(&config.base_domain).map(HostResolver::new).transpose()?.map(HostResolver::with_domains);
        let resolver = match &host {
            Some(host) => AllAgree::new(proofs).and(host.clone()),
            None => AllAgree::new(proofs),
        };
        let (operator_token, new_operator_token) = OperatorToken::from_config(config)?;
        let database = Database::from_config(config).await?;
        let mut notices: Vec<String> = database.notice().into_iter().chain(token_notice).collect();
        if !database.has_admin() {
            notices.push("the operator API is off: it needs TENANCY_ADMIN_DATABASE_URL".to_owned());
        }
        let db = match database.open(config).await {
            // Only where something is missing: the administrative login of a node that serves need not be able to migrate.
            Err(error) if error.kind() == ErrorKind::Misconfigured && database.has_admin() => {
                let left = database
                    .migrate()
                    .await
                    .map_err(|why| Error::new(why.kind(), format!("{error}\nMigrating does not help: {why}")).with_source(why))?;
                notices.extend(left.into_iter().map(|statement| format!("an administrator must still run: {statement}")));
                database.open(config).await?
            }
            opened => opened?,
        };
        let taken = |source| {
            Error::new(ErrorKind::Misconfigured, format!("can't listen on {}: set TENANCY_LISTEN", config.listen)).with_source(source)
        };
        let listener = TcpListener::bind(&config.listen).await.map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        let (worker, mailbox) =
            if database.has_admin() { mailer::start(&db, config).await.map(|(w, m)| (Some(w), m))? } else { (None, None) };
        let public_url = text(&config.public_url).map_or_else(|| format!("http://{address}"), |url| url.trim_end_matches('/').to_owned());
        let backups = backups(&db, &store, config)?;
        let app = Arc::new(App {
            federation: federation(&db, config, &public_url)?,
            catalog: db.catalog(),
            meter: Meter::start(&db, MeterOptions::default()).await?,
            configs: settings::configs(&db)?,
            flags: Flags::new(&db),
            db,
            objects,
            exports,
            backups,
            operator_token,
            max_body: config.max_body,
            max_attachment: config.max_attachment,
            request_timeout: config.request_timeout,
            upload_timeout: config.upload_timeout,
            members_only: config.members_only,
            session_ttl: config.session_ttl,
            public_url,
            link_requests: Arc::new(Semaphore::new(LINK_REQUESTS)),
            mailbox: mailbox.filter(|_| address.ip().is_loopback()),
            base_domain: text(&config.base_domain).map(str::to_owned),
            webhooks_loopback: config.webhooks_loopback,
            dns: Arc::new(Dns::from_config(config)?),
            link_rate: LinkRate::new(config.link_rate),
            draining: AtomicBool::new(false),
        });
        let sealing = database.has_admin().then(|| Sealing::start(&app.db, Arc::clone(&store)));
        let mut work = JoinSet::new();
        if database.has_admin() {
            if config.warm_tenants > 0 {
                work.spawn(WarmPool::new(&app.db, plans().clone(), config.warm_tenants).run(WORK_INTERVAL));
            }
            work.spawn(domains::recheck(app.db.clone(), Arc::clone(&app.dns)));
        }
        let operations =
            if database.has_admin() { Some(work_apart(database.options(config)?, store, config.clone()).await?) } else { None };
        let router = routes::router(&app, resolver, host, database.has_admin());
        let listener = listener.tap_io(|connection| {
            // Answers are small: waiting for more to send only delays them.
            let _ = connection.set_nodelay(true);
        });
        let (stop, stopped) = oneshot::channel();
        let serve = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).with_graceful_shutdown(async move {
            // A dropped sender is a dropped server: it stops as well.
            let _ = stopped.await;
        });
        let serving = tokio::spawn(async move { serve.await });
        Ok(Self {
            app,
            address,
            new_operator_token,
            notices,
            drain_delay: config.drain_delay,
            stop,
            serving,
            worker,
            work,
            operations,
            _sealing: sealing,
            _database: database,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The operator token, if it was made at this start: it can't be had later.
    pub fn new_operator_token(&self) -> Option<&Secret> {
        self.new_operator_token.as_ref()
    }

    /// Lines that whoever starts it should read.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Stops: `/readyz` says 503 at once; after the drain delay no connection is taken any more; requests in flight get ten seconds.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) if some were not done in time.
    ///
    /// # Cancel safety
    /// A dropped future stops the server without waiting for anything.
    pub async fn shutdown(mut self) -> Result<()> {
        self.app.draining.store(true, Ordering::Release);
        tokio::time::sleep(self.drain_delay).await;
        let mut serving = self.serving;
        // The receiver is gone only if the server is.
        let _ = self.stop.send(());
        self.work.abort_all();
        let operations = async {
            if let Some(operations) = self.operations {
                let _ = tokio::time::timeout(WORKER_LIMIT, operations.shutdown()).await;
            }
        };
        let (done, ()) = tokio::join!(tokio::time::timeout(SHUTDOWN_LIMIT, &mut serving), operations);
        if done.is_err() {
            serving.abort();
        }
        if let Some(worker) = self.worker
            && tokio::time::timeout(WORKER_LIMIT, worker.shutdown()).await.is_err()
        {
            tracing::warn!("some messages were under way: they are delivered again later");
        }
        // What was leased and not used goes back.
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(2), self.app.meter.shutdown()).await {
            tracing::warn!(?error, "the leased quotas were not given back: they are settled when this node is given up");
        }
        // Waits for transactions that are still under way, which end with their requests.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.app.db.close()).await;
        let unfinished = || Error::new(ErrorKind::Unavailable, "some requests were not done within ten seconds, and were cut off");
        done.map_err(|_| unfinished()).map(drop)
    }
}
