//! Backing up and restoring one tenant of many, against pg_dump and pg_restore of a database that has nothing but the same rows; and what
//! another tenant feels of it.

use std::error::Error;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use sqlx::{AssertSqlSafe, Executor};
use tenancy_core::{ErrorKind, TenantContext};
use tenancy_sqlx::backup::{BackupKeys, Backups, NewClone, NewRestore};
use tenancy_sqlx::operations::Operations;
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{DedicatedRuntime, TenantDb};
use tokio::sync::oneshot;
use uuid::Uuid;

const TENANTS: usize = 5;
/// Of each tenant, in each of two tables.
const ROWS: usize = 100_000;
const ROUNDS: usize = 3;

const TABLES: &str = "
    create table orders (tenant_id uuid not null, id uuid not null, at timestamptz not null, amount numeric not null, note text not null, primary key (tenant_id, id));
    create table lines (tenant_id uuid not null, id uuid not null, order_id uuid not null, n int not null, doc jsonb not null, primary key (tenant_id, id));
    create index lines_order_idx on lines (tenant_id, order_id)";
const KEY: &str = "alter table lines add foreign key (tenant_id, order_id) references orders (tenant_id, id)";

const SLOW: &str = "backup at the default pace";
const ALL_GONE: &str = "restore, all rows gone";

struct World {
    db: TenantDb,
    backups: Backups,
    tenant: TenantContext,
    other: TenantContext,
}

impl World {
    fn new(db: TenantDb, folder: &std::path::Path, tenant: TenantContext, other: TenantContext) -> Result<Self, Box<dyn Error>> {
        let store = Arc::new(LocalFileSystem::new_with_prefix(folder)?);
        let backups = Backups::new(&db, store, Path::from("backups"), BackupKeys::new([7; 32])).with_pace(None);
        Ok(Self { db, backups, tenant, other })
    }

    /// What is done beside a neighbour.
    async fn works(&self, what: &str, backup: Uuid) -> Result<(), Box<dyn Error>> {
        match what {
            "idle" => {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Ok(())
            }
            SLOW => self.take(&self.backups.clone().with_pace(Some(Backups::PACE))).await.map(drop),
            "drill" => self.drill(backup).await,
            "backup as fast as it can" => self.take(&self.backups).await.map(drop),
            _ => self.restore(backup).await,
        }
    }

    async fn done(&self, backups: &Backups, id: Uuid) -> Result<serde_json::Value, Box<dyn Error>> {
        backups.does(Operations::new(&self.db)).run_next().await?;
        let operation = self.db.dangerous().begin_system("a benchmark looks").await?.operation(id).await?;
        if operation.state != "done" {
            return Err(format!("{:?}", operation.error).into());
        }
        Ok(operation.result.unwrap_or_default())
    }

    async fn take(&self, backups: &Backups) -> Result<(Uuid, u64), Box<dyn Error>> {
        let mut tx = self.db.dangerous().begin_system("a benchmark backs up").await?;
        let id = tx.request_backup(self.tenant.tenant_id(), None).await?.id;
        tx.commit().await?;
        let bytes = self.done(backups, id).await?["bytes"].as_u64().unwrap_or_default();
        Ok((id, bytes))
    }

    async fn restore(&self, backup: Uuid) -> Result<(), Box<dyn Error>> {
        let mut tx = self.db.dangerous().begin_system("a benchmark restores").await?;
        let id = tx.request_restore(self.tenant.tenant_id(), &NewRestore::new(backup).without_backup(), None).await?.id;
        tx.commit().await?;
        self.done(&self.backups, id).await.map(drop)
    }

    async fn drill(&self, backup: Uuid) -> Result<(), Box<dyn Error>> {
        let mut tx = self.db.dangerous().begin_system("a benchmark drills").await?;
        let id = tx.request_drill(self.tenant.tenant_id(), Some(backup), None).await?.id;
        tx.commit().await?;
        self.done(&self.backups, id).await.map(drop)
    }

    /// Makes another tenant of the backup, and gives its id.
    async fn clone_tenant(&self, backup: Uuid, slug: &str) -> Result<String, Box<dyn Error>> {
        let mut tx = self.db.dangerous().begin_system("a benchmark clones").await?;
        let id = tx.request_clone(self.tenant.tenant_id(), &NewClone::new(backup, slug.parse()?), None).await?.id;
        tx.commit().await?;
        Ok(self.done(&self.backups, id).await?["tenant_id"].as_str().unwrap_or_default().to_owned())
    }

    /// What another tenant reads and writes in a transaction that waits for no lock longer than 100 ms.
    async fn reads_and_writes(&self) -> Result<(), Box<dyn Error>> {
        let mut tx = self.db.begin(&self.other).await?;
        sqlx::query("set local lock_timeout = '100ms'").execute(&mut tx).await?;
        sqlx::query("select count(*) from (select from orders where tenant_id = $1 order by id limit 100) x")
            .bind(self.other.tenant_id().as_uuid())
            .fetch_one(&mut tx)
            .await?;
        sqlx::query("insert into orders (id, at, amount, note) values (gen_random_uuid(), now(), 1, 'x')").execute(&mut tx).await?;
        Ok(tx.commit().await?)
    }

