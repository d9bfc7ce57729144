//! Sharing between tenants over HTTP.

use harness::actors::{Actor, Ask, Member, Reply};
use harness::app::TestApp;
use serde_json::{Value, json};

use super::ABSENT;
use super::sign_in::Post;

/// Two tenants that may share, and a document of the first with an attachment; beside it, one that is shared with nobody.
pub(super) struct Two {
    pub(super) app: TestApp,
    pub(super) acme: Member,
    pub(super) globex: Member,
    pub(super) document: String,
    pub(super) beside: String,
}

impl Two {
    pub(super) async fn new() -> Self {
        let (app, acme, globex) = TestApp::with_tenants().await;
        app.operator().allow_sharing().await;
        for tenant in [&acme, &globex] {
            tenant.allow_sharing().await;
        }
        let project = acme.project("a secret project").await;
        let (document, beside) = (acme.document(&project, "the plan").await, acme.document(&project, "beside").await);
        acme.attach(&document, "plan.txt", b"the plan's text").await.expect(201);
        acme.attach(&beside, "beside.txt", b"canary").await.expect(201);
        Self { app, acme, globex, document, beside }
    }

    pub(super) fn resource(&self) -> String {
        format!("document:{}", self.document)
    }

    /// The text of the other document, which is nowhere to be seen.
    pub(super) fn silent(&self, reply: &Reply) {
        reply.is_silent_about(["beside", "canary", "secret", &self.beside]);
    }
}

async fn told(of: &Member, share: &str) -> Vec<String> {
    let log = of.get(&format!("/api/v1/shares/{share}/log")).await.expect(200).json();
    let items = log["items"].as_array().expect("items").iter().rev();
    items
        .map(|event| {
            let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", text("action"), text("outcome"), text("actor_kind"))
        })
        .collect()
}

/// The walk of `docs/sharing.md`.
#[tokio::test]
async fn share_accept_read_and_be_refused_when_it_ends() {
    let two = Two::new().await;
    let (acme, globex) = (&two.acme, &two.globex);
    let viewer = globex.role("viewer");
    let body = json!({ "resource": two.resource(), "target": globex.slug, "perms": "read" });
    let offered = acme.post("/api/v1/shares", &body).with("idempotency-key", "once").await.expect(201);
    let again = acme.post("/api/v1/shares", &body).with("idempotency-key", "once").await.expect(201);
    assert_eq!((again.text("id"), again.header("idempotency-replayed")), (offered.text("id"), "true"));
    acme.post("/api/v1/shares", &body).await.expect(409).problem("conflict");
    let share = offered.text("id");
    let path = |rest: &str| format!("/api/v1/shares/{share}{rest}");
    assert_eq!((offered.text("state"), offered.text("target")), ("offered".to_owned(), globex.tenant.clone()));

    // What is not accepted shows nothing, and is there for admins alone.
    viewer.get(&path("/document")).await.expect(404);
    viewer.get(&path("")).await.expect(403);
    let incoming = globex.get("/api/v1/shares").await.expect(200).json();
    assert_eq!(incoming["items"][0]["id"], share.as_str());
    assert_eq!(globex.get("/api/v1/shares?direction=outgoing").await.expect(200).json()["items"], json!([]));
    acme.ask("POST", &path("/accept")).await.expect(409).problem("conflict");
    viewer.ask("POST", &path("/accept")).await.expect(403);
    let accepted = globex.ask("POST", &path("/accept")).await.expect(200);
    assert_eq!((accepted.text("state"), accepted.header("etag")), ("active".to_owned(), "\"2\""));

    let shown = viewer.get(&path("/document")).await.expect(200);
    assert_eq!((shown.text("title"), shown.text("content"), shown.text("perms")), ("the plan".into(), "text".into(), "read".into()));
    assert!(shown.json().get("project_id").is_none());
    two.silent(&shown);
    viewer.get(&path("/document")).with("if-none-match", shown.header("etag")).await.expect(304);
    let mine = globex.document(&globex.project("p").await, "mine").await;
    let all = viewer.get("/api/v1/documents").await.expect(200);
    two.silent(&all);
    let all: Vec<_> = all.json()["items"].as_array().expect("items").iter().map(|d| (d["id"].clone(), d["share_id"].clone())).collect();
    assert_eq!(all, [(json!(mine), Value::Null), (json!(two.document), json!(share))]);

    // A share to read is no share to write, and the document's own path is no way to it.
    globex.patch(&path("/document"), &json!({ "title": "x" })).await.expect(403).problem("forbidden");
    globex.get(&format!("/api/v1/documents/{}", two.document)).await.expect(404);
    globex.patch(&format!("/api/v1/documents/{}", two.document), &json!({ "title": "x" })).await.expect(404);

    acme.delete(&path("")).await.expect(204);
    acme.delete(&path("")).await.expect(204);
    for reply in [
        viewer.get(&path("/document")).await,
        viewer.get(&path("/attachments")).await,
        viewer.get(&path("/attachments/plan.txt")).await,
        globex.patch(&path("/document"), &json!({})).await,
    ] {
        reply.expect(404).problem("not-found");
    }
    assert_eq!(globex.get(&path("")).await.expect(200).text("state"), "revoked");
    assert_eq!(viewer.get("/api/v1/documents").await.expect(200).json()["items"].as_array().map(Vec::len), Some(1));
    let opens = ["share.open denied", "share.open done", "share.open done"];
    let (here, there) = (told(acme, &share).await, told(globex, &share).await);
    assert_eq!(here[0], "share.offered done member");
    assert_eq!(there[0], "share.offered done tenant");
    for log in [&here, &there] {
        let actions: Vec<&str> = log.iter().map(|event| event.rsplit_once(' ').expect("three words").0).collect();
        let mut expected = vec!["share.offered done", opens[0], "share.accepted done", opens[1], opens[2], opens[1], "share.ended done"];
        expected.extend([opens[0]; 4]);
        assert_eq!(actions, expected, "{log:?}");
    }
}

