//! Running it: probes, stopping, the OpenAPI document, and the command line from outside.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::actors::{Actor, Ask, Member, OPERATOR_TOKEN, exchange, png};
use harness::app::{Folder, TestApp};
use harness::program::{command, run};
use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn probes_tell_a_database_that_is_away_from_a_process_that_is() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let probe = |path: &str| app.stranger().get(path);
    assert_eq!(probe("/healthz").await.expect(200).json(), json!({ "status": "alive" }));
    assert_eq!(probe("/readyz").await.expect(200).json(), json!({ "status": "ready" }));

    let elsewhere = PgConnectOptions::from_str(&app.database.admin_url()).expect("a URL");
    let name = elsewhere.get_database().expect("a database").to_owned();
    let mut server = elsewhere.database("postgres").connect().await.expect("connect");
    let mut say = async |sql: String| sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut server).await.map(|_| ()).expect("done");
    let cut = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
    // Out of connections, which a superuser is not; then gone for everybody.
    say(format!("alter database {name} connection limit 0")).await;
    say(cut.clone()).await;
    for reply in join_all([&acme, &globex].map(|member| member.get("/api/v1/projects").into_future())).await {
        reply.problem("unavailable");
        assert_eq!(reply.header("retry-after"), "1");
        reply.is_silent_about([&name, "tenancy_app", "postgres", &acme.slug, &globex.slug]);
    }
    probe("/readyz").await.problem("unavailable");
    probe("/healthz").await.expect(200);
    say(format!("alter database {name} allow_connections false")).await;
    say(cut).await;
    probe("/readyz").await.problem("unavailable");
    probe("/healthz").await.expect(200);
    say(format!("alter database {name} allow_connections true connection limit -1")).await;
    let since = Instant::now();
    while probe("/readyz").await.status != 200 || acme.get("/api/v1/projects").await.status != 200 {
        assert!(since.elapsed() < Duration::from_secs(10), "it comes back by itself");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    globex.get("/api/v1/projects").await.expect(200);
}

