//! The whole life of a tenant over HTTP and real mail, and servers that are killed at any moment of its beginning and its end.

use std::time::{Duration, Instant};

use harness::actors::Actor as _;
use harness::app::Folder;
use harness::program::command;
use serde_json::{Value, json};
use tenancy_sqlx::testing::TestDatabase;

use super::lifecycle::ends;
use super::operations::Serving;
use super::sign_in::{Post, body, cookie};

const OWNER: &str = "olga@example.com";

#[tokio::test]
async fn from_sign_up_to_erasure() {
    let (post, _, globex) = Post::start().await;
    let operator = post.app.operator();
    let others = async || {
        let mut rows = post.app.db_everything().await;
        rows.values_mut().for_each(|rows| rows.retain(|row| row.contains(&globex.tenant)));
        rows
    };
    globex.document(&globex.project("theirs").await, "theirs").await;
    let before = others().await;

    // An operator makes the tenant; its owner is invited once it serves, and not before.
    let wanted = json!({
        "slug": "rockets", "name": "Rockets Ltd", "provision": true, "owner": { "email": OWNER, "name": "Olga" },
        "branding": { "product_name": "Rocket Desk" },
    });
    let make = || operator.post("/api/v1/tenants", &wanted).with("idempotency-key", "sign-up");
    let tenant = make().await.expect(201).text("id");
    assert_eq!(make().await.expect(201).header("idempotency-replayed"), "true");
    let path = post.path(OWNER, 0).await;
    let at = format!("/api/v1/tenants/{tenant}");
    assert_eq!(operator.get(&at).await.expect(200).text("status"), "active");
    assert_eq!(post.links(OWNER).len(), 1);

    // She follows the link, presses the button, and sees her own organisation and nothing else.
    let page = post.app.stranger().get(&path).await.expect(200);
    assert!(body(&page).contains("<h1>Rocket Desk</h1>"), "{}", body(&page));
    let olga = cookie(&post.press(&path).await.expect(303));
    let page = |method: &str, target: &str| post.as_page(&olga, method, target);
    let me = page("GET", "/api/v1/me").await.expect(200).json();
    assert_eq!((&me["role"], &me["member"]["name"]), (&json!("owner"), &json!("Olga")), "{me}");
    let projects = page("GET", "/api/v1/projects").await.expect(200).json();
    assert_eq!((&projects["items"][0]["name"], projects["items"].as_array().map(Vec::len)), (&json!("Welcome"), Some(1)));

    // She works, and asks a colleague in, whose mail has the branding that she chose.
    let project = page("POST", "/api/v1/projects").json(&json!({ "name": "Moon" })).await.expect(201).text("id");
    let document =
        page("POST", &format!("/api/v1/projects/{project}/documents")).json(&json!({ "title": "Plan" })).await.expect(201).text("id");
    page("PUT", &format!("/api/v1/documents/{document}/attachments/a.txt")).body(b"to the moon".to_vec()).await.expect(201);
    let theme = json!({ "product_name": "Rocket Desk", "theme": { "light": { "primary": "#0b3d91", "on_primary": "#ffffff" } } });
    let branded = page("PATCH", "/api/v1/branding").json(&theme).await.expect(200);
    assert_eq!(branded.json()["theme"]["light"]["primary"], "#0b3d91");
    let unreadable = json!({ "theme": { "light": { "primary": "#0b3d91", "on_primary": "#0b3d92" } } });
    page("PATCH", "/api/v1/branding").json(&unreadable).await.problem("invalid");
    page("POST", "/api/v1/invites").json(&json!({ "email": "mo@example.com", "role": "viewer" })).await.expect(201);
    let invited = post.path("mo@example.com", 0).await;
    assert!(
        post.smtp
            .received()
            .iter()
            .any(|mail| mail.to == ["mo@example.com"] && String::from_utf8_lossy(&mail.data).contains("Rocket Desk"))
    );

    // Suspended, nothing of it works on any node: sessions, invitations, its API tokens.
    let token = page("POST", "/api/v1/api-tokens").json(&json!({ "name": "ci", "ttl_seconds": 3600 })).await.expect(201).text("token");
    let machine = || post.app.stranger().get("/api/v1/projects").with("authorization", format!("Bearer {token}"));
    machine().await.expect(200);
    operator.ask("POST", &format!("{at}/suspend")).await.expect(200);
    for ask in [page("GET", "/api/v1/projects"), machine(), post.press(&invited)] {
        let refused = ask.await;
        assert!([401, 403, 404].contains(&refused.status), "{refused:?}");
    }
    operator.ask("POST", &format!("{at}/resume")).await.expect(200);
    machine().await.expect(200);
    let mo = cookie(&post.press(&invited).await.expect(303));
    post.as_page(&mo, "POST", "/api/v1/projects").json(&json!({ "name": "x" })).await.problem("forbidden");

    // Archived and erased, it is gone, with a certificate of what there was; the slug is free, and nobody else has noticed.
    operator.delete(&at).await.expect(204);
    let sure = json!({ "confirm": "rockets", "reason": "the contract ended" });
    let queued = operator.post(&format!("{at}/erase"), &sure).await.expect(202);
    let done = ends(&post.app, queued.header("location")).await;
    let certificate = &done["result"]["certificate"];
    assert_eq!(
        (&certificate["tables"]["public.documents"], &certificate["tables"]["tenancy.members"]),
        (&json!(1), &json!(2)),
        "{certificate}"
    );
    assert_eq!(certificate["objects"], json!({ "objects": 1, "bytes": 11 }));
    for ask in [page("GET", "/api/v1/projects"), machine(), post.as_page(&mo, "GET", "/api/v1/me"), post.press(&invited)] {
        let refused = ask.await;
        assert!([401, 404].contains(&refused.status), "{refused:?}");
    }
    operator.get(&at).await.problem("not-found");
    assert_eq!(others().await, before);
    operator.create("rockets").await;
}

