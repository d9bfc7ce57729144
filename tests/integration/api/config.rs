//! Settings, branding, the logo and flags over HTTP.

use std::time::{Duration, Instant};

use harness::actors::{Actor, Member, png};
use harness::app::TestApp;
use serde_json::{Value, json};

async fn set(member: &Member, settings: Value) -> harness::actors::Reply {
    member.patch("/api/v1/config", &json!({ "settings": settings })).await
}

/// The walk of `docs/configuration.md`.
#[tokio::test]
async fn settings_are_set_seen_everywhere_told_and_rolled_back() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let operator = app.operator();
    let first = acme.role("viewer").get("/api/v1/config").await.expect(200);
    assert_eq!((first.header("etag"), &first.json()["settings"]["page.size"]["value"]), ("\"0\"", &json!(50)));
    operator.patch("/api/v1/plans/standard/config", &json!({ "settings": { "page.size": 100 } })).await.expect(200);
    let of = |reply: &harness::actors::Reply| {
        let size = &reply.json()["settings"]["page.size"];
        (size["value"].clone(), size["from"].clone())
    };
    assert_eq!(of(&globex.get("/api/v1/config").await.expect(200)), (json!(100), json!("plan")));

    let admin = acme.role("admin");
    let done = set(&admin, json!({ "page.size": 20, "session.idle": "15m" })).await.expect(200);
    assert_eq!((done.header("etag"), of(&done)), ("\"1\"", (json!(20), json!("tenant"))));
    let stale = admin.patch("/api/v1/config", &json!({ "settings": { "page.size": 30 } })).with("if-match", "\"0\"").await;
    stale.problem("version-mismatch");
    admin.patch("/api/v1/config", &json!({ "settings": { "page.size": 30 } })).with("if-match", "\"1\"").await.expect(200);
    // Operators do the same, and a tenant's log has it with what was before.
    let path = "/api/v1/tenants/acme-works/config";
    assert_eq!(of(&operator.get(path).await.expect(200)), (json!(30), json!("tenant")));
    operator.patch(path, &json!({ "settings": { "uploads.enabled": false } })).with("if-match", "\"2\"").await.expect(200);
    operator.patch(path, &json!({ "settings": {} })).with("if-match", "\"2\"").await.problem("version-mismatch");
    let document = acme.document(&acme.project("p").await, "d").await;
    acme.attach(&document, "a", b"x").await.problem("forbidden");
    let log = acme.get("/api/v1/audit?action=tenant.config").await.expect(200).json();
    let detail = &log["items"][0]["detail"];
    assert_eq!((&detail["before"], &detail["after"]), (&json!({}), &json!({ "uploads.enabled": false })));

    let history = admin.get("/api/v1/config/history?limit=2").await.expect(200).json();
    assert_eq!((&history["items"][0]["version"], &history["items"][1]["after"]), (&json!(3), &json!({ "page.size": 30 })));
    let cursor = history["next_cursor"].as_str().expect("one more");
    let rest = admin.get(&format!("/api/v1/config/history?cursor={cursor}")).await.expect(200).json();
    assert_eq!(
        (rest["items"].as_array().map(Vec::len), &rest["items"][0]["version"], &rest["next_cursor"]),
        (Some(1), &json!(1), &Value::Null)
    );
    let back = admin.post("/api/v1/config/rollback", &json!({ "version": 1 })).with("idempotency-key", "back");
    let done = back.clone().await.expect(200);
    assert_eq!((done.header("etag"), of(&done)), ("\"4\"", (json!(20), json!("tenant"))));
    assert_eq!(done.json()["settings"]["uploads.enabled"]["from"], "default");
    let again = back.await.expect(200);
    assert_eq!((again.header("idempotency-replayed"), &again.body), ("true", &done.body));
    acme.attach(&document, "a", b"x").await.expect(201);
    let all = operator.get("/api/v1/tenants/acme-works/config/history").await.expect(200).json();
    assert_eq!((all["items"].as_array().map(Vec::len), &all["items"][0]["rolled_back_to"]), (Some(4), &json!(1)));
    operator.post("/api/v1/tenants/acme-works/config/rollback", &json!({ "version": 0 })).await.expect(200);
    assert_eq!(of(&acme.get("/api/v1/config").await.expect(200)), (json!(100), json!("plan")));
}

