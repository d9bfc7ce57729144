//! sqlx's checked macros run on a tenant's transaction like everything else.
//!
//! Their metadata is in `tests/.sqlx`; after changing a query here: `cargo sqlx prepare` in this folder, with a migrated database.

use harness::Kit;

#[tokio::test]
async fn query_macros_run_on_a_tenants_transaction() {
    let kit = Kit::new().await;
    kit.note(&kit.globex, "globex's").await;
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let note =
        sqlx::query!("insert into notes (body) values ($1) returning id, tenant_id", "acme's").fetch_one(&mut tx).await.expect("insert");
    assert_eq!(note.tenant_id, kit.acme.tenant_id().as_uuid());
    let bodies = sqlx::query_scalar!("select body from notes").fetch_all(&mut tx).await.expect("select");
    assert_eq!(bodies, ["acme's"]);
}
