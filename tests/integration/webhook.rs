//! Webhooks, from the outbox to a real receiver: who gets what, how it is signed, what is tried again, and where nothing goes.

use std::sync::Arc;
use std::time::Duration;

use harness::Kit;
use harness::receiver::Receiver;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use tenancy_core::TenantContext;
use tenancy_core::outbox::{Message, RetryPolicy};
use tenancy_sqlx::outbox::{Worker, WorkerOptions};
use tenancy_sqlx::webhook::{WebhookDelivery, WebhookSink};
use uuid::Uuid;

/// To this machine; three tries without waiting.
async fn worker(kit: &Kit) -> Worker {
    start(kit, WebhookSink::new(&kit.db).expect("a sink").with_loopback(true)).await
}

async fn start(kit: &Kit, sink: WebhookSink) -> Worker {
    let retry = RetryPolicy::new(3, Duration::ZERO, Duration::ZERO);
    let options = WorkerOptions::default().with_poll(Duration::from_millis(10)).with_retry(retry);
    Worker::start(&kit.db, Arc::new(sink), options).await.expect("a worker")
}

/// An endpoint, and its secret.
async fn endpoint(kit: &Kit, cx: &TenantContext, url: &str, topic: &str) -> (Uuid, String) {
    let mut tx = kit.db.begin(cx).await.expect("begin");
    let (webhook, secret) = tx.add_webhook(cx, url, &[topic.to_owned()]).await.expect("an endpoint");
    tx.commit().await.expect("commit");
    (webhook.id, secret.expose())
}

async fn post(kit: &Kit, cx: &TenantContext, topic: &str, key: &str) {
    let mut tx = kit.db.begin(cx).await.expect("begin");
    tx.post(&Message::new(topic, key, json!({ "key": key })).expect("a message")).await.expect("post");
    tx.commit().await.expect("commit");
}

async fn deliveries(kit: &Kit, cx: &TenantContext, webhook: Uuid) -> Vec<WebhookDelivery> {
    kit.db.read(cx).await.expect("read").webhook_deliveries(webhook).await.expect("deliveries")
}

/// Waits until nothing is waiting in the outbox.
async fn settled(eye: &mut PgConnection) {
    for _ in 0..1500 {
        let waiting = "select count(*) from tenancy.outbox where sent_at is null and dead_at is null";
        if sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *eye).await.expect("outbox") == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("messages wait for ever");
}

#[tokio::test]
async fn each_endpoint_gets_what_it_wants_signed_and_nobody_elses() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let (ours, members, theirs) = (Receiver::start(false).await, Receiver::start(false).await, Receiver::start(false).await);
    let (webhook, secret) = endpoint(&kit, &kit.acme, &ours.url("/hooks?of=acme"), "quota.threshold").await;
    endpoint(&kit, &kit.acme, &members.url("/"), "member.added").await;
    let (_, globexs) = endpoint(&kit, &kit.globex, &theirs.url("/"), "quota.threshold").await;
    let worker = worker(&kit).await;
    post(&kit, &kit.acme, "quota.threshold", "a").await;
    post(&kit, &kit.globex, "quota.threshold", "g").await;
    post(&kit, &kit.acme, "quota.resolved", "unwanted").await;
    // What has a secret is for its receiver alone, whatever its topic.
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let secret_one = Message::new("quota.threshold", "s", json!({})).expect("a message");
    tx.post(&secret_one.with_secret(json!({ "token": "x" }).as_object().cloned().expect("an object"))).await.expect("post");
    tx.commit().await.expect("commit");
    settled(&mut eye).await;

    let [hook] = &ours.hooks()[..] else { panic!("not one: {:?}", ours.hooks()) };
    assert_eq!((hook.target.as_str(), hook.header("content-type")), ("/hooks?of=acme", "application/json"));
    assert_eq!((&hook.json()["type"], &hook.json()["data"]), (&json!("quota.threshold"), &json!({ "key": "a" })));
    assert!(hook.json()["timestamp"].is_string() && hook.header("user-agent").starts_with("tenancy-webhooks/"));
    hook.verify(&secret).expect("it is signed");
    assert!(hook.verify(&globexs).is_err(), "and not by another's secret");
    let mut changed = hook.clone();
    changed.body[0] = b' ';
    assert!(changed.verify(&secret).is_err());
    assert_eq!(members.hooks().len(), 0);
    let [hook] = &theirs.hooks()[..] else { panic!("not one: {:?}", theirs.hooks()) };
    assert_eq!(hook.json()["data"]["key"], "g");
    let [delivery] = &deliveries(&kit, &kit.acme, webhook).await[..] else { panic!("not one") };
    assert_eq!((delivery.state.as_str(), delivery.status_code, delivery.attempts), ("delivered", Some(204), 1));
    let foreign = kit.db.read(&kit.globex).await.expect("read").webhook_deliveries(webhook).await.expect_err("another's");
    assert_eq!(foreign.kind(), tenancy_core::ErrorKind::NotFound);

    // A message that comes again, as after a lost worker, is no second delivery.
    eye.execute(
        "update tenancy.outbox set sent_at = null, due_at = now(), attempts = 0 where topic = 'quota.threshold' and not secret_gone",
    )
    .await
    .expect("again");
    settled(&mut eye).await;
    assert_eq!((ours.hooks().len(), theirs.hooks().len()), (1, 1));
    worker.shutdown().await;
}