    /// The p50 and p99 of another tenant's transactions until `over`, in milliseconds, how many there were, and how many waited for a lock in vain.
    async fn neighbour(&self, over: &AtomicBool) -> Result<(f64, f64, usize, usize), Box<dyn Error>> {
        let (mut took, mut waited) = (Vec::new(), 0);
        while !over.load(Ordering::Relaxed) {
            let start = Instant::now();
            match self.reads_and_writes().await {
                Err(error) if is_lock_timeout(&*error) => waited += 1,
                done => done?,
            }
            took.push(start.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        took.sort_unstable();
        let at = |part: usize| took[took.len() * part / 100].as_secs_f64() * 1e3;
        Ok((at(50), at(99), took.len(), waited))
    }
}

fn is_lock_timeout(error: &(dyn Error + 'static)) -> bool {
    let said = error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    said.and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

/// The most memory that this process has had since the last call, in MiB, and how much it has now. `None` where the system doesn't tell.
fn peak() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
    let seen = (kib("VmHWM:")? / 1024, kib("VmRSS:")? / 1024);
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    Some(seen)
}

fn median(mut took: Vec<Duration>) -> f64 {
    took.sort_unstable();
    took[took.len() / 2].as_secs_f64()
}

fn run(command: &mut Command) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if status.success() { Ok(start.elapsed()) } else { Err(format!("{command:?}: {status}").into()) }
}

/// Removes all rows of a tenant, and what is left of them.
async fn gone(eye: &mut sqlx::PgConnection, tenant: &str) -> Result<(), Box<dyn Error>> {
    let rows = format!("delete from lines where tenant_id = '{tenant}'; delete from orders where tenant_id = '{tenant}'");
    eye.execute(AssertSqlSafe(rows)).await?;
    for sql in ["vacuum analyze lines", "vacuum analyze orders"] {
        eye.execute(sql).await?;
    }
    Ok(())
}

pub(super) async fn backup() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("tenancy bench {}", Uuid::now_v7()));
    std::fs::create_dir_all(&folder)?;
    let database = TestDatabase::new().await?;
    let alone = TestDatabase::new().await?;
    let mut eye = database.superuser().await?;
    let make = format!(
        "set role tenancy_owner; {TABLES}; {KEY}; call tenancy.protect_table('orders'); call tenancy.protect_table('lines'); reset role"
    );
    eye.execute(AssertSqlSafe(make)).await?;
    let db = database.open().await?;
    let mut tenants = Vec::new();
    for n in 0..TENANTS {
        tenants.push(database.tenant(&db, &format!("tenant-{n}")).await?);
    }
    eye.execute(AssertSqlSafe(format!(
        "insert into orders select t.id, md5(t.id::text || g)::uuid, now() - g * interval '1 second', (g * 7919 % 100000) / 100.0, 'order ' || g || ' of ' || (select string_agg(md5(g::text || n) || ' item ' || n, ', ') from generate_series(1, 6) n)
           from tenancy.tenants t, generate_series(1, {ROWS}) g order by g, t.id;
         insert into lines select o.tenant_id, md5(o.id::text)::uuid, o.id, 1, jsonb_build_object('what', left(o.note, 200), 'price', o.amount, 'tags', array['a', md5(o.id::text)], 'shipped', false) from orders o"
    )))
    .await?;
    for sql in ["vacuum analyze orders", "vacuum analyze lines"] {
        eye.execute(sql).await?;
    }

    // The same rows, alone in a database.
    let tenant = tenants[1].tenant_id();
    let rows = folder.join("rows");
    let mut same = alone.superuser().await?;
    same.execute(AssertSqlSafe(format!("create schema bench; set search_path = bench; {TABLES}"))).await?;
    for table in ["orders", "lines"] {
        let file = format!("{}-{table}", rows.display());
        let psql = |url: String, sql: String| run(Command::new("psql").arg(url).args(["-qXc", &sql]));
        psql(database.admin_url(), format!("\\copy (select * from {table} where tenant_id = '{tenant}') to '{file}' (format binary)"))?;
        psql(alone.admin_url(), format!("\\copy bench.{table} from '{file}' (format binary)"))?;
    }
    same.execute(AssertSqlSafe(format!("set search_path = bench; {KEY}; analyze"))).await?;

    let world = Arc::new(World::new(db, &folder, tenants[1].clone(), tenants[2].clone())?);