pub(super) async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = done().await {
            return found;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Each server is killed (SIGKILL) a little later than the one before, the next one goes on with what it left, and in the end everything is
/// made once, and then everything is erased.
#[tokio::test]
async fn servers_that_are_killed_at_any_moment_leave_what_the_next_one_completes() {
    let folder = Folder::new();
    let database = TestDatabase::with_migrations(&tenancy_server::MIGRATIONS).await.expect("a database");
    let serve = || {
        let mut serve = command(&folder, &["serve", "--listen", "127.0.0.1:0"]);
        serve.env("DATABASE_URL", database.app_url()).env("TENANCY_ADMIN_DATABASE_URL", database.admin_url());
        serve.env("TENANCY_JWT_SECRET", "a secret of the tests, of more than 32 bytes");
        Serving::start(serve)
    };
    let operator = harness::actors::OPERATOR_TOKEN;
    let delays = [0, 3, 8, 15, 25, 40, 70, 120];
    let mut tenants: Vec<String> = Vec::new();
    for (n, delay) in delays.into_iter().enumerate() {
        let serving = serve();
        let wanted = json!({ "slug": format!("tenant-{n}"), "name": "x", "provision": true, "owner": { "email": OWNER } });
        let made = serving.post("/api/v1/tenants", operator, &wanted).await.expect(201);
        tenants.push(made.text("id"));
        tokio::time::sleep(Duration::from_millis(delay)).await;
        drop(serving);
    }
    let mut eye = database.superuser().await.expect("superuser");
    let mut count = async |sql: &str| -> Vec<i64> {
        let query = format!("select (select count(*) from {sql} x where x.tenant_id = t.id) from tenancy.tenants t order by t.id");
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(&mut eye).await.expect("counts")
    };
    let serving = serve();
    for tenant in &tenants {
        until("a tenant stays half-made", async || {
            let now = serving.get(&format!("/api/v1/tenants/{tenant}"), operator).await.expect(200);
            (now.text("status") == "active").then_some(())
        })
        .await;
    }
    drop(serving);
    let once = vec![1; tenants.len()];
    for made in ["projects", "tenancy.invites", "(select * from tenancy.operations where state = 'done')"] {
        assert_eq!(count(made).await, once, "{made}");
    }

    for (tenant, delay) in tenants.iter().zip(delays) {
        let serving = serve();
        let at = format!("/api/v1/tenants/{tenant}");
        let slug = serving.get(&at, operator).await.expect(200).text("slug");
        serving.ask("DELETE", &at, operator, None).await.expect(204);
        let sure = json!({ "confirm": slug, "reason": "the test wants it" });
        serving.post(&format!("{at}/erase"), operator, &sure).await.expect(202);
        tokio::time::sleep(Duration::from_millis(delay * 8)).await;
        drop(serving);
    }
    let serving = serve();
    for tenant in &tenants {
        until("a tenant stays half-erased", async || {
            let all = serving.get(&format!("/api/v1/tenants/{tenant}/operations"), operator).await;
            // Its last moment takes its name away.
            (all.status == 404).then_some(())
        })
        .await;
    }
    drop(serving);
    let none = vec![0; tenants.len()];
    for gone in ["projects", "tenancy.invites", "tenancy.members", "tenancy.quotas"] {
        assert_eq!(count(gone).await, none, "{gone}");
    }
    let certified = count("(select * from tenancy.operations where kind = 'erase' and state = 'done' and result ? 'signature')").await;
    assert_eq!(certified, once);
    // The control: servers were killed at their work, and not before or after it.
    let resumed = count("(select * from tenancy.operations where kind = 'erase' and attempts > 1)").await;
    assert!(resumed.iter().sum::<i64>() > 0, "{resumed:?}");
}

/// What is wrong is refused by its field, and nothing is made.
#[tokio::test]
async fn a_bad_owner_makes_no_tenant() {
    let app = harness::app::TestApp::start().await;
    let wanted = |owner: Value| json!({ "slug": "rockets", "name": "Rockets", "owner": owner });
    for (owner, field) in [
        (json!({ "email": "olga" }), "owner.email"),
        (json!({ "email": "olga@example.com\r\nBcc: x@example.com" }), "owner.email"),
        (json!({ "email": OWNER, "name": "a\r\nb" }), "owner.name"),
        (json!({ "email": OWNER, "role": "admin" }), "owner.role"),
        (json!(null), "owner"),
    ] {
        app.operator().post("/api/v1/tenants", &wanted(owner)).await.invalid(field);
    }
    app.operator().get("/api/v1/tenants/rockets").await.problem("not-found");
    app.operator().post("/api/v1/tenants", &wanted(json!({ "email": OWNER }))).await.expect(201);
}
