//! The catalog in PostgreSQL: the ports' contract, and how fast other nodes hear of a change.

use std::time::{Duration, Instant};

use harness::Kit;
use sqlx::Executor;
use tenancy_core::storage::conformance;
use tenancy_core::{Actor, ErrorKind, NewTenant, TenantCatalog, TenantChange, TenantHint, TenantSlug, TenantStatus};
use tenancy_sqlx::TenantDb;

fn slug(text: &str) -> TenantSlug {
    text.parse().expect("a slug")
}

#[tokio::test]
async fn conforms() {
    let kit = Kit::new().await;
    conformance::tenant_catalog(&kit.db.catalog()).await;
}

/// How long after `status` was committed on one node the other still let `acme` in.
async fn time_to_bite(kit: &Kit, other: &TenantDb) -> Duration {
    // Warm: the other node serves acme from its cache.
    for _ in 0..3 {
        drop(other.read(&kit.acme).await.expect("read"));
    }
    assert!(other.catalog().peek(&kit.acme.tenant_id().into()).is_some(), "the control: it is cached");
    kit.db
        .catalog()
        .update(kit.acme.tenant_id(), TenantChange::status(TenantStatus::Suspended), None, &Actor::System)
        .await
        .expect("suspend");
    let since = Instant::now();
    loop {
        match other.begin(&kit.acme).await {
            Ok(tx) => drop(tx),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TenantInactive);
                return since.elapsed();
            }
        }
        assert!(since.elapsed() < Duration::from_secs(10), "the suspension never bites");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn suspension_bites_on_every_node_within_a_second() {
    let kit = Kit::new().await;
    let other = kit.database.open().await.expect("another node");
    let took = time_to_bite(&kit, &other).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    // And on this node at once.
    assert_eq!(kit.db.begin(&kit.acme).await.expect_err("suspended").kind(), ErrorKind::TenantInactive);
}

#[tokio::test]
async fn suspension_bites_within_a_second_when_notifications_are_lost() {
    let kit = Kit::new().await;
    let other = kit.database.open().await.expect("another node");
    // No notification is ever sent.
    let silent = "create or replace function tenancy.stamp_tenant() returns trigger language plpgsql as $$ begin new.changed_xid := pg_current_xact_id(); return new; end $$";
    kit.superuser().await.execute(silent).await.expect("silence");
    let took = time_to_bite(&kit, &other).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_change_behind_a_long_transaction_is_not_passed_over() {
    let kit = Kit::new().await;
    let mut slow = kit.superuser().await;
    // This transaction takes its number first and commits last, while others come and go.
    slow.execute("begin; update tenancy.tenants set version = version + 1, status = 'suspended' where slug = 'acme'")
        .await
        .expect("update");
    for n in 0..5 {
        kit.database.tenant(&kit.db, &format!("later-{n}")).await.expect("tenant");
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(kit.db.begin(&kit.acme).await.expect("not committed yet"));
    }
    slow.execute("commit").await.expect("commit");
    tokio::time::sleep(Duration::from_millis(950)).await;
    assert_eq!(kit.db.begin(&kit.acme).await.expect_err("suspended").kind(), ErrorKind::TenantInactive);
}

#[tokio::test]
async fn a_node_that_can_not_ask_serves_nothing_from_its_cache() {
    let kit = Kit::new().await;
    drop(kit.db.read(&kit.acme).await.expect("warm"));
    let mut eye = kit.superuser().await;
    eye.execute("revoke execute on function tenancy.catalog_changes(xid8, uuid) from tenancy_app").await.expect("revoke");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(kit.db.catalog().peek(&kit.acme.tenant_id().into()).is_none(), "stale");
    assert_eq!(kit.db.ping().await.expect_err("not fresh").kind(), ErrorKind::Forbidden);
    drop(kit.db.read(&kit.acme).await.expect("the database itself still knows"));
    eye.execute("grant execute on function tenancy.catalog_changes(xid8, uuid) to tenancy_app").await.expect("grant");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(kit.db.ping().await.is_ok());
}

#[tokio::test]
async fn a_new_tenant_is_found_at_once_although_it_was_just_absent() {
    let kit = Kit::new().await;
    let catalog = kit.db.catalog();
    for n in 0..10 {
        let slug = slug(&format!("fresh-{n}"));
        assert!(catalog.find(&slug.clone().into()).await.expect("find").is_none());
        catalog.create(NewTenant::new(slug.clone(), "Fresh").active(), &Actor::System).await.expect("create");
        assert!(catalog.find(&slug.into()).await.expect("find").is_some());
    }
}

#[tokio::test]
async fn of_many_creators_of_one_slug_one_wins() {
    let kit = Kit::new().await;
    let tries = (0..8).map(|_| {
        let catalog = kit.db.catalog();
        async move { catalog.create(NewTenant::new(slug("contested"), "Contested"), &Actor::System).await }
    });
    let outcomes = futures_util::future::join_all(tries).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).all(|error| error.kind() == ErrorKind::Conflict));
}

#[tokio::test]
async fn a_context_of_another_installation_opens_nothing() {
    let (here, there) = (Kit::new().await, Kit::new().await);
    assert_eq!(here.db.begin(&there.acme).await.expect_err("unknown here").kind(), ErrorKind::TenantNotFound);
}

#[tokio::test]
async fn tenants_are_resolved_while_every_connection_is_busy() {
    let kit = Kit::with_options(|options| options.with_max_connections(1).with_acquire_timeout(Duration::from_millis(100))).await;
    let held = kit.db.begin(&kit.acme).await.expect("begin");
    assert_eq!(kit.db.begin(&kit.acme).await.expect_err("busy").kind(), ErrorKind::Unavailable);
    let found = kit.db.catalog().find(&TenantHint::Slug(slug("globex"))).await.expect("find");
    assert!(found.is_some());
    drop(held);
}

#[tokio::test]
async fn work_across_tenants_is_audited_even_when_it_is_rolled_back() {
    let kit = Kit::new().await;
    kit.note(&kit.acme, "acme's").await;
    kit.note(&kit.globex, "globex's").await;
    let mut tx =
        kit.db.dangerous().on_behalf_of(Actor::Operator("ops".parse().expect("subject"))).begin_system("count notes").await.expect("begin");
    let seen: i64 = sqlx::query_scalar("select count(*) from notes").fetch_one(&mut tx).await.expect("count");
    assert_eq!(seen, 2);
    sqlx::query("delete from notes").execute(&mut tx).await.expect("delete");
    tx.rollback().await.expect("rollback");
    let audited: Vec<(String, String, Option<String>)> =
        sqlx::query_as("select action, target, actor_id from tenancy.audit_events where target = 'count notes'")
            .fetch_all(&mut kit.superuser().await)
            .await
            .expect("audit");
    assert_eq!(audited, [("system.access".to_owned(), "count notes".to_owned(), Some("ops".to_owned()))]);
    assert_eq!(kit.notes(&kit.acme).await, ["acme's"]);
    assert_eq!(kit.db.dangerous().begin_system(" ").await.expect_err("no reason").kind(), ErrorKind::Invalid);
}