#[tokio::test]
async fn another_node_has_the_new_settings_within_a_second() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    let node = app.another_node().await;
    let there = acme.at(&node);
    assert_eq!(there.get("/api/v1/config").await.expect(200).json()["version"], 0);
    for n in 1..=3 {
        set(&acme, json!({ "page.size": 10 + n })).await.expect(200);
        let since = Instant::now();
        while there.get("/api/v1/config").await.expect(200).json()["version"] != n {
            assert!(since.elapsed() < Duration::from_secs(1), "the other node does not know");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn settings_that_are_none_are_refused_with_their_path() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    let before = app.db_everything().await;
    for (change, field) in [
        (json!({ "settings": { "page.size": 9 } }), "settings.page.size"),
        (json!({ "settings": { "page.size": 201 } }), "settings.page.size"),
        (json!({ "settings": { "page.size": "20" } }), "settings.page.size"),
        (json!({ "settings": { "session.idle": "1s" } }), "settings.session.idle"),
        (json!({ "settings": { "session.idle": 900 } }), "settings.session.idle"),
        (json!({ "settings": { "ui.locale": "de\r\nx-evil: 1" } }), "settings.ui.locale"),
        (json!({ "settings": { "help.url": "javascript:alert(1)" } }), "settings.help.url"),
        (json!({ "settings": { "digest.frequency": "hourly" } }), "settings.digest.frequency"),
        (json!({ "settings": { "uploads.enabled": "no" } }), "settings.uploads.enabled"),
        (json!({ "settings": { "page.size": 20, "nope": 1 } }), "settings.nope"),
        (json!({ "settings": { "a\r\nb": 1 } }), "settings"),
        (json!({ "settings": [] }), "settings"),
        (json!({ "settings": {}, "tenant_id": "x" }), "tenant_id"),
        (json!({}), "body"),
    ] {
        for reply in [acme.patch("/api/v1/config", &change).await, app.operator().patch("/api/v1/tenants/acme-works/config", &change).await]
        {
            reply.invalid(field);
        }
    }
    let many: serde_json::Map<String, Value> = (0..10_000).map(|n| (n.to_string(), json!(1))).collect();
    acme.patch("/api/v1/config", &json!({ "settings": many })).await.refused();
    app.operator().patch("/api/v1/plans/gold/config", &json!({ "settings": {} })).await.problem("not-found");
    app.operator().patch("/api/v1/plans/free/config", &json!({ "settings": { "page.size": 0 } })).await.invalid("settings.page.size");
    for version in [json!(1), json!(-1), json!(u64::MAX), json!("0")] {
        acme.post("/api/v1/config/rollback", &json!({ "version": version })).await.invalid("version");
    }
    assert_eq!(app.db_everything().await, before, "nothing was written");
}

#[tokio::test]
async fn settings_are_for_admins_to_set_and_a_tenants_own() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    set(&globex, json!({ "ui.locale": "canary-locale" })).await.expect(200);
    for role in ["viewer", "member"] {
        let member = acme.role(role);
        member.get("/api/v1/config").await.expect(200).is_silent_about(["canary-locale"]);
        set(&member, json!({ "page.size": 20 })).await.problem("forbidden");
        member.get("/api/v1/config/history").await.problem("forbidden");
        member.post("/api/v1/config/rollback", &json!({ "version": 0 })).await.problem("forbidden");
    }
    let history = acme.get("/api/v1/config/history").await.expect(200);
    assert_eq!(history.json()["items"], json!([]));
    // Another tenant's version is none of this one's.
    acme.post("/api/v1/config/rollback", &json!({ "version": 1 })).await.invalid("version");
    for path in ["/api/v1/tenants/globex-corp/config", "/api/v1/plans/free/config"] {
        acme.get(path).await.problem("unauthenticated");
        app.stranger().patch(path, &json!({ "settings": {} })).await.problem("unauthenticated");
    }
    app.stranger().get("/api/v1/config").await.problem("unauthenticated");
    app.operator().get("/api/v1/tenants/nobody/config").await.problem("not-found");
    // The control: the owner of the value sees it.
    assert_eq!(globex.get("/api/v1/config").await.expect(200).json()["settings"]["ui.locale"]["value"], "canary-locale");
}

