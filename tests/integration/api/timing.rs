//! The time that an answer takes tells another tenant's thing from none no more than the answer does. Only with `TENANCY_NIGHTLY` set:
//! it takes minutes, and wants a quiet machine.

use std::time::Instant;

use harness::actors::{Actor, Ask, Member};
use harness::app::TestApp;
use harness::stats::kolmogorov_smirnov;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

/// Times of each kind in a repetition.
const SAMPLES: usize = 600;
/// Each time is the best of so many requests, spread over the repetition: what else the machine does only adds to a time.
const BEST_OF: usize = 5;
/// A difference is one that is seen in each of them.
const REPETITIONS: usize = 3;
const SIGNIFICANT: f64 = 0.001;
/// How many things of each kind are asked for in turn, so that none of them is special.
const THINGS: usize = 50;

/// One connection, kept, so that only the answer is measured.
struct Client(TcpStream);

impl Client {
    /// The status, and the microseconds from the last byte sent to the last one heard.
    async fn ask(&mut self, ask: &Ask) -> (u16, f64) {
        let bytes = ask.clone().with("connection", "keep-alive").bytes();
        let since = Instant::now();
        self.0.write_all(&bytes).await.expect("sent");
        let mut heard = Vec::with_capacity(1024);
        loop {
            assert_ne!(self.0.read_buf(&mut heard).await.expect("heard"), 0, "the server closed the connection");
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut reply = httparse::Response::new(&mut fields);
            let Ok(httparse::Status::Complete(head)) = reply.parse(&heard) else { continue };
            let length = reply.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length")).expect("a length");
            let length: usize = std::str::from_utf8(length.value).expect("ASCII").parse().expect("a number");
            if heard.len() == head + length {
                return (reply.code.expect("a status"), since.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
}

/// Asks for `ones` and `others` in random order, and gives the times of each.
async fn times(client: &mut Client, rng: &mut StdRng, ones: &[Ask], others: &[Ask], statuses: [u16; 2]) -> [Vec<f64>; 2] {
    let mut order: Vec<usize> = (0..2 * SAMPLES * BEST_OF).map(|n| n % 2).collect();
    order.shuffle(rng);
    let mut times = [Vec::new(), Vec::new()];
    for kind in order {
        let ask = [ones, others][kind].choose(rng).expect("things");
        let (status, time) = client.ask(ask).await;
        assert_eq!(status, statuses[kind], "{}", ask.target());
        times[kind].push(time);
    }
    times.map(|mut all| {
        all.shuffle(rng);
        all.chunks(BEST_OF).map(|few| few.iter().copied().fold(f64::INFINITY, f64::min)).collect()
    })
}

/// What the repetitions say of two kinds of requests.
#[derive(Debug)]
struct Verdict {
    /// The p-value of each.
    p: Vec<f64>,
    /// The medians of the last, in microseconds.
    medians: [f64; 2],
    /// The least shift, in per cent, that would have been seen in the noise of the last.
    resolution: f64,
}

impl Verdict {
    async fn of(app: &TestApp, ones: &[Ask], others: &[Ask], statuses: [u16; 2]) -> Self {
        let mut rng = StdRng::seed_from_u64(rand::rng().random());
        let stream = TcpStream::connect(app.node.address).await.expect("connect");
        stream.set_nodelay(true).expect("no delay");
        let mut client = Client(stream);
        for ask in ones.iter().chain(others) {
            client.ask(ask).await; // warm
        }
        let mut verdict = Self { p: Vec::new(), medians: [0.0; 2], resolution: f64::INFINITY };
        for _ in 0..REPETITIONS {
            let [one, other] = times(&mut client, &mut rng, ones, others, statuses).await;
            verdict.p.push(kolmogorov_smirnov(&one, &other).1);
            verdict.medians = [median(&one), median(&other)];
            let seen = |per_cent: &f64| {
                kolmogorov_smirnov(&one, &other.iter().map(|t| t * (1.0 + per_cent / 100.0)).collect::<Vec<_>>()).1 < SIGNIFICANT
            };
            verdict.resolution = [0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0].into_iter().find(seen).unwrap_or(f64::INFINITY);
        }
        verdict
    }

    fn differ(&self) -> bool {
        self.p.iter().all(|p| *p < SIGNIFICANT)
    }
}

fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// What could be a link's token: 43 characters of base64url.
fn random_token() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..43).map(|_| char::from(*LETTERS.choose(&mut rand::rng()).expect("letters"))).collect()
}

/// Projects with a document each, which has an attachment.
async fn things(of: &Member) -> Vec<[String; 2]> {
    let mut all = Vec::new();
    for n in 0..THINGS {
        let project = of.project(&format!("project {n}")).await;
        let document = of.document(&project, "canary").await;
        of.attach(&document, "canary.txt", b"canary").await.expect(201);
        all.push([project, document]);
    }
    all
}

#[tokio::test]
async fn the_time_of_an_answer_tells_nothing() {
    if std::env::var_os("TENANCY_NIGHTLY").is_none() {
        eprintln!("skipped: TENANCY_NIGHTLY is not set");
        return;
    }
    let (app, acme, globex) = TestApp::with_tenants().await;
    let (own, foreign) = (things(&acme).await, things(&globex).await);
    let nobodys: Vec<[String; 2]> = (0..THINGS).map(|_| [Uuid::now_v7().to_string(), Uuid::now_v7().to_string()]).collect();
    let (mut found, mut told) = (Vec::new(), 0);
    for path in [
        "/api/v1/projects/{project}",
        "/api/v1/projects/{project}/documents",
        "/api/v1/documents/{document}",
        "/api/v1/documents/{document}/attachments",
        "/api/v1/documents/{document}/attachments/canary.txt",
    ] {
        let asks = |things: &[[String; 2]]| -> Vec<Ask> {
            things.iter().map(|[project, document]| acme.get(&path.replace("{project}", project).replace("{document}", document))).collect()
        };
        let verdict = Verdict::of(&app, &asks(&foreign), &asks(&nobodys), [404, 404]).await;
        eprintln!("GET {path}: foreign or none: {verdict:.4?}");
        if verdict.differ() {
            found.push(format!("{path}: {verdict:?}"));
        }
        assert!(verdict.resolution <= 10.0, "this machine is too noisy to say anything of {path}: {verdict:?}");
        let control = Verdict::of(&app, &asks(&own), &asks(&nobodys), [200, 404]).await;
        eprintln!("GET {path}: the control, own or none: {control:.4?}");
        told += usize::from(control.differ());
    }
    // Links: a token that once opened something, or never did.
    app.operator().allow_sharing().await;
    globex.allow_sharing().await;
    let (mut ended, mut good) = (Vec::new(), Vec::new());
    for [_, document] in &foreign {
        let (link, path) = globex.link(document).await;
        globex.delete(&format!("/api/v1/links/{link}")).await.expect(204);
        ended.push(app.stranger().get(&path));
        good.push(app.stranger().get(&globex.link(document).await.1));
    }
    let unknown: Vec<Ask> = (0..THINGS).map(|_| app.stranger().get(&format!("/s/{}", random_token()))).collect();
    let verdict = Verdict::of(&app, &ended, &unknown, [404, 404]).await;
    eprintln!("GET /s/{{token}}: ended or none: {verdict:.4?}");
    if verdict.differ() {
        found.push(format!("/s/{{token}}: {verdict:?}"));
    }
    assert!(verdict.resolution <= 10.0, "this machine is too noisy to say anything of links: {verdict:?}");
    assert!(Verdict::of(&app, &good, &unknown, [200, 404]).await.differ(), "the control: a good link or none");
    assert!(told > 0, "the detector is blind");
    assert_eq!(found, [""; 0]);
}