#[tokio::test]
async fn a_share_to_write_changes_the_version_that_was_read() {
    let two = Two::new().await;
    let share = two.acme.share(&two.document, &two.globex, "write").await;
    let path = format!("/api/v1/shares/{share}/document");
    let change = json!({ "title": "their title" });
    two.globex.role("viewer").patch(&path, &change).await.expect(403);
    two.globex.patch(&path, &change).with("if-match", "\"7\"").await.expect(412).problem("version-mismatch");
    two.globex.patch(&path, &json!({ "title": "" })).await.invalid("title");
    two.globex.patch(&path, &json!({ "project_id": ABSENT })).await.invalid("project_id");
    let changed = two.globex.role("member").patch(&path, &change).with("if-match", "\"1\"").await.expect(200);
    assert_eq!((changed.text("title"), changed.text("content"), changed.header("etag")), ("their title".into(), "text".into(), "\"2\""));
    let own = two.acme.get(&format!("/api/v1/documents/{}", two.document)).await.expect(200);
    assert_eq!((own.text("title"), own.header("etag")), ("their title".to_owned(), "\"2\""));
    // The control: without If-Match any version will do.
    two.globex.patch(&path, &json!({ "content": "their text" })).await.expect(200);
}

#[tokio::test]
async fn attachments_come_along_and_none_beside() {
    let two = Two::new().await;
    let share = two.acme.share(&two.document, &two.globex, "read").await;
    let viewer = two.globex.role("viewer");
    let path = |rest: &str| format!("/api/v1/shares/{share}/attachments{rest}");
    let list = viewer.get(&path("")).await.expect(200);
    two.silent(&list);
    assert_eq!(list.json()["items"].as_array().expect("items").iter().map(|a| &a["name"]).collect::<Vec<_>>(), ["plan.txt"]);
    let file = viewer.get(&path("/plan.txt")).await.expect(200);
    assert_eq!((&file.body[..], file.header("x-content-type-options")), (&b"the plan's text"[..], "nosniff"));
    assert!(file.header("content-disposition").starts_with("attachment;"));
    viewer.get(&path("/plan.txt")).with("if-none-match", file.header("etag")).await.expect(304);
    for nothing in ["/beside.txt", "/nothing.txt"] {
        viewer.get(&path(nothing)).await.expect(404).problem("not-found");
    }
    viewer.get(&path("/..%2fplan.txt")).await.invalid("name");
    // The share's own names are not those of the tenant: what globex has under them is another thing.
    let mine = two.globex.document(&two.globex.project("p").await, "mine").await;
    two.globex.attach(&mine, "plan.txt", b"mine").await.expect(201);
    assert_eq!(viewer.get(&path("/plan.txt")).await.expect(200).body, b"the plan's text");
    two.globex.put(&path("/plan.txt"), b"x".to_vec()).await.expect(405);
}

