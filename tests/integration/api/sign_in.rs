//! Invites, links to sign in with, sessions and API tokens over HTTP, by real mail: from the link in it to the cookie that works, and all
//! that must not.

use std::time::Duration;

use harness::actors::{Actor as _, Ask, Member, Reply};
use harness::app::TestApp;
use harness::smtp::SmtpServer;
use mail_parser::MessageParser;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A server that sends mail.
pub(super) struct Post {
    pub(super) app: TestApp,
    pub(super) smtp: SmtpServer,
}

impl Post {
    pub(super) async fn start() -> (Self, Member, Member) {
        let smtp = SmtpServer::start(true).await;
        let url = format!("smtp://localhost:{}?tls=none", smtp.address.port());
        let app = TestApp::with(|config| config.smtp = Some(url.as_str().into())).await;
        let (acme, globex) = app.two_tenants().await;
        (Self { app, smtp }, acme, globex)
    }

    /// The links of the mails to `to` that have come so far, the first first.
    pub(super) fn links(&self, to: &str) -> Vec<String> {
        let all = self.smtp.received().into_iter().filter(|mail| mail.to == [to]);
        let text = |data: &[u8]| MessageParser::default().parse(data).expect("a mail").body_text(0).expect("text").into_owned();
        all.map(|mail| {
            text(&mail.data)
                .split_once("http")
                .map(|(_, rest)| format!("http{}", rest.split_whitespace().next().expect("a link")))
                .expect("a link")
        })
        .collect()
    }

