//! What tenancy costs at the database: `cargo bench -p tenancy-tests`.
//!
//! Every number is compared with a hand-written sqlx service on the same database in the same run; the cases take turns, so that what
//! the machine does meanwhile hits all of them. A proxy adds a round trip of one millisecond, as between two machines of one data
//! centre. The ratio is what to read.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgPool};
use tenancy_core::TenantContext;
use tenancy_sqlx::isolation;
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{Options, Roles, Schema, SealKey, TenantDb};

#[path = "database/archive.rs"]
mod archive;
#[path = "database/backup.rs"]
mod backup;
#[path = "database/sharing.rs"]
mod sharing;

const ROUND_TRIP: Duration = Duration::from_millis(1);
const TENANTS: usize = 500;
const ROWS_PER_TENANT: usize = 400;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().any(|arg| arg == "--test") {
        return Ok(()); // `cargo test --benches` only builds
    }
    if std::env::args().any(|arg| arg == "archive") {
        return archive::archive().await;
    }
    if std::env::args().any(|arg| arg == "backup") {
        return backup::backup().await;
    }
    if std::env::args().any(|arg| arg == "sharing") {
        return sharing::sharing().await;
    }
    let database = TestDatabase::new().await?;
    let mut eye = database.superuser().await?;
    // `owner_id`: the kit does not open a database in which a table with a `tenant_id` has no fence.
    let ddl = "create table items (tenant_id uuid not null, id bigint not null, at timestamptz not null, body text not null, primary key (tenant_id, id));
         create index on items (tenant_id, at desc);
         create table bare_items (like items including all);
         alter table bare_items rename tenant_id to owner_id";
    eye.execute(AssertSqlSafe(format!("set role tenancy_owner; {ddl}; call tenancy.protect_table('items'); reset role"))).await?;
    // What a hand-written service does needs a function that the kit takes from everybody.
    eye.execute(
        "grant execute on function pg_catalog.set_config(text, text, boolean) to tenancy_app; grant select on bare_items to tenancy_app",
    )
    .await?;

    let proxy = proxy(&database.app_url())?;
    let remote = TenantDb::open(Options::new(&proxy)?.with_admin_url(&database.admin_url())?).await?;
    let mut tenants = Vec::new();
    for n in 0..TENANTS {
        tenants.push(database.tenant(&remote, &format!("tenant-{n}")).await?);
    }
    let fill = format!(
        "insert into items select t.id, g, now() - g * interval '1 minute', repeat(md5(g::text), 4) from tenancy.tenants t, generate_series(1, {ROWS_PER_TENANT}) g order by g, t.id;
         insert into bare_items select * from items; analyze;"
    );
    eye.execute(AssertSqlSafe(fill)).await?;

    transactions(&remote, &proxy, &tenants).await?;
    let local = database.open().await?;
    rows(&local, &tenants).await?;
    sealing().await?;
    checking().await?;
    sharing::sharing().await?;
    Ok(())
}

/// p50 of a case, in microseconds.
struct Case {
    name: &'static str,
    samples: Vec<Duration>,
}

impl Case {
    fn new(name: &'static str) -> Self {
        Self { name, samples: Vec::new() }
    }

    fn p50(&mut self) -> f64 {
        self.samples.sort_unstable();
        self.samples[self.samples.len() / 2].as_secs_f64() * 1e6
    }
}

/// Runs `$work` and keeps how long it took.
macro_rules! timed {
    ($case:expr, $work:expr) => {{
        let start = Instant::now();
        $work;
        $case.samples.push(start.elapsed());
    }};
}
use timed;

fn print(title: &str, cases: &mut [Case], base: usize) {
    let base = cases[base].p50();
    println!("\n{title}\n| case | p50 µs | ratio |\n|---|---:|---:|");
    for case in cases {
        let p50 = case.p50();
        println!("| {} | {p50:.0} | {:.2} |", case.name, p50 / base);
    }
}

