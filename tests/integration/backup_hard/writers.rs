//! A tenant that is at work while it is backed up: what a backup has belongs together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use harness::unbalanced;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use sqlx::{AssertSqlSafe, PgConnection};
use tenancy_core::TenantContext;
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::backup::NewRestore;

use crate::backup::{World, as_owner};

async fn count(eye: &mut PgConnection, sql: &str, of: &TenantContext) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).bind(of.tenant_id().as_uuid()).fetch_one(eye).await.expect("a count")
}

/// Writes a debit and a credit in each transaction, and now and then takes both away, until told to stop.
async fn book(db: TenantDb, cx: TenantContext, ids: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let id = ids.fetch_add(1, Ordering::Relaxed).cast_signed();
        let mut tx = db.begin(&cx).await.expect("begin");
        for side in ["debit", "credit"] {
            let sql = "insert into entries (id, side) values ($1, $2)";
            sqlx::query(sql).bind(id).bind(side).execute(&mut tx).await.expect("inserted");
            tokio::task::yield_now().await;
        }
        if id % 3 == 0 {
            sqlx::query("delete from entries where id = $1").bind(id / 2).execute(&mut tx).await.expect("deleted");
        }
        tx.commit().await.expect("commit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_of_a_tenant_at_work_balance_in_every_backup() {
    let world = World::new().await;
    let acme = &world.kit.acme;
    let (ids, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..4).map(|_| tokio::spawn(book(world.kit.db.clone(), acme.clone(), ids.clone(), stop.clone()))).collect();
    let mut backups = Vec::new();
    backups.push(world.back_up(acme).await);
    let enough = ids.load(Ordering::Relaxed) + 50;
    while backups.len() < 4 || ids.load(Ordering::Relaxed) < enough {
        backups.push(world.back_up(acme).await);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("it wrote");
    }
    let mut eye = world.kit.superuser().await;
    let mut had = Vec::new();
    for backup in backups {
        world.restore(acme, &NewRestore::new(backup).without_backup()).await;
        assert_eq!(unbalanced(&mut eye).await, 0);
        had.push(count(&mut eye, "select count(*) from entries where tenant_id = $1", acme).await);
    }
    assert!(had.windows(2).all(|two| two[0] <= two[1]) && had.first() < had.last(), "it wrote all the while: {had:?}");
}

/// Uploads a file and then says so in a row; removes a row and then its file; until told to stop.
async fn attach(world: &World, cx: &TenantContext, written: &AtomicU64, stop: &AtomicBool) {
    let store = world.objects.scope(cx).expect("scope");
    let mut kept = std::collections::VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let n = written.fetch_add(1, Ordering::Relaxed);
        let name = format!("{n}");
        let at = Path::from(format!("attachments/{name}"));
        store.put(&at, format!("content of {name}").into()).await.expect("put");
        let mut tx = world.kit.db.begin(cx).await.expect("begin");
        sqlx::query("insert into attachments (object) values ($1)").bind(&name).execute(&mut tx).await.expect("inserted");
        tx.commit().await.expect("commit");
        kept.push_back(name);
        if kept.len() > 5 {
            let name = kept.remove(usize::try_from(n % 5).expect("small")).expect("one");
            let mut tx = world.kit.db.begin(cx).await.expect("begin");
            sqlx::query("delete from attachments where object = $1").bind(&name).execute(&mut tx).await.expect("deleted");
            tx.commit().await.expect("commit");
            store.delete(&Path::from(format!("attachments/{name}"))).await.expect("deleted");
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_backup_of_a_tenant_at_work_has_the_objects_that_its_rows_name() {
    let world = World::new().await;
    let acme = &world.kit.acme;
    let sql = "create table attachments (tenant_id uuid not null, object text not null, primary key (tenant_id, object));
               call tenancy.protect_table('attachments'); call tenancy.declare_objects('attachments', 'object', 'attachments/{}')";
    as_owner(&world.kit, sql).await;
    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let take = async {
        let mut taken = Vec::new();
        while taken.len() < 6 || written.load(Ordering::Relaxed) < 60 {
            let queued = world.ask_backup(acme.tenant_id()).await.expect("queued");
            let done = world.finish(queued.id).await;
            match done.error {
                None => taken.push(queued.id),
                // Deleted too fast three times in a row: no backup rather than half of one.
                Some(error) => assert!(error.contains("objects that rows name are not there"), "{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        taken
    };
    let (taken, ()) = tokio::join!(take, attach(&world, acme, &written, &stop));
    let mut named = 0;
    for backup in taken {
        world.restore(acme, &NewRestore::new(backup).without_backup()).await;
        let contents = world.contents(acme).await;
        let mut tx = world.kit.db.read(acme).await.expect("read");
        let rows: Vec<String> = sqlx::query_scalar("select object from attachments").fetch_all(&mut tx).await.expect("rows");
        for name in &rows {
            let found = contents.iter().find(|(path, _)| path.ends_with(&format!("/attachments/{name}")));
            assert_eq!(found.map(|(_, content)| content.as_slice()), Some(format!("content of {name}").as_bytes()), "of {backup}");
        }
        named += rows.len();
    }
    assert!(named > 10, "rows named {named} objects");
}

#[tokio::test]
async fn control_a_row_whose_object_is_not_there_is_refused() {
    let world = World::new().await;
    let acme = &world.kit.acme;
    let sql = "create table attachments (tenant_id uuid not null, object text not null, primary key (tenant_id, object)); call tenancy.protect_table('attachments')";
    as_owner(&world.kit, sql).await;
    crate::backup::run(&world.kit, acme, &["insert into attachments (object) values ('none')"]).await;
    world.back_up(acme).await; // nobody said that rows name objects
    as_owner(&world.kit, "call tenancy.declare_objects('attachments', 'object', 'attachments/{}')").await;
    let queued = world.ask_backup(acme.tenant_id()).await.expect("queued");
    assert!(world.finish(queued.id).await.error.expect("refused").contains("attachments/none"));
}