#[tokio::test]
async fn a_third_tenant_and_the_wrong_side_find_nothing() {
    let two = Two::new().await;
    let initech = two.app.tenant("initech").await;
    let share = two.acme.share(&two.document, &two.globex, "write").await;
    let asks = |who: &Member, share: &str| -> Vec<Ask> {
        let path = |rest: &str| format!("/api/v1/shares/{share}{rest}");
        vec![
            who.get(&path("/document")),
            who.patch(&path("/document"), &json!({ "title": "x" })),
            who.get(&path("/attachments")),
            who.get(&path("/attachments/plan.txt")),
            who.get(&path("")),
            who.get(&path("/log")),
            who.ask("POST", &path("/accept")),
            who.ask("POST", &path("/decline")),
            who.delete(&path("")),
        ]
    };
    let before = two.app.db_everything().await;
    for (theirs, nobodys) in asks(&initech, &share).into_iter().zip(asks(&initech, ABSENT)) {
        let (theirs, nobodys) = (theirs.await.expect(404), nobodys.await);
        assert_eq!(theirs.comparable(), nobodys.comparable());
    }
    assert_eq!(two.app.db_everything().await, before, "a stranger's requests are no events of the share");
    // The owner has the document, and not the share's view of it.
    for (theirs, nobodys) in asks(&two.acme, &share).into_iter().zip(asks(&two.acme, ABSENT)).take(4) {
        assert_eq!(theirs.await.expect(404).comparable(), nobodys.await.comparable());
    }
    two.globex.get(&format!("/api/v1/shares/{share}/document")).await.expect(200);
    initech.get("/api/v1/links").await.expect(200);
}

#[tokio::test]
async fn a_share_for_some_is_nothing_to_others() {
    let two = Two::new().await;
    let mut body = json!({ "resource": two.resource(), "target": two.globex.tenant, "perms": "read", "only_roles": ["member"] });
    let share = two.acme.post("/api/v1/shares", &body).await.expect(201).text("id");
    two.globex.ask("POST", &format!("/api/v1/shares/{share}/accept")).await.expect(200);
    let path = format!("/api/v1/shares/{share}/document");
    two.globex.role("member").get(&path).await.expect(200);
    for other in ["viewer", "admin"] {
        two.globex.role(other).get(&path).await.expect(404);
        assert_eq!(two.globex.role(other).get("/api/v1/documents").await.expect(200).json()["items"], json!([]));
    }
    two.acme.delete(&format!("/api/v1/shares/{share}")).await.expect(204);
    body["only_roles"] = Value::Null;
    body["only_subjects"] = json!(["the-viewer"]);
    let share = two.acme.post("/api/v1/shares", &body).await.expect(201).text("id");
    two.globex.ask("POST", &format!("/api/v1/shares/{share}/accept")).await.expect(200);
    let path = format!("/api/v1/shares/{share}/document");
    two.globex.role("viewer").get(&path).await.expect(200);
    two.globex.role("member").get(&path).await.expect(404);
}

