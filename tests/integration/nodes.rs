//! The nodes of a service say what they have heard of the catalog, and a fence is up once all have heard of it.

use std::time::{Duration, Instant};

use harness::Kit;
use sqlx::Executor;
use tenancy_core::{Actor, ErrorKind, TenantCatalog, TenantChange, TenantStatus};
use tenancy_sqlx::Options;
use tenancy_sqlx::backup::NewRestore;

use crate::backup::World;

/// A node that hears nothing for this long serves all the same.
const LONG: Duration = Duration::from_secs(600);

fn patient(options: Options) -> Options {
    options.with_max_staleness(LONG)
}

pub(crate) async fn nodes(kit: &Kit) -> i64 {
    let alive = "select count(*) from tenancy.catalog_nodes where alive_until > clock_timestamp()";
    sqlx::query_scalar(alive).fetch_one(&mut kit.superuser().await).await.expect("nodes")
}

#[tokio::test]
async fn a_fence_is_up_once_every_node_has_heard_of_it_and_no_sooner() {
    let world = World::with(Kit::with_options(patient).await);
    let kit = &world.kit;
    let other = tenancy_sqlx::TenantDb::open(patient(kit.database.options())).await.expect("another node");
    drop(other.read(&kit.acme).await.expect("warm"));
    assert_eq!(nodes(kit).await, 2);
    let backup = world.back_up(&kit.acme).await;
    let restore = NewRestore::new(backup).without_backup();
    tokio::time::timeout(LONG / 2, world.restore(&kit.acme, &restore))
        .await
        .expect("nobody waits until the other node would notice by itself");

    // One that does not say that it has heard is waited for, as long as it might serve, and no longer.
    let deaf =
        "insert into tenancy.catalog_nodes values (gen_random_uuid(), '3:3:', interval '2 seconds', clock_timestamp() + interval '1 hour')";
    kit.superuser().await.execute(deaf).await.expect("a node");
    let began = Instant::now();
    world.restore(&kit.acme, &restore).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());

    other.close().await;
    assert_eq!(nodes(kit).await, 2, "this one, and the deaf one");
}

#[tokio::test]
async fn a_transaction_that_waited_for_its_connection_sees_a_fence_that_was_raised_meanwhile() {
    let kit = Kit::with_options(|options| options.with_max_connections(1).with_acquire_timeout(Duration::from_secs(60))).await;
    for reads in [false, true] {
        let held = kit.db.begin(&kit.globex).await.expect("the only connection");
        let (db, acme) = (kit.db.clone(), kit.acme.clone());
        let late = tokio::spawn(async move { if reads { db.read(&acme).await } else { db.begin(&acme).await }.map(drop) });
        // It has looked, and waits.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!late.is_finished());
        let catalog = kit.db.catalog();
        let to = |status| catalog.update(kit.acme.tenant_id(), TenantChange::status(status), None, &Actor::System);
        to(TenantStatus::Suspended).await.expect("suspend");
        held.commit().await.expect("commit");
        let refused = late.await.expect("no panic").expect_err("the tenant is not served any more");
        assert_eq!(refused.kind(), ErrorKind::TenantInactive);
        to(TenantStatus::Active).await.expect("resume");
    }
    drop(kit.db.begin(&kit.acme).await.expect("the control: it is served again"));
}

#[tokio::test]
async fn a_node_that_was_given_up_is_known_again_before_it_serves() {
    let kit = Kit::new().await;
    assert_eq!(nodes(&kit).await, 1);
    kit.superuser().await.execute("delete from tenancy.catalog_nodes").await.expect("given up");
    kit.db.ping().await.expect("it asks");
    assert_eq!(nodes(&kit).await, 1);

    // One that can't say so serves nothing from memory.
    drop(kit.db.read(&kit.acme).await.expect("warm"));
    let mut eye = kit.superuser().await;
    eye.execute("revoke execute on function tenancy.catalog_heard(uuid, pg_snapshot, interval) from tenancy_app").await.expect("revoke");
    eye.execute("delete from tenancy.catalog_nodes").await.expect("given up");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(kit.db.catalog().peek(&kit.acme.tenant_id().into()).is_none(), "stale");
    eye.execute("grant execute on function tenancy.catalog_heard(uuid, pg_snapshot, interval) to tenancy_app").await.expect("grant");
    kit.db.ping().await.expect("it says so again");
    assert_eq!(nodes(&kit).await, 1);
}

#[tokio::test]
async fn no_node_can_speak_for_another() {
    let kit = Kit::new().await;
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let error = sqlx::query("select id from tenancy.catalog_nodes").execute(&mut tx).await.expect_err("their ids are secrets");
    assert_eq!(error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(), Some("42501"));
}

#[tokio::test]
async fn a_node_whose_login_is_read_only_by_default_says_what_it_has_heard() {
    let kit = Kit::new().await;
    let here = "do $$ begin execute format('alter role tenancy_app in database %I set default_transaction_read_only = on', current_database()); end $$";
    kit.superuser().await.execute(here).await.expect("alter");
    let other = kit.database.open().await.expect("another node");
    drop(other.read(&kit.acme).await.expect("it serves"));
    assert_eq!(nodes(&kit).await, 2);
}
