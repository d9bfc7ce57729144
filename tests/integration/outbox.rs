//! Messages: posted if the transaction commits, once per key and tenant, and for nobody else to read.

use harness::Kit;
use serde_json::{Map, json};
use sqlx::Row;
use tenancy_core::outbox::Message;
use tenancy_core::{ErrorKind, TenantContext};

fn invited() -> Message {
    let secret = Map::from_iter([("token".to_owned(), json!("s3cret"))]);
    Message::new("member.invited", "invite:1", json!({ "to": "ada@example.com" })).expect("a message").with_secret(secret)
}

/// Posts, and says whether the message was new.
async fn post(kit: &Kit, cx: &TenantContext, commit: bool) -> bool {
    let mut tx = kit.db.begin(cx).await.expect("begin");
    let new = tx.post(&invited()).await.expect("post");
    let ended = if commit { tx.commit().await } else { tx.rollback().await };
    ended.expect("ended");
    new
}

#[tokio::test]
async fn a_message_is_there_if_the_transaction_commits_and_once() {
    let kit = Kit::new().await;
    assert!(post(&kit, &kit.acme, false).await, "rolled back");
    assert!(post(&kit, &kit.acme, true).await, "the first that stays");
    assert!(!post(&kit, &kit.acme, true).await, "the same again");
    assert!(post(&kit, &kit.globex, true).await, "another tenant's key is another key");

    let mut tx = kit.db.dangerous().begin_system("a test posts for a tenant and for the platform").await.expect("system");
    assert!(!tx.post(Some(kit.acme.tenant_id()), &invited()).await.expect("post"));
    assert!(tx.post(None, &invited()).await.expect("post"));
    tx.commit().await.expect("commit");

    let mut eye = kit.superuser().await;
    let rows =
        sqlx::query("select tenant_id, topic, payload, secret from tenancy.outbox order by id").fetch_all(&mut eye).await.expect("rows");
    let whose: Vec<Option<uuid::Uuid>> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(whose, [Some(kit.acme.tenant_id().as_uuid()), Some(kit.globex.tenant_id().as_uuid()), None]);
    for row in rows {
        assert_eq!(row.get::<String, _>(1), "member.invited");
        assert_eq!(row.get::<serde_json::Value, _>(2), json!({ "to": "ada@example.com" }));
        assert_eq!(row.get::<serde_json::Value, _>(3), json!({ "token": "s3cret" }));
    }
}

#[tokio::test]
async fn the_applications_role_posts_for_its_tenant_alone_and_reads_nothing() {
    let kit = Kit::new().await;
    post(&kit, &kit.acme, true).await;
    let (acme, globex) = (kit.acme.tenant_id(), kit.globex.tenant_id());
    for attempt in [
        "select * from tenancy.outbox".to_owned(),
        "select secret from tenancy.outbox".to_owned(),
        "delete from tenancy.outbox".to_owned(),
        format!("select tenancy.outbox_post_for('{globex}', 'a.b', 'k', '{{}}', null)"),
        format!("insert into tenancy.outbox (tenant_id, topic, dedup_key, payload) values ('{acme}', 'a.b', 'k', '{{}}')"),
    ] {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let refused = sqlx::query(sqlx::AssertSqlSafe(attempt.clone())).fetch_all(&mut tx).await.map_err(tenancy_sqlx::from_sqlx);
        assert_eq!(refused.map(|rows| rows.len()).expect_err(&attempt).kind(), ErrorKind::Forbidden, "{attempt}");
    }
    // The control: whoever may, does.
    let mut tx = kit.db.dangerous().begin_system("a test reads the outbox").await.expect("system");
    let secret: serde_json::Value = sqlx::query_scalar("select secret from tenancy.outbox").fetch_one(&mut tx).await.expect("read");
    assert_eq!(secret["token"], "s3cret");
}