#[tokio::test]
async fn stopping_finishes_what_is_in_flight() {
    let mut app = TestApp::with(|config| config.drain_delay = Duration::from_millis(300)).await;
    let (acme, globex) = app.two_tenants().await;
    let document = acme.document(&acme.project("p").await, "d").await;
    let mut node = app.another_node().await;
    let upload = acme.at(&node).put(&format!("/api/v1/documents/{document}/attachments/late"), vec![7; 3_000_000]).bytes();
    let (first, rest) = upload.split_at(2_000_000);
    let mut connection = TcpStream::connect(node.address).await.expect("connect");
    connection.write_all(first).await.expect("the beginning");

    node.begin_stop();
    let (since, mut drained) = (Instant::now(), false);
    while TcpStream::connect(node.address).await.is_ok() {
        // While it drains, balancers are told and requests are still served.
        drained |=
            exchange(node.address, b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.is_some_and(|r| r.status == 503);
        assert!(since.elapsed() < Duration::from_secs(5), "it still takes connections");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(drained, "/readyz did not say that it stops");
    connection.write_all(rest).await.expect("the end");
    let mut heard = Vec::new();
    connection.read_to_end(&mut heard).await.expect("an answer");
    assert!(heard.starts_with(b"HTTP/1.1 201"), "{}", String::from_utf8_lossy(&heard));
    node.stop().expect("everything was done");
    assert_eq!(acme.get(&format!("/api/v1/documents/{document}/attachments/late")).await.expect(200).body.len(), 3_000_000);
    globex.get("/api/v1/projects").await.expect(200);
    app.node.stop().expect("nothing was in flight");
}

/// A message that was given up.
async fn dead_message(app: &TestApp) -> i64 {
    let sql = "insert into tenancy.outbox (topic, dedup_key, payload, dead_at) values ('test.dead', 'dead', '{}', now()) returning id";
    sqlx::query_scalar(sql).fetch_one(&mut app.db_eye().await).await.expect("a message")
}

/// Long work on the tenant.
pub(super) async fn failed_operation(app: &TestApp, tenant: &str) -> String {
    let sql = "insert into tenancy.operations (tenant_id, kind, state, created_by) values ($1::uuid, 'erase', 'failed', 'a test') returning id::text";
    sqlx::query_scalar(sql).bind(tenant).fetch_one(&mut app.db_eye().await).await.expect("an operation")
}

/// The target with an export of the tenant that is done, and a file of it.
async fn export(app: &TestApp, tenant: &str, target: &str) -> String {
    let sql = "insert into tenancy.operations (tenant_id, kind, state, result, created_by) values ($1::uuid, 'export', 'done', '{\"attempt\": 1}', 'a test') returning id::text";
    let id: String = sqlx::query_scalar(sql).bind(tenant).fetch_one(&mut app.db_eye().await).await.expect("an operation");
    let folder = app.config.data_dir.join("objects").join("exports").join(tenant).join(&id).join("1");
    std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(folder.join("manifest.json"), "{}")).expect("written");
    target.replace("{operation}", &id).replace("{file}", "manifest.json")
}

/// The target with the installation as its own peer, and with what a tenant of it shares with the owner.
async fn federated(app: &TestApp, owner: &Member, target: &str, n: usize) -> String {
    let peers = app.operator().get("/api/v1/federation/peers").await.expect(200).json();
    let peer = match peers["items"][0]["id"].as_str() {
        Some(peer) => peer.to_owned(),
        None => {
            let key = app.stranger().get("/.well-known/tenancy-federation").await.expect(200).text("key");
            app.operator().add_peer(&app.origin(), &key).await
        }
    };
    let there = app.tenant(&format!("elsewhere-{n}")).await;
    app.operator().allow_sharing().await;
    for tenant in [owner, &there] {
        tenant.allow_sharing().await;
    }
    let shared = there.document(&there.project("p").await, "d").await;
    let (_, offer) = there.offer_elsewhere(&shared, &app.origin(), &owner.slug).await;
    target.replace("{peer}", &peer).replace("{federated_share}", &owner.accept_from_elsewhere(&offer).await)
}

/// A request for an operation of the document, with names of things that are there and are nobody else's.
async fn asked(app: &TestApp, method: &str, path: &str, security: &Value, n: usize) -> Ask {
    let owner = app.tenant(&format!("tenant-{n}")).await;
    let project = owner.project("p").await;
    let document = owner.document(&project, "d").await;
    owner.attach(&document, "a", b"x").await.expect(201);
    let member = owner.member("m").await;
    let names =
        [("{tenant}", owner.tenant.as_str()), ("{project}", &project), ("{document}", &document), ("{name}", "a"), ("{member}", &member)];
    let target = names.iter().fold(path.to_owned(), |target, (name, value)| target.replace(name, value));
    let target = if target.contains("{invite}") { target.replace("{invite}", &owner.invite("i").await) } else { target };
    let target =
        if target.contains("{session}") { target.replace("{session}", &app.db_session(&owner.tenant, &member).await) } else { target };
    let target = if target.contains("{api_token}") { target.replace("{api_token}", &owner.api_token(&member).await.0) } else { target };
    let target = if target.contains("{file}") { export(app, &owner.tenant, &target).await } else { target };
    let target =
        if target.contains("{operation}") { target.replace("{operation}", &failed_operation(app, &owner.tenant).await) } else { target };
    let target =
        if target.contains("{backup}") { target.replace("{backup}", &app.operator().back_up(&owner.tenant).await) } else { target };
    if target.ends_with("/drill") {
        app.operator().back_up(&owner.tenant).await;
    }
    let target = if target.starts_with("/downloads/") {
        let backup = app.operator().back_up(&owner.tenant).await;
        app.operator().link_to_backup(&owner.tenant, &backup).await
    } else {
        target
    };
    let target = if target.contains("{domain}") { target.replace("{domain}", &owner.domain("shop.example.com").await) } else { target };
    let target =
        if target.contains("{webhook}") { target.replace("{webhook}", &owner.webhook("https://hooks.example.com").await) } else { target };
    let target = target.replace("{plan}", "standard").replace("{flag}", "beta");
    if target.ends_with("/flags/beta") {
        app.operator().put(&target, "").json(&json!({ "kind": "bool", "default": false, "on": true })).await.expect(200);
    }
    if target.ends_with("/logo") {
        owner.put(&target, png(0)).await.expect(200);
    }
    let target = if ["{share}", "{link}", "{token}"].iter().any(|name| target.contains(name)) {
        let lender = app.tenant(&format!("lender-{n}")).await;
        app.operator().allow_sharing().await;
        for tenant in [&owner, &lender] {
            tenant.allow_sharing().await;
        }
        let lent = lender.document(&lender.project("p").await, "d").await;
        lender.attach(&lent, "a", b"x").await.expect(201);
        let (link, url) = owner.link(&document).await;
        let names = [("{share}", lender.share(&lent, &owner, "write").await), ("{link}", link), ("/s/{token}", url)];
        names.iter().fold(target, |target, (name, value)| target.replace(name, value))
    } else {
        target
    };
    let target = if ["{peer}", "{federated_share}"].iter().any(|name| target.contains(name)) {
        federated(app, &owner, &target, n).await
    } else {
        target
    };
    let target = if target.contains("{message}") { target.replace("{message}", &dead_message(app).await.to_string()) } else { target };
    let target = if target.contains("{operator}") {
        target.replace("{operator}", &app.operator().add(&format!("o{n}"), "viewer").await.1)
    } else {
        target
    };
    let target = if target.contains("{impersonation}") { target.replace("{impersonation}", &owner.visit().await) } else { target };
    if security == &json!([]) {
        app.stranger().ask(method, &target)
    } else if security[0].get("operator").is_some() {
        app.operator().ask(method, &target)
    } else {
        owner.ask(method, &target)
    }
}

#[tokio::test]
async fn the_openapi_document_is_the_api() {
    let app = TestApp::start().await;
    let reply = app.stranger().get("/openapi.json").await.expect(200);
    assert_eq!(reply.header("content-type"), "application/json");
    let document = reply.json();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    let mut count = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("a path item").iter().filter(|(key, _)| *key != "parameters") {
            count += 1;
            let method = method.to_uppercase();
            let mut ask = asked(&app, &method, path, &operation["security"], count).await;
            if operation.get("requestBody").is_some() && method != "PUT" {
                ask = ask.json(&json!({}));
            }
            let reply = ask.clone().await;
            assert!(reply.status < 500 && !matches!(reply.status, 401 | 403 | 404 | 405), "{method} {path}: {reply:?}");
            assert!(
                operation["responses"].get(reply.status.to_string()).is_some(),
                "{method} {path} answers what it does not document: {reply:?}"
            );
            // What it says of credentials is so.
            let bare = ask.without("authorization").await;
            assert_eq!(bare.status == 401, operation["security"] != json!([]), "{method} {path}: {bare:?}");
        }
    }
    assert!(count > 20, "{count} operations");
}

