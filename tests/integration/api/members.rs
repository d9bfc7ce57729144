//! Members over HTTP: who may change whom, and that a change or a removal counts at the next request of a token that is still valid.

use harness::actors::{Actor, Ask, Member};
use harness::app::TestApp;
use serde_json::{Value, json};

use super::ABSENT;

/// A request with a token whose subject is `subject`.
fn as_subject(of: &Member, subject: &str, scopes: &str, method: &str, target: &str) -> Ask {
    let mut claims = of.claims();
    claims["sub"] = json!(subject);
    claims["scope"] = json!(scopes);
    of.ask_with(&claims, method, target)
}

async fn add(by: &Member, body: Value) -> String {
    by.post("/api/v1/members", &body).await.expect(201).text("id")
}

/// The walk of `docs/members.md`.
#[tokio::test]
async fn add_read_change_and_remove() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let body = json!({ "email": "Ada@Example.com", "name": "Ada", "role": "member", "subject": "idp|ada", "scopes": ["notes:read"] });
    let made = acme.post("/api/v1/members", &body).with("idempotency-key", "once").await.expect(201);
    let path = made.header("location").to_owned();
    assert_eq!(
        (made.header("etag"), made.text("email").as_str(), path.as_str()),
        ("\"1\"", "ada@example.com", &*format!("/api/v1/members/{}", made.text("id")))
    );
    let again = acme.post("/api/v1/members", &body).with("idempotency-key", "once").await.expect(201);
    assert_eq!((again.header("idempotency-replayed"), &again.body), ("true", &made.body));
    acme.post("/api/v1/members", &body).await.problem("conflict");

    let shown = acme.role("viewer").get(&path).await.expect(200);
    assert_eq!((shown.header("etag"), shown.json()), ("\"1\"", made.json()));
    acme.get(&path).with("if-none-match", "\"1\"").await.expect(304);
    let changed = acme.patch(&path, &json!({ "role": "admin", "scopes": null })).with("if-match", "\"1\"").await.expect(200);
    assert_eq!((changed.header("etag"), &changed.json()["role"], &changed.json()["scopes"]), ("\"2\"", &json!("admin"), &Value::Null));
    acme.patch(&path, &json!({ "name": "X" })).with("if-match", "\"1\"").await.problem("version-mismatch");
    acme.delete(&path).with("if-match", "\"1\"").await.problem("version-mismatch");

    // A page at a time.
    for name in ["b", "c"] {
        acme.member(name).await;
    }
    let first = acme.get("/api/v1/members?limit=2").await.expect(200).json();
    let rest =
        acme.get(&format!("/api/v1/members?limit=2&cursor={}", first["next_cursor"].as_str().expect("more"))).await.expect(200).json();
    let names = |page: &Value| page["items"].as_array().expect("items").iter().map(|member| member["name"].clone()).collect::<Vec<_>>();
    assert_eq!((names(&first), names(&rest), &rest["next_cursor"]), (vec![json!("c"), json!("b")], vec![json!("Ada")], &Value::Null));

    // Nobody else's.
    globex.get(&path).await.problem("not-found");
    globex.patch(&path, &json!({ "role": "viewer" })).await.problem("not-found");
    globex.delete(&path).await.problem("not-found");
    assert_eq!(globex.get("/api/v1/members").await.expect(200).json()["items"], json!([]));

    acme.delete(&path).with("if-match", "\"2\"").await.expect(204);
    acme.get(&path).await.problem("not-found");
    acme.delete(&path).await.problem("not-found");
    assert_eq!(names(&acme.get("/api/v1/members").await.expect(200).json()), ["c", "b"]);
    assert_eq!(app.audit().await, [""; 0]);
}

#[tokio::test]
async fn bad_members_are_refused_by_field_and_roles_keep_to_themselves() {
    let (_app, acme, _) = TestApp::with_tenants().await;
    for (body, field) in [
        (json!({ "email": "a@b", "name": "A", "role": "viewer" }), "email"),
        (json!({ "email": "a@b.de\r\nBcc: c@d.de", "name": "A", "role": "viewer" }), "email"),
        (json!({ "email": "a@b.de", "name": "", "role": "viewer" }), "name"),
        (json!({ "email": "a@b.de", "name": "A", "role": "god" }), "role"),
        (json!({ "email": "a@b.de", "name": "A", "role": "viewer", "subject": "a b" }), "subject"),
        (json!({ "email": "a@b.de", "name": "A", "role": "viewer", "scopes": ["a b"] }), "scopes"),
        (json!({ "email": "a@b.de", "name": "A", "role": "viewer", "tenant_id": ABSENT }), "tenant_id"),
        (json!({ "email": "a@b.de", "name": "A", "role": "viewer", "status": "removed" }), "status"),
    ] {
        acme.post("/api/v1/members", &body).await.invalid(field);
    }
    let owner = add(&acme, json!({ "email": "o@b.de", "name": "O", "role": "owner" })).await;
    let (path, admin) = (format!("/api/v1/members/{owner}"), acme.role("admin"));
    acme.patch(&path, &json!({ "email": "x@b.de" })).await.invalid("email");
    acme.patch(&path, &json!({ "role": null })).await.invalid("role");
    let viewer = json!({ "email": "v@b.de", "name": "V", "role": "viewer" });
    for role in ["viewer", "member"] {
        let who = acme.role(role);
        who.get(&path).await.expect(200);
        who.post("/api/v1/members", &viewer).await.problem("forbidden");
        who.patch(&path, &json!({ "name": "X" })).await.problem("forbidden");
        who.delete(&path).await.problem("forbidden");
    }
    admin.post("/api/v1/members", &json!({ "email": "v@b.de", "name": "V", "role": "owner" })).await.problem("forbidden");
    admin.patch(&path, &json!({ "role": "viewer" })).await.problem("forbidden");
    admin.delete(&path).await.problem("forbidden");
    // An owner by their token alone could be made less by a row: an admin may not write it.
    admin
        .post("/api/v1/members", &json!({ "email": "v@b.de", "name": "V", "role": "viewer", "subject": "the-owner" }))
        .await
        .problem("forbidden");
    admin.post("/api/v1/members", &viewer).await.expect(201);
    acme.delete(&path).await.problem("conflict");
}

