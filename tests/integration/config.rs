//! Settings: layers, history, the way back, and nobody else's to see or set.

use std::time::{Duration, Instant};

use harness::Kit;
use serde_json::json;
use sqlx::Executor as _;
use tenancy_core::config::{Config, Layer, Setting, Settings, Source};
use tenancy_core::flags::{FlagDefinition, Reason, digest};
use tenancy_core::{Actor, ErrorKind, TenantCatalog as _, TenantChange, TenantContext};
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::config::{Configs, TenantSettings};
use tenancy_sqlx::flags::Flags;

fn size() -> Setting<u32> {
    Setting::new("page.size", 50u32).within(1..=200)
}

fn settings() -> Settings {
    Settings::new().with(&size()).and_then(|all| all.with(&Setting::new("beta", false))).expect("declared")
}

fn layer(value: &serde_json::Value) -> Layer {
    value.as_object().cloned().expect("an object")
}

async fn set(db: &TenantDb, cx: &TenantContext, change: serde_json::Value, expected: Option<u64>) -> tenancy_core::Result<TenantSettings> {
    let mut tx = db.begin(cx).await?;
    let done = tx.change_settings(cx, &settings(), &layer(&change), expected).await?;
    tx.commit().await?;
    db.catalog().refresh().await.map(|()| done)
}

async fn counts(configs: &Configs, cx: &TenantContext) -> (u32, Option<Source>) {
    let (config, _): (std::sync::Arc<Config>, u64) = configs.of(cx).await.expect("settings");
    (config.get(&size()), config.source("page.size"))
}

#[tokio::test]
async fn layers_count_in_their_order_and_a_tenant_may_change_its_plan() {
    let kit = Kit::new().await;
    let configs = Configs::new(&kit.db, settings());
    assert_eq!(counts(&configs, &kit.acme).await, (50, Some(Source::Default)));
    let plan = async |plan: &str, change: serde_json::Value| {
        let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
        tx.change_plan_settings(plan, &settings(), &layer(&change)).await.expect("changed");
        tx.commit().await.expect("commit");
        kit.db.catalog().refresh().await.expect("refresh");
    };
    plan("standard", json!({ "page.size": 100 })).await;
    plan("free", json!({ "page.size": 10 })).await;
    assert_eq!(counts(&configs, &kit.acme).await, (100, Some(Source::Plan)));
    set(&kit.db, &kit.acme, json!({ "page.size": 20 }), None).await.expect("set");
    assert_eq!(counts(&configs, &kit.acme).await, (20, Some(Source::Tenant)));
    assert_eq!(counts(&configs, &kit.globex).await, (100, Some(Source::Plan)));
    set(&kit.db, &kit.acme, json!({ "page.size": null }), None).await.expect("unset");
    let mut change = TenantChange::default();
    change.plan = Some("free".to_owned());
    kit.db.catalog().update(kit.acme.tenant_id(), change, None, &Actor::System).await.expect("another plan");
    assert_eq!(counts(&configs, &kit.acme).await, (10, Some(Source::Plan)));
    plan("free", json!({ "page.size": null })).await;
    assert_eq!(counts(&configs, &kit.acme).await, (50, Some(Source::Default)));
    let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
    let refused = tx.change_plan_settings("free", &settings(), &layer(&json!({ "page.size": 0 }))).await.expect_err("refused");
    assert_eq!((refused.kind(), refused.field()), (ErrorKind::Invalid, Some("page.size")));
}

#[tokio::test]
async fn what_did_not_change_asks_the_database_nothing() {
    let kit = Kit::new().await;
    let configs = Configs::new(&kit.db, settings());
    set(&kit.db, &kit.acme, json!({ "page.size": 20 }), None).await.expect("set");
    counts(&configs, &kit.acme).await;
    // From here on a query would fail: what is known must be enough.
    let mut eye = kit.superuser().await;
    eye.execute("alter table tenancy.tenant_configs rename to away").await.expect("renamed");
    eye.execute("revoke select on tenancy.config_history from tenancy_app").await.expect("revoked");
    for _ in 0..100 {
        assert_eq!(counts(&configs, &kit.acme).await, (20, Some(Source::Tenant)));
    }
    // The control: a change of the tenant's row is what makes it ask.
    kit.db.catalog().update(kit.acme.tenant_id(), TenantChange::default(), None, &Actor::System).await.expect("touched");
    assert!(configs.of(&kit.acme).await.is_err());
}