/// A serving process, killed with this value.
pub(super) struct Serving {
    child: Child,
    address: std::net::SocketAddr,
    said: Vec<String>,
}

impl Serving {
    pub(super) fn start(command: Command) -> Self {
        Self::with_log(command, Stdio::null())
    }

    fn with_log(mut command: Command, log: Stdio) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("it starts");
        let mut said = Vec::new();
        for line in BufReader::new(child.stdout.take().expect("stdout")).lines().map_while(Result::ok) {
            let address = line.strip_prefix("listening on http://").map(|address| address.parse().expect("an address"));
            said.push(line);
            if let Some(address) = address {
                return Self { child, address, said };
            }
        }
        panic!("it does not serve: {said:?}, {:?}", child.wait());
    }

    pub(super) async fn get(&self, path: &str, token: &str) -> harness::actors::Reply {
        self.ask("GET", path, token, None).await
    }

    pub(super) async fn post(&self, path: &str, token: &str, body: &Value) -> harness::actors::Reply {
        self.ask("POST", path, token, Some(body)).await
    }

    pub(super) async fn ask(&self, method: &str, path: &str, token: &str, body: Option<&Value>) -> harness::actors::Reply {
        let mut ask = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n");
        let body = body.map(Value::to_string).unwrap_or_default();
        if !body.is_empty() {
            ask += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        }
        exchange(self.address, format!("{ask}\r\n{body}").as_bytes()).await.expect("an answer")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the embedded server, which outlives its users for a moment, has let go of the folder.
fn wait_for_postgres(folder: &Folder) {
    let since = Instant::now();
    while harness::app::files(&folder.0).iter().any(|file| file.ends_with("postmaster.pid")) {
        assert!(since.elapsed() < Duration::from_secs(30), "PostgreSQL outlives its last user");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Of a path the log has the pattern.
#[tokio::test]
async fn no_line_of_the_log_has_a_mailed_token() {
    let folder = Folder::new();
    let log = folder.0.join("log");
    let serve = command(&folder, &["serve", "--listen", "127.0.0.1:0"]);
    let serving = Serving::with_log(serve, std::fs::File::create(&log).expect("a file").into());
    let token = "a-mailed-token-of-as-many-characters-as-one";
    for path in ["/welcome/", "/sign-in/"] {
        assert_eq!(serving.get(&format!("{path}{token}"), "x").await.status, 404);
    }
    assert_eq!(serving.post("/api/v1/sign-in/accept", "x", &json!({ "token": token })).await.status, 404);
    drop(serving);
    wait_for_postgres(&folder);
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(said.contains("/welcome/{token}") && said.contains("/sign-in/{token}"), "{said}");
    assert!(!said.contains(token), "{said}");
}

#[tokio::test]
async fn one_command_serves_and_the_others_work_beside_it() {
    let folder = Folder::new();
    let verb = |args: &[&str]| run(command(&folder, args));
    let serve = || Serving::start(command(&folder, &["serve", "--listen", "127.0.0.1:0"]));
    let mut serving = serve();
    assert!(serving.said.iter().any(|line| line.contains("PostgreSQL")), "it says which database it uses: {:?}", serving.said);
    assert!(!serving.said.join("\n").contains(OPERATOR_TOKEN));
    assert_eq!(serving.get("/readyz", "").await.status, 200);

    let mut tokens = Vec::new();
    for slug in ["acme", "globex"] {
        let (made, out, err) = verb(&["tenant", "create", slug, "--json"]);
        assert!(made.status.success(), "{err}");
        let tenant: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!((&tenant["slug"], &tenant["status"]), (&json!(slug), &json!("active")));
        let (_, token, err) = verb(&["token", "--tenant", slug]);
        let own = serving.get("/api/v1/tenant", &token).await;
        assert_eq!((own.status, own.json()["id"].clone()), (200, tenant["id"].clone()), "{err}");
        assert_eq!(serving.post("/api/v1/projects", &token, &json!({ "name": format!("{slug}'s") })).await.status, 201);
        tokens.push(token);
    }
    let theirs = serving.get("/api/v1/projects", &tokens[1]).await;
    assert!(theirs.json()["items"][0]["name"] == "globex's" && theirs.json()["items"].as_array().is_some_and(|items| items.len() == 1));
    let (viewer, token, _) = verb(&["token", "--tenant", "acme", "--role", "viewer", "--ttl", "1m", "--json"]);
    let token: Value = serde_json::from_str(&token).expect("JSON");
    let token = token["token"].as_str().expect("a token");
    assert!(viewer.status.success());
    assert_eq!(serving.post("/api/v1/projects", token, &json!({ "name": "x" })).await.status, 403);

    // A suspension by the command line bites in the other process within a second.
    let (suspended, out, _) = verb(&["tenant", "suspend", "acme"]);
    assert!(suspended.status.success() && out.contains("suspended"), "{out}");
    let since = Instant::now();
    while serving.get("/api/v1/tenant", &tokens[0]).await.status != 403 {
        assert!(since.elapsed() < Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(verb(&["tenant", "resume", "acme"]).0.status.success());
    let (listed, out, _) = verb(&["tenant", "list", "--json"]);
    assert!(listed.status.success());
    assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON")["items"].as_array().map(Vec::len), Some(2));
    for (args, says) in [
        (&["tenant", "show", "nobody"][..], "no tenant nobody"),
        (&["tenant", "create", "acme"], "slug"),
        (&["tenant", "create", "www"], "reserved"),
        (&["token", "--tenant", "nobody"], "tenant create"),
        (&["tenant", "resume", "acme", "--status"], "unexpected"),
    ] {
        let (failed, out, err) = verb(args);
        assert!(!failed.status.success() && out.is_empty() && err.contains(says), "{args:?}: {out} {err}");
    }
    let (doctor, out, err) = verb(&["doctor", "--json"]);
    let report: Value = serde_json::from_str(&out).expect("JSON");
    assert!(doctor.status.success() && report["ok"] == true, "{out} {err}");

    // Killed without a word, it has everything when it is back.
    serving.child.kill().expect("kill -9");
    serving.child.wait().expect("gone");
    let mut serving = serve();
    for (token, name) in tokens.iter().zip(["acme's", "globex's"]) {
        assert_eq!(serving.get("/api/v1/projects", token).await.json()["items"][0]["name"], name);
    }
    // Asked to stop, it stops, and in order.
    let asked = Command::new("kill").arg(serving.child.id().to_string()).status().expect("kill");
    assert!(asked.success());
    let since = Instant::now();
    let stopped = loop {
        if let Some(status) = serving.child.try_wait().expect("its status") {
            break status;
        }
        assert!(since.elapsed() < Duration::from_secs(15), "it does not stop");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(stopped.code(), Some(0), "{stopped:?}");
    wait_for_postgres(&folder);
}

#[tokio::test]
async fn wrong_settings_are_told_with_what_to_set() {
    let folder = Folder::new();
    let (help, out, _) = run(command(&folder, &["--help"]));
    assert!(help.status.success());
    for default in ["127.0.0.1:8080", ".tenancy", "65536", "26214400", "30s", "tenancy-server"] {
        assert!(out.contains(&format!("[default: {default}]")), "{default}: {out}");
    }
    assert!(!out.contains(OPERATOR_TOKEN), "--help prints a secret");
    let with = |verb: &[&str], name: &str, value: &str| {
        let mut command = command(&folder, verb);
        command.env(name, value).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    let cases = [
        ("TENANCY_ADMIN_DATABASE_URL", "postgres://postgres@127.0.0.1:1/x", "set DATABASE_URL too"),
        ("DATABASE_URL", "mysql://u:hunter2@127.0.0.1:1/x", "DATABASE_URL must be postgres://"),
        ("DATABASE_URL", "postgres://tenancy_app:hunter2@127.0.0.1:1/x", "DATABASE_URL"),
        ("TENANCY_JWT_SECRET", "hunter2", "TENANCY_JWT_SECRET"),
        ("TENANCY_JWKS", "/nowhere/keys.json", "keys.json"),
        ("TENANCY_OBJECTS", "s3://hunter2", "TENANCY_OBJECTS"),
        ("TENANCY_BASE_DOMAIN", "Example.com:80", "base domain"),
        ("TENANCY_OPERATOR_TOKEN", "hunter2 x", "TENANCY_OPERATOR_TOKEN"),
        ("TENANCY_MAX_BODY", "lots", "max-body"),
        ("TENANCY_REQUEST_TIMEOUT", "soon", "request-timeout"),
    ];
    // All at once, for some of them wait for a database.
    let doctor = with(&["doctor", "--json"], "DATABASE_URL", "postgres://tenancy_app@127.0.0.1:1/x");
    for ((name, value, says), child) in cases.map(|case| (case, with(&["serve", "--listen", "127.0.0.1:0"], case.0, case.1))) {
        let failed = child.wait_with_output().expect("it ends");
        let err = String::from_utf8_lossy(&failed.stderr);
        assert!(!failed.status.success() && err.contains(says), "{name}={value}: {err}");
        assert!(!err.contains("hunter2") && !err.contains("panicked"), "{name}={value}: {err}");
    }
    let failed = doctor.wait_with_output().expect("it ends");
    let report: Value = serde_json::from_slice(&failed.stdout).expect("JSON");
    assert!(!failed.status.success() && report["ok"] == false, "{report}");
    let database = report["checks"].as_array().expect("checks").iter().find(|check| check["check"] == "database").expect("the database");
    assert_eq!(database["ok"], false);
}

#[tokio::test]
async fn without_administrative_credentials_tenants_are_served_and_operators_are_not() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let mut config = app.config.clone();
    config.admin_database_url = None;
    let running = tenancy_server::Running::start(&config).await.expect("it serves");
    assert!(running.notices().iter().any(|line| line.contains("TENANCY_ADMIN_DATABASE_URL")));
    for member in [&acme, &globex] {
        let reply = exchange(running.address(), &member.get("/api/v1/tenant").bytes()).await.expect("an answer");
        assert_eq!(reply.text("id"), member.tenant);
    }
    let reply = exchange(running.address(), &app.operator().get("/api/v1/tenants").bytes()).await.expect("an answer");
    reply.problem("no-such-path");
    running.shutdown().await.expect("stopped");
}