#[tokio::test]
async fn seats_are_a_quota() {
    let (app, acme, _) = TestApp::with_tenants().await;
    let quotas = json!({ "quotas": [{ "metric": "users", "limit": 2 }] });
    app.operator().put("/api/v1/tenants/acme-works/quotas", "").json(&quotas).await.expect(200);
    let first = acme.member("a").await;
    acme.member("b").await;
    let third = json!({ "email": "c@b.de", "name": "C", "role": "viewer" });
    let refused = acme.post("/api/v1/members", &third).with("idempotency-key", "third").await.problem("quota-exceeded");
    assert_eq!(refused["detail"], "the quota of users allows 2 users: 2 are used, and 1 more were asked for");
    acme.delete(&format!("/api/v1/members/{first}")).await.expect(204);
    acme.post("/api/v1/members", &third).with("idempotency-key", "third").await.expect(201);
}

#[tokio::test]
async fn a_change_of_role_and_a_removal_count_at_the_next_request() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    // The token says owner, for an hour; so does one of another tenant with the same subject.
    let create = |of: &Member, who: &str| as_subject(of, who, "a b", "POST", "/api/v1/projects").json(&json!({ "name": "x" }));
    let me = async |who: &str| as_subject(&acme, who, "a b", "GET", "/api/v1/me").await.expect(200).json();
    create(&acme, "idp|ada").await.expect(201);
    assert_eq!((&me("idp|ada").await["role"], &me("idp|ada").await["member"]), (&json!("owner"), &Value::Null));

    let id = add(&acme, json!({ "email": "a@b.de", "name": "A", "role": "viewer", "subject": "idp|ada", "scopes": ["b", "c"] })).await;
    let path = format!("/api/v1/members/{id}");
    for who in ["idp|ada", &id] {
        let me = me(who).await;
        assert_eq!((&me["role"], &me["scopes"], &me["member"]["id"]), (&json!("viewer"), &json!(["b"]), &json!(id)));
        create(&acme, who).await.problem("forbidden");
    }
    acme.patch(&path, &json!({ "role": "member", "scopes": null })).await.expect(200);
    create(&acme, "idp|ada").await.expect(201);
    assert_eq!(me("idp|ada").await["scopes"], json!(["a", "b"]));
    // A row gives nothing that the token does not say.
    acme.patch(&path, &json!({ "role": "owner" })).await.expect(200);
    create(&acme.role("viewer"), "idp|ada").await.problem("forbidden");

    let node = app.another_node().await;
    add(&acme, json!({ "email": "o@b.de", "name": "O", "role": "owner" })).await;
    acme.delete(&path).await.expect(204);
    for at in [acme.clone(), acme.at(&node)] {
        for who in ["idp|ada", &id] {
            let refused = as_subject(&at, who, "", "GET", "/api/v1/projects").await;
            let invalid = at.get("/api/v1/projects").with("authorization", "Bearer x").await;
            refused.problem("unauthenticated");
            assert_eq!(refused.comparable(), invalid.comparable(), "as any token that is not valid");
        }
    }
    // The other tenant's is another person.
    create(&globex, "idp|ada").await.expect(201);
    // The control: it is the row that refuses, and not the token.
    sqlx::query("delete from tenancy.members where subject = 'idp|ada'").execute(&mut app.db_eye().await).await.expect("deleted");
    create(&acme, "idp|ada").await.expect(201);
}

#[tokio::test]
async fn members_only_is_for_those_who_have_a_row() {
    let app = TestApp::with(|config| config.members_only = true).await;
    let (acme, globex) = app.two_tenants().await;
    acme.get("/api/v1/projects").await.problem("forbidden");
    // The first owner's row is written by whoever sets the tenant up.
    let db = app.database.open().await.expect("open");
    let found = tenancy_core::TenantCatalog::find(&db.catalog(), &"acme-works".parse().expect("a slug")).await.expect("catalog");
    let operator = tenancy_core::Principal::Operator { subject: "operator".parse().expect("a subject") };
    let cx = tenancy_core::TenantContext::establish(found.and_then(|tenant| tenant.into_active().ok()).expect("active"), operator);
    let owner = tenancy_core::NewMember::new("o@b.de".parse().expect("an address"), "O", tenancy_core::Role::Owner);
    let mut tx = db.begin(&cx).await.expect("begin");
    tx.add_member(&cx, &owner.with_subject("the-owner".parse().expect("a subject"))).await.expect("added");
    tx.commit().await.expect("commit");
    db.close().await;
    acme.get("/api/v1/projects").await.expect(200);
    acme.role("admin").get("/api/v1/projects").await.problem("forbidden");
    globex.get("/api/v1/projects").await.problem("forbidden");
}