const BRANDING: &str = "/api/v1/branding";

fn rocket() -> Value {
    json!({ "product_name": "Rocket", "support_email": "help@acme.example", "support_url": "https://acme.example/help",
            "theme": { "light": { "primary": "#1a56c8", "on_primary": "#ffffff" }, "dark": { "background": "#101010", "on_background": "#eeeeee" } } })
}

#[tokio::test]
async fn branding_is_set_by_admins_seen_by_members_and_signs_mail() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let nothing = json!({ "product_name": null, "support_email": null, "support_url": null, "theme": null, "logo": null });
    assert_eq!(acme.role("viewer").get(BRANDING).await.expect(200).json(), nothing);
    let done = acme.role("admin").put(BRANDING, "").json(&rocket()).await.expect(200);
    let shown = acme.role("viewer").get(BRANDING).await.expect(200);
    let mut all = rocket();
    all["logo"] = Value::Null;
    assert_eq!((shown.json(), shown.header("etag")), (all, done.header("etag")));
    assert_eq!((shown.header("cache-control"), shown.header("vary")), ("private, max-age=5", "authorization, host"));
    acme.get(BRANDING).with("if-none-match", shown.header("etag")).await.expect(304);
    globex.get(BRANDING).await.expect(200).is_silent_about(["rocket", "acme"]);

    let named = acme.patch(BRANDING, &json!({ "product_name": "Rocket 2", "theme": null })).with("if-match", shown.header("etag")).await;
    let named = named.expect(200).json();
    assert_eq!(
        (&named["product_name"], &named["support_email"], &named["theme"]),
        (&json!("Rocket 2"), &json!("help@acme.example"), &Value::Null)
    );
    acme.patch(BRANDING, &json!({ "product_name": "Rocket 3" })).with("if-match", shown.header("etag")).await.problem("version-mismatch");
    // Mail and operators read the same object, and what operators have put beside it stays.
    let path = "/api/v1/tenants/acme-works";
    let kept = app.operator().get(path).await.expect(200).json();
    assert_eq!(
        kept["branding"],
        json!({ "product_name": "Rocket 2", "support_email": "help@acme.example", "support_url": "https://acme.example/help" })
    );
    let odd = json!({ "branding": { "product_name": "Ro\r\nket", "support_url": "javascript:alert(1)", "colour": "#fff", "theme": { "light": 1 } } });
    app.operator().patch(path, &odd).await.expect(200);
    assert_eq!(acme.get(BRANDING).await.expect(200).json(), nothing, "what was not checked is not shown");
    acme.patch(BRANDING, &json!({ "product_name": "Rocket 4" })).await.expect(200);
    assert_eq!(app.operator().get(path).await.expect(200).json()["branding"], json!({ "product_name": "Rocket 4", "colour": "#fff" }));
    let log = acme.get("/api/v1/audit?action=tenant.branding").await.expect(200).json();
    assert_eq!((log["items"].as_array().map(Vec::len), &log["items"][0]["detail"]["after"]["product_name"]), (Some(3), &json!("Rocket 4")));
}