#[tokio::test]
async fn whom_nothing_can_be_offered_to_is_nobody() {
    let two = Two::new().await;
    let (deaf, suspended) = (two.app.tenant("initech").await, two.app.tenant("umbrella").await);
    suspended.allow_sharing().await;
    two.app.operator().ask("POST", "/api/v1/tenants/umbrella/suspend").await.expect(200);
    let mut answers = Vec::new();
    for target in [ABSENT, "nobody", "!!", "", &deaf.slug, &deaf.tenant, &suspended.slug, &suspended.tenant, &two.acme.slug] {
        let body = json!({ "resource": two.resource(), "target": target, "perms": "read" });
        let reply = two.acme.post("/api/v1/shares", &body).await;
        reply.invalid("target");
        answers.push(reply.comparable());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
    let body = json!({ "resource": two.resource(), "target": two.globex.slug, "perms": "read" });
    two.acme.post("/api/v1/shares", &body).await.expect(201);
}

#[tokio::test]
async fn bad_bodies_are_refused_by_field_and_leave_nothing() {
    let two = Two::new().await;
    let before = two.app.db_everything().await;
    let with = |mut body: Value, name: &str, value: Value| {
        body[name] = value;
        body
    };
    let share = json!({ "resource": two.resource(), "target": two.globex.slug, "perms": "read" });
    let link = json!({ "resource": two.resource() });
    let policy = json!({ "offers": true });
    for (path, good, name, value) in [
        ("shares", &share, "resource", json!("document")),
        ("shares", &share, "resource", json!(format!("secret:{}", two.document))),
        ("shares", &share, "perms", json!("own")),
        ("shares", &share, "only_roles", json!([])),
        ("shares", &share, "only_subjects", json!([])),
        ("shares", &share, "expires_at", json!("2020-01-01T00:00:00Z")),
        ("shares", &share, "tenant_id", json!(ABSENT)),
        ("links", &link, "resource", json!(two.document)),
        ("links", &link, "max_uses", json!(0)),
        ("links", &link, "max_uses", json!(-1)),
        ("links", &link, "passphrase", json!("short")),
        ("links", &link, "label", json!("a\nb")),
        ("links", &link, "expires_at", json!("2999-01-01T00:00:00Z")),
        ("links", &link, "token", json!("x")),
    ] {
        two.acme.post(&format!("/api/v1/{path}"), &with(good.clone(), name, value)).await.invalid(name);
    }
    for (name, value) in
        [("types", json!(["secret"])), ("targets", json!(["x"])), ("max_lifetime_seconds", json!(0)), ("version", json!(1))]
    {
        let field = if name == "targets" { "targets[0]" } else { name };
        two.acme.put("/api/v1/sharing", "").json(&with(policy.clone(), name, value)).await.invalid(field);
    }
    let operator = two.app.operator();
    operator.put("/api/v1/sharing-platform", "").json(&json!({ "max_lifetime_seconds": 0 })).await.invalid("max_lifetime_seconds");
    operator.put("/api/v1/sharing-platform", "").json(&json!({ "on": true })).await.invalid("on");
    // What is another's can be neither offered nor linked to, and only admins may do either.
    for (path, good) in [("shares", &share), ("links", &link)] {
        let path = format!("/api/v1/{path}");
        let theirs = with(with(good.clone(), "target", json!(two.acme.slug)), "resource", json!(two.resource()));
        let theirs = if path.ends_with("links") { link.clone() } else { theirs };
        two.globex.post(&path, &theirs).await.expect(404).problem("not-found");
        two.acme.role("member").post(&path, good).await.expect(403);
    }
    two.acme.get("/api/v1/shares?direction=sideways").await.invalid("direction");
    // Who was refused is no matter for the books.
    let [before, after] = [before, two.app.db_everything().await].map(|mut books| {
        books.remove("tenancy.audit_events");
        books
    });
    assert_eq!(after, before);
}

#[tokio::test]
async fn policies_decide_and_are_changed_as_they_were_read() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let operator = app.operator();
    let document = acme.document(&acme.project("p").await, "d").await;
    let body = json!({ "resource": format!("document:{document}"), "target": globex.slug, "perms": "read" });
    let offer = async || acme.post("/api/v1/shares", &body).await;
    offer().await.expect(403).problem("forbidden");
    assert_eq!(operator.get("/api/v1/sharing-platform").await.expect(200).json()["enabled"], false);
    operator.allow_sharing().await;
    offer().await.expect(403);

    let unset = acme.get("/api/v1/sharing").await.expect(200);
    assert_eq!((unset.header("etag"), &unset.json()["offers"]), ("\"0\"", &json!(false)));
    acme.role("member").get("/api/v1/sharing").await.expect(403);
    let put = |policy: Value, etag: &str| acme.put("/api/v1/sharing", "").json(&policy).with("if-match", etag.to_owned());
    let set = put(json!({ "offers": true, "types": ["document"], "max_lifetime_seconds": 3600 }), "\"0\"").await.expect(200);
    acme.get("/api/v1/sharing").with("if-none-match", set.header("etag")).await.expect(304);
    put(json!({}), "\"0\"").await.expect(412).problem("version-mismatch");
    offer().await.invalid("target");
    globex.put("/api/v1/sharing", "").json(&json!({ "accepts": true })).await.expect(200);
    let share = offer().await.expect(201);
    assert!(!share.text("expires_at").is_empty(), "the policy has a longest time");
    let share = share.text("id");
    globex.ask("POST", &format!("/api/v1/shares/{share}/accept")).await.expect(200);
    let path = format!("/api/v1/shares/{share}/document");
    globex.get(&path).await.expect(200);

    // Each of the three says no at the next request, and yes again.
    let off = async |off: Ask, on: Ask| {
        off.await.expect(200);
        globex.get(&path).await.expect(404);
        on.await.expect(200);
        globex.get(&path).await.expect(200);
    };
    let of = |who: &Member, policy: Value| who.put("/api/v1/sharing", "").json(&policy);
    off(of(&acme, json!({})), of(&acme, json!({ "offers": true, "types": ["document"] }))).await;
    off(of(&globex, json!({})), of(&globex, json!({ "accepts": true }))).await;
    let platform = |enabled: bool| operator.put("/api/v1/sharing-platform", "").json(&json!({ "enabled": enabled }));
    off(platform(false), platform(true)).await;

    operator.get("/api/v1/tenants/nobody/shares").await.expect(404);
    for tenant in [&acme, &globex] {
        let shares = operator.get(&format!("/api/v1/tenants/{}/shares", tenant.slug)).await.expect(200).json();
        assert_eq!((&shares["items"][0]["id"], shares["items"].as_array().map(Vec::len)), (&json!(share), Some(1)));
    }
    let metrics = operator.get("/metrics").await.expect(200);
    let text = String::from_utf8(metrics.body).expect("text");
    for outcome in ["done", "denied"] {
        let series = format!("crossTenant_shares{{kind=\"share\",state=\"opened\",outcome=\"{outcome}\"}}");
        assert!(text.contains(&series), "{series}: {text}");
    }
}

