//! The example server on a database of its own, spoken to over real HTTP, and the books that must balance when a test is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection, Row};
use tenancy_server::{Config, Running};
use tenancy_sqlx::testing::TestDatabase;
use tokio::sync::oneshot;

use crate::actors::{Confirmed, Member, OPERATOR_TOKEN, Operator, SECRET, Stranger};

/// A server, its database and its folder. Dropping it audits the books: see [`TestApp::audit`].
#[derive(Debug)]
pub struct TestApp {
    /// The server that the actors talk to.
    pub node: Node,
    /// Its settings.
    pub config: Config,
    /// Its database.
    pub database: TestDatabase,
    confirmed: Confirmed,
    folder: Folder,
    audited: bool,
}

impl TestApp {
    /// A server with the tests' settings.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A server whose settings the test changes.
    #[expect(clippy::field_reassign_with_default, reason = "settings may be added: it can't be built here")]
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let database = TestDatabase::with_migrations(&tenancy_server::MIGRATIONS).await.expect("a test database");
        let folder = Folder::new();
        let mut config = Config::default();
        config.database_url = Some(database.app_url().into());
        config.admin_database_url = Some(database.admin_url().into());
        config.listen = "127.0.0.1:0".to_owned();
        config.data_dir = folder.0.join("data");
        config.operator_token = Some(OPERATOR_TOKEN.into());
        config.jwt_secret = Some(std::str::from_utf8(SECRET).expect("ASCII").into());
        config.drain_delay = Duration::ZERO;
        config.dns = Some("127.0.0.1:1".to_owned()); // nobody's: a test that asks brings its own
        config.backup_key = Some("the key of the tests' backups, of more than 32 bytes".into());
        config.backup_pace = 0;
        config.certificate_key = Some("the key of the tests' certificates, of more than 32 bytes".into());
        config.federation_key = Some(format!("the key of the test's installation {}", folder.0.display()).into());
        config.federation_loopback = true;
        config.link_rate = 0; // a test of it sets its own
        change(&mut config);
        let node = Node::start(config.clone()).await;
        Self { node, config, database, confirmed: Confirmed::default(), folder, audited: true }
    }

    /// A server with two tenants, and the owner of each.
    pub async fn with_tenants() -> (Self, Member, Member) {
        let app = Self::start().await;
        let (acme, globex) = app.two_tenants().await;
        (app, acme, globex)
    }

    /// Two tenants, and the owner of each.
    pub async fn two_tenants(&self) -> (Member, Member) {
        (self.tenant("acme-works").await, self.tenant("globex-corp").await)
    }

    /// A new tenant's owner.
    pub async fn tenant(&self, slug: &str) -> Member {
        let tenant = self.operator().create(slug).await;
        let text = |field: &str| tenant[field].as_str().expect("text").to_owned();
        Member { address: self.node.address, tenant: text("id"), slug: text("slug"), name: text("name"), role: "owner".to_owned() }
    }

    /// The operator.
    pub fn operator(&self) -> Operator {
        Operator { address: self.node.address, token: crate::actors::OPERATOR_TOKEN.to_owned(), confirmed: Arc::clone(&self.confirmed) }
    }

    /// Somebody without credentials.
    pub fn stranger(&self) -> Stranger {
        Stranger { address: self.node.address }
    }

    /// What other installations call this one.
    pub fn origin(&self) -> String {
        format!("http://{}", self.node.address)
    }

    /// A second server on the same database and folder, with settings that the test changes.
    pub async fn another_node_with(&self, change: impl FnOnce(&mut Config)) -> Node {
        let mut config = self.config.clone();
        change(&mut config);
        Node::start(config).await
    }

    /// A second server on the same database and folder.
    pub async fn another_node(&self) -> Node {
        Node::start(self.config.clone()).await
    }

    /// The folder that holds all that the server may write.
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// For a test that leaves books behind which can't balance; `why` is for its reader.
    pub fn will_not_balance(&mut self, why: &str) {
        assert!(!why.is_empty());
        self.audited = false;
    }

    /// A session of the member with this id, which nobody has the cookie of; its id.
    pub async fn db_session(&self, tenant: &str, member: &str) -> String {
        let sql = "insert into tenancy.sessions (tenant_id, id, member_id, token_sha256, created_at, expires_at)
                   values ($1::uuid, gen_random_uuid(), $2::uuid, sha256(uuid_send(gen_random_uuid())), now(), now() + interval '1 hour') returning id::text";
        sqlx::query_scalar(sql).bind(tenant).bind(member).fetch_one(&mut self.db_eye().await).await.expect("a session")
    }

    /// A superuser's connection: the test's own eye, which no policy binds.
    pub async fn db_eye(&self) -> PgConnection {
        self.database.superuser().await.expect("a superuser's connection")
    }

    /// Every row of every table, and every file: two that are equal show that nothing was written. Accesses of operators are left out, and
    /// what is counted of every call: `audit` compares that with what is kept.
    pub async fn db_everything(&self) -> BTreeMap<String, Vec<String>> {
        let mut eye = self.db_eye().await;
        let tables: Vec<String> = sqlx::query_scalar(
            "select oid::regclass::text from pg_class where relkind = 'r' and relnamespace in ('public'::regnamespace, 'tenancy'::regnamespace)
                and relname !~ '^(quota_|usage|audit_seal)'",
        )
        .fetch_all(&mut eye)
        .await
        .expect("tables");
        let mut all = BTreeMap::from([("files".to_owned(), self.kept_files())]);
        for table in tables {
            // How far the worker has come with a message changes by itself.
            let (row, but) = match table.as_str() {
                "tenancy.audit_events" => ("to_jsonb(t)", "where action <> 'system.access'"),
                "tenancy.outbox" => ("jsonb_build_array(id, tenant_id, topic, dedup_key, payload)", ""),
                _ => ("to_jsonb(t)", ""),
            };
            let rows = format!("select ({row})::text from {table} t {but} order by 1");
            all.insert(table, sqlx::query_scalar(AssertSqlSafe(rows)).fetch_all(&mut eye).await.expect("rows"));
        }
        all
    }

    /// Every file, but for mails, exports, and the anchors of the audit log, which the server writes by itself.
    pub fn kept_files(&self) -> Vec<String> {
        let objects = self.config.data_dir.join("objects");
        let own = [self.config.data_dir.join("mailbox"), objects.join("audit-anchors"), objects.join("exports")];
        files(self.folder()).into_iter().filter(|file| !own.iter().any(|folder| Path::new(file).starts_with(folder))).collect()
    }

    /// What does not balance:
    /// - a session of the application's role that stays inside a transaction;
    /// - a row of a tenant that does not exist;
    /// - an attachment or a logo without its object or with another size, an object that neither names, a file where none should be;
    /// - members who are not as many as the seats that are counted;
    /// - a version of a tenant without its audit event, also one that the server has confirmed to an operator.
    ///
    /// What a request leaves to the background has five seconds to be done.
    pub async fn audit(&self) -> Vec<String> {
        let since = Instant::now();
        loop {
            let wrong = self.audit_now().await;
            if wrong.is_empty() || since.elapsed() > Duration::from_secs(5) {
                return wrong;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// [`audit`](TestApp::audit), without waiting.
    pub async fn audit_now(&self) -> Vec<String> {
        let mut eye = self.db_eye().await;
        let mut wrong = Vec::new();
        match crate::dirty_sessions(&mut eye).await {
            0 => {}
            n => wrong.push(format!("{n} sessions of the application stay inside a transaction")),
        }
        let tables: Vec<String> = sqlx::query_scalar(
            "select attrelid::regclass::text from pg_attribute a join pg_class c on c.oid = attrelid
              where attname = 'tenant_id' and relkind in ('r', 'p') and not attisdropped",
        )
        .fetch_all(&mut eye)
        .await
        .expect("tables");
        for table in tables {
            let strays = format!(
                "select tenant_id::text from {table} where tenant_id <> all (select id from tenancy.tenants) and tenant_id is not null"
            );
            let strays: Vec<String> = sqlx::query_scalar(AssertSqlSafe(strays)).fetch_all(&mut eye).await.expect("strays");
            wrong.extend(strays.into_iter().map(|tenant| format!("{table} has a row of the tenant {tenant}, who does not exist")));
        }

        let rows = sqlx::query("select tenant_id::text, object::text, size from attachments").fetch_all(&mut eye).await.expect("rows");
        let mut named: BTreeMap<String, i64> = rows
            .iter()
            .map(|row| (format!("tenants/{}/attachments/{}", row.get::<&str, _>(0), row.get::<&str, _>(1)), row.get(2)))
            .collect();
        let logos = "select id::text, branding->'logo'->>'object', (branding->'logo'->>'size')::bigint from tenancy.tenants where branding ? 'logo'";
        let logos = sqlx::query(logos).fetch_all(&mut eye).await.expect("logos");
        named.extend(logos.iter().map(|row| (format!("tenants/{}/branding/{}", row.get::<&str, _>(0), row.get::<&str, _>(1)), row.get(2))));
        let objects = self.config.data_dir.join("objects");
        for file in self.kept_files() {
            let Ok(key) = Path::new(&file).strip_prefix(&objects) else {
                wrong.push(format!("{file} is outside of the object store"));
                continue;
            };
            if key.starts_with("backups") {
                continue; // an operator's
            }
            match named.remove(&key.to_string_lossy().into_owned()) {
                None => wrong.push(format!("the object {} has no row", key.display())),
                Some(size) if fs::metadata(&file).is_ok_and(|file| i64::try_from(file.len()) == Ok(size)) => {}
                Some(size) => wrong.push(format!("the object {} has not its {size} bytes", key.display())),
            }
        }
        wrong.extend(named.into_keys().map(|object| format!("the object {object} of an attachment is missing")));

        let uncounted = "select coalesce(a.tenant_id, g.tenant_id)::text || ': ' || coalesce(a.bytes, 0) || ' bytes are kept, ' || coalesce(g.used, 0) || ' counted, ' || coalesce(g.reserved, 0) || ' reserved'
               from (select tenant_id, sum(size)::bigint as bytes from (select tenant_id, size from attachments
                       union all select id, (branding->'logo'->>'size')::bigint from tenancy.tenants where branding ? 'logo') kept group by 1) a
               full join (select * from tenancy.quota_gauges where metric = 'storage') g on g.tenant_id = a.tenant_id
              where coalesce(a.bytes, 0) <> coalesce(g.used, 0) or coalesce(g.reserved, 0) <> 0";
        wrong.extend(sqlx::query_scalar::<_, String>(uncounted).fetch_all(&mut eye).await.expect("storage"));

        let seats = "select coalesce(m.tenant_id, g.tenant_id)::text || ': ' || coalesce(m.active, 0) || ' members, ' || coalesce(g.used, 0) || ' seats'
               from (select tenant_id, count(*) as active from tenancy.members where status = 'active' group by 1) m
               full join (select * from tenancy.quota_gauges where metric = 'users') g on g.tenant_id = m.tenant_id
              where coalesce(m.active, 0) <> coalesce(g.used, 0)";
        wrong.extend(sqlx::query_scalar::<_, String>(seats).fetch_all(&mut eye).await.expect("seats"));

        let events =
            "select e.target, (e.detail ->> 'version')::bigint, e.actor_kind from tenancy.audit_events e where e.action like 'tenant.%'";
        let events = sqlx::query(events).fetch_all(&mut eye).await.expect("events");
        let written: BTreeSet<(String, u64)> =
            events.iter().map(|row| (row.get(0), row.get::<Option<i64>, _>(1).unwrap_or(1).cast_unsigned())).collect();
        if written.len() != events.len() {
            wrong.push("a change of a tenant has two audit events".to_owned());
        }
        let versions = "select id::text, generate_series(1, version) from tenancy.tenants";
        let versions = sqlx::query(versions).fetch_all(&mut eye).await.expect("versions");
        let due = versions.iter().map(|row| (row.get::<String, _>(0), row.get::<i64, _>(1).cast_unsigned()));
        let confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let missing: BTreeSet<_> = due.chain(confirmed).filter(|change| !written.contains(change)).collect();
        wrong.extend(missing.into_iter().map(|(tenant, version)| format!("version {version} of the tenant {tenant} has no audit event")));
        wrong
    }
}

impl Drop for TestApp {
    /// The books are read while the server still runs, on a thread of their own: a test's runtime can't wait inside a drop.
    fn drop(&mut self) {
        if thread::panicking() {
            return; // one failure is enough
        }
        let wrong = if self.audited {
            thread::scope(|scope| scope.spawn(|| runtime().block_on(self.audit())).join()).expect("the audit ran")
        } else {
            Vec::new()
        };
        let stopped = self.node.stop();
        assert!(wrong.is_empty(), "the books do not balance: {wrong:#?}");
        if self.audited {
            stopped.expect("the server stopped in order");
        }
    }
}

/// One server process, as far as threads can tell: a runtime of its own, on which nothing of a test waits.
#[derive(Debug)]
pub struct Node {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<tenancy_core::Result<()>>>,
}

impl Node {
    async fn start(config: Config) -> Self {
        let (started, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let running = Running::start(&config).await?;
                // Whoever does not wait for the address any more stops the server below.
                let _ = started.send(running.address());
                let _ = stopped.await;
                running.shutdown().await
            })
        });
        match address.await {
            Ok(address) => Self { address, stop: Some(stop), thread: Some(thread) },
            Err(_) => panic!("the server did not start: {:?}", thread.join()),
        }
    }

    /// Begins to stop it: no new connection is taken, and requests in flight go on.
    pub fn begin_stop(&mut self) {
        self.stop = None;
    }

    /// Stops it, and says whether every request in flight was done.
    ///
    /// # Errors
    /// Those of [`Running::shutdown`].
    pub fn stop(&mut self) -> tenancy_core::Result<()> {
        self.begin_stop();
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("the server did not panic"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let stopped = self.stop();
        if !thread::panicking() && stopped.is_err() {
            eprintln!("a node did not stop in order: {stopped:?}");
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Every file below `folder`.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.push(entry.path().to_string_lossy().into_owned()),
        }
    }
    found.sort();
    found
}

/// A folder that is gone with this value.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// A new one, among the temporary files.
    #[expect(clippy::new_without_default, reason = "it makes something")]
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tenancy-test-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