#[tokio::test]
async fn branding_that_misleads_or_can_not_be_read_is_refused() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    acme.put(BRANDING, "").json(&rocket()).await.expect(200);
    let before = app.db_everything().await;
    for (change, field) in [
        (json!({ "product_name": "Rocket\r\nBcc: x@y.example" }), "product_name"),
        (json!({ "product_name": "x".repeat(101) }), "product_name"),
        (json!({ "support_url": "javascript:alert(1)" }), "support_url"),
        (json!({ "support_url": "http://acme.example" }), "support_url"),
        (json!({ "support_url": "https://acme.example@evil.example/" }), "support_url"),
        (json!({ "support_email": "a@b.example\r\nbcc: c@d.example" }), "support_email"),
        (json!({ "theme": { "light": { "primary": "#fff", "on_primary": "#000000" } } }), "theme.light.primary"),
        (json!({ "theme": { "light": { "primary": "red;}", "on_primary": "#000000" } } }), "theme.light.primary"),
        (json!({ "theme": { "light": { "primary": "#ffffff" } } }), "theme.light.on_primary"),
        (json!({ "theme": { "light": { "evil": "#ffffff" } } }), "theme.light.evil"),
        (json!({ "logo": { "object": "x" } }), "logo"),
        (json!({ "tenant_id": "x" }), "tenant_id"),
    ] {
        acme.put(BRANDING, "").json(&change).await.invalid(field);
        acme.patch(BRANDING, &change).await.invalid(field);
    }
    let pale = json!({ "theme": { "light": { "primary": "#ffffff", "on_primary": "#777777" } } });
    let refused = acme.put(BRANDING, "").json(&pale).await;
    refused.invalid("theme.light.on_primary");
    assert!(refused.text("detail").contains("4.47:1"), "{refused:?}");
    for role in ["viewer", "member"] {
        acme.role(role).put(BRANDING, "").json(&rocket()).await.problem("forbidden");
        acme.role(role).patch(BRANDING, &json!({})).await.problem("forbidden");
    }
    app.stranger().patch(BRANDING, &json!({})).await.problem("unauthenticated");
    app.stranger().get(BRANDING).await.problem("unauthenticated");
    assert_eq!(app.db_everything().await, before, "nothing was written");
}

#[tokio::test]
async fn a_visitor_of_a_tenants_host_sees_its_branding_and_of_no_other() {
    let app = TestApp::with(|config| config.base_domain = Some("example.com".to_owned())).await;
    let (acme, globex) = app.two_tenants().await;
    let at = |ask: harness::actors::Ask, slug: &str| ask.with("host", format!("{slug}.example.com"));
    at(acme.put(BRANDING, "").json(&rocket()), "acme-works").await.expect(200);
    at(globex.put(BRANDING, "").json(&json!({ "product_name": "Globex" })), "globex-corp").await.expect(200);
    let visit = |slug: &str| at(app.stranger().get(BRANDING), slug);
    assert_eq!(visit("acme-works").await.expect(200).json()["theme"], rocket()["theme"]);
    assert_eq!(visit("globex-corp").await.expect(200).json()["product_name"], "Globex");
    // A token and a host of two tenants, a bad token, and writing without one.
    at(acme.get(BRANDING), "globex-corp").await.problem("tenant-not-found");
    at(app.stranger().get(BRANDING).with("authorization", "Bearer x"), "acme-works").await.problem("unauthenticated");
    at(app.stranger().patch(BRANDING, &json!({})), "acme-works").await.problem("unauthenticated");
    at(app.stranger().get("/api/v1/config"), "acme-works").await.problem("unauthenticated");
    // Nobody's host, one that can be nobody's, a suspended tenant's and an archived one's are alike.
    let nobodys = visit("nobody-here").await;
    nobodys.problem("tenant-not-found");
    app.operator()
        .post("/api/v1/tenants/acme-works/suspend", &json!({}))
        .without("content-length")
        .without("content-type")
        .body("")
        .await
        .expect(200);
    app.operator().delete("/api/v1/tenants/globex-corp").await.expect(204);
    for slug in ["acme-works", "globex-corp", "not_a_slug"] {
        assert_eq!(visit(slug).await.comparable(), nobodys.comparable(), "{slug}");
    }
}

