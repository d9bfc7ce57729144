//! What the served OpenAPI document says: which operations there are, and the ways to put each.

use harness::actors::Ask;
use serde_json::{Value, json};

use super::LENDER;
use crate::api::ABSENT;

/// Who may call an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Anybody,
    Operator,
    Tenant,
}

/// One operation of the served document.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) side: Side,
    /// Of the path, in their order.
    pub(super) parameters: Vec<String>,
    /// Of the query.
    pub(super) query: Vec<String>,
    pub(super) takes_key: bool,
    /// What it takes: the least and the most.
    pub(super) bodies: Vec<Value>,
}

impl Operation {
    pub(super) fn called(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// The path with these names in it.
    pub(super) fn target(&self, names: &[&str]) -> String {
        self.parameters.iter().zip(names).fold(self.path.clone(), |path, (parameter, name)| path.replace(&format!("{{{parameter}}}"), name))
    }
}

pub(super) fn operations(document: &Value) -> Vec<Operation> {
    let resolve = |value: &Value| value["$ref"].as_str().and_then(|pointer| document.pointer(&pointer[1..])).unwrap_or(value).clone();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods").iter().filter(|(key, _)| key.as_str() != "parameters") {
            let parameters = [&item["parameters"], &operation["parameters"]];
            let parameters: Vec<Value> = parameters.into_iter().filter_map(Value::as_array).flatten().map(resolve).collect();
            let of = |place: &str| {
                let names = parameters.iter().filter(|parameter| parameter["in"] == place);
                names.map(|parameter| parameter["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
            };
            let query = of("query");
            for name in &query {
                assert!(
                    [
                        "state",
                        "limit",
                        "cursor",
                        "search",
                        "status",
                        "metric",
                        "from",
                        "to",
                        "resolution",
                        "format",
                        "action",
                        "outcome",
                        "since",
                        "direction",
                        "ticket",
                        "until"
                    ]
                    .contains(&name.as_str()),
                    "{path} has a parameter {name}: teach me what it names"
                );
            }
            let side = match operation["security"].to_string().as_str() {
                "[]" => Side::Anybody,
                "[{\"operator\":[]}]" => Side::Operator,
                "[{\"tenant\":[]}]" | "[{\"tenant\":[]},{}]" => Side::Tenant,
                other => panic!("{path}: teach me who has {other}"),
            };
            let named = path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}')).map(str::to_owned);
            let operation = Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                side,
                parameters: named.collect(),
                query,
                takes_key: of("header").iter().any(|name| name == "Idempotency-Key"),
                bodies: bodies(&resolve(&operation["requestBody"]["content"]["application/json"]["schema"])),
            };
            all.push(operation);
        }
    }
    all
}

/// The least and the most that a schema of a body allows.
fn bodies(schema: &Value) -> Vec<Value> {
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    let example = |(name, schema): (&String, &Value)| {
        // An operator restores a tenant of which the path says which one it is.
        assert!(
            (schema["format"] != "uuid" && !name.ends_with("id")) || name == "backup",
            "a body has {name}: teach me whose things it may name"
        );
        let value = match (schema["type"].as_str(), name.as_str()) {
            (Some("object"), _) => json!({}),
            (Some("string"), "backup") => json!(ABSENT),
            (Some("string"), "as_of") => json!("2026-01-02T03:04:05Z"),
            (Some("integer"), "window_days") => json!(7),
            (Some("boolean"), "reads") => json!(false), // a dry run has none
            (Some("boolean"), _) => json!(true),
            (Some("array"), "types") => json!(["document"]),
            // Whoever sends it puts in a document of their own.
            (Some("string"), "resource") => json!("document:{document}"),
            (Some("string"), "target") => json!(LENDER),
            (Some("string"), "perms") => json!("read"),
            (None, "only_roles" | "only_subjects" | "targets" | "expires_at" | "max_uses" | "max_lifetime_seconds" | "passphrase") => {
                Value::Null
            }
            (Some("array"), "quotas") => json!([{ "metric": "users", "limit": 9 }]),
            (Some("string"), "slug") => json!("a-new-slug"),
            (Some("string"), "email") => json!("new@example.com"),
            (Some("string"), "role") => json!("viewer"),
            (Some("string"), "domain") => json!("new.example.com"),
            (Some("string"), "url") => json!("https://hooks.example.com/new"),
            (Some("array"), "topics") => json!(["quota.threshold"]),
            (None, "subject") => json!("a-new-subject"),
            (None | Some("array"), "scopes") => json!(["canary"]),
            (Some("integer"), "ttl_seconds") => json!(3600),
            (Some("integer"), "expires_in_days") => json!(9),
            (Some("integer"), "ttl_minutes") => json!(9),
            (Some("string"), _) => json!("standard"),
            (Some("integer"), _) => json!(0),
            (Some("array"), _) => json!([]),
            (None, _) if schema["type"].is_array() => json!(null),
            _ => panic!("teach me how to make a {name} of {schema}"),
        };
        (name.clone(), value)
    };
    let all: serde_json::Map<String, Value> = properties.iter().map(example).collect();
    let required = |name: &String| schema["required"].as_array().is_some_and(|names| names.iter().any(|required| required == name));
    let least = all.iter().filter(|(name, _)| required(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    vec![Value::Object(least), Value::Object(all)]
}

/// One way to put a request, on whatever it names.
pub(super) type Way = Box<dyn Fn(Ask) -> Ask>;

/// The ways to put a request with `method`; more of them where the document has the operation.
pub(super) fn ways(documented: Option<&Operation>) -> Vec<(String, Way)> {
    let mut ways: Vec<(String, Way)> = vec![
        ("bare".to_owned(), Box::new(|ask| ask)),
        ("a body of nothing".to_owned(), Box::new(|ask| ask.json(&json!({})))),
        ("bytes".to_owned(), Box::new(|ask| ask.body("canary").with("content-type", "text/plain"))),
    ];
    let Some(operation) = documented else { return ways };
    if !operation.bodies.is_empty() {
        for broken in ["{", "[]", "{\"tenant_id\":\"x\"}", "{\"name\":1,\"title\":1}"] {
            ways.push((broken.to_owned(), Box::new(move |ask| ask.body(broken).with("content-type", "application/json"))));
        }
    }
    for query in ["limit=1", "limit=0", "cursor=x", "tenant_id=x"] {
        ways.push((query.to_owned(), Box::new(move |ask| ask.clone().to(&format!("{}?{query}", ask.target())))));
    }
    // What gets as far as it can, alone and with each header.
    let headers = [
        ("if-match", "\"1\""),
        ("if-match", "\"7\""),
        ("if-match", "*"),
        ("if-match", "1"),
        ("if-none-match", "\"1\""),
        ("if-none-match", "*"),
        ("idempotency-key", "once"),
        ("idempotency-key", ""),
    ];
    let valid = |body: Option<Value>| move |ask: Ask| body.as_ref().map_or(ask.clone(), |body| ask.json(body));
    for (header, value) in headers {
        let put = valid(operation.bodies.first().cloned());
        ways.push((format!("{header}: {value}"), Box::new(move |ask| put(ask).with(header, value))));
    }
    for body in operation.bodies.iter().cloned() {
        ways.push((body.to_string(), Box::new(valid(Some(body)))));
    }
    ways
}
