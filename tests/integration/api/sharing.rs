//! Sharing over HTTP: between tenants, and by links.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use harness::actors::{Actor, Ask, Member, Reply, exchange};
use harness::app::TestApp;
use harness::program::command;
use serde_json::{Value, json};

use super::ABSENT;
use super::sign_in::Post;

/// Two tenants that may share, and a document of the first with an attachment; beside it, one that is shared with nobody.
struct Two {
    app: TestApp,
    acme: Member,
    globex: Member,
    document: String,
    beside: String,
}

impl Two {
    async fn new() -> Self {
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

    fn resource(&self) -> String {
        format!("document:{}", self.document)
    }

    /// The text of the other document, which is nowhere to be seen.
    fn silent(&self, reply: &Reply) {
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

/// Makes a link; its path.
async fn link(of: &Member, body: Value) -> String {
    of.post("/api/v1/links", &body).await.expect(201).text("url")
}

fn form(ask: Ask, phrase: &str) -> Ask {
    ask.body(format!("passphrase={phrase}")).with("content-type", "application/x-www-form-urlencoded")
}

#[tokio::test]
async fn a_link_shows_its_document_to_whoever_has_it() {
    let two = Two::new().await;
    let stranger = two.app.stranger();
    let body = json!({ "resource": two.resource(), "label": "for the press" });
    let made = two.acme.post("/api/v1/links", &body).with("idempotency-key", "once").await.expect(201);
    let (url, id) = (made.text("url"), made.text("id"));
    // The token is told once: it is kept nowhere, not even for a request that is sent again.
    let again = two.acme.post("/api/v1/links", &body).with("idempotency-key", "once").await.expect(201);
    assert_eq!((again.text("id"), &again.json()["url"]), (id.clone(), &Value::Null));
    let token = url.strip_prefix("/s/").expect("a path");
    let opened = stranger.get(&url).await.expect(200);
    assert!(!format!("{:?}", two.app.db_everything().await).contains(token));
    assert_eq!((&opened.json()["document"]["title"], &opened.json()["expires_in"]), (&json!("the plan"), &json!(600)));
    two.silent(&opened);
    opened.is_silent_about([&two.acme.tenant, &two.document]);
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-robots-tag", "noindex, nofollow"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("set-cookie", ""),
    ] {
        for reply in [&opened, &stranger.get("/s/nothing").await.expect(404)] {
            assert_eq!(reply.header(name), value, "{reply:?}");
            assert!(reply.header("content-security-policy").starts_with("default-src 'none';"));
        }
    }

    let attachment = &opened.json()["attachments"][0];
    assert_eq!((&attachment["name"], &attachment["size"]), (&json!("plan.txt"), &json!(15)));
    let href = attachment["href"].as_str().expect("a path").to_owned();
    let file = stranger.get(&href).await.expect(200);
    assert_eq!((&file.body[..], file.header("content-security-policy")), (&b"the plan's text"[..], "default-src 'none'; sandbox"));
    assert!(file.header("content-disposition").starts_with("attachment;"));
    let (path, ticket) = href.split_once('?').expect("a ticket");
    stranger.get(path).await.invalid("query");
    for bad in [
        format!("{path}?ticket="),
        format!("{path}?ticket={}", "0".repeat(64)),
        format!("/s/{token}/attachments/beside.txt?{ticket}"),
        format!("/s/{token}/attachments/nothing?{ticket}"),
        // A ticket of another link, also where both are of the same document.
        format!("{}/attachments/plan.txt?{ticket}", two.acme.link(&two.document).await.1),
        format!("/s/{}/attachments/plan.txt?{ticket}", "A".repeat(43)),
        format!("/s/x/attachments/plan.txt?{ticket}"),
    ] {
        stranger.get(&bad).await.expect(404).problem("not-found");
    }

    // One more was opened than shown: a HEAD is no use.
    stranger.ask("HEAD", &url).await.expect(405);
    let listed = two.acme.get("/api/v1/links").await.expect(200).json();
    let of = format!("/api/v1/tenants/{}/links", two.acme.slug);
    assert_eq!(two.app.operator().get(&of).await.expect(200).json(), listed);
    let (other, listed) = (&listed["items"][0]["uses"], &listed["items"][1]);
    assert_eq!((&listed["id"], &listed["uses"], listed.get("url"), other), (&json!(id), &json!(1), None, &json!(0)));
    two.globex.get(&format!("/api/v1/links/{id}")).await.expect(404);
    two.globex.delete(&format!("/api/v1/links/{id}")).await.expect(404);
    two.acme.delete(&format!("/api/v1/links/{id}")).await.expect(204);
    for path in [&url, &href] {
        stranger.get(path).await.expect(404).problem("not-found");
    }
    assert!(!two.acme.get(&format!("/api/v1/links/{id}")).await.expect(200).text("revoked_at").is_empty());
    let log = two.acme.get("/api/v1/audit?action=link.open").await.expect(200).json();
    assert_eq!((log["items"].as_array().map(Vec::len), &log["items"][0]["detail"]["client"]), (Some(1), &json!("127.0.0.1")));
}

/// Whatever is wrong with a token, the answer is the same to the byte, in each way to ask.
#[tokio::test]
async fn tokens_that_open_nothing_are_answered_alike() {
    let two = Two::new().await;
    let (stranger, mut eye) = (two.app.stranger(), two.app.db_eye().await);
    let links = async |body: Value| two.acme.post("/api/v1/links", &body).await.expect(201);
    let of = |more: Value| {
        let mut body = json!({ "resource": two.resource() });
        body.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        body
    };
    let good = link(&two.acme, of(json!({}))).await;
    let opened = stranger.get(&good).await.expect(200).json();
    let mut bad = Vec::new();
    let used_up = link(&two.acme, of(json!({ "max_uses": 1 }))).await;
    stranger.get(&used_up).await.expect(200);
    bad.push(("used up", used_up));
    let revoked = links(of(json!({}))).await;
    two.acme.delete(&format!("/api/v1/links/{}", revoked.text("id"))).await.expect(204);
    bad.push(("revoked", revoked.text("url")));
    for (why, change) in
        [("expired", "expires_at = now()"), ("locked", "locked_until = now() + '1 hour', passphrase = '$argon2id$' || passphrase")]
    {
        let made = links(of(json!({ "passphrase": "open sesame" }))).await;
        let sql = format!("update tenancy.share_links set {change} where id = $1::uuid");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(made.text("id")).execute(&mut eye).await.expect("changed");
        bad.push((why, made.text("url")));
    }
    // Another tenant's, which is suspended, or does not want links any more.
    for why in ["suspended", "switched off"] {
        let tenant = two.app.tenant(&why.replace(' ', "-")).await;
        tenant.allow_sharing().await;
        let document = tenant.document(&tenant.project("p").await, "d").await;
        bad.push((why, tenant.link(&document).await.1));
        if why == "suspended" {
            two.app.operator().ask("POST", &format!("/api/v1/tenants/{}/suspend", tenant.tenant)).await.expect(200);
        } else {
            tenant.put("/api/v1/sharing", "").json(&json!({})).await.expect(200);
        }
    }
    let token = good.strip_prefix("/s/").expect("a path");
    bad.extend([
        ("truncated", format!("/s/{}", &token[1..])),
        ("longer", format!("/s/{token}A")),
        ("forged", format!("/s/{}", token.chars().rev().collect::<String>())),
        ("in other letters", format!("/s/{}", token.to_uppercase())),
        ("a ticket", format!("/s/{}", opened["ticket"].as_str().expect("a ticket"))),
        ("an injection", "/s/'%20or%20true--".to_owned()),
    ]);
    let ticket = opened["ticket"].as_str().expect("a ticket");
    let ways = |path: &str| {
        [
            stranger.get(path),
            stranger.get(path).with("accept", "text/html"),
            form(stranger.ask("POST", path), "open+sesame"),
            form(stranger.ask("POST", path), "").with("accept", "text/html"),
            stranger.get(&format!("{path}/attachments/plan.txt?ticket={ticket}")),
        ]
    };
    for (n, never) in ways(&format!("/s/{}", "A".repeat(43))).into_iter().enumerate() {
        let never = never.await.expect(404).comparable();
        for (why, path) in &bad {
            assert_eq!(ways(path)[n].clone().await.comparable(), never, "{why}, way {n}");
        }
        assert_ne!(ways(&good)[n].clone().await.comparable(), never, "the control: way {n}");
    }
}

/// So many requests a minute from one client, and then no answer tells anything of the token.
#[tokio::test]
async fn a_client_that_asks_too_often_waits() {
    let app = TestApp::with(|config| config.link_rate = 3).await;
    let (acme, _) = app.two_tenants().await;
    app.operator().allow_sharing().await;
    acme.allow_sharing().await;
    let document = acme.document(&acme.project("p").await, "d").await;
    let (id, good) = acme.link(&document).await;
    let stranger = app.stranger();
    for (path, status) in [(&*good, 200), ("/s/x", 404), ("/s/x/attachments/y?ticket=z", 404)] {
        stranger.get(path).await.expect(status);
    }
    let refused = stranger.get(&good).await.expect(429);
    refused.problem("rate");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=20).contains(&wait), "{wait}");
    assert_eq!((refused.header("x-robots-tag"), refused.header("cache-control")), ("noindex, nofollow", "no-store"));
    let unknown = stranger.get(&format!("/s/{}", "A".repeat(43))).await;
    assert_eq!(unknown.comparable(), refused.comparable());
    form(stranger.ask("POST", &good), "x").await.expect(429);
    // None of it was a use, and nothing else is limited.
    assert_eq!(acme.get(&format!("/api/v1/links/{id}")).await.expect(200).json()["uses"], 1);
    stranger.get("/healthz").await.expect(200);
}

