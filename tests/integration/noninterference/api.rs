//! Steps through the server's API.

use harness::actors::{Actor, Ask, Reply};
use rand::Rng;
use serde_json::{Value, json};

use super::player::{Kind, Player};
use super::transcript::told;

/// A request, before somebody signs it.
#[derive(Debug, Default)]
struct Plan {
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    learns: Option<Kind>,
}

impl Plan {
    fn new(method: &'static str, target: impl Into<String>) -> Self {
        Self { method, target: target.into(), ..Self::default() }
    }

    fn json(mut self, body: &Value) -> Self {
        self.body = body.to_string().into_bytes();
        self.with("content-type", "application/json")
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn learns(mut self, kind: Kind) -> Self {
        self.learns = Some(kind);
        self
    }

    fn ask(&self, actor: &impl Actor) -> Ask {
        let ask = actor.ask(self.method, &self.target).body(self.body.clone());
        self.headers.iter().fold(ask, |ask, (name, value)| ask.with(name, value.clone()))
    }
}

impl Player {
    pub(super) async fn api_step(&mut self) -> String {
        if self.chance(4) {
            return self.operator_step().await;
        }
        let plan = match self.rng.random_range(0..20) {
            0..8 => self.project_plan(),
            8..12 => self.document_plan(),
            12..17 => self.attachment_plan(),
            _ => self.odd_plan(),
        };
        let (who, reply) = match self.rng.random_range(0..40) {
            0 => ("nobody", plan.ask(&self.stranger).await),
            1 => ("viewer", plan.ask(&self.member.role("viewer")).await),
            2 => ("emperor", plan.ask(&self.member.role("emperor")).await),
            3..6 => ("member", plan.ask(&self.member.role("member")).await),
            _ => ("owner", plan.ask(&self.member).await),
        };
        self.heard(&plan, &reply);
        let body = String::from_utf8_lossy(&plan.body);
        let body: String = body.chars().take(200).collect();
        format!("{who}: {} {} {:?} {body}\n{}", plan.method, plan.target, plan.headers, told(&reply))
    }

    fn heard(&mut self, plan: &Plan, reply: &Reply) {
        if let Some(kind) = plan.learns
            && reply.status == 201
        {
            self.learn(kind, reply.text("id"));
        }
        if plan.method == "GET" && reply.status == 200 && plan.target.contains("limit=") {
            if let Some(cursor) = reply.json()["next_cursor"].as_str() {
                let path = plan.target.split('?').next().unwrap_or_default();
                self.pages.push(format!("{path}?limit=3&cursor={cursor}"));
            }
            if self.pages.len() > 8 {
                self.pages.remove(0);
            }
        }
    }

    /// The tenant is renamed or suspended by an operator, and hears of it at once.
    async fn operator_step(&mut self) -> String {
        let tenant = format!("/api/v1/tenants/{}", self.member.tenant);
        let mut text = String::new();
        let plans = match self.rng.random_range(0..3) {
            0 => vec![(true, Plan::new("PATCH", tenant).json(&json!({ "name": format!("Name {}", self.rng.random_range(0..5)) })))],
            1 => {
                let if_match = self.if_match();
                vec![(true, if_match(Plan::new("PATCH", tenant).json(&json!({ "branding": { "colour": self.fresh() } }))))]
            }
            _ => vec![
                (true, Plan::new("POST", format!("{tenant}/suspend"))),
                (false, Plan::new("GET", "/api/v1/projects?limit=1")),
                (true, Plan::new("POST", format!("{tenant}/resume"))),
            ],
        };
        for (operator, plan) in plans.into_iter().chain([(false, Plan::new("GET", "/api/v1/tenant"))]) {
            let reply = if operator { plan.ask(&self.operator).await } else { plan.ask(&self.member).await };
            text.push_str(&format!("{} {}\n{}\n", plan.method, plan.target, told(&reply)));
        }
        // This service hears of it within its bound; to compare runs it must hear of it now.
        text.push_str(&format!("{:?}", self.server.ping().await));
        text
    }

    fn project_plan(&mut self) -> Plan {
        let id = self.id(Kind::Project);
        match self.rng.random_range(0..14) {
            0..3 => self.list_plan("/api/v1/projects".to_owned()),
            3..5 => Plan::new("POST", "/api/v1/projects").json(&json!({ "name": self.name() })).learns(Kind::Project),
            5..8 => self.once_plan(),
            8..10 => self.if_none_match(Plan::new("GET", format!("/api/v1/projects/{id}"))),
            10..12 => {
                let if_match = self.if_match();
                if_match(Plan::new("PATCH", format!("/api/v1/projects/{id}")).json(&json!({ "description": self.name() })))
            }
            12 => {
                let if_match = self.if_match();
                if_match(Plan::new("DELETE", format!("/api/v1/projects/{id}")))
            }
            _ if self.chance(60) => self.member_plan(),
            _ => self.list_plan(format!("/api/v1/projects/{id}/documents")),
        }
    }