/// A share of `comment` adds, and one of `read` does not: PostgreSQL refuses it. Whose comment it is can be seen, and none beside shows.
#[tokio::test]
async fn who_may_comment_does_and_who_may_read_does_not() {
    let two = Two::new().await;
    let (acme, globex, own) = (&two.acme, &two.globex, format!("/api/v1/documents/{}/comments", two.document));
    let say = |body: &str| json!({ "body": body });
    let first = acme.post(&own, &say("well, well")).await.expect(201);
    assert_eq!((first.json()["author_tenant"].clone(), first.header("location")), (Value::Null, ""));
    acme.post(&format!("/api/v1/documents/{}/comments", two.beside), &say("canary")).await.expect(201);
    for (perms, may) in [("read", false), ("comment", true), ("write", true)] {
        let share = acme.share(&two.document, globex, perms).await;
        let path = format!("/api/v1/shares/{share}/comments");
        let before = two.app.db_everything().await.remove("comments");
        let ask = globex.post(&path, &say(perms)).with("idempotency-key", perms);
        if may {
            let added = ask.clone().await.expect(201);
            assert_eq!((ask.await.expect(201).text("id"), added.text("author_tenant")), (added.text("id"), globex.name.clone()));
        } else {
            ask.await.expect(403).problem("forbidden");
            assert_eq!(two.app.db_everything().await.remove("comments"), before);
        }
        globex.role("viewer").post(&path, &say("x")).await.expect(403);
        for (body, field) in [(say(""), "body"), (say(" "), "body"), (say(&"x".repeat(4001)), "body"), (json!({}), "body")] {
            globex.post(&path, &body).await.invalid(field);
            acme.post(&own, &body).await.invalid(field);
        }
        let shown = globex.role("viewer").get(&path).await.expect(200);
        two.silent(&shown);
        assert_eq!(shown.json()["items"], acme.get(&own).await.expect(200).json()["items"], "both sides see the same");
        acme.delete(&format!("/api/v1/shares/{share}")).await.expect(204);
        globex.get(&path).await.expect(404);
        globex.post(&path, &say("late")).await.expect(404).problem("not-found");
    }
    let all = acme.get(&own).await.expect(200).json();
    let bodies: Vec<&Value> = all["items"].as_array().expect("items").iter().map(|comment| &comment["body"]).collect();
    assert_eq!(bodies, ["write", "comment", "well, well"]);
    let page = acme.get(&format!("{own}?limit=2")).await.expect(200);
    let rest = acme.get(&format!("{own}?cursor={}", page.text("next_cursor"))).await.expect(200).json();
    assert_eq!((&rest["items"][0]["body"], &rest["next_cursor"]), (&json!("well, well"), &Value::Null));
    globex.get(&own).await.expect(404);
    globex.post(&own, &say("x")).await.expect(404);
    acme.delete(&format!("/api/v1/documents/{}", two.document)).await.expect(204);
    acme.get(&own).await.expect(404);
}

