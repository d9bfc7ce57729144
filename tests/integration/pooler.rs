//! Behind PgBouncer in transaction mode, where every transaction may get another server connection.

use std::collections::BTreeSet;

use harness::pgbouncer::SERVERS;
use harness::{Kit, Route, on_each_route};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

on_each_route! {
    #[tokio::test]
    a_route_is_what_it_says;
}

/// The control of all tests that run on each route: the one shares connections, and the other does not.
async fn a_route_is_what_it_says(route: Route) {
    let Some(kit) = Kit::on(route).await else { return };
    let (mut clients, mut servers) = (Vec::new(), BTreeSet::new());
    for _ in 0..2 * SERVERS {
        let mut client = PgConnection::connect(&kit.app_url()).await.expect("connect");
        servers.insert(sqlx::raw_sql("select pg_backend_pid()").fetch_one(&mut client).await.expect("pid").get::<i32, _>(0));
        clients.push(client);
    }
    match route {
        Route::Direct => assert_eq!(servers.len(), clients.len()),
        Route::Pooled => assert!(servers.len() <= SERVERS as usize, "{servers:?}"),
    }
}

#[tokio::test]
async fn tenants_stay_apart_behind_a_transaction_pooler() {
    let Some(kit) = Kit::on_with(Route::Pooled, |options| options.with_max_connections(8)).await else { return };
    let db = kit.db.clone();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let (db, cx) = (db.clone(), if worker % 2 == 0 { kit.acme.clone() } else { kit.globex.clone() });
        workers.spawn(async move {
            for round in 0..60 {
                let mut tx = db.begin(&cx).await.expect("begin");
                // Distinct statements, prepared again and again on whichever server connection comes.
                let sql = format!("insert into notes (body) values ($1) returning {}", round % 7);
                sqlx::query(AssertSqlSafe(sql)).bind(cx.tenant_id().to_string()).execute(&mut tx).await.expect("insert");
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
    let pool = PgPoolOptions::new().max_connections(1).connect(&kit.app_url()).await.expect("connect");
    let left = sqlx::raw_sql("select 1 from pg_prepared_statements where name <> ''").fetch_all(&pool).await.expect("count");
    assert_eq!(left.len(), 0, "named statements behind the pooler");
}

/// What a session-level SET does there: why nothing here uses one.
#[tokio::test]
async fn control_a_session_setting_behind_a_pooler_serves_the_wrong_tenant() {
    let Some(kit) = Kit::on(Route::Pooled).await else { return };
    kit.note(&kit.acme, &kit.acme.tenant_id().to_string()).await;
    kit.note(&kit.globex, &kit.globex.tenant_id().to_string()).await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8 {
        let url = kit.app_url();
        let tenant = if client % 2 == 0 { kit.acme.tenant_id() } else { kit.globex.tenant_id() }.to_string();
        clients.spawn(async move {
            let mut client = PgConnection::connect(&url).await.expect("connect");
            let mut wrong = 0;
            for _ in 0..50 {
                let set = format!("set tenancy.tenant_id = '{tenant}'");
                sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut client).await.expect("set");
                let rows = sqlx::raw_sql("select body from notes").fetch_all(&mut client).await.expect("select");
                wrong += rows.iter().filter(|row| row.get::<String, _>(0) != tenant).count();
            }
            client.close().await.expect("close");
            wrong
        });
    }
    let wrong: usize = clients.join_all().await.into_iter().sum();
    eprintln!("a session setting behind a pooler: {wrong} of 400 reads gave another tenant's row");
    assert!(wrong > 0, "if nothing leaks, the pooler resets sessions, and the tests on the pooled route prove less");
    // And it outlives its client: the next one, who has set nothing, reads as the last.
    let mut other = PgConnection::connect(&kit.app_url()).await.expect("another client");
    let rows = sqlx::raw_sql("select body from notes").fetch_all(&mut other).await.expect("select");
    assert_eq!(rows.len(), 1);
}