    /// Others have members of the same address and subject.
    fn member_plan(&mut self) -> Plan {
        let n = self.rng.random_range(0..10);
        let body = json!({ "email": format!("m{n}@example.com"), "name": self.name(), "role": "viewer", "subject": format!("m{n}") });
        if self.chance(70) { Plan::new("POST", "/api/v1/members").json(&body) } else { Plan::new("GET", "/api/v1/members") }
    }

    /// A creation under a key that others use as well, mostly for the same request.
    fn once_plan(&mut self) -> Plan {
        let key = self.rng.random_range(0..15);
        let name = if self.chance(85) { format!("Once {key}") } else { self.name() };
        let key = if self.chance(95) { format!("key-{key}") } else { "not a key".to_owned() };
        Plan::new("POST", "/api/v1/projects").json(&json!({ "name": name })).with("idempotency-key", key).learns(Kind::Project)
    }

    fn document_plan(&mut self) -> Plan {
        let (project, id) = (self.id(Kind::Project), self.id(Kind::Document));
        match self.rng.random_range(0..10) {
            0..4 => {
                let body = json!({ "title": self.name(), "content": self.fresh() });
                let plan = Plan::new("POST", format!("/api/v1/projects/{project}/documents")).json(&body).learns(Kind::Document);
                if self.chance(30) { plan.with("idempotency-key", format!("key-{}", self.rng.random_range(0..20))) } else { plan }
            }
            4 => self.list_plan(format!("/api/v1/projects/{project}/documents")),
            5..7 => self.if_none_match(Plan::new("GET", format!("/api/v1/documents/{id}"))),
            7..9 => {
                let if_match = self.if_match();
                if_match(Plan::new("PATCH", format!("/api/v1/documents/{id}")).json(&json!({ "title": self.name() })))
            }
            _ => {
                let if_match = self.if_match();
                if_match(Plan::new("DELETE", format!("/api/v1/documents/{id}")))
            }
        }
    }

    fn attachment_plan(&mut self) -> Plan {
        let list = format!("/api/v1/documents/{}/attachments", self.id(Kind::Document));
        let target = format!("{list}/{}", self.pick(&["a.txt", "a.txt", "b.bin", "%C3%BC%201.txt", "..%2fa.txt", "c"]));
        match self.rng.random_range(0..10) {
            0..4 => {
                // One in a few is too large.
                let length = self.rng.random_range(0..4_800);
                let letter = self.rng.random_range(b'a'..b'e');
                let mut plan = Plan::new("PUT", target);
                plan.body = vec![letter; length];
                let if_match = self.if_match();
                if self.chance(50) { plan.with("content-type", "text/plain") } else { if_match(plan) }
            }
            4..7 => self.if_none_match(Plan::new("GET", target)),
            7..9 => Plan::new("GET", list),
            _ => Plan::new("DELETE", target),
        }
    }

    fn list_plan(&mut self, target: String) -> Plan {
        if !self.pages.is_empty() && self.chance(40) {
            let at = self.rng.random_range(0..self.pages.len());
            return Plan::new("GET", self.pages[at].clone());
        }
        let query =
            self.pick(&["", "?limit=1", "?limit=2", "?limit=3", "?limit=5", "?limit=0", "?limit=999", "?limit=2&cursor=zzz", "?x=1"]);
        Plan::new("GET", target + query)
    }

    /// What is no use of the API, and the tenant's own page.
    fn odd_plan(&mut self) -> Plan {
        let odd = |body: &[u8]| {
            let mut plan = Plan::new("POST", "/api/v1/projects").with("content-type", "application/json");
            plan.body = body.to_vec();
            plan
        };
        match self.rng.random_range(0..15) {
            0..3 => Plan::new("GET", "/api/v1/tenant"),
            3 | 12 => Plan::new("DELETE", "/api/v1/projects"),
            4 => odd(b"{\"name\": \"x\""),
            5 => odd(b"{\"name\": \"x\", \"tenant_id\": \"0198c0de-0000-7000-8000-00000000dead\"}"),
            6 => odd(b"{\"name\": 7}"),
            7 => odd(b"{\"name\": \"a\\u0000b\"}"),
            8 => odd(format!("{{\"name\": \"{}\"}}", "x".repeat(201)).as_bytes()),
            9 => odd(format!("{{\"name\": \"{}\"}}", "x".repeat(5_000)).as_bytes()),
            10 => Plan::new("POST", "/api/v1/projects").with("content-type", "text/plain"),
            11 => Plan::new("GET", "/api/v1/nothing"),
            _ => Plan::new("GET", "/api/v1/tenants"),
        }
    }

    fn name(&mut self) -> String {
        format!("Name {}", self.rng.random_range(0..12))
    }

    fn if_match(&mut self) -> impl FnOnce(Plan) -> Plan + use<> {
        let tag = self.pick(&["", "", "", "", "", "*", "\"1\"", "\"1\"", "\"2\"", "\"1\", \"2\"", "W/\"1\"", "3"]);
        move |plan| if tag.is_empty() { plan } else { plan.with("if-match", tag) }
    }

    fn if_none_match(&mut self, plan: Plan) -> Plan {
        let tag = self.pick(&["", "", "", "\"1\"", "*", "\"7\", \"1\"", "x"]);
        if tag.is_empty() { plan } else { plan.with("if-none-match", tag) }
    }
}