#[tokio::test]
async fn a_link_ends_with_its_uses_its_time_and_its_passphrase_is_asked_for() {
    let two = Two::new().await;
    let stranger = two.app.stranger();
    let twice = link(&two.acme, json!({ "resource": two.resource(), "max_uses": 2 })).await;
    stranger.get(&twice).await.expect(200);
    let last = stranger.get(&twice).await.expect(200);
    let (gone, never) = (stranger.get(&twice).await.expect(404), stranger.get(&format!("/s/{}", "A".repeat(43))).await);
    assert_eq!(gone.comparable(), never.comparable());
    // What it opened holds for its time.
    stranger.get(last.json()["attachments"][0]["href"].as_str().expect("a path")).await.expect(200);

    let late = link(&two.acme, json!({ "resource": two.resource() })).await;
    stranger.get(&late).await.expect(200);
    sqlx::query("update tenancy.share_links set expires_at = now()").execute(&mut two.app.db_eye().await).await.expect("over");
    stranger.get(&late).await.expect(404);

    let secret = link(&two.acme, json!({ "resource": two.resource(), "passphrase": "open sesame" })).await;
    let post = || stranger.ask("POST", &secret);
    two.silent(&stranger.get(&secret).await.expect(401));
    form(post(), "open+sesam").await.expect(401).problem("unauthenticated");
    assert_eq!(form(post(), "open+sesame").await.expect(200).json()["document"]["title"], "the plan");
    post().json(&json!({ "passphrase": "open sesame" })).await.expect(415).problem("unsupported-media-type");
    form(post(), "x&more=1").await.invalid("more");
    // For people, a form that asks.
    let page = stranger.get(&secret).with("accept", "text/html,*/*;q=0.8").await.expect(401);
    let html = String::from_utf8(page.body).expect("text");
    assert!(html.contains("<form method=\"post\">") && !html.contains("not the passphrase") && !html.contains("the plan"), "{html}");
    let wrong = form(post().with("accept", "text/html"), "wrong").await.expect(401);
    assert!(String::from_utf8_lossy(&wrong.body).contains("not the passphrase"));
    let right = form(post().with("accept", "text/html"), "open+sesame").await.expect(200);
    assert!(String::from_utf8_lossy(&right.body).contains("<h1>the plan</h1>"));
}