#[tokio::test]
async fn what_fails_is_tried_again_alone_and_given_up_at_last() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let (bad, good, elsewhere) = (Receiver::start(false).await, Receiver::start(false).await, Receiver::start(false).await);
    let (failing, secret) = endpoint(&kit, &kit.acme, &bad.url("/"), "quota.threshold").await;
    let (fine, _) = endpoint(&kit, &kit.acme, &good.url("/"), "quota.threshold").await;
    bad.next(&["500 Oh", "302 Found\r\nlocation: http://elsewhere.example/"]);
    let worker = worker(&kit).await;
    post(&kit, &kit.acme, "quota.threshold", "a").await;
    settled(&mut eye).await;
    let hooks = bad.hooks();
    assert_eq!((hooks.len(), good.hooks().len(), elsewhere.hooks().len()), (3, 1, 0));
    assert!(hooks.iter().all(|hook| hook.header("webhook-id") == hooks[0].header("webhook-id") && hook.verify(&secret).is_ok()));
    let [delivery] = &deliveries(&kit, &kit.acme, failing).await[..] else { panic!("not one") };
    assert_eq!((delivery.state.as_str(), delivery.status_code, delivery.attempts), ("delivered", Some(204), 3));

    // Redirects are not followed, and an answer without an end is not waited for.
    let to = format!("307 Go\r\nlocation: {}", elsewhere.url("/"));
    bad.next(&[&to, "500 Oh", &format!("503 Oh\r\ncontent-length: 9999999\r\n\r\n{}", "x".repeat(100_000))]);
    post(&kit, &kit.acme, "quota.threshold", "b").await;
    settled(&mut eye).await;
    assert_eq!((bad.hooks().len(), good.hooks().len(), elsewhere.hooks().len()), (6, 2, 0));
    let delivery = &deliveries(&kit, &kit.acme, failing).await[0];
    assert_eq!((delivery.state.as_str(), delivery.status_code, delivery.problem.as_deref()), ("dead", Some(503), Some("it answered 503")));
    assert_eq!(deliveries(&kit, &kit.acme, fine).await[0].state, "delivered");
    worker.shutdown().await;
}