    /// The path of the link in the `nth` mail to `to`, once it is there.
    pub(super) async fn path(&self, to: &str, nth: usize) -> String {
        for _ in 0..500 {
            if let Some(link) = self.links(to).get(nth) {
                let base = format!("http://{}", self.app.node.address);
                return link.strip_prefix(&base).expect("a link to this server").to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no mail came to {to}");
    }

    /// Presses the button of a page.
    pub(super) fn press(&self, path: &str) -> Ask {
        self.app
            .stranger()
            .ask("POST", path)
            .body("")
            .with("content-type", "application/x-www-form-urlencoded")
            .with("sec-fetch-site", "same-origin")
            .with("origin", "null")
    }

    /// Invites `name`, who accepts; their cookie.
    async fn join(&self, by: &Member, name: &str, role: &str) -> String {
        let to = format!("{name}@example.com");
        by.post("/api/v1/invites", &json!({ "email": to, "role": role })).await.expect(201);
        let path = self.path(&to, 0).await;
        cookie(&self.press(&path).await.expect(303))
    }

    /// A request of a page of this server, with this cookie.
    pub(super) fn as_page(&self, cookie: &str, method: &str, target: &str) -> Ask {
        self.app.stranger().ask(method, target).with("cookie", cookie).with("sec-fetch-site", "same-origin")
    }
}

/// The cookie that an answer sets, as a browser sends it back.
#[track_caller]
pub(super) fn cookie(reply: &Reply) -> String {
    let set = reply.header("set-cookie");
    let (pair, rest) = set.split_once("; ").expect("a cookie");
    assert_eq!(rest, "Path=/; Max-Age=43200; Secure; HttpOnly; SameSite=Lax");
    assert!(pair.starts_with("__Host-tenancy=") && pair.len() == "__Host-tenancy=".len() + 43, "{set}");
    pair.to_owned()
}

pub(super) fn body(reply: &Reply) -> String {
    String::from_utf8(reply.body.clone()).expect("text")
}

fn token(path: &str) -> &str {
    path.rsplit('/').next().expect("a token")
}

#[tokio::test]
async fn from_an_invite_by_mail_to_a_session() {
    let (post, acme, _) = Post::start().await;
    let branding = json!({ "branding": { "product_name": "Rockets <& Co>" } });
    post.app.operator().patch(&format!("/api/v1/tenants/{}", acme.tenant), &branding).await.expect(200);
    let sent = acme
        .post("/api/v1/invites", &json!({ "email": "Ada@example.com", "role": "member", "name": "Ada" }))
        .with("idempotency-key", "once");
    let made = sent.clone().await.expect(201);
    assert_eq!((made.text("email").as_str(), sent.await.expect(201).header("idempotency-replayed")), ("ada@example.com", "true"));
    let path = post.path("ada@example.com", 0).await;
    assert!(path.starts_with("/welcome/"), "{path}");

    // Whoever looks, scanners of mail too, uses nothing up.
    for _ in 0..2 {
        let page = post.app.stranger().get(&path).await.expect(200);
        assert!(
            body(&page).contains("<h1>Rockets &lt;&amp; Co&gt;</h1>") && !body(&page).contains("<script") && !body(&page).contains("& Co>"),
            "{}",
            body(&page)
        );
        for (name, value) in [
            ("content-security-policy", "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("x-robots-tag", "noindex, nofollow"),
            ("content-type", "text/html; charset=utf-8"),
        ] {
            assert_eq!(page.header(name), value);
        }
        assert_eq!(page.header("set-cookie"), "");
    }
    assert_eq!(acme.get("/api/v1/invites").await.expect(200).json()["items"][0]["id"], made.json()["id"]);

    // A page elsewhere can't press the button; nor can what does not say where it is.
    for elsewhere in [
        post.press(&path).with("sec-fetch-site", "cross-site"),
        post.press(&path).without("sec-fetch-site"),
        post.press(&path).without("sec-fetch-site").with("origin", "https://evil.example"),
        post.press(&path).without("sec-fetch-site").without("origin"),
    ] {
        let refused = elsewhere.await.expect(403);
        assert_eq!((refused.header("set-cookie"), refused.header("location")), ("", ""));
    }
    let entered = post.press(&path).await.expect(303);
    assert_eq!(entered.header("location"), "/api/v1/me");
    let cookie = cookie(&entered);
    let me = post.app.stranger().get("/api/v1/me").with("cookie", cookie.as_str()).await.expect(200).json();
    assert_eq!(
        (&me["kind"], &me["role"], &me["member"]["email"], &me["scopes"]),
        (&json!("member"), &json!("member"), &json!("ada@example.com"), &json!([]))
    );
    assert_eq!(me["subject"], me["member"]["id"]);
    assert_eq!(acme.get("/api/v1/invites").await.expect(200).json()["items"], json!([]));
    post.press(&path).await.expect(404);
    post.app.stranger().get(&path).await.expect(404);
}

#[tokio::test]
async fn every_link_that_is_no_good_has_one_answer() {
    let (post, acme, globex) = Post::start().await;
    let (mut bad, mut good) = (vec!["x".repeat(43), "x".to_owned(), "%00".to_owned(), "..%2f..".to_owned()], String::new());
    for (n, name) in ["used", "revoked", "resent", "expired"].into_iter().enumerate() {
        let id = acme.invite(name).await;
        let to = format!("{name}@example.com");
        let path = post.path(&to, 0).await;
        bad.push(token(&path).to_owned());
        match n {
            0 => drop(post.press(&path).await.expect(303)),
            1 => drop(acme.delete(&format!("/api/v1/invites/{id}")).await.expect(204)),
            2 => {
                acme.ask("POST", &format!("/api/v1/invites/{id}/resend")).await.expect(200);
                good = post.path(&to, 1).await;
            }
            _ => {
                let sql = "update tenancy.invites set expires_at = now() - interval '1 second' where id = $1::uuid";
                sqlx::query(sql).bind(&id).execute(&mut post.app.db_eye().await).await.expect("expired");
            }
        }
    }
    // Good at another door is no good at this one.
    acme.member("mia").await;
    post.app.stranger().post("/api/v1/sign-in", &json!({ "tenant": acme.slug, "email": "mia@example.com" })).await.expect(202);
    let sign_in = post.path("mia@example.com", 0).await;
    bad.push(token(&sign_in).to_owned());
    let mut answers = Vec::new();
    for token in &bad {
        answers.push(post.press(&format!("/welcome/{token}")).await.expect(404).comparable());
        let shown = post.app.stranger().get(&format!("/welcome/{token}")).await.expect(404).comparable();
        assert_eq!(shown, answers[0]);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let mut answers = Vec::new();
    for token in &bad {
        let refused = post.app.stranger().post("/api/v1/invites/accept", &json!({ "token": token })).await;
        refused.problem("not-found");
        answers.push(refused.comparable());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");

    // Control: what is good works at its door, and for nobody else's tenant.
    let done = post.app.stranger().post("/api/v1/invites/accept", &json!({ "token": token(&good) })).await.expect(200);
    assert_eq!((&done.json()["tenant"]["id"], &done.json()["member"]["email"]), (&json!(acme.tenant), &json!("resent@example.com")));
    post.app.stranger().post("/api/v1/sign-in/accept", &json!({ "token": token(&sign_in) })).await.expect(200);
    let theirs = globex.invite("theirs").await;
    acme.delete(&format!("/api/v1/invites/{theirs}")).await.problem("not-found");
    acme.ask("POST", &format!("/api/v1/invites/{theirs}/resend")).await.problem("not-found");
    for role in ["viewer", "member"] {
        acme.role(role).get("/api/v1/invites").await.problem("forbidden");
        acme.role(role).post("/api/v1/invites", &json!({ "email": "x@example.com", "role": "viewer" })).await.problem("forbidden");
    }
    acme.role("admin").post("/api/v1/invites", &json!({ "email": "x@example.com", "role": "owner" })).await.problem("forbidden");
}

#[tokio::test]
async fn a_suspended_tenant_lets_nobody_in_and_a_full_one_nobody_more() {
    let (post, acme, _) = Post::start().await;
    let quota = |limit: u64| json!({ "quotas": [{ "metric": "users", "limit": limit }] });
    let quotas = format!("/api/v1/tenants/{}/quotas", acme.tenant);
    post.app.operator().ask("PUT", &quotas).json(&quota(0)).await.expect(200);
    acme.invite("ada").await;
    let path = post.path("ada@example.com", 0).await;
    post.press(&path).await.expect(403);
    post.app.stranger().post("/api/v1/invites/accept", &json!({ "token": token(&path) })).await.problem("quota-exceeded");
    post.app.operator().ask("PUT", &quotas).json(&quota(1)).await.expect(200);
    let cookie = cookie(&post.press(&path).await.expect(303));

    let member = post.as_page(&cookie, "GET", "/api/v1/me").await.expect(200).json()["member"]["id"].clone();
    let (_, secret) = acme.api_token(member.as_str().expect("an id")).await;
    let bearer = || post.app.stranger().get("/api/v1/me").with("authorization", format!("Bearer {secret}"));
    bearer().await.expect(200);
    post.app.stranger().post("/api/v1/sign-in", &json!({ "tenant": acme.slug, "email": "ada@example.com" })).await.expect(202);
    let link = post.path("ada@example.com", 1).await;
    post.app.operator().ask("POST", &format!("/api/v1/tenants/{}/suspend", acme.tenant)).await.expect(200);
    post.as_page(&cookie, "GET", "/api/v1/me").await.problem("tenant-inactive");
    bearer().await.problem("tenant-inactive");
    post.press(&link).await.expect(403);
    post.app.operator().ask("POST", &format!("/api/v1/tenants/{}/resume", acme.tenant)).await.expect(200);
    post.as_page(&cookie, "GET", "/api/v1/me").await.expect(200);
    bearer().await.expect(200);
    post.press(&link).await.expect(303);
}

#[tokio::test]
async fn asking_for_a_link_says_nothing_and_three_are_enough() {
    let (post, acme, globex) = Post::start().await;
    acme.member("ada").await;
    globex.member("ada").await;
    let ask = |tenant: &str, email: &str| post.app.stranger().post("/api/v1/sign-in", &json!({ "tenant": tenant, "email": email }));
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(ask(&acme.slug, "ADA@example.com").await.expect(202).comparable());
    }
    for (tenant, email) in
        [(acme.slug.as_str(), "eve@example.com"), ("no-such-tenant", "ada@example.com"), (&globex.tenant, "ada@example.com")]
    {
        answers.push(ask(tenant, email).await.expect(202).comparable());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    ask("?", "ada@example.com").await.invalid("tenant");
    ask(&acme.slug, "ada").await.invalid("email");

    // Mail of all that was asked for has come when the last one's has: three of acme's, and one of globex's.
    let path = post.path("ada@example.com", 3).await;
    assert!(path.starts_with("/sign-in/") && body(&post.app.stranger().get(&path).await.expect(200)).contains("<button>Sign in</button>"));
    let rows: Vec<(String, i64)> = sqlx::query_as("select tenant_id::text, count(*) from tenancy.sign_in_links group by 1 order by 2 desc")
        .fetch_all(&mut post.app.db_eye().await)
        .await
        .expect("links");
    assert_eq!(rows, [(acme.tenant.clone(), 3), (globex.tenant.clone(), 1)]);
    assert_eq!(post.links("eve@example.com"), [""; 0]);

    // One signs in; the others of that member are good no more, and those of the other tenant are.
    let mut tenants = Vec::new();
    for link in post.links("ada@example.com") {
        let reply = post.app.stranger().post("/api/v1/sign-in/accept", &json!({ "token": token(&link) })).await;
        tenants.push((reply.status == 200).then(|| reply.json()["tenant"]["id"].as_str().expect("an id").to_owned()));
        if reply.status != 200 {
            reply.problem("not-found");
        }
    }
    let signed: Vec<_> = tenants.into_iter().flatten().collect();
    assert_eq!(signed.len(), 2, "{signed:?}");
    assert!(signed.contains(&acme.tenant) && signed.contains(&globex.tenant));
}

#[tokio::test]
async fn a_cookie_changes_nothing_for_pages_elsewhere() {
    let (post, acme, _) = Post::start().await;
    let cookie = post.join(&acme, "ada", "member").await;
    let here = post.app.node.address.to_string();
    let make = |headers: &[(&str, &str)]| {
        let ask = post.app.stranger().post("/api/v1/projects", &json!({ "name": "p" })).with("cookie", cookie.as_str());
        headers.iter().fold(ask, |ask, (name, value)| ask.with(name, *value))
    };
    let (own, evil) = (format!("http://{here}"), "https://evil.example");
    let (site, origin) = ("sec-fetch-site", "origin");
    for headers in [
        &[][..],
        &[(site, "cross-site")],
        &[(site, "same-site")],
        &[(site, "cross-site"), (origin, &own)],
        &[(origin, evil)],
        &[(origin, "null")],
    ] {
        make(headers).await.problem("forbidden");
    }
    assert_eq!(post.as_page(&cookie, "GET", "/api/v1/projects").await.expect(200).json()["items"], json!([]), "nothing was done");
    for headers in [&[(site, "same-origin")][..], &[(site, "none")], &[(origin, &own)]] {
        make(headers).await.expect(201);
    }
    // What only reads may come by a link from elsewhere.
    post.as_page(&cookie, "GET", "/api/v1/me").with(site, "cross-site").await.expect(200);
    // A bearer token is judged alone: no browser adds it by itself, and a cookie beside it neither helps nor harms.
    make(&[(site, "cross-site"), ("authorization", "Bearer tnt_x")]).await.problem("unauthenticated");
    let both = acme.get("/api/v1/me").with("cookie", cookie.as_str()).await.expect(200).json();
    assert_eq!((&both["subject"], &both["role"]), (&json!("the-owner"), &json!("owner")));
    acme.post("/api/v1/projects", &json!({ "name": "q" })).with("cookie", "__Host-tenancy=x").with(site, "cross-site").await.expect(201);
    // Signing somebody in as somebody else is refused as well.
    for target in ["/api/v1/sign-in/accept", "/api/v1/invites/accept"] {
        post.app.stranger().post(target, &json!({ "token": "x" })).with(origin, evil).await.problem("forbidden");
        post.app.stranger().post(target, &json!({ "token": "x" })).await.problem("not-found");
    }
    // Other cookies, and two of ours.
    post.app.stranger().get("/api/v1/me").with("cookie", format!("{cookie}; {cookie}")).await.problem("unauthenticated");
    post.app.stranger().get("/api/v1/me").with("cookie", cookie.replace("__Host-", "")).await.problem("unauthenticated");
    post.app.stranger().get("/api/v1/me").with("cookie", format!("{cookie}x")).await.problem("unauthenticated");
}

#[tokio::test]
async fn a_change_and_a_removal_count_at_the_next_request() {
    let (post, acme, globex) = Post::start().await;
    let cookie = post.join(&acme, "ada", "admin").await;
    let me = || post.as_page(&cookie, "GET", "/api/v1/me");
    let member = me().await.expect(200).json()["member"]["id"].as_str().expect("an id").to_owned();
    let made = post
        .as_page(&cookie, "POST", "/api/v1/api-tokens")
        .json(&json!({ "name": "ci", "ttl_seconds": 3600, "role": "member", "scopes": ["notes:read"] }))
        .await
        .expect(201);
    let secret = made.text("token");
    assert!(secret.starts_with("tnt_") && secret.len() == 47);
    let bearer = |method: &str, target: &str| post.app.stranger().ask(method, target).with("authorization", format!("Bearer {secret}"));
    let seen = bearer("GET", "/api/v1/me").await.expect(200).json();
    assert_eq!(
        (&seen["role"], &seen["scopes"], &seen["member"]["id"]),
        (&json!("member"), &json!(["notes:read"]), &json!(member)),
        "at most the token's"
    );
    let listed = acme.get("/api/v1/api-tokens").await.expect(200).json();
    assert!(
        listed["items"][0]["last_used_at"].is_string()
            && !listed.to_string().contains(&secret)
            && listed["items"][0].get("token").is_none()
    );
    assert_eq!(globex.get("/api/v1/api-tokens").await.expect(200).json()["items"], json!([]));

    let row = format!("/api/v1/members/{member}");
    acme.patch(&row, &json!({ "role": "viewer", "scopes": [] })).await.expect(200);
    for reply in [me().await, bearer("GET", "/api/v1/me").await] {
        let seen = reply.expect(200).json();
        assert_eq!((&seen["role"], &seen["scopes"]), (&json!("viewer"), &json!([])));
    }
    bearer("POST", "/api/v1/projects").json(&json!({ "name": "p" })).await.problem("forbidden");
    acme.delete(&row).await.expect(204);
    me().await.problem("unauthenticated");
    bearer("GET", "/api/v1/me").await.problem("unauthenticated");
    let left: i64 = sqlx::query_scalar("select (select count(*) from tenancy.sessions) + (select count(*) from tenancy.api_tokens)")
        .fetch_one(&mut post.app.db_eye().await)
        .await
        .expect("count");
    assert_eq!(left, 0);
}

#[tokio::test]
async fn sessions_are_listed_and_ended_by_whose_they_are() {
    let (post, acme, globex) = Post::start().await;
    let ada = post.join(&acme, "ada", "viewer").await;
    let eve = post.join(&acme, "eve", "viewer").await;
    post.app.stranger().post("/api/v1/sign-in", &json!({ "tenant": acme.slug, "email": "ada@example.com" })).await.expect(202);
    let second = cookie(&post.press(&post.path("ada@example.com", 1).await).await.expect(303));
    let list = |of: &str| {
        let ask = post.as_page(of, "GET", "/api/v1/sessions");
        async move { ask.await.expect(200).json()["items"].as_array().expect("items").clone() }
    };
    let own = list(&second).await;
    assert_eq!(own.iter().map(|session| session["current"].clone()).collect::<Vec<_>>(), [json!(true), json!(false)]);
    let target = |session: &Value| format!("/api/v1/sessions/{}", session["id"].as_str().expect("an id"));

    for nobodys in
        [post.as_page(&eve, "DELETE", &target(&own[1])), globex.delete(&target(&own[1])), acme.role("viewer").delete(&target(&own[1]))]
    {
        nobodys.await.problem("not-found");
    }
    let other = post.as_page(&second, "DELETE", &target(&own[1])).await.expect(204);
    assert_eq!(other.header("set-cookie"), "");
    post.as_page(&ada, "GET", "/api/v1/me").await.problem("unauthenticated");
    let this = post.as_page(&second, "DELETE", &target(&own[0])).await.expect(204);
    assert!(this.header("set-cookie").starts_with("__Host-tenancy=; Path=/; Max-Age=0;"));
    post.as_page(&second, "GET", "/api/v1/me").await.problem("unauthenticated");

    // An admin ends anybody's; one's own end all at once, and nobody else's.
    let eves = list(&eve).await;
    acme.role("admin").delete(&target(&eves[0])).await.expect(204);
    post.as_page(&eve, "GET", "/api/v1/me").await.problem("unauthenticated");
    let (leo, mia) = (post.join(&acme, "leo", "viewer").await, post.join(&acme, "mia", "viewer").await);
    post.as_page(&leo, "DELETE", "/api/v1/sessions").await.expect(204);
    post.as_page(&leo, "GET", "/api/v1/me").await.problem("unauthenticated");
    assert_eq!(list(&mia).await.len(), 1);
    let expire = "update tenancy.sessions set expires_at = now()";
    sqlx::query(expire).execute(&mut post.app.db_eye().await).await.expect("expired");
    post.as_page(&mia, "GET", "/api/v1/me").await.problem("unauthenticated");
}

#[tokio::test]
async fn an_api_token_allows_no_more_than_its_member() {
    let (post, acme, globex) = Post::start().await;
    let ada = post.join(&acme, "ada", "member").await;
    let make = |body: Value| post.as_page(&ada, "POST", "/api/v1/api-tokens").json(&body);
    let made = make(json!({ "name": "ci", "ttl_seconds": 31_536_000 })).await.expect(201);
    assert_eq!(made.json()["role"], json!("member"));
    for (body, field) in [
        (json!({ "name": "", "ttl_seconds": 60 }), "name"),
        (json!({ "name": "x", "ttl_seconds": 59 }), "ttl"),
        (json!({ "name": "x", "ttl_seconds": 31_536_001 }), "ttl"),
        (json!({ "name": "x", "ttl_seconds": 60, "scopes": ["a b"] }), "scopes"),
        (json!({ "name": "x", "ttl_seconds": 60, "member_id": "x" }), "member_id"),
    ] {
        make(body).await.invalid(field);
    }
    make(json!({ "name": "x", "ttl_seconds": 60, "role": "admin" })).await.problem("forbidden");
    // Who is no member has none, a signed token gives no scopes that it has not, and a token makes no tokens.
    let body = json!({ "name": "x", "ttl_seconds": 60 });
    acme.post("/api/v1/api-tokens", &body).await.problem("forbidden");
    let mut claims = acme.claims();
    claims["sub"] = made.json()["member_id"].clone();
    claims["scope"] = json!("a");
    acme.ask_with(&claims, "POST", "/api/v1/api-tokens")
        .json(&json!({ "name": "x", "ttl_seconds": 60, "scopes": ["b"] }))
        .await
        .problem("forbidden");
    acme.ask_with(&claims, "POST", "/api/v1/api-tokens")
        .json(&json!({ "name": "x", "ttl_seconds": 60, "scopes": ["a"] }))
        .await
        .expect(201);
    let bearer =
        |token: &str, method: &str, target: &str| post.app.stranger().ask(method, target).with("authorization", format!("Bearer {token}"));
    let secret = made.text("token");
    bearer(&secret, "POST", "/api/v1/api-tokens").json(&body).await.problem("forbidden");

    let target = format!("/api/v1/api-tokens/{}", made.text("id"));
    let eve = post.join(&acme, "eve", "member").await;
    assert_eq!(post.as_page(&eve, "GET", "/api/v1/api-tokens").await.expect(200).json()["items"], json!([]));
    for nobodys in [post.as_page(&eve, "DELETE", &target), globex.delete(&target)] {
        nobodys.await.problem("not-found");
    }
    for bad in [format!("{secret}x"), secret[..46].to_owned(), "tnt_".to_owned(), format!("tnt_{}", "x".repeat(43))] {
        bearer(&bad, "GET", "/api/v1/me").await.problem("unauthenticated");
    }
    bearer(&secret, "GET", "/api/v1/me").and("authorization", "Bearer x").await.problem("unauthenticated");
    bearer(&secret, "GET", "/api/v1/me").await.expect(200);
    post.as_page(&ada, "DELETE", &target).await.expect(204);
    bearer(&secret, "GET", "/api/v1/me").await.problem("unauthenticated");
    let (id, other) = acme.api_token(made.json()["member_id"].as_str().expect("an id")).await;
    bearer(&other, "GET", "/api/v1/me").await.expect(200);
    sqlx::query("update tenancy.api_tokens set expires_at = now()").execute(&mut post.app.db_eye().await).await.expect("expired");
    bearer(&other, "GET", "/api/v1/me").await.problem("unauthenticated");
    acme.role("admin").delete(&format!("/api/v1/api-tokens/{id}")).await.expect(204);
}

/// Also not in an answer that is kept for an `Idempotency-Key`, and not in a message that was delivered.
#[tokio::test]
async fn nothing_that_is_kept_lets_anybody_in() {
    let (post, acme, _) = Post::start().await;
    let cookie = post.join(&acme, "ada", "admin").await;
    let invite = post
        .as_page(&cookie, "POST", "/api/v1/invites")
        .with("idempotency-key", "a")
        .json(&json!({ "email": "b@example.com", "role": "viewer" }));
    invite.await.expect(201);
    let made = post
        .as_page(&cookie, "POST", "/api/v1/api-tokens")
        .with("idempotency-key", "b")
        .json(&json!({ "name": "ci", "ttl_seconds": 60 }))
        .await
        .expect(201);
    post.app.stranger().post("/api/v1/sign-in", &json!({ "tenant": acme.slug, "email": "ada@example.com" })).await.expect(202);
    let links = [post.path("b@example.com", 0).await, post.path("ada@example.com", 1).await];
    let secrets = [
        made.text("token"),
        cookie.split_once('=').expect("a value").1.to_owned(),
        token(&links[0]).to_owned(),
        token(&links[1]).to_owned(),
    ];
    // A delivered message has lost its secret.
    for _ in 0..500 {
        let sql = "select count(*) from tenancy.outbox where secret is not null";
        let left: i64 = sqlx::query_scalar(sql).fetch_one(&mut post.app.db_eye().await).await.expect("count");
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut eye = post.app.db_eye().await;
    let outbox: Vec<String> =
        sqlx::query_scalar("select to_jsonb(o)::text from tenancy.outbox o").fetch_all(&mut eye).await.expect("messages");
    let mut kept = format!("{:?}", post.app.db_everything().await);
    kept += &outbox.concat();
    for secret in &secrets {
        assert!(!kept.contains(secret.as_str()), "{secret} is kept");
        // Control: its digest is, so the search would have found it.
        let digest: String = Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(kept.contains(&digest), "{secret} is not known at all");
    }
}

/// A cookie belongs to one host, and so does each tenant.
#[tokio::test]
async fn with_a_base_domain_links_lead_to_the_tenants_host() {
    let smtp = SmtpServer::start(true).await;
    let url = format!("smtp://localhost:{}?tls=none", smtp.address.port());
    let app = TestApp::with(|config| {
        config.smtp = Some(url.as_str().into());
        config.base_domain = Some("example.test".to_owned());
        config.public_url = Some("http://{tenant}.example.test/".to_owned());
    });
    let app = app.await;
    let (acme, globex) = app.two_tenants().await;
    let at = |of: &Member| format!("{}.example.test", of.slug);
    let invite = acme.post("/api/v1/invites", &json!({ "email": "ada@example.com", "role": "viewer" }));
    invite.with("host", at(&acme)).await.expect(201);
    let post = Post { app, smtp };
    let base = format!("http://{}", at(&acme));
    let mut link = None;
    for _ in 0..500 {
        link = post.links("ada@example.com").pop();
        if link.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let link = link.expect("a mail");
    let path = link.strip_prefix(&base).expect("the tenant's host");
    let cookie = cookie(&post.press(path).with("host", at(&acme)).await.expect(303));
    post.as_page(&cookie, "GET", "/api/v1/me").with("host", at(&acme)).await.expect(200);
    for elsewhere in [at(&globex), "example.test".to_owned(), "nobody.example.test".to_owned()] {
        post.as_page(&cookie, "GET", "/api/v1/me").with("host", elsewhere).await.problem("tenant-not-found");
    }
}