#[tokio::test]
async fn nothing_that_somebody_wrote_is_markup_on_the_page() {
    let two = Two::new().await;
    let evil = "</title><script>alert(1)</script>\"'&";
    let change = json!({ "title": evil, "content": "<img src=x onerror=alert(2)>" });
    two.acme.patch(&format!("/api/v1/documents/{}", two.document), &change).await.expect(200);
    two.acme.attach(&two.document, "%22%3E%3Cb%3E.txt", b"x").await.expect(201);
    let url = link(&two.acme, json!({ "resource": two.resource() })).await;
    let page = two.app.stranger().get(&url).with("accept", "text/html").await.expect(200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(!page.header("content-security-policy").contains("unsafe"));
    let html = String::from_utf8(page.body).expect("text");
    for markup in ["<script", "<img", "<b>", evil] {
        assert!(!html.contains(markup), "{markup}: {html}");
    }
    for text in [
        "<h1>&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;</h1>",
        "<pre>&lt;img src=x onerror=alert(2)&gt;</pre>",
        ">&quot;&gt;&lt;b&gt;.txt</a>",
    ] {
        assert!(html.contains(text), "{text}: {html}");
    }
    // The page's own references lead somewhere.
    for part in html.split("href=\"").skip(1) {
        let href = part.split('"').next().expect("a reference").replace("&amp;", "&");
        two.app.stranger().get(&href).await.expect(200);
    }
    assert_eq!(html.matches("href=\"").count(), 2);
    let nothing = two.app.stranger().get("/s/nothing").with("accept", "text/html").await.expect(404);
    assert!(String::from_utf8_lossy(&nothing.body).contains("There is nothing here"));
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

/// Each recipient gets a link of their own by mail, in the tenant's name; nobody else is told it, and its openings name them.
#[tokio::test]
async fn links_are_mailed_to_their_recipients_each_with_its_own() {
    let (post, acme, globex) = Post::start().await;
    post.app.operator().allow_sharing().await;
    acme.allow_sharing().await;
    acme.put("/api/v1/branding", "").json(&json!({ "product_name": "Rocket <Desk>" })).await.expect(200);
    let document = acme.document(&acme.project("p").await, "the plan").await;
    let resource = format!("document:{document}");
    let body = json!({ "resource": resource, "label": "for you", "recipients": ["Ada@example.com", "ben@example.com"], "max_uses": 3 });
    let ask = acme.post("/api/v1/links", &body).with("idempotency-key", "once");
    let (made, again) = (ask.clone().await.expect(201), ask.await.expect(201));
    assert_eq!((made.json(), again.header("idempotency-replayed")), (again.json(), "true"));
    let items = made.json()["items"].as_array().expect("items").clone();
    assert_eq!(items.iter().map(|link| &link["recipient"]).collect::<Vec<_>>(), ["ada@example.com", "ben@example.com"]);
    let (ada, ben) = (post.path("ada@example.com", 0).await, post.path("ben@example.com", 0).await);
    assert_ne!(ada, ben);
    let tokens = [&ada, &ben].map(|path| path.strip_prefix("/s/").expect("a link's path"));
    for token in tokens {
        made.is_silent_about([token]);
        assert!(!format!("{:?}", post.app.db_everything().await).contains(token));
    }
    let stranger = post.app.stranger();
    for path in [&ada, &ben, &ben] {
        assert_eq!(stranger.get(path).await.expect(200).json()["document"]["title"], "the plan");
    }
    let log = acme.get("/api/v1/audit?action=link.open").await.expect(200).json();
    let whose: Vec<&Value> = log["items"].as_array().expect("items").iter().map(|event| &event["detail"]["recipient"]).collect();
    assert_eq!(whose, ["ben@example.com", "ben@example.com", "ada@example.com"]);
    let mail = post.smtp.received().into_iter().find(|mail| mail.to == ["ada@example.com"]).expect("a mail");
    let mail = mail_parser::MessageParser::default().parse(&mail.data).expect("a mail").into_owned();
    let (text, html) = (mail.body_text(0).expect("text"), mail.body_html(0).expect("HTML"));
    assert_eq!(mail.subject(), Some("Rocket <Desk>: a link for you"));
    assert!(text.contains("Somebody of Rocket <Desk> sends you a link.") && text.contains("It shows: for you"), "{text}");
    assert!(html.contains("Rocket &lt;Desk&gt;") && html.contains(&format!("{ada}\" rel=\"noreferrer\">Open it</a>")), "{html}");

    // One is revoked; the other goes on.
    acme.delete(&format!("/api/v1/links/{}", items[1]["id"].as_str().expect("an id"))).await.expect(204);
    stranger.get(&ben).await.expect(404);
    stranger.get(&ada).await.expect(200);
    // Whom it was not for has none of it, and what is wrong sends nothing.
    assert_eq!(globex.get("/api/v1/links").await.expect(200).json()["items"], json!([]));
    let many: Vec<String> = (0..51).map(|n| format!("{n}@example.com")).collect();
    for (recipients, field) in [
        (json!(many), "recipients"),
        (json!(["ada@example.com", "ADA@example.com"]), "recipients[1]"),
        (json!(["x"]), "recipients[0]"),
        (json!("ada@example.com"), "recipients"),
    ] {
        acme.post("/api/v1/links", &json!({ "resource": resource, "recipients": recipients })).await.invalid(field);
    }
    assert_eq!(acme.get("/api/v1/links").await.expect(200).json()["items"].as_array().map(Vec::len), Some(2));
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

/// A process of its own, whose log is read.
#[tokio::test]
async fn the_log_has_neither_tokens_nor_tickets() {
    let two = Two::new().await;
    let url = link(&two.acme, json!({ "resource": two.resource() })).await;
    let folder = harness::app::Folder::new();
    let mut serve = command(&folder, &["serve", "--listen", "127.0.0.1:0"]);
    serve
        .env("DATABASE_URL", two.app.database.app_url())
        .env("TENANCY_OBJECTS", format!("file://{}/data/objects", two.app.folder().display()));
    serve.env("RUST_LOG", "info");
    let log = folder.0.join("log");
    let mut child = serve.stdout(Stdio::piped()).stderr(File::create(&log).expect("a file")).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines().map_while(Result::ok);
    let address = lines.find_map(|line| line.strip_prefix("listening on http://").map(|address| address.parse().expect("an address")));
    let get = async |path: &str| {
        let ask = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        exchange(address.expect("it listens"), ask.as_bytes()).await.expect("an answer")
    };
    let opened = get(&url).await.expect(200).json();
    get(opened["attachments"][0]["href"].as_str().expect("a path")).await.expect(200);
    child.kill().expect("killed");
    child.wait().expect("gone");
    let said = std::fs::read_to_string(&log).expect("the log") + &lines.collect::<Vec<_>>().join("\n");
    assert!(said.contains("/s/{token}/attachments/{name}"), "the control: requests are logged: {said}");
    for secret in [url.strip_prefix("/s/").expect("a path"), opened["ticket"].as_str().expect("a ticket")] {
        assert!(!said.contains(secret), "{said}");
    }
}