    let name: String = sqlx::query_scalar("select current_database()").fetch_one(&mut same).await?;
    let [mut dump, mut take, mut restored, mut merged, mut replaced, mut drilled, mut cloned, mut by_hand] = [const { Vec::new() }; 8];
    let file = folder.join("dump");
    let mut backup = (Uuid::nil(), 0);
    let (mut memory, mut restoring) = (0, 0);
    for round in 0..ROUNDS {
        dump.push(run(Command::new("pg_dump").args(["-Fc", "-Z1", "-n", "bench", "-f"]).arg(&file).arg(alone.admin_url()))?);
        let before = peak();
        let start = Instant::now();
        backup = world.take(&world.backups).await?;
        take.push(start.elapsed());
        if let (Some((_, before)), Some((most, _))) = (before, peak()) {
            memory = memory.max(most.saturating_sub(before));
        }

        let into = format!("restored_{round}");
        same.execute(AssertSqlSafe(format!("create database {into}"))).await?;
        let url = alone.admin_url().replace(&name, &into);
        restored.push(run(Command::new("pg_restore").args(["-d", &url]).arg(&file))?);
        same.execute(AssertSqlSafe(format!("drop database {into}"))).await?;

        let before = peak();
        let start = Instant::now();
        world.restore(backup.0).await?;
        merged.push(start.elapsed());
        if let (Some((_, before)), Some((most, _))) = (before, peak()) {
            restoring = restoring.max(most.saturating_sub(before));
        }
        let start = Instant::now();
        world.drill(backup.0).await?;
        drilled.push(start.elapsed());
        let start = Instant::now();
        let clone = world.clone_tenant(backup.0, &format!("clone-{round}")).await?;
        cloned.push(start.elapsed());
        gone(&mut eye, &clone).await?;
        gone(&mut eye, &tenant.to_string()).await?;
        let copies = ["orders", "lines"].map(|table| format!("\\copy {table} from '{}-{table}' (format binary)", rows.display()));
        let psql = ["-qX1", "-c", &copies[0], "-c", &copies[1]];
        by_hand.push(run(Command::new("psql").arg(database.admin_url()).args(psql))?);
        gone(&mut eye, &tenant.to_string()).await?;
        let start = Instant::now();
        world.restore(backup.0).await?;
        replaced.push(start.elapsed());
    }
    let (dump, restored) = (median(dump), median(restored));
    println!("\nOne tenant of {TENANTS}, {} rows\n| | s | times as fast |\n|---|---:|---:|", 2 * ROWS);
    println!("| pg_dump -Fc -Z1 of the same rows alone ({:.1} MB) | {dump:.2} | 1 |", std::fs::metadata(&file)?.len() as f64 / 1e6);
    println!("| **backup**, encrypted ({:.1} MB) | {:.2} | {:.2} |", backup.1 as f64 / 1e6, median(take.clone()), dump / median(take));
    println!("| pg_restore into an empty database | {restored:.2} | 1 |");
    for (what, took) in [
        ("psql \\copy into the shared tables, as a superuser", by_hand),
        ("**restore**, nothing changed", merged),
        ("**restore**, all rows gone", replaced),
        ("**clone** into a new tenant", cloned),
        ("**drill**", drilled),
    ] {
        let took = median(took);
        println!("| {what} | {took:.2} | {:.2} |", restored / took);
    }

    println!("\nMemory that it took, beside what the process had: {memory} MiB for a backup, {restoring} MiB for a restore");

    println!("\nAnother tenant meanwhile\n| | p50 ms | p99 ms | over 100 ms for a lock |\n|---|---:|---:|---:|");
    let mut idle = 0.0;
    for (what, shares) in [
        ("idle", false),
        (SLOW, false),
        (SLOW, true),
        ("backup as fast as it can", false),
        ("drill", false),
        ("restore, nothing changed", false),
        (ALL_GONE, false),
    ] {
        if what == ALL_GONE {
            gone(&mut eye, &tenant.to_string()).await?;
        }
        let over = Arc::new(AtomicBool::new(false));
        let (tell, told) = oneshot::channel();
        let (ends, folder, [mine, other]) = (Arc::clone(&over), folder.clone(), [1, 2].map(|n| tenants[n].clone()));
        let begin = async move |db: TenantDb| {
            let world =
                World::new(db, &folder, mine, other).map_err(|error| tenancy_core::Error::new(ErrorKind::Internal, error.to_string()))?;
            Ok(async move {
                let done = world.works(what, backup.0).await;
                ends.store(true, Ordering::Relaxed); // also where it failed: the neighbour goes home
                let _ = tell.send(done.map_err(|error| error.to_string())); // or is gone
            })
        };
        // The neighbour's are tasks of a service; what works shares their threads, or does not, as the example's work.
        let work = if shares {
            drop(tokio::spawn(begin(world.db.clone()).await?));
            None
        } else {
            Some(DedicatedRuntime::start("operations", database.options(), begin).await?)
        };
        let neighbour = Arc::clone(&world);
        let felt = tokio::spawn(async move { neighbour.neighbour(&over).await.map_err(|error| error.to_string()) }).await?;
        told.await??;
        if let Some(work) = work {
            work.shutdown().await;
        }
        let (p50, p99, all, waited) = felt?;
        idle = if what == "idle" { p99 } else { idle };
        let how = if shares { ", on the threads that serve" } else { "" };
        println!("| {what}{how} | {p50:.2} | {p99:.2} ({:.2} times) | {waited} of {all} |", p99 / idle);
    }
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