#[expect(clippy::disallowed_methods, reason = "the baseline")]
async fn transactions(db: &TenantDb, url: &str, tenants: &[TenantContext]) -> Result<(), Box<dyn std::error::Error>> {
    let pool = |ping: bool| PgPoolOptions::new().max_connections(10).test_before_acquire(ping).connect_lazy(url);
    let (bare, pinged): (PgPool, PgPool) = (pool(false)?, pool(true)?);
    let point = "select body from bare_items where owner_id = $1 and id = $2";
    let scoped = "select body from items where tenant_id = $1 and id = $2";
    let mut cases = [
        "read, autocommit, no tenant",
        "read, autocommit, no tenant, default pool",
        "transaction, no tenant: BEGIN, query, COMMIT",
        "hand-written: BEGIN, set_config, query, COMMIT",
        "**kit: begin, query, commit**",
        "**kit: read, query, drop**",
    ]
    .map(Case::new);
    for round in 0..1_500_usize {
        let cx = &tenants[round * 7 % tenants.len()];
        let (tenant, id) = (cx.tenant_id().as_uuid(), i64::try_from(1 + round % ROWS_PER_TENANT)?);
        let query = |sql: &'static str| sqlx::query_scalar::<_, String>(sql).bind(tenant).bind(id);
        timed!(cases[0], query(point).fetch_one(&bare).await?);
        timed!(cases[1], query(point).fetch_one(&pinged).await?);
        timed!(cases[2], {
            let mut tx = bare.begin().await?;
            query(point).fetch_one(&mut *tx).await?;
            tx.commit().await?;
        });
        timed!(cases[3], {
            let mut tx = bare.begin().await?;
            sqlx::query("select set_config('tenancy.tenant_id', $1, true)").bind(tenant.to_string()).execute(&mut *tx).await?;
            query(scoped).fetch_one(&mut *tx).await?;
            tx.commit().await?;
        });
        timed!(cases[4], {
            let mut tx = db.begin(cx).await?;
            query(scoped).fetch_one(&mut tx).await?;
            tx.commit().await?;
        });
        timed!(cases[5], {
            let mut tx = db.read(cx).await?;
            query(scoped).fetch_one(&mut tx).await?;
            drop(tx);
        });
    }
    for case in &mut cases {
        case.samples.drain(..100); // connecting and preparing
    }
    print("A point read at a round trip of 1 ms; ratio to a bare autocommit read", &mut cases, 0);
    let [auto, _, transaction, hand, begin, read] = cases.each_mut().map(Case::p50);
    println!("\nscoped transaction / bare transaction: {:.3} (aim 1.03)", begin / transaction);
    println!("scoped read / bare autocommit read: {:.2} (aim 1.9)", read / auto);
    println!("hand-written / scoped transaction: {:.2}", hand / begin);
    Ok(())
}

async fn rows(db: &TenantDb, tenants: &[TenantContext]) -> Result<(), Box<dyn std::error::Error>> {
    let queries = [
        ("point", "select body from {} where {} id = $2", 1),
        ("newest 20", "select body from {} where {} $2 > 0 order by at desc limit 20", 20),
        ("count", "select count(*)::text from {} where {} $2 > 0", 1),
    ];
    for (name, sql, expected) in queries {
        let text = |table: &str, condition: &str| sql.replacen("{}", table, 1).replacen("{}", condition, 1);
        let texts =
            [text("bare_items", "owner_id = $1 and"), text("items", "$1::uuid is not null and"), text("items", "tenant_id = $1 and")];
        let mut cases = ["explicit WHERE, no row-level security", "row-level security alone", "both (what we advise)"].map(Case::new);
        for round in 0..1_200_usize {
            let cx = &tenants[round * 7 % tenants.len()];
            let id = i64::try_from(1 + round % ROWS_PER_TENANT)?;
            let mut tx = db.read(cx).await?;
            (&mut tx).execute("select").await?; // the first statement of a transaction pays for waking up
            for turn in 0..texts.len() {
                let case = (round + turn) % texts.len();
                let query = sqlx::query(AssertSqlSafe(texts[case].as_str())).bind(cx.tenant_id().as_uuid()).bind(id);
                timed!(cases[case], assert_eq!(query.fetch_all(&mut tx).await?.len(), expected));
            }
        }
        for case in &mut cases {
            case.samples.drain(..200);
        }
        print(&format!("{name}: {ROWS_PER_TENANT} rows of each of {TENANTS} tenants; one statement, local socket"), &mut cases, 0);
    }
    Ok(())
}

