//! Attachments: the content comes back as it went in, and whatever is refused or broken off leaves nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::actors::{Actor, Member};
use harness::app::TestApp;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::ABSENT;

/// A document of each tenant.
async fn documents(acme: &Member, globex: &Member) -> (String, String) {
    (acme.document(&acme.project("p").await, "d").await, globex.document(&globex.project("p").await, "d").await)
}

fn path(document: &str, name: &str) -> String {
    format!("/api/v1/documents/{document}/attachments/{name}")
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rand::rngs::StdRng::seed_from_u64(bytes as u64).fill_bytes(&mut noise);
    noise
}

#[tokio::test]
async fn contents_come_back_as_they_went_in() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (of_acme, of_globex) = documents(&acme, &globex).await;
    // Empty, small, one part of a multipart upload and a byte, several parts.
    for size in [0, 1, 5 * 1024 * 1024 + 1, 12_000_000] {
        let (mine, theirs) = (noise(size), noise(size / 2));
        let made = acme.attach(&of_acme, "same-name", &mine).await;
        globex.attach(&of_globex, "same-name", &theirs).await;
        assert_eq!(made.json()["size"], size);
        for (member, document, content) in [(&acme, &of_acme, &mine), (&globex, &of_globex, &theirs)] {
            let got = member.get(&path(document, "same-name")).await.expect(200);
            assert!(got.body == *content, "{size} bytes");
        }
        assert_eq!(app.audit().await, [""; 0], "what is replaced is gone");
    }
    let chunked = acme.put(&path(&of_acme, "chunked"), "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    chunked.without("content-length").with("transfer-encoding", "chunked").await.expect(201);
    assert_eq!(acme.get(&path(&of_acme, "chunked")).await.body, b"abcde");
}

