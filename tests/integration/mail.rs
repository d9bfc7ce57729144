//! E-mail, by a real conversation with a mail server: what arrives, what is repeated, and that nobody's name writes a header.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use harness::Kit;
use harness::app::{Folder, files};
use harness::smtp::{Mishap, Received, SmtpServer};
use mail_parser::{HeaderValue, MessageParser};
use serde_json::{Map, Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use tenancy_core::outbox::{Delivery, DeliveryError, Message, RetryPolicy};
use tenancy_core::{Actor, TenantCatalog, TenantChange, TenantContext};
use tenancy_sqlx::mail::{MailSink, MailTransport, Recipients};
use tenancy_sqlx::outbox::{Worker, WorkerOptions};

const SENDER: &str = "no-reply@kit.example";

fn encrypted(server: &SmtpServer) -> MailTransport {
    let url = format!("smtp://robot:p%40ss%20word@localhost:{}", server.address.port());
    MailTransport::smtp_with_root(&url, &server.root).expect("a transport")
}

async fn worker(kit: &Kit, transport: MailTransport) -> Worker {
    let sink = MailSink::new(&kit.db, transport, SENDER).expect("a sink").with_recipients(Admins);
    start(kit, sink, 3).await
}

async fn start(kit: &Kit, sink: MailSink, tries: u32) -> Worker {
    let retry = RetryPolicy::new(tries, Duration::ZERO, Duration::ZERO);
    let options = WorkerOptions::default().with_poll(Duration::from_millis(10)).with_retry(retry);
    Worker::start(&kit.db, Arc::new(sink), options).await.expect("a worker")
}

/// Two of them, whichever the tenant.
struct Admins;

#[async_trait]
impl Recipients for Admins {
    async fn of(&self, _: &Delivery) -> Result<Vec<String>, DeliveryError> {
        Ok(vec!["ada@example.com".to_owned(), "ben@example.com".to_owned()])
    }
}

async fn post(kit: &Kit, cx: &TenantContext, topic: &str, key: &str, payload: Value, secret: Value) {
    let secret: Map<String, Value> = secret.as_object().cloned().unwrap_or_default();
    let mut tx = kit.db.begin(cx).await.expect("begin");
    tx.post(&Message::new(topic, key, payload).expect("a message").with_secret(secret)).await.expect("post");
    tx.commit().await.expect("commit");
}

async fn brand(kit: &Kit, cx: &TenantContext, branding: Value) {
    let mut change = TenantChange::default();
    change.branding = branding.as_object().cloned();
    kit.db.catalog().update(cx.tenant_id(), change, None, &Actor::System).await.expect("branding");
}

async fn wait_for(eye: &mut PgConnection, condition: &str, count: i64) {
    let sql = format!("select count(*) from tenancy.outbox where {condition}");
    for _ in 0..1500 {
        let now: i64 = sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_one(&mut *eye).await.expect("outbox");
        if now == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never {count} messages where {condition}");
}

/// Header names in lower case, subject, text, HTML.
fn parse(mail: &[u8]) -> (Vec<String>, String, String, String) {
    let parsed = MessageParser::default().parse(mail).expect("a mail");
    let names = parsed.headers().iter().map(|header| header.name().to_lowercase()).collect();
    let body = |body: Option<std::borrow::Cow<'_, str>>| body.expect("a body").replace("\r\n", "\n");
    (names, parsed.subject().expect("a subject").to_owned(), body(parsed.body_text(0)), body(parsed.body_html(0)))
}

fn header(mail: &Received, name: &str) -> String {
    let parsed = MessageParser::default().parse(&mail.data).expect("a mail");
    match parsed.header(name.to_owned()) {
        Some(HeaderValue::Text(text)) => text.to_string(),
        Some(HeaderValue::Address(address)) => {
            let first = address.first().expect("an address");
            format!("{}<{}>", first.name().unwrap_or_default(), first.address().expect("an address"))
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[tokio::test]
async fn each_topic_arrives_in_the_tenants_name_encrypted_and_once() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let server = SmtpServer::start(true).await;
    brand(&kit, &kit.acme, json!({ "product_name": "Äcme Rockets", "support_email": "help@acme.example" })).await;
    let worker = worker(&kit, encrypted(&server)).await;
    let quota = json!({ "metric": "storage", "threshold": 80, "used": 8, "limit": 10, "period_start": null });
    let invitation = json!({ "to": "eve@example.com", "inviter": "Ada", "role": "admin" });
    post(&kit, &kit.acme, "member.invited", "i", invitation, json!({ "link": "https://app.example.com/join#a&b" })).await;
    wait_for(&mut eye, "sent_at is not null", 1).await;
    post(&kit, &kit.globex, "member.sign_in", "s", json!({ "to": ["gus@example.com"] }), json!({ "token": "1234-5678" })).await;
    wait_for(&mut eye, "sent_at is not null", 2).await;
    post(&kit, &kit.acme, "test.unknown", "u", json!({ "to": "eve@example.com" }), json!({ "link": "https://x.example" })).await;
    post(&kit, &kit.acme, "quota.threshold", "t", quota.clone(), Value::Null).await;
    wait_for(&mut eye, "sent_at is not null", 4).await;
    post(&kit, &kit.acme, "quota.resolved", "r", quota, Value::Null).await;
    wait_for(&mut eye, "sent_at is not null and secret is null", 5).await;
    worker.shutdown().await;

    let mails = server.received();
    let to: Vec<&str> = mails.iter().flat_map(|mail| mail.to.iter().map(String::as_str)).collect();
    assert_eq!(to, ["eve@example.com", "gus@example.com", "ada@example.com", "ben@example.com", "ada@example.com", "ben@example.com"]);
    assert!(mails.iter().all(|mail| mail.encrypted && mail.user.as_deref() == Some("robot") && mail.from == SENDER));
    assert!(server.clear().iter().all(|line| line.starts_with("EHLO") || line == "STARTTLS"), "{:?}", server.clear());

    let (_, subject, text, html) = parse(&mails[0].data);
    assert_eq!(subject, "Äcme Rockets: your invitation");
    assert!(
        text.contains("Ada invites you to join Äcme Rockets as admin.") && text.contains(": https://app.example.com/join#a&b\n"),
        "{text}"
    );
    assert!(html.contains("<a href=\"https://app.example.com/join#a&amp;b\"") && html.contains("mailto:help@acme.example"), "{html}");
    assert_eq!(header(&mails[0], "From"), format!("Äcme Rockets<{SENDER}>"));
    assert_eq!(header(&mails[0], "Reply-To"), "<help@acme.example>");
    assert_eq!(header(&mails[0], "Auto-Submitted"), "auto-generated");
    let (names, subject, text, html) = parse(&mails[1].data);
    assert!(!names.contains(&"reply-to".to_owned()), "globex has no support address");
    assert_eq!(subject, format!("{}: sign in", header(&mails[1], "From").trim_end_matches(&format!("<{SENDER}>"))));
    assert!(text.contains("Your code: 1234-5678\n") && html.contains("<code>1234-5678</code>") && !text.contains("Äcme"));
    let (_, subject, text, _) = parse(&mails[2].data);
    assert_eq!(subject, "Äcme Rockets: 80 % of storage used");
    assert!(text.contains("80 percent of the quota \"storage\" are used.\nUsed: 8 of 10.\n"), "{text}");
    assert_eq!(parse(&mails[4].data).1, "Äcme Rockets: storage is below 80 % again");
    let mut ids: Vec<String> = mails.iter().map(|mail| header(mail, "Message-ID")).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6);
}

#[tokio::test]
async fn what_the_server_did_not_take_comes_again_under_the_same_id() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let server = SmtpServer::start(true).await;
    server.next(&[Mishap::Busy, Mishap::HangUp]);
    let worker = worker(&kit, encrypted(&server)).await;
    let secret = json!({ "token": "t" });
    post(&kit, &kit.acme, "member.sign_in", "s", json!({ "to": "eve@example.com" }), secret.clone()).await;
    wait_for(&mut eye, "sent_at is not null and attempts = 3 and last_error = 'the mail server can''t be reached'", 1).await;
    let mails = server.received();
    assert_eq!(mails.len(), 2, "nobody knew that the first was taken");
    assert_eq!(header(&mails[0], "Message-ID"), header(&mails[1], "Message-ID"));

    server.next(&[Mishap::NoSuchUser]);
    post(&kit, &kit.acme, "member.sign_in", "no", json!({ "to": "nobody@example.com" }), secret.clone()).await;
    wait_for(&mut eye, "dead_at is not null and attempts = 1 and last_error = 'the mail server said 550' and secret is null", 1).await;
    // One of two receivers is refused: the other gets it, once.
    server.next(&[Mishap::NoSuchUser]);
    post(&kit, &kit.acme, "quota.threshold", "q", json!({ "metric": "storage" }), Value::Null).await;
    wait_for(&mut eye, "sent_at is not null and attempts = 1", 1).await;
    assert_eq!(server.received().last().expect("a mail").to, ["ben@example.com"]);
    // A wrong password is no fault of the mail's.
    server.next(&[Mishap::BadLogin]);
    post(&kit, &kit.acme, "member.sign_in", "login", json!({ "to": "eve@example.com" }), secret).await;
    wait_for(&mut eye, "sent_at is not null and attempts = 2 and last_error = 'the mail server said 535'", 1).await;
    worker.shutdown().await;
}

#[tokio::test]
async fn nobodys_name_writes_a_header_or_html_or_ends_a_mail() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let server = SmtpServer::start(true).await;
    let worker = worker(&kit, encrypted(&server)).await;
    let secret = json!({ "token": "t" });
    post(&kit, &kit.acme, "member.invited", "tame", json!({ "to": "eve@example.com", "inviter": "Ada" }), secret.clone()).await;
    wait_for(&mut eye, "sent_at is not null", 1).await;
    let tame = parse(&server.received()[0].data).0;

    let hostile = [
        "A\r\nBcc: spy@example.com",
        "A\nBcc: spy@example.com",
        "A\r\n.\r\nMAIL FROM:<spy@example.com>",
        "\" <spy@example.com>, \"",
        "=?utf-8?q?A=0D=0ABcc:_spy@example.com?=",
        "<script>alert(1)</script>",
        "\u{2028}Bcc: spy@example.com",
        "\"><img src=x>",
    ];
    for (n, name) in hostile.iter().enumerate() {
        brand(&kit, &kit.acme, json!({ "product_name": name, "support_email": format!("a@b.example{name}") })).await;
        let payload = json!({ "to": "eve@example.com", "inviter": name, "role": name });
        post(&kit, &kit.acme, "member.invited", &format!("wild{n}"), payload, secret.clone()).await;
        wait_for(&mut eye, "sent_at is not null", 2 + i64::try_from(n).expect("few")).await;
        let mails = server.received();
        assert_eq!(mails.len(), n + 2, "one mail for one message: {name:?}");
        let mail = mails.last().expect("a mail");
        assert_eq!((mail.from.as_str(), mail.to.as_slice()), (SENDER, ["eve@example.com".to_owned()].as_slice()), "{name:?}");
        let (names, _, _, html) = parse(&mail.data);
        assert_eq!(names, tame, "{name:?}");
        assert!(header(mail, "From").ends_with(&format!("<{SENDER}>")) && header(mail, "To") == "<eve@example.com>", "{name:?}");
        assert!(!html.contains("<script") && !html.contains("<img"), "{html}");
    }

    for (n, to) in ["eve@example.com\r\nRCPT TO:<spy@example.com>", "eve@example.com>,<spy@example.com", "Eve <eve@example.com>", ""]
        .iter()
        .enumerate()
    {
        post(&kit, &kit.acme, "member.invited", &format!("to{n}"), json!({ "to": to }), secret.clone()).await;
        wait_for(
            &mut eye,
            "dead_at is not null and last_error = 'a receiver is not an e-mail address'",
            i64::try_from(n + 1).expect("few"),
        )
        .await;
    }
    worker.shutdown().await;
    assert_eq!(server.received().len(), hostile.len() + 1);
}

#[tokio::test]
async fn without_tls_and_its_certificate_nothing_is_said() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let message =
        async |key: &str| post(&kit, &kit.acme, "member.sign_in", key, json!({ "to": "eve@example.com" }), json!({ "token": "t" })).await;
    let (plain, known) = (SmtpServer::start(false).await, SmtpServer::start(true).await);
    let unknown = MailTransport::smtp(&format!("smtp://robot:p@localhost:{}", known.address.port())).expect("a transport");
    for (n, transport) in [encrypted(&plain), unknown].into_iter().enumerate() {
        let worker = worker(&kit, transport).await;
        message(&format!("k{n}")).await;
        wait_for(&mut eye, "dead_at is not null and attempts = 3", i64::try_from(n + 1).expect("few")).await;
        worker.shutdown().await;
    }
    for server in [&plain, &known] {
        assert!(server.received().is_empty());
        assert!(
            server
                .clear()
                .iter()
                .all(|line| ["EHLO", "STARTTLS", "QUIT", ""].iter().any(|verb| line.starts_with(verb)) && !line.contains("AUTH"))
        );
    }
    // The control: asked to do without, it does.
    let url = format!("smtp://robot:p%40ss%20word@localhost:{}?tls=none", plain.address.port());
    let worker = worker(&kit, MailTransport::smtp(&url).expect("a transport")).await;
    message("clear").await;
    wait_for(&mut eye, "sent_at is not null", 1).await;
    worker.shutdown().await;
    assert!(!plain.received()[0].encrypted && plain.clear().iter().any(|line| line.starts_with("AUTH PLAIN")));
}

#[tokio::test]
async fn a_folder_keeps_each_mail_once_for_its_owner() {
    let kit = Kit::new().await;
    let mut eye = kit.superuser().await;
    let folder = Folder::new();
    let worker = worker(&kit, MailTransport::folder(folder.0.join("mailbox")).expect("a folder")).await;
    post(&kit, &kit.acme, "quota.threshold", "q", json!({ "metric": "storage", "threshold": 80 }), Value::Null).await;
    wait_for(&mut eye, "sent_at is not null", 1).await;
    let first = files(&folder.0);
    sqlx::query("update tenancy.outbox set sent_at = null, due_at = clock_timestamp()").execute(&mut eye).await.expect("again");
    wait_for(&mut eye, "sent_at is not null and attempts = 2", 1).await;
    worker.shutdown().await;
    assert_eq!(first.len(), 2, "one for each admin");
    assert_eq!(files(&folder.0), first, "the same again is the same file");
    assert!(parse(&std::fs::read(&first[0]).expect("a mail")).1.ends_with(": 80 % of storage used"));
    #[cfg(unix)]
    for file in first {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(file).expect("a file").permissions().mode() & 0o077, 0);
    }
}