/// An offer is mailed to the admins of the target, in its branding, and both sides' endpoints can be told what the other did.
#[tokio::test]
async fn an_offer_is_mailed_to_the_targets_admins_and_told_to_webhooks() {
    let (post, acme, globex) = Post::start().await;
    post.app.operator().allow_sharing().await;
    for tenant in [&acme, &globex] {
        tenant.allow_sharing().await;
        let topics = ["share.offered", "share.accepted", "share.declined", "share.ended"];
        tenant.post("/api/v1/webhooks", &json!({ "url": "https://hooks.example.com/x", "topics": topics })).await.expect(201);
    }
    globex.put("/api/v1/branding", "").json(&json!({ "product_name": "Globe Desk" })).await.expect(200);
    for (tenant, name, role) in [(&globex, "gus", "admin"), (&globex, "gil", "member"), (&acme, "ann", "admin")] {
        let member = json!({ "email": format!("{name}@example.com"), "name": name, "role": role });
        tenant.post("/api/v1/members", &member).await.expect(201);
    }
    let document = acme.document(&acme.project("p").await, "a secret title").await;
    let share = acme.share(&document, &globex, "write").await;
    globex.delete(&format!("/api/v1/shares/{share}")).await.expect(204);
    let mail = loop {
        if let Some(mail) = post.smtp.received().into_iter().find(|mail| mail.to == ["gus@example.com"]) {
            break mail_parser::MessageParser::default().parse(&mail.data).expect("a mail").into_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let (text, html) = (mail.body_text(0).expect("text"), mail.body_html(0).expect("HTML"));
    assert_eq!(mail.subject(), Some(format!("Globe Desk: {} offers to share a document", acme.name).as_str()));
    for body in [&text, &html] {
        assert!(body.contains("to read and change") && body.contains("Globe Desk") && !body.contains("secret title"), "{body}");
    }
    // Each side's endpoint gets what the other did; in whatever order they are delivered.
    let mut eye = post.app.db_eye().await;
    for (of, expected) in [(&acme, vec!["share.accepted", "share.ended"]), (&globex, vec!["share.offered"])] {
        let mut told: Vec<String> = Vec::new();
        for _ in 0..500 {
            let sql = "select topic from tenancy.webhook_deliveries where tenant_id = $1::uuid order by topic";
            told = sqlx::query_scalar(sql).bind(&of.tenant).fetch_all(&mut eye).await.expect("deliveries");
            if told.len() == expected.len() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(told, expected);
    }
    assert!(!post.smtp.received().iter().any(|mail| mail.to != ["gus@example.com"]), "nobody else is told");
}