#[tokio::test]
async fn the_life_of_an_attachment() {
    let (_app, acme, globex) = TestApp::with_tenants().await;
    let (document, _) = documents(&acme, &globex).await;
    let name = "%C3%9Cbersicht%20%22x%22.html";
    let put = |content: &str| acme.put(&path(&document, name), content).with("content-type", "text/html; charset=utf-8");
    let made = put("<script>1</script>").await.expect(201);
    assert_eq!(made.header("location"), path(&document, name));
    assert_eq!(made.text("name"), "Übersicht \"x\".html");
    let got = acme.get(made.header("location")).await.expect(200);
    for (header, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("content-length", "18"),
        ("content-disposition", "attachment; filename=\"_bersicht__x_.html\"; filename*=UTF-8''%C3%9Cbersicht%20%22x%22.html"),
        ("content-security-policy", "default-src 'none'; sandbox"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
        ("etag", made.header("etag")),
    ] {
        assert_eq!(got.header(header), value, "{header}");
    }
    assert_eq!(got.header("etag"), format!("\"{}\"", made.text("sha256")));
    acme.get(&path(&document, name)).with("if-none-match", got.header("etag")).await.expect(304);
    let replaced = put("plain").await.expect(200);
    assert_ne!(replaced.header("etag"), got.header("etag"));
    acme.attach(&document, "a.bin", b"x").await.expect(201);
    let list = acme.get(&format!("/api/v1/documents/{document}/attachments")).await.expect(200).json();
    let names: Vec<_> = list["items"].as_array().expect("items").iter().map(|item| item["name"].as_str()).collect();
    assert_eq!(names, [Some("a.bin"), Some("Übersicht \"x\".html")]);
    assert_eq!(acme.get(&path(&document, "a.bin")).await.header("content-type"), "application/octet-stream");

    acme.delete(&path(&document, name)).await.expect(204);
    acme.delete(&path(&document, name)).await.problem("not-found");
    acme.get(&path(&document, name)).await.problem("not-found");
    acme.attach(ABSENT, "a", b"x").await.problem("not-found");
    for bad in ["html", "text/html\u{e9}", &format!("text/{}", "x".repeat(300)), ""] {
        acme.put(&path(&document, "a"), "x").with("content-type", bad).await.invalid("content-type");
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_not_kept() {
    let app = TestApp::with(|config| config.max_attachment = 200_000).await;
    let (acme, globex) = app.two_tenants().await;
    let (document, of_globex) = documents(&acme, &globex).await;
    acme.attach(&document, "fits", &noise(200_000)).await.expect(201);
    globex.attach(&of_globex, "fits", b"x").await.expect(201);
    let before = app.db_everything().await;
    // Said in advance; and only found out.
    acme.attach(&document, "large", &noise(200_001)).await.problem("too-large");
    acme.attach(&document, "fits", &noise(200_001)).await.problem("too-large");
    let mut chunked = format!("{:x}\r\n", 200_001).into_bytes();
    chunked.extend(noise(200_001));
    chunked.extend(b"\r\n0\r\n\r\n");
    let ask = acme.put(&path(&document, "large"), chunked).without("content-length").with("transfer-encoding", "chunked");
    ask.await.problem("too-large");
    assert_eq!(app.db_everything().await, before);
    acme.get(&path(&document, "large")).await.problem("not-found");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (document, _) = documents(&acme, &globex).await;
    acme.attach(&document, "kept", b"before").await.expect(201);
    let before = app.db_everything().await;
    for name in ["new", "kept"] {
        // Six of twelve million bytes: a part has gone to the store already.
        let upload = acme.put(&path(&document, name), noise(12_000_000)).bytes();
        let mut connection = TcpStream::connect(app.node.address).await.expect("connect");
        connection.write_all(&upload[..6_000_000]).await.expect("half of it");
        let since = Instant::now();
        while app.kept_files() == before["files"] {
            assert!(since.elapsed() < Duration::from_secs(5), "the control: the upload never began");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(connection);
        assert_eq!(app.audit().await, [""; 0]);
        assert_eq!(app.db_everything().await, before, "{name}");
    }
    assert_eq!(acme.get(&path(&document, "kept")).await.body, b"before");
}

#[tokio::test]
async fn of_uploads_at_once_one_wins_whole() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (document, of_globex) = documents(&acme, &globex).await;
    let contents: Vec<Vec<u8>> = (0..8).map(|n| noise(50_000 + n)).collect();
    let uploads = contents.iter().flat_map(|content| {
        [
            acme.put(&path(&document, "one"), content.clone()).into_future(),
            globex.put(&path(&of_globex, "one"), content.clone()).into_future(),
        ]
    });
    let replies = join_all(uploads).await;
    let made = replies.iter().filter(|reply| reply.status == 201).count();
    assert!(made == 2 && replies.iter().all(|reply| matches!(reply.status, 200 | 201)), "one of each tenant is the first: {replies:?}");
    for (member, document) in [(&acme, &document), (&globex, &of_globex)] {
        assert!(contents.contains(&member.get(&path(document, "one")).await.expect(200).body));
    }
    assert_eq!(app.audit().await, [""; 0], "seven of eight contents are gone");

    // Uploads, deletions and the deletion of the whole document in each other's way.
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let storm = (0..30).map(|n| match rng.random_range(0..4) {
        0 => acme.delete(&path(&document, "one")).into_future(),
        1 if n > 20 => acme.delete(&format!("/api/v1/documents/{document}")).into_future(),
        _ => acme.put(&path(&document, "one"), noise(n)).into_future(),
    });
    for reply in join_all(storm).await {
        assert!(matches!(reply.status, 200 | 201 | 204 | 404), "{reply:?}");
    }
}

#[tokio::test]
async fn names_that_are_paths_are_refused_and_write_nothing_anywhere() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (document, _) = documents(&acme, &globex).await;
    acme.attach(&document, "plain", b"x").await.expect(201);
    let before = app.db_everything().await;
    let elsewhere = format!("..%2f..%2f{}%2fattachments%2fx", globex.tenant);
    let bad = [
        "..",
        ".",
        "%2e%2e",
        "%2e",
        "../x",
        "..%2fx",
        "%2e%2e%2fx",
        "%2E%2E%2Fx",
        "..%5cx",
        "%252e%252e%252fx",
        "%25252e%25252e",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "//x",
        "",
        "%20/../x",
        "a/b",
        "a%2fb",
        "a%252fb",
        "a%5cb",
        "a%00b",
        "%00",
        "a%0ab",
        "a%0d%0ab",
        "%ff",
        "%c0%ae%c0%ae%2fx",
        "a%231",
        "..%00",
        "....//",
        "%7f",
        "C:%5cx",
        "file:%2f%2f%2fetc%2fpasswd",
        &"x".repeat(201),
        &"%C3%A9".repeat(130),
        &elsewhere,
    ];
    for name in bad {
        for ask in [acme.put(&path(&document, name), "planted"), acme.get(&path(&document, name)), acme.delete(&path(&document, name))] {
            let reply = ask.await;
            reply.refused();
            reply.is_silent_about([&globex.slug, &globex.name, &app.folder().to_string_lossy().into_owned()]);
        }
    }
    for id in
        ["..", "%2e%2e", "x", "%00", "", &document.replace('-', ""), &format!("%7b{document}%7d"), &format!("{document}%20"), "' or 1=1"]
    {
        for (method, path) in
            [("PUT", path(id, "a")), ("GET", format!("/api/v1/documents/{id}")), ("DELETE", format!("/api/v1/projects/{id}"))]
        {
            let reply = acme.ask(method, &path.replace(' ', "%20")).await;
            reply.refused();
        }
    }
    assert_eq!(app.db_everything().await, before);
}

#[tokio::test]
async fn a_document_has_at_most_a_hundred() {
    let (app, acme, globex) = TestApp::with_tenants().await;
    let at_once = json!({ "quotas": [{ "metric": "api.concurrency", "limit": 200 }] });
    app.operator().put(&format!("/api/v1/tenants/{}/quotas", acme.tenant), "").json(&at_once).await.expect(200);
    let (document, other) = documents(&acme, &globex).await;
    let uploads = join_all((0..110).map(|n| acme.put(&path(&document, &n.to_string()), "x").into_future())).await;
    let made: BTreeSet<u16> = uploads.iter().map(|reply| reply.status).collect();
    assert_eq!(made, BTreeSet::from([201, 409]));
    assert_eq!(uploads.iter().filter(|reply| reply.status == 201).count(), 100);
    globex.attach(&other, "x", b"x").await.expect(201);
    assert_eq!(acme.get(&format!("/api/v1/documents/{document}/attachments")).await.json()["items"].as_array().map(Vec::len), Some(100));
    acme.patch(&format!("/api/v1/documents/{document}"), &json!({ "title": "full" })).await.expect(200);
}

#[tokio::test]
async fn control_the_audit_sees_what_does_not_balance() {
    let (mut app, acme, globex) = TestApp::with_tenants().await;
    app.will_not_balance("each imbalance is planted");
    let (document, _) = documents(&acme, &globex).await;
    acme.attach(&document, "a", b"abc").await.expect(201);
    assert_eq!(app.audit().await, [""; 0]);
    let object = app.kept_files()[0].clone();

    let orphan = object.replace("/attachments/", "/attachments/9");
    std::fs::write(&orphan, "x").expect("planted");
    std::fs::write(app.folder().join("escaped"), "x").expect("planted");
    std::fs::write(&object, "abcd").expect("planted");
    let mut eye = app.db_eye().await;
    let plant = "insert into projects (tenant_id, id, name, description, created_at, updated_at)
                 values (gen_random_uuid(), gen_random_uuid(), 'stray', '', now(), now());
                 update tenancy.tenants set version = version + 1 where slug = 'acme-works'";
    sqlx::raw_sql(plant).execute(&mut eye).await.expect("planted");
    let wrong = app.audit_now().await.join("\n");
    for expected in ["has no row", "is outside", "has not its 3 bytes", "who does not exist", "version 2 of the tenant"] {
        assert!(wrong.contains(expected), "the audit is blind to {expected:?}: {wrong}");
    }
    std::fs::remove_file(&object).expect("planted");
    assert!(app.audit_now().await.join("\n").contains("is missing"));
}