#[tokio::test]
async fn another_node_shows_the_new_branding_within_a_second() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    let node = app.another_node().await;
    let there = acme.at(&node);
    for name in ["One", "Two", "Three"] {
        acme.patch(BRANDING, &json!({ "product_name": name })).await.expect(200);
        assert_eq!(acme.get(BRANDING).await.expect(200).json()["product_name"], name, "here at once");
        let since = Instant::now();
        while there.get(BRANDING).await.expect(200).json()["product_name"] != name {
            assert!(since.elapsed() < Duration::from_secs(1), "the other node does not know");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

const LOGO: &str = "/api/v1/branding/logo";

#[tokio::test]
async fn a_logo_is_kept_as_pixels_counted_replaced_and_removed() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    acme.get(LOGO).await.problem("not-found");
    // Whatever the header says, the bytes decide.
    let done = acme.role("admin").put(LOGO, png(1)).with("content-type", "text/html").await.expect(200);
    let shown = acme.role("viewer").get("/api/v1/branding").await.expect(200).json();
    assert_eq!((&shown["logo"]["width"], &shown["logo"]["url"], &done.json()["logo"]), (&json!(4), &json!(LOGO), &shown["logo"]));
    let seen = acme.role("viewer").get(LOGO).await.expect(200);
    for (name, value) in [
        ("content-type", "image/png"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
        ("etag", done.header("etag")),
        ("cache-control", "private, max-age=5"),
    ] {
        assert_eq!(seen.header(name), value, "{name}");
    }
    assert_eq!(image::load_from_memory(&seen.body).expect("a picture").into_rgba8().get_pixel(0, 0).0, [1, 1, 2, 255]);
    acme.get(LOGO).with("if-none-match", seen.header("etag")).await.expect(304);
    globex.get(LOGO).await.problem("not-found");

    // It takes room, which comes back; what replaces it takes its place in the store as well, which the books of the test check.
    let used = async || {
        acme.get("/api/v1/tenant/quotas").await.expect(200).json()["items"]
            .as_array()
            .expect("quotas")
            .iter()
            .find(|quota| quota["metric"] == "storage")
            .expect("storage")["used"]
            .clone()
    };
    assert_eq!(used().await, seen.body.len());
    acme.put(LOGO, png(2)).with("if-match", "\"x\"").await.problem("version-mismatch");
    acme.put(LOGO, png(2)).with("if-none-match", "*").await.problem("version-mismatch");
    acme.put(LOGO, png(2)).with("if-match", seen.header("etag")).await.expect(200);
    acme.put("/api/v1/branding", "").json(&rocket()).await.expect(200);
    let path = "/api/v1/tenants/acme-works";
    app.operator().patch(path, &json!({ "branding": { "logo": { "object": "../x" } } })).await.expect(200);
    assert!(acme.get(LOGO).await.expect(200).body != seen.body, "neither changes the logo");
    assert_eq!(app.audit().await, [""; 0]);
    let quota = json!({ "quotas": [{ "metric": "storage", "limit": 10, "policy": "hard" }] });
    app.operator().put(&format!("{path}/quotas"), "").json(&quota).await.expect(200);
    acme.put(LOGO, png(3)).await.problem("quota-exceeded");
    assert_eq!(app.audit().await, [""; 0]);
    acme.delete(LOGO).await.expect(204);
    acme.delete(LOGO).await.problem("not-found");
    acme.get(LOGO).await.problem("not-found");
    assert_eq!(used().await, 0);
}

#[tokio::test]
async fn what_is_no_picture_or_too_much_of_one_is_refused() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    acme.put(LOGO, png(1)).await.expect(200);
    let before = app.db_everything().await;
    let zip = [&png(9)[..], b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"].concat();
    for bytes in [
        &b""[..],
        b"<svg xmlns=\"http://www.w3.org/2000/svg\" onload=\"alert(1)\"/>",
        b"GIF89a/*\x01\0\x01\0\0\0\0;*/=alert(1);",
        b"<html><script>alert(1)</script>",
        &zip,
        &png(9)[..40],
    ] {
        acme.put(LOGO, bytes).with("content-type", "image/png").await.invalid("body");
    }
    let mut wide = std::io::Cursor::new(Vec::new());
    image::RgbaImage::new(2049, 1).write_to(&mut wide, image::ImageFormat::Png).expect("a picture");
    acme.put(LOGO, wide.into_inner()).await.invalid("body");
    for size in [1024 * 1024 + 1, 10 * 1024 * 1024] {
        acme.put(LOGO, vec![0; size]).await.problem("too-large");
    }
    for role in ["viewer", "member"] {
        acme.role(role).put(LOGO, png(2)).await.problem("forbidden");
        acme.role(role).delete(LOGO).await.problem("forbidden");
    }
    app.stranger().put(LOGO, png(2)).await.problem("unauthenticated");
    assert_eq!(app.db_everything().await, before, "nothing was written");
}

#[tokio::test]
async fn logos_put_at_once_leave_one_and_every_node_shows_it() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    let node = app.another_node().await;
    acme.at(&node).put(LOGO, png(0)).await.expect(200);
    let all = (1..=6).map(|shade| if shade % 2 == 0 { acme.put(LOGO, png(shade)) } else { acme.at(&node).put(LOGO, png(shade)) });
    for reply in futures_util::future::join_all(all.map(IntoFuture::into_future)).await {
        reply.expect(200);
    }
    for member in [acme.clone(), acme.at(&node)] {
        member.get(LOGO).await.expect(200);
    }
    // The control: an object that nothing names is told.
    assert_eq!(app.audit().await, [""; 0]);
    let stray = app.config.data_dir.join(format!("objects/tenants/{}/branding/stray.png", acme.tenant));
    std::fs::write(&stray, "x").expect("written");
    assert_eq!(app.audit_now().await.len(), 1);
    std::fs::remove_file(stray).expect("removed");
}

fn defined(change: Value) -> Value {
    let mut flag = json!({ "kind": "bool", "default": false, "on": true });
    let Value::Object(change) = change else { panic!("an object") };
    flag.as_object_mut().expect("an object").extend(change);
    flag
}

async fn seen(member: &Member, flag: &str) -> (Value, String) {
    let flags = member.get("/api/v1/flags").await.expect(200).json();
    (flags["flags"][flag]["value"].clone(), flags["flags"][flag]["reason"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn flags_are_defined_by_operators_and_told_with_their_reason() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (operator, path) = (app.operator(), "/api/v1/flags/beta");
    let put = |change: Value| operator.put(path, "").json(&defined(change));
    operator.get(path).await.problem("not-found");
    let made = put(json!({ "description": "The new editor" })).with("if-none-match", "*").await.expect(200);
    assert_eq!((made.header("etag"), &made.json()["rollout"]), ("\"1\"", &json!(0)));
    put(json!({})).with("if-none-match", "*").await.problem("version-mismatch");
    put(json!({})).with("if-match", "\"7\"").await.problem("version-mismatch");
    assert_eq!(seen(&acme.role("viewer"), "beta").await, (json!(false), "default".to_owned()));
    for (change, of_acme, of_globex) in [
        (json!({ "tenants": [acme.tenant] }), (true, "cohort"), (false, "default")),
        (json!({ "plans": ["standard"] }), (true, "cohort"), (true, "cohort")),
        (json!({ "rollout": 10_000 }), (true, "rollout"), (true, "rollout")),
        (json!({ "rollout": 10_000, "killed": true }), (false, "kill_switch"), (false, "kill_switch")),
    ] {
        put(change).await.expect(200);
        for (member, (value, reason)) in [(&acme, of_acme), (&globex, of_globex)] {
            assert_eq!(seen(member, "beta").await, (json!(value), reason.to_owned()));
        }
    }
    put(json!({ "rollout": 10_000 })).await.expect(200);
    operator.patch("/api/v1/tenants/globex-corp", &json!({ "flags": { "beta": false, "gone": true } })).await.expect(200);
    assert_eq!(seen(&globex, "beta").await, (json!(false), "override".to_owned()));
    assert_eq!(seen(&acme, "beta").await, (json!(true), "rollout".to_owned()));
    assert_eq!(seen(&globex, "gone").await.0, Value::Null, "a value of a flag that is not defined is nothing");
    // Nothing of who else is on.
    put(json!({ "tenants": [globex.tenant] })).await.expect(200);
    acme.get("/api/v1/flags").await.expect(200).is_silent_about([&globex.tenant, &globex.slug]);
    let colour = json!({ "kind": "variant", "variants": ["red", "blue"], "default": "red", "on": "blue", "plans": ["standard"] });
    operator.put("/api/v1/flags/colour", "").json(&colour).await.expect(200);
    assert_eq!(seen(&acme, "colour").await, (json!("blue"), "cohort".to_owned()));
    let all = operator.get("/api/v1/flag-definitions").await.expect(200).json();
    assert_eq!(
        (&all["items"][0]["name"], &all["items"][1]["name"], &all["items"][0]["version"]),
        (&json!("beta"), &json!("colour"), &json!(7))
    );
    let mut eye = app.db_eye().await;
    let events: Vec<(String, Value)> = sqlx::query_as("select action, detail from tenancy.audit_events where target = 'beta' order by at")
        .fetch_all(&mut eye)
        .await
        .expect("events");
    assert_eq!((events.len(), &events[1].1["before"]["tenants"], &events[1].1["after"]["tenants"]), (7, &json!([]), &json!([acme.tenant])));

    operator.delete(path).with("if-match", "\"1\"").await.problem("version-mismatch");
    operator.delete(path).await.expect(204);
    operator.delete(path).await.problem("not-found");
    assert_eq!(seen(&acme, "beta").await.0, Value::Null);
}

#[tokio::test]
async fn another_node_follows_a_flag_within_a_second() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    let node = app.another_node().await;
    let there = acme.at(&node);
    for n in 0..4 {
        let flag = defined(json!({ "rollout": if n % 2 == 0 { 10_000 } else { 0 } }));
        app.operator().put("/api/v1/flags/beta", "").json(&flag).await.expect(200);
        assert_eq!(seen(&acme, "beta").await.0, n % 2 == 0, "here at once");
        let since = Instant::now();
        while seen(&there, "beta").await.0 != (n % 2 == 0) {
            assert!(since.elapsed() < Duration::from_secs(1), "the other node does not know");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn flags_that_make_no_sense_are_refused_and_so_are_too_many() {
    let (app, acme, _globex) = TestApp::with_tenants().await;
    let operator = app.operator();
    let before = app.db_everything().await;
    for (change, field) in [
        (json!({ "rollout": 10_001 }), "rollout"),
        (json!({ "rollout": -1 }), "rollout"),
        (json!({ "on": "yes" }), "on"),
        (json!({ "kind": "number" }), "kind"),
        (json!({ "kind": "variant", "variants": ["a"], "default": "a", "on": "a" }), "variants"),
        (json!({ "plans": ["gold"] }), "plans[0]"),
        (json!({ "tenants": ["nobody"] }), "tenants[0]"),
        (json!({ "description": "x".repeat(501) }), "description"),
        (json!({ "percent": 5 }), "percent"),
    ] {
        operator.put("/api/v1/flags/beta", "").json(&defined(change)).await.invalid(field);
    }
    for name in ["Beta", "1a", "a%0d%0ab", "a%00", &"a".repeat(65)] {
        operator.put(&format!("/api/v1/flags/{name}"), "").json(&defined(json!({}))).await.invalid("flag");
        operator.get(&format!("/api/v1/flags/{name}")).await.problem("not-found");
    }
    let many = |n: usize| json!({ "flags": (0..n).map(|n| (format!("f{n}"), json!(true))).collect::<serde_json::Map<_, _>>() });
    operator.patch("/api/v1/tenants/acme-works", &many(201)).await.invalid("flags");
    operator.patch("/api/v1/tenants/acme-works", &many(10_000)).await.refused();
    for asker in [acme.put("/api/v1/flags/beta", ""), app.stranger().put("/api/v1/flags/beta", "")] {
        asker.json(&defined(json!({}))).await.problem("unauthenticated");
    }
    assert_eq!(app.db_everything().await, before, "nothing was written");
    operator.patch("/api/v1/tenants/acme-works", &many(200)).await.expect(200);
    // A thousand definitions, and no more.
    let fill = "insert into tenancy.flag_definitions (name, kind, default_value, on_value) select 'f' || n, 'bool', 'false', 'true' from generate_series(1, 1000) n";
    sqlx::query(fill).execute(&mut app.db_eye().await).await.expect("filled");
    let refused = operator.put("/api/v1/flags/one-more", "").json(&defined(json!({}))).await;
    refused.problem("conflict");
    assert!(refused.text("detail").contains("1000 flags"), "{refused:?}");
    operator.put("/api/v1/flags/f1", "").json(&defined(json!({ "killed": true }))).await.expect(200);
    let flags = acme.get("/api/v1/flags").await.expect(200).json();
    assert_eq!(flags["flags"].as_object().map(serde_json::Map::len), Some(1000));
}