#[tokio::test]
async fn a_replaced_secret_goes_on_for_a_day_and_the_application_reads_none() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let receiver = Receiver::start(false).await;
    let (webhook, old) = endpoint(&kit, &kit.acme, &receiver.url("/"), "quota.threshold").await;
    let rotate = async |cx: &TenantContext| {
        let mut tx = kit.db.begin(cx).await.expect("begin");
        let secret = tx.rotate_webhook(cx, webhook).await?;
        tx.commit().await.map(|()| secret.expose())
    };
    assert_eq!(rotate(&kit.globex).await.expect_err("another's").kind(), tenancy_core::ErrorKind::NotFound);
    let new = rotate(&kit.acme).await.expect("rotated");
    let worker = worker(&kit).await;
    post(&kit, &kit.acme, "quota.threshold", "a").await;
    settled(&mut eye).await;
    let hook = receiver.hooks().pop().expect("one");
    assert!(hook.verify(&old).is_ok() && hook.verify(&new).is_ok());
    let left: f64 = sqlx::query_scalar(
        "select extract(epoch from expires_at - created_at)::float8 from tenancy.webhook_secrets where expires_at is not null",
    )
    .fetch_one(&mut eye)
    .await
    .expect("the old one");
    assert!((86_000.0..87_000.0).contains(&left), "{left}");
    eye.execute("update tenancy.webhook_secrets set expires_at = now() where expires_at is not null").await.expect("a day later");
    post(&kit, &kit.acme, "quota.threshold", "b").await;
    settled(&mut eye).await;
    let hook = receiver.hooks().pop().expect("one");
    assert!(hook.verify(&old).is_err() && hook.verify(&new).is_ok());
    for _ in 0..4 {
        rotate(&kit.acme).await.expect("up to five");
    }
    assert_eq!(rotate(&kit.acme).await.expect_err("too many").kind(), tenancy_core::ErrorKind::Conflict);
    worker.shutdown().await;

    for statement in [
        "select count(*) from tenancy.webhook_secrets",
        "insert into tenancy.webhook_secrets (tenant_id, webhook_id, secret) select tenant_id, id, 'whsec_' || repeat('A', 32) from tenancy.webhooks",
        "select count(*) from tenancy.webhook_deliveries",
        "select tenancy.webhook_send_for(tenancy.current_tenant(), gen_random_uuid(), gen_random_uuid(), 'a.b', '{}')",
    ] {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        assert!(sqlx::query(statement).execute(&mut tx).await.is_err(), "{statement}");
    }
    // A secret or a delivery can be added to one's own endpoint alone.
    for statement in [
        "select tenancy.webhook_secret_add($1, 'whsec_' || repeat('A', 32), '1 day')",
        "select tenancy.webhook_test($1, gen_random_uuid())",
    ] {
        let mut tx = kit.db.begin(&kit.globex).await.expect("begin");
        assert!(sqlx::query(statement).bind(webhook).execute(&mut tx).await.is_err(), "{statement}");
    }
}

#[tokio::test]
async fn nothing_goes_inside_and_the_same_receiver_is_the_control() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let receiver = Receiver::start(false).await;
    let secure = Receiver::start(true).await;
    // As if they had been registered when it was allowed.
    let urls = [
        receiver.url("/"),
        format!("http://localhost:{}/", receiver.address.port()),
        secure.url("/"),
        format!("https://127.0.0.1:{}/", secure.address.port()),
    ];
    let mut webhooks = Vec::new();
    for url in &urls {
        webhooks.push(endpoint(&kit, &kit.acme, url, "quota.threshold").await.0);
    }
    let strict = WebhookSink::new(&kit.db).expect("a sink").with_root(secure.root.as_bytes()).expect("a root");
    let strict = start(&kit, strict).await;
    post(&kit, &kit.acme, "quota.threshold", "a").await;
    settled(&mut eye).await;
    strict.shutdown().await;
    assert_eq!((receiver.hooks().len(), secure.hooks().len()), (0, 0));
    for webhook in &webhooks {
        let delivery = &deliveries(&kit, &kit.acme, *webhook).await[0];
        assert_eq!((delivery.state.as_str(), delivery.attempts, delivery.problem.as_deref()), ("dead", 1, Some("the URL is not allowed")));
    }
    let open = WebhookSink::new(&kit.db).expect("a sink").with_loopback(true).with_root(secure.root.as_bytes()).expect("a root");
    let open = start(&kit, open).await;
    post(&kit, &kit.acme, "quota.threshold", "b").await;
    settled(&mut eye).await;
    open.shutdown().await;
    // The last one has no certificate for its name.
    assert_eq!((receiver.hooks().len(), secure.hooks().len()), (2, 1));
    // Nor is a certificate believed that nobody vouches for.
    let worker = worker(&kit).await;
    post(&kit, &kit.acme, "quota.threshold", "c").await;
    settled(&mut eye).await;
    worker.shutdown().await;
    assert_eq!((receiver.hooks().len(), secure.hooks().len()), (4, 1));
    assert_eq!(deliveries(&kit, &kit.acme, webhooks[2]).await[0].problem.as_deref(), Some("no secure connection could be made"));
}

