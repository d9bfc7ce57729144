//! Links over HTTP: what whoever has one sees, and how it ends.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use harness::actors::{Actor as _, Ask, Member, exchange};
use harness::app::TestApp;
use harness::program::command;
use serde_json::{Value, json};

use super::sharing::Two;
use super::sign_in::Post;

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