/// The sealed mode beside the plain one, each on a database of its own with the same rows.
async fn sealing() -> Result<(), Box<dyn std::error::Error>> {
    let key = SealKey::new([7; 32]);
    let mut databases = Vec::new();
    for sealed in [false, true] {
        let database = TestDatabase::new().await?;
        let mut eye = database.superuser().await?;
        let ddl = "create table items (tenant_id uuid not null, id bigint not null, body text not null, primary key (tenant_id, id))";
        eye.execute(AssertSqlSafe(format!("set role tenancy_owner; {ddl}; call tenancy.protect_table('items'); reset role"))).await?;
        let mut options = database.options();
        let mut remote = Options::new(&proxy(&database.app_url())?)?;
        if sealed {
            Schema::connect(&database.admin_url(), Roles::default()).await?.seal(&key).await?;
            (options, remote) = (options.with_seal_key(key.clone()), remote.with_seal_key(key.clone()));
        }
        let (local, remote) = (TenantDb::open(options).await?, TenantDb::open(remote).await?);
        let cx = database.tenant(&local, "acme").await?;
        eye.execute("insert into items select t.id, g, md5(g::text) from tenancy.tenants t, generate_series(1, 400) g; analyze items")
            .await?;
        databases.push((database, local, remote, cx));
    }
    for near in [true, false] {
        let mut cases = ["plain: begin, query, commit", "sealed: begin, query, commit"].map(Case::new);
        for round in 0..1_500_i64 {
            for (case, (_, local, remote, cx)) in cases.iter_mut().zip(&databases) {
                let db = if near { local } else { remote };
                timed!(case, {
                    let mut tx = db.begin(cx).await?;
                    let query = sqlx::query_scalar::<_, String>("select body from items where tenant_id = $1 and id = $2");
                    query.bind(cx.tenant_id().as_uuid()).bind(1 + round % 400).fetch_one(&mut tx).await?;
                    tx.commit().await?;
                });
            }
        }
        for case in &mut cases {
            case.samples.drain(..100);
        }
        let title = if near { "local socket" } else { "a round trip of 1 ms" };
        print(&format!("The sealed mode, {title}; ratio to the plain one"), &mut cases, 0);
    }
    Ok(())
}

/// How long the isolation checker takes, by the number of tables.
async fn checking() -> Result<(), Box<dyn std::error::Error>> {
    let mut cases = ["3 tables", "500 tables"].map(Case::new);
    for (case, tables) in cases.iter_mut().zip([3, 500]) {
        let database = TestDatabase::new().await?;
        let mut eye = database.superuser().await?;
        let table = "create table t%1$s (tenant_id uuid not null, id uuid not null, body text, other uuid, primary key (tenant_id, id),
                       foreign key (tenant_id, other) references t%1$s (tenant_id, id)); create index on t%1$s (tenant_id, other); call tenancy.protect_table(''t%1$s'')";
        let ddl = format!("do $$ begin for i in 1..{tables} loop execute format('{table}', i); end loop; end $$");
        eye.execute(AssertSqlSafe(format!("set role tenancy_owner; {ddl}; reset role; analyze"))).await?;
        for _ in 0..12 {
            timed!(case, {
                let found = isolation::inspect(&mut eye, &Roles::default(), "tenancy_app").await?;
                assert!(found.iter().all(|finding| finding.rule == "server-version"), "{found:?}");
            });
        }
        case.samples.drain(..2);
    }
    print("The isolation checker, all rules; ratio to 3 tables", &mut cases, 0);
    Ok(())
}

/// Listens on a port of its own and forwards to the server's socket, each direction late by half a round trip. Returns the URL.
fn proxy(url: &str) -> Result<String, Box<dyn std::error::Error>> {
    let target = PgConnectOptions::from_str(url)?;
    let socket = target.get_socket().ok_or("the embedded server listens on a socket")?.join(format!(".s.PGSQL.{}", target.get_port()));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("postgres://tenancy_app@{}/{}?sslmode=disable", listener.local_addr()?, target.get_database().ok_or("a database")?);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = UnixStream::connect(&socket) else { return };
            let _ = client.set_nodelay(true);
            let (Ok(client_back), Ok(server_back)) = (client.try_clone(), server.try_clone()) else { return };
            thread::spawn(move || {
                forward(client, &server_back);
                let _ = server_back.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                forward(server, &client_back);
                let _ = TcpStream::shutdown(&client_back, Shutdown::Both);
            });
        }
    });
    Ok(url)
}

fn forward<W>(mut from: impl Read, mut to: W)
where
    W: Write,
{
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let due = Instant::now() + ROUND_TRIP / 2;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}
