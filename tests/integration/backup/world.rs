//! A kit with objects, an archive store and tables that are hard to put back; and how it is damaged, read and compared.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use harness::Kit;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use tenancy_core::objects::TenantObjects;
use tenancy_core::{ErrorKind, Result, TenantContext, TenantId};
use tenancy_sqlx::backup::{BackupKeys, Backups, NewRestore};
use tenancy_sqlx::operations::{Operation, Operations};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub(crate) struct World {
    pub(crate) kit: Kit,
    pub(crate) store: Arc<InMemory>,
    pub(crate) objects: TenantObjects,
    pub(crate) backups: Backups,
}

/// For how long a worker that was killed is believed to work.
const LEASE: Duration = Duration::from_millis(1_500);

pub(crate) fn keys() -> BackupKeys {
    BackupKeys::new([7; 32])
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Kit::new().await)
    }

    pub(crate) fn with(kit: Kit) -> Self {
        let store = Arc::new(InMemory::new());
        let objects = TenantObjects::prefixed(store.clone(), Path::from("tenants")).expect("objects");
        let backups = Backups::new(&kit.db, store.clone(), Path::from("backups"), keys()).with_objects(objects.clone()).with_pace(None);
        Self { kit, store, objects, backups }
    }

    pub(crate) fn worker(&self, backups: &Backups) -> Operations {
        backups.does(Operations::new(&self.kit.db)).with_lease(LEASE)
    }

    /// Has a worker begin what is queued, and stand still after a step: it does so now.
    pub(crate) async fn stand_still(&self, backups: Backups, step: &'static str, lease: Duration) -> JoinHandle<Result<Option<Uuid>>> {
        let there = Arc::new(Notify::new());
        let worker = self.worker(&backups.halting_after(step, Arc::clone(&there))).with_lease(lease);
        let mut running = tokio::spawn(async move { worker.run_next().await });
        tokio::select! {
            () = there.notified() => running,
            done = &mut running => panic!("{step}: it went on: {done:?}"),
            () = tokio::time::sleep(Duration::from_secs(60)) => panic!("{step}: it does not get there"),
        }
    }

    /// Kills a worker once it has finished a step of what is queued.
    pub(crate) async fn killed_after(&self, step: &'static str) {
        let running = self.stand_still(self.backups.clone(), step, LEASE).await;
        running.abort();
        assert!(running.await.is_err_and(|error| error.is_cancelled()), "{step}");
    }

    pub(crate) async fn operation(&self, id: Uuid) -> Operation {
        self.kit.db.dangerous().begin_system("a test looks").await.expect("system").operation(id).await.expect("the operation")
    }

    pub(crate) async fn ask_backup(&self, tenant: TenantId) -> Result<Operation> {
        let mut tx = self.kit.db.dangerous().begin_system("a test backs a tenant up").await?;
        let queued = tx.request_backup(tenant, None).await?;
        tx.commit().await?;
        Ok(queued)
    }

    pub(crate) async fn ask_restore(&self, tenant: TenantId, restore: &NewRestore) -> Result<Operation> {
        let mut tx = self.kit.db.dangerous().begin_system("a test restores a tenant").await?;
        let queued = tx.request_restore(tenant, restore, None).await?;
        tx.commit().await?;
        Ok(queued)
    }

    /// Works until the operation is over: claims of killed workers have to run out first.
    pub(crate) async fn finish(&self, id: Uuid) -> Operation {
        let worker = self.worker(&self.backups);
        loop {
            // A machine that is busy may lose a claim that is so short.
            if let Err(error) = worker.run_next().await {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            }
            let now = self.operation(id).await;
            if matches!(now.state.as_str(), "done" | "failed" | "cancelled") {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn done(&self, id: Uuid) -> Value {
        let done = self.finish(id).await;
        assert_eq!((done.state.as_str(), &done.error), ("done", &None));
        done.result.expect("a result")
    }

    pub(crate) async fn back_up(&self, cx: &TenantContext) -> Uuid {
        let queued = self.ask_backup(cx.tenant_id()).await.expect("queued");
        self.done(queued.id).await;
        queued.id
    }

    pub(crate) async fn restore(&self, cx: &TenantContext, restore: &NewRestore) -> Value {
        let queued = self.ask_restore(cx.tenant_id(), restore).await.expect("queued");
        self.done(queued.id).await
    }

    pub(crate) async fn refused(&self, cx: &TenantContext, restore: &NewRestore) -> String {
        let queued = self.ask_restore(cx.tenant_id(), restore).await.expect("queued");
        let failed = self.finish(queued.id).await;
        assert_eq!(failed.state, "failed", "{:?}", failed.result);
        failed.error.expect("a reason")
    }

    pub(crate) async fn put(&self, cx: &TenantContext, path: &str, content: impl Into<object_store::PutPayload>) {
        self.objects.scope(cx).expect("scope").put(&Path::from(path), content.into()).await.expect("put");
    }

    /// All objects of a tenant.
    pub(crate) async fn contents(&self, cx: &TenantContext) -> BTreeMap<String, Vec<u8>> {
        let below = Path::from("tenants").join(cx.tenant_id().to_string());
        let mut all = BTreeMap::new();
        for meta in futures_util::TryStreamExt::try_collect::<Vec<_>>(self.store.list(Some(&below))).await.expect("listed") {
            all.insert(
                meta.location.to_string(),
                self.store.get(&meta.location).await.expect("there").bytes().await.expect("read").to_vec(),
            );
        }
        all
    }
}

/// A digest of the tenant's rows of the host's tables, or of everybody's, per table.
pub(crate) async fn digests(eye: &mut PgConnection, tenant: Option<TenantId>) -> BTreeMap<String, String> {
    let tables = "select attrelid::regclass::text from pg_attribute join pg_class c on c.oid = attrelid
                   where attname = 'tenant_id' and not attisdropped and relkind in ('r', 'p') and not relispartition and relnamespace = 'public'::regnamespace";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *eye).await.expect("tables");
    let mut all = BTreeMap::new();
    for table in tables {
        let sql = format!(
            "select coalesce(md5(string_agg(t::text, ',' order by t::text)), '') from {table} t where $1::uuid is null or tenant_id::text = $1::text"
        );
        let digest: String =
            sqlx::query_scalar(AssertSqlSafe(sql)).bind(tenant.map(TenantId::as_uuid)).fetch_one(&mut *eye).await.expect("digest");
        all.insert(table, digest);
    }
    all
}

pub(crate) async fn as_owner(kit: &Kit, sql: &str) {
    let mut eye = kit.superuser().await;
    eye.execute("set role tenancy_owner").await.expect("owner");
    eye.execute(AssertSqlSafe(sql.to_owned())).await.expect("made");
}

pub(crate) async fn run(kit: &Kit, cx: &TenantContext, statements: &[&str]) {
    let mut tx = kit.db.begin(cx).await.expect("begin");
    for sql in statements {
        sqlx::query(AssertSqlSafe((*sql).to_owned())).execute(&mut tx).await.expect(sql);
    }
    tx.commit().await.expect("commit");
}

/// What is hard to put back: a tree, two tables that refer to each other, partitions, identities, generated columns, own types, no key, and a
/// trigger that must not fire.
const HARD: &str = "
    create type mood as enum ('sad', 'ok', 'happy');
    create domain short as text check (length(value) < 20);
    create table tree (tenant_id uuid not null, id int not null, up int, primary key (tenant_id, id), foreign key (tenant_id, up) references tree (tenant_id, id));
    create table men (tenant_id uuid not null, id int not null, dog int, primary key (tenant_id, id));
    create table dogs (tenant_id uuid not null, id int not null, man int not null, primary key (tenant_id, id), foreign key (tenant_id, man) references men (tenant_id, id));
    alter table men add foreign key (tenant_id, dog) references dogs (tenant_id, id);
    create table events (tenant_id uuid not null, id int not null, primary key (tenant_id, id)) partition by range (id);
    create table events_1 partition of events for values from (0) to (10);
    create table events_2 partition of events for values from (10) to (20);
    create table things (
      id bigint generated always as identity, tenant_id uuid not null, name text not null, n int, twice int generated always as (n * 2) stored, moods mood[], nick short,
      doc jsonb, raw json, amounts numeric[], at timestamptz, blob bytea, span int4range, near point, pause interval, ratio float8, primary key (tenant_id, id), unique (tenant_id, name));
    create table bare (tenant_id uuid not null, word text, n int);
    create table \"Odd Name\" (tenant_id uuid not null, \"a \"\"b\" text collate \"C\" not null, primary key (tenant_id, \"a \"\"b\"));
    create table fired (tenant_id uuid not null, id uuid not null default gen_random_uuid(), what text, primary key (tenant_id, id));
    create function note_it() returns trigger language plpgsql as 'begin insert into fired (what) values (tg_op); return null; end';
    create trigger note_it after insert or update or delete on things for each row execute function note_it();
    call tenancy.protect_table('tree'); call tenancy.protect_table('men'); call tenancy.protect_table('dogs'); call tenancy.protect_table('events');
    call tenancy.protect_table('things'); call tenancy.protect_table('bare'); call tenancy.protect_table('\"Odd Name\"'); call tenancy.protect_table('fired')";

pub(crate) async fn hard_world() -> World {
    let world = World::new().await;
    as_owner(&world.kit, HARD).await;
    for cx in [&world.kit.acme, &world.kit.globex] {
        let slug = cx.tenant().slug.to_string();
        run(
            &world.kit,
            cx,
            &[
                "insert into tree (id, up) values (1, null), (2, 1), (3, 2), (4, 1)",
                "insert into men (id) values (1), (2)",
                "insert into dogs (id, man) values (1, 1), (2, 1)",
                "update men set dog = 1 where id = 1",
                "insert into events (id) select generate_series(5, 14)",
                "insert into things (name, n, moods, nick, doc, raw, amounts, at, blob, span, near, pause, ratio) values
                   ('one', 1, '{sad,NULL,happy}', 'nick', '{\"a\": [1, null, \"é\"]}', '{\"b\" :  1.0}', '{1.50,NaN}', '2026-01-02 03:04:05.678901+00', '\\x00ff', '[1,5)', '(1.5,-2)', '1 mon -2 days', 'infinity'),
                   ('two', null, null, null, null, null, null, 'infinity', null, 'empty', null, null, 0.1)",
                "insert into bare (word, n) values ('same', 1), ('same', 1), (null, null)",
                "insert into \"Odd Name\" values (default, 'x'), (default, 'É')",
                "insert into notes (body) select 'note ' || g from generate_series(1, 50) g",
                "insert into comments (note_id, body) select id, 'c' from notes",
            ],
        )
        .await;
        world.put(cx, "a/b.txt", format!("{slug}'s object")).await;
        world.put(cx, "large", vec![b'x'; 9_000_000]).await;
        world.put(cx, "empty", "").await;
    }
    world
}

/// Damage of every kind.
pub(crate) async fn vandalise(world: &World, cx: &TenantContext) {
    run(
        &world.kit,
        cx,
        &[
            "delete from comments where note_id in (select id from notes where body like '%1%')",
            "delete from notes where body like '%1%'",
            "update notes set body = body || ' changed' where body like '%2%'",
            "insert into notes (body) values ('not in the backup')",
            "update men set dog = null",
            "delete from dogs",
            "delete from men where id = 2",
            "insert into men (id) values (9)",
            "update tree set up = null where id = 3",
            "delete from tree where id = 4",
            "delete from events where id > 8",
            "insert into events (id) values (19)",
            "update things set name = case name when 'one' then 'x' else 'one' end",
            "update things set name = 'two' where name = 'x'", // the unique names are swapped
            "insert into things (name) values ('three')",
            "delete from bare where word = 'same'",
            "insert into bare (word) values ('new')",
            "delete from \"Odd Name\"",
            "delete from fired",
        ],
    )
    .await;
    let store = world.objects.scope(cx).expect("scope");
    store.delete(&Path::from("large")).await.expect("deleted");
    let size = store.head(&Path::from("a/b.txt")).await.expect("there").size;
    store.put(&Path::from("a/b.txt"), vec![b'?'; usize::try_from(size).expect("small")].into()).await.expect("put"); // as large as it was
    store.put(&Path::from("new"), "new".into()).await.expect("put");
}

pub(crate) async fn archive_of(world: &World, backup: Uuid) -> Path {
    let all: Vec<_> = futures_util::TryStreamExt::try_collect(world.store.list(Some(&Path::from("backups")))).await.expect("listed");
    let mut found =
        all.into_iter().map(|meta: object_store::ObjectMeta| meta.location).filter(|at| at.as_ref().contains(&backup.to_string()));
    let at = found.next().expect("an archive");
    assert_eq!(found.next(), None, "nothing else is left of the backup");
    at
}