#[tokio::test]
async fn every_version_is_kept_and_can_be_gone_back_to() {
    let kit = Kit::new().await;
    set(&kit.db, &kit.acme, json!({ "page.size": 20 }), Some(0)).await.expect("1");
    set(&kit.db, &kit.acme, json!({ "page.size": 30, "beta": true }), Some(1)).await.expect("2");
    let stale = set(&kit.db, &kit.acme, json!({ "page.size": 40 }), Some(1)).await.expect_err("stale");
    assert_eq!(stale.kind(), ErrorKind::VersionMismatch);
    assert_eq!(set(&kit.db, &kit.acme, json!({ "beta": true }), None).await.expect("the same").version, 2, "no change is no version");
    let back = async |version, expected| {
        let mut tx = kit.db.begin(&kit.acme).await?;
        let done = tx.roll_settings_back(&kit.acme, &settings(), version, expected).await?;
        tx.commit().await.map(|()| done)
    };
    let done = back(1, Some(2)).await.expect("back");
    assert_eq!((done.version, &done.layer), (3, &layer(&json!({ "page.size": 20 }))));
    assert_eq!(back(0, None).await.expect("to nothing").layer, Layer::new());
    assert_eq!(back(9, None).await.expect_err("never was").field(), Some("version"));

    let mut tx = kit.db.read(&kit.acme).await.expect("read");
    let all = tx.settings_history(None, 10).await.expect("history");
    let told: Vec<_> =
        all.iter().map(|change| (change.version, json!(change.before), json!(change.after), change.rolled_back_to)).collect();
    assert_eq!(
        told,
        [
            (4, json!({ "page.size": 20 }), json!({}), Some(0)),
            (3, json!({ "page.size": 30, "beta": true }), json!({ "page.size": 20 }), Some(1)),
            (2, json!({ "page.size": 20 }), json!({ "page.size": 30, "beta": true }), None),
            (1, json!({}), json!({ "page.size": 20 }), None),
        ]
    );
    assert!(all.iter().all(|change| change.request_id == Some(kit.acme.request_id()) && !change.actor.is_empty()));
    let page: Vec<_> = tx.settings_history(Some(3), 1).await.expect("page").iter().map(|change| change.version).collect();
    assert_eq!(page, [2]);
    let events: i64 = sqlx::query_scalar("select count(*) from tenancy.audit_events where action = 'tenant.config' and detail ? 'before'")
        .fetch_one(&mut tx)
        .await
        .expect("events");
    assert_eq!(events, 4);
    // What was allowed then and is not now stays away.
    drop(tx);
    set(&kit.db, &kit.acme, json!({ "page.size": 150 }), None).await.expect("5");
    let stricter = Settings::new().with(&Setting::new("page.size", 50u32).within(1..=100)).expect("declared");
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    assert_eq!(tx.roll_settings_back(&kit.acme, &stricter, 5, None).await.expect_err("too large").field(), Some("page.size"));
}

#[tokio::test]
async fn at_once_changes_are_one_after_another() {
    let kit = Kit::new().await;
    let all = (1..=8u32).map(|n| set(&kit.db, &kit.acme, json!({ "page.size": n }), None));
    let versions: Vec<u64> = futures_util::future::join_all(all).await.into_iter().map(|done| done.expect("set").version).collect();
    let distinct: std::collections::BTreeSet<u64> = versions.iter().copied().collect();
    assert_eq!(distinct, (1..=8).collect());
    // On the condition of a version, one of many wins.
    let all = (11..=18u32).map(|n| set(&kit.db, &kit.acme, json!({ "page.size": n }), Some(8)));
    let won = futures_util::future::join_all(all).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
}

