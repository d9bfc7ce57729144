//! Behind PgBouncer in transaction mode, where every transaction may get another server connection.

use harness::Kit;
use harness::pgbouncer::PgBouncer;
use sqlx::postgres::PgPoolOptions;
use tenancy_sqlx::{Options, TenantDb};

#[tokio::test]
async fn tenants_stay_apart_behind_a_transaction_pooler() {
    let kit = Kit::new().await;
    let Some(bouncer) = PgBouncer::start(&kit.database.app_url()).await else { return };
    let options = Options::new(&bouncer.url()).and_then(|o| o.with_admin_url(&kit.database.admin_url())).expect("URLs");
    let db = TenantDb::open(options.with_max_connections(8)).await.expect("open behind the pooler");
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let (db, cx) = (db.clone(), if worker % 2 == 0 { kit.acme.clone() } else { kit.globex.clone() });
        workers.spawn(async move {
            for round in 0..60 {
                let mut tx = db.begin(&cx).await.expect("begin");
                // Distinct statements, prepared again and again on whichever server connection comes.
                let sql = format!("insert into notes (body) values ($1) returning {}", round % 7);
                sqlx::query(sqlx::AssertSqlSafe(sql)).bind(cx.tenant_id().to_string()).execute(&mut tx).await.expect("insert");
                tx.commit().await.expect("commit");
                let mut tx = db.read(&cx).await.expect("read");
                let bodies: Vec<String> = sqlx::query_scalar("select body from notes").fetch_all(&mut tx).await.expect("select");
                assert!(!bodies.is_empty() && bodies.iter().all(|body| *body == cx.tenant_id().to_string()));
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.expect("worker");
    }
    // No statement was left on the server connections.
    let pool = PgPoolOptions::new().max_connections(1).connect(&bouncer.url()).await.expect("connect");
    let left = sqlx::raw_sql("select 1 from pg_prepared_statements where name <> ''").fetch_all(&pool).await.expect("count");
    assert_eq!(left.len(), 0, "named statements behind the pooler");
    db.close().await;
}

/// What a session-level SET does there: why nothing here uses one.
#[tokio::test]
async fn control_a_session_setting_behind_a_pooler_serves_the_wrong_tenant() {
    let kit = Kit::new().await;
    kit.note(&kit.acme, "acme's").await;
    let Some(bouncer) = PgBouncer::start(&kit.database.app_url()).await else { return };
    let pool = PgPoolOptions::new().max_connections(1).connect(&bouncer.url()).await.expect("connect");
    let set = format!("set tenancy.tenant_id = '{}'", kit.acme.tenant_id());
    sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&pool).await.expect("set");
    pool.close().await;
    let other = PgPoolOptions::new().max_connections(1).connect(&bouncer.url()).await.expect("another client");
    let rows = sqlx::raw_sql("select body from notes").fetch_all(&other).await.expect("select");
    assert_eq!(rows.len(), 1, "if this is empty, the pooler resets sessions, and the test above proves less");
}