#[tokio::test]
async fn an_endpoint_that_fails_for_days_or_wants_no_more_is_disabled_and_its_admins_are_told() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let receiver = Receiver::start(false).await;
    let (webhook, _) = endpoint(&kit, &kit.acme, &receiver.url("/"), "quota.threshold").await;
    let worker = worker(&kit).await;
    let shown = async || kit.db.read(&kit.acme).await.expect("read").webhooks().await.expect("webhooks").remove(0);
    let told = async |eye: &mut PgConnection| {
        let sql = "select payload from tenancy.outbox where topic = 'webhook.disabled' and tenant_id is not null order by id";
        sqlx::query_scalar::<_, Value>(AssertSqlSafe(sql)).fetch_all(eye).await.expect("the outbox")
    };
    receiver.next(&["500 Oh", "500 Oh", "500 Oh"]);
    post(&kit, &kit.acme, "quota.threshold", "a").await;
    settled(&mut eye).await;
    let failing = shown().await;
    assert!(failing.enabled && failing.failing_since.is_some(), "for a moment only");
    post(&kit, &kit.acme, "quota.threshold", "b").await;
    settled(&mut eye).await;
    assert!(shown().await.failing_since.is_none(), "one success is enough");

    receiver.next(&["500 Oh"]);
    eye.execute("update tenancy.webhooks set failing_since = now() - interval '73 hours'").await.expect("since days");
    post(&kit, &kit.acme, "quota.threshold", "c").await;
    settled(&mut eye).await;
    let disabled = shown().await;
    assert_eq!(
        (disabled.enabled, disabled.disabled_because.as_deref(), disabled.version),
        (false, Some("every delivery failed for days"), 2)
    );
    assert_eq!(told(&mut eye).await, [json!({ "webhook": webhook, "host": "127.0.0.1", "why": "every delivery failed for days" })]);
    assert_eq!(deliveries(&kit, &kit.acme, webhook).await[0].state, "skipped", "what was still to be tried");
    let count = receiver.hooks().len();
    post(&kit, &kit.acme, "quota.threshold", "d").await;
    settled(&mut eye).await;
    assert_eq!(receiver.hooks().len(), count);

    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let change = tenancy_sqlx::webhook::WebhookChange::new(None, None, Some(true));
    let enabled = tx.update_webhook(&kit.acme, webhook, &change, Some(&[2])).await.expect("enabled");
    assert!(enabled.enabled && enabled.disabled_because.is_none() && enabled.failing_since.is_none());
    tx.commit().await.expect("commit");
    receiver.next(&["410 Gone"]);
    post(&kit, &kit.acme, "quota.threshold", "e").await;
    settled(&mut eye).await;
    assert_eq!(receiver.hooks().len(), count + 1, "and not tried again");
    assert_eq!((shown().await.disabled_because.as_deref(), told(&mut eye).await.len()), (Some("it answered 410"), 2));
    let events: i64 =
        sqlx::query_scalar("select count(*) from tenancy.audit_events where action = 'webhook.disable' and tenant_id is not null")
            .fetch_one(&mut eye)
            .await
            .expect("the log");
    assert_eq!(events, 2);
    worker.shutdown().await;
}