#[tokio::test]
async fn another_tenants_settings_can_be_neither_seen_nor_set() {
    let kit = Kit::new().await;
    set(&kit.db, &kit.globex, json!({ "page.size": 77 }), None).await.expect("theirs");
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    assert_eq!(tx.change_settings(&kit.globex, &settings(), &Layer::new(), None).await.expect_err("theirs").kind(), ErrorKind::NotFound);
    for table in ["tenant_configs", "config_history"] {
        let sql = format!("select count(*) from tenancy.{table}");
        let seen: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut tx).await.expect(table);
        assert_eq!(seen, 0, "{table}");
    }
    drop(tx);
    // By SQL of the application's role, too.
    let (own, theirs) = (kit.acme.tenant_id(), kit.globex.tenant_id());
    for sql in [
        format!("select * from tenancy.change_config('{theirs}', '{{}}', true, null, 'x', null, null)"),
        format!("insert into tenancy.tenant_configs (tenant_id, key, value, version) values ('{own}', 'beta', 'true', 1)"),
        format!("delete from tenancy.config_history where tenant_id = '{own}'"),
        "select * from tenancy.plan_configs".to_owned(),
        "select * from tenancy.flag_definitions".to_owned(),
        "update tenancy.platform set version = 1".to_owned(),
    ] {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let refused = sqlx::query(sqlx::AssertSqlSafe(sql.clone())).execute(&mut tx).await.expect_err(&sql);
        assert_eq!(tenancy_sqlx::from_sqlx(refused).kind(), ErrorKind::Forbidden, "{sql}");
    }
    let configs = Configs::new(&kit.db, settings());
    assert_eq!((counts(&configs, &kit.acme).await.0, counts(&configs, &kit.globex).await.0), (50, 77));
    // The control: without its policy, the table shows them.
    let mut eye = kit.superuser().await;
    eye.execute("alter table tenancy.tenant_configs disable row level security").await.expect("off");
    let mut tx = kit.db.read(&kit.acme).await.expect("read");
    let seen: i64 = sqlx::query_scalar("select count(*) from tenancy.tenant_configs").fetch_one(&mut tx).await.expect("rows");
    assert_eq!(seen, 1);
}

#[tokio::test]
async fn another_node_knows_within_a_second() {
    let kit = Kit::new().await;
    let other = TenantDb::open(kit.options()).await.expect("another node");
    let (here, there) = (Configs::new(&kit.db, settings()), Configs::new(&other, settings()));
    assert_eq!(counts(&there, &kit.acme).await.0, 50);
    for n in 1..=5u32 {
        set(&kit.db, &kit.acme, json!({ "page.size": n }), None).await.expect("set");
        let since = Instant::now();
        assert_eq!(counts(&here, &kit.acme).await.0, n, "here at once");
        while counts(&there, &kit.acme).await.0 != n {
            assert!(since.elapsed() < Duration::from_secs(1), "the other node does not know");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
        tx.change_plan_settings("standard", &settings(), &layer(&json!({ "page.size": 100 + n }))).await.expect("changed");
        tx.commit().await.expect("commit");
        let since = Instant::now();
        while counts(&there, &kit.globex).await.0 != 100 + n {
            assert!(since.elapsed() < Duration::from_secs(1), "the other node does not know of the plan");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn flags_are_evaluated_without_a_query_and_their_cohorts_can_not_be_listed() {
    let kit = Kit::new().await;
    let (flags, theirs) = (Flags::new(&kit.db), kit.globex.tenant_id());
    let mut tx = kit.db.dangerous().begin_system("a test").await.expect("system");
    let mut definition = FlagDefinition::off();
    definition.tenants = vec![kit.acme.tenant_id(), theirs];
    tx.define_flag("beta", &definition).await.expect("defined");
    tx.commit().await.expect("commit");
    kit.db.catalog().refresh().await.expect("refresh");
    // What SQL and Rust make of a tenant's id is the same.
    let found = flags.evaluate(&kit.acme, "beta").await.expect("flags").expect("defined");
    assert_eq!((found.is_on(), found.reason), (true, Reason::Cohort));
    assert_eq!(flags.evaluate(&kit.acme, "gamma").await.expect("flags"), None);
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let told: String = sqlx::query_scalar("select flags::text from tenancy.platform_settings()").fetch_one(&mut tx).await.expect("flags");
    assert!(!told.contains(&theirs.to_string()) && told.contains(&digest("beta", theirs)), "{told}");
    drop(tx);
    // From here on a query would fail: what is known must be enough.
    let mut eye = kit.superuser().await;
    eye.execute("revoke execute on function tenancy.platform_settings() from tenancy_app").await.expect("revoked");
    for _ in 0..100 {
        assert!(flags.evaluate(&kit.acme, "beta").await.expect("known").expect("defined").is_on());
    }
    // The control: a change makes the node ask.
    eye.execute("update tenancy.flag_definitions set killed = true").await.expect("changed");
    assert!(kit.db.catalog().refresh().await.is_err());
}
