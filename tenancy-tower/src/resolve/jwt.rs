//! The tenant in a signed token: `Authorization: Bearer …`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::AUTHORIZATION;
use http::request::Parts;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use tenancy_core::{Clock, Error, ErrorKind, Principal, Result, Role, Subject, SystemClock, TenantHint};

use super::{Algorithm, Identified, Keys, ResolveTenant};
use crate::response::invalid_token;

/// Reads tenant, principal and scopes from a JSON Web Token (RFC 7519, with the advice of RFC 8725).
///
/// 1. The token's algorithm must be allowed *and* be that of the key, and each key has one: `none`, and a public key taken for a
///    secret, verify nothing.
/// 2. Keys come from [`Keys`] alone. `jku`, `jwk`, `x5u` and `x5c` in a token's header are not read; a `crit` header is refused, for
///    nothing it could name is implemented; so is a `typ` other than `JWT` and `at+jwt`.
/// 3. `iss` must be the configured issuer and `aud` must have one of the configured audiences.
/// 4. `exp` is required; `exp` and `nbf` are numbers, compared with the [`Clock`], with a leeway of 30 seconds.
/// 5. `sub` is required. A `role` makes the principal a member with that [`Role`]; without one it is a service, which has its scopes
///    alone.
/// 6. The tenant claim is required: text of at most 64 bytes, a tenant's UUID or slug.
/// 7. Scopes are the words of `scope` (text) and of `scopes` (an array): at most 64, of at most 128 bytes each.
/// 8. There is one `Authorization` header, and the token has at most 8 KiB. Another scheme than `Bearer` is no token.
///
/// A token that fails any of these is refused in the same words; the reason is logged at debug level.
pub struct JwtResolver {
    keys: Keys,
    algorithms: Vec<Algorithm>,
    issuer: String,
    audiences: Vec<String>,
    tenant_claim: ClaimPath,
    role_claim: ClaimPath,
    leeway: Duration,
    clock: Arc<dyn Clock>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<IgnoredAny>,
}

impl JwtResolver {
    /// The longest token, in bytes.
    pub const MAX_LEN: usize = 8 * 1024;
    /// The longest tenant claim, in bytes.
    pub const MAX_TENANT_LEN: usize = 64;
    /// The most scopes of a token.
    pub const MAX_SCOPES: usize = 64;
    /// The longest scope, in bytes.
    pub const MAX_SCOPE_LEN: usize = 128;
    /// The largest leeway.
    pub const MAX_LEEWAY: Duration = Duration::from_secs(300);

    /// Accepts tokens that `issuer` signed for `audience` with one of `keys` and one of `algorithms`.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if no algorithm is named, HS256 is mixed with public keys, no key fits, or `issuer` or
    /// `audience` is empty.
    pub fn new(keys: impl Into<Keys>, algorithms: &[Algorithm], issuer: impl Into<String>, audience: impl Into<String>) -> Result<Self> {
        let (keys, issuer, audience) = (keys.into(), issuer.into(), audience.into());
        let why = if algorithms.is_empty() {
            "no token algorithm is allowed: name one"
        } else if algorithms.contains(&Algorithm::Hs256) && algorithms.iter().any(|other| *other != Algorithm::Hs256) {
            "HS256 is mixed with public-key algorithms: allow one kind of them"
        } else if !keys.current().algorithms().any(|algorithm| algorithms.contains(&algorithm)) {
            "no key fits the allowed token algorithms"
        } else if issuer.is_empty() || audience.is_empty() {
            "the token issuer or audience is empty: name both"
        } else {
            return Ok(Self {
                keys,
                algorithms: algorithms.to_vec(),
                issuer,
                audiences: vec![audience],
                tenant_claim: ClaimPath::parse("tenant_id")?,
                role_claim: ClaimPath::parse("role")?,
                leeway: Duration::from_secs(30),
                clock: Arc::new(SystemClock),
            });
        };
        Err(Error::new(ErrorKind::Misconfigured, why))
    }

    /// Accepts tokens for `audience` as well.
    #[must_use]
    pub fn with_audience(mut self, audience: impl Into<String>) -> Self {
        self.audiences.push(audience.into());
        self
    }

    /// Where the tenant is: `tenant_id` unless told, `app_metadata.tenant_id` for a nested one, or a JSON pointer such as
    /// `/https:~1~1example.com~1tenant` for a name with dots.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if a part of the path is empty.
    pub fn with_tenant_claim(mut self, path: &str) -> Result<Self> {
        self.tenant_claim = ClaimPath::parse(path)?;
        Ok(self)
    }

    /// Where the role is: `role` unless told.
    ///
    /// # Errors
    /// As [`with_tenant_claim`](JwtResolver::with_tenant_claim).
    pub fn with_role_claim(mut self, path: &str) -> Result<Self> {
        self.role_claim = ClaimPath::parse(path)?;
        Ok(self)
    }

    /// By how much clocks may differ: 30 seconds unless told.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) above [`MAX_LEEWAY`](JwtResolver::MAX_LEEWAY).
    pub fn with_leeway(mut self, leeway: Duration) -> Result<Self> {
        if leeway > Self::MAX_LEEWAY {
            return Err(Error::new(ErrorKind::Misconfigured, "the leeway of tokens is more than five minutes: set the clocks instead"));
        }
        self.leeway = leeway;
        Ok(self)
    }

    /// Takes the time from `clock`.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// What `token` proves, or why it proves nothing.
    fn verify(&self, token: &str) -> Result<Identified, &'static str> {
        let claims = self.claims(token)?;
        let text = |claim: &Value| claim.as_str().map(str::to_owned);

        if claims.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err("iss is not the configured issuer");
        }
        let ours = |audience: &Value| audience.as_str().is_some_and(|audience| self.audiences.iter().any(|ours| ours == audience));
        if !match claims.get("aud") {
            Some(Value::Array(all)) => all.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        } {
            return Err("aud has none of the configured audiences");
        }
        self.check_times(&claims)?;

        let tenant = self.tenant_claim.find(&claims).ok_or("the tenant claim is missing")?;
        let tenant = tenant.as_str().filter(|text| text.len() <= Self::MAX_TENANT_LEN).ok_or("the tenant claim is not a short text")?;
        let hint: TenantHint = tenant.parse().map_err(|_| "the tenant claim is no UUID or slug")?;

        let subject = claims.get("sub").and_then(text).ok_or("sub is not a text")?;
        let subject: Subject = subject.parse().map_err(|_| "sub is no subject")?;
        let principal = match self.role_claim.find(&claims) {
            None => Principal::Service { subject },
            Some(role) => {
                let role: Role = role.as_str().and_then(|role| role.parse().ok()).ok_or("the role claim is no role")?;
                Principal::Member { subject, role }
            }
        };
        Ok(Identified::proven(hint, principal).with_scopes(scopes(&claims)?))
    }

    /// The claims of a token whose signature verifies.
    fn claims(&self, token: &str) -> Result<Map<String, Value>, &'static str> {
        if token.len() > Self::MAX_LEN {
            return Err("the token is too long");
        }
        let (message, signature) = token.rsplit_once('.').ok_or("the token has no signature")?;
        let (header, payload) = message.split_once('.').filter(|(_, rest)| !rest.contains('.')).ok_or("the token has not three parts")?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| "a part of the token is not base64url");

        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| "the header is malformed")?;
        let algorithm = self.algorithms.iter().find(|algorithm| algorithm.as_str() == header.alg);
        let algorithm = *algorithm.ok_or("the algorithm is not allowed")?;
        if header.crit.is_some() {
            return Err("the header has critical extensions");
        }
        if header.typ.is_some_and(|typ| !["JWT", "at+jwt", "application/at+jwt"].iter().any(|known| typ.eq_ignore_ascii_case(known))) {
            return Err("the token is of another type");
        }
        let keys = self.keys.current();
        let Some(key) = keys.select(algorithm, header.kid.as_deref()) else {
            self.keys.ask_for_refresh();
            return Err("no key fits the token");
        };
        if !key.verifies(message.as_bytes(), &decode(signature)?) {
            return Err("the signature does not verify");
        }
        serde_json::from_slice(&decode(payload)?).map_err(|_| "the claims are no JSON object")
    }

    fn check_times(&self, claims: &Map<String, Value>) -> Result<(), &'static str> {
        // Whole milliseconds fit a double exactly for the next 285,000 years.
        #[expect(clippy::cast_precision_loss, reason = "see above")]
        let now = self.clock.now().timestamp_millis() as f64 / 1000.0;
        let leeway = self.leeway.as_secs_f64();
        let expires = claims.get("exp").and_then(Value::as_f64).ok_or("exp is not a number")?;
        if now >= expires + leeway {
            return Err("the token has expired");
        }
        match claims.get("nbf").map(Value::as_f64) {
            Some(None) => Err("nbf is not a number"),
            Some(Some(from)) if now < from - leeway => Err("the token is not valid yet"),
            _ => Ok(()),
        }
    }
}

impl ResolveTenant for JwtResolver {
    fn resolve(&self, request: &Parts) -> Result<Option<Identified>> {
        let mut headers = request.headers.get_all(AUTHORIZATION).iter();
        let Some(header) = headers.next() else { return Ok(None) };
        if headers.next().is_some() {
            return Err(invalid_token("there is more than one Authorization header"));
        }
        let header = header.to_str().map_err(|_| invalid_token("the Authorization header is not ASCII"))?;
        let (scheme, token) = header.split_once(' ').unwrap_or((header, ""));
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Ok(None);
        }
        self.verify(token).map(Some).map_err(invalid_token)
    }

    fn authenticates(&self) -> bool {
        true
    }
}

impl fmt::Debug for JwtResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtResolver")
            .field("keys", &self.keys)
            .field("algorithms", &self.algorithms)
            .field("issuer", &self.issuer)
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

fn scopes(claims: &Map<String, Value>) -> Result<BTreeSet<String>, &'static str> {
    let words: Vec<&str> = match claims.get("scope") {
        None => Vec::new(),
        Some(scope) => scope.as_str().ok_or("scope is not a text")?.split_ascii_whitespace().collect(),
    };
    let items: Vec<&str> = match claims.get("scopes") {
        None => Vec::new(),
        Some(scopes) => {
            let scopes = scopes.as_array().ok_or("scopes is not an array")?;
            scopes.iter().map(Value::as_str).collect::<Option<_>>().ok_or("scopes has something that is not a text")?
        }
    };
    let all = || words.iter().chain(&items);
    if all().count() > JwtResolver::MAX_SCOPES || all().any(|scope| !(1..=JwtResolver::MAX_SCOPE_LEN).contains(&scope.len())) {
        return Err("the scopes are too many, too long or empty");
    }
    Ok(all().map(|scope| (*scope).to_owned()).collect())
}

/// Names of nested objects, outermost first.
#[derive(Debug)]
struct ClaimPath(Vec<String>);

impl ClaimPath {
    fn parse(path: &str) -> Result<Self> {
        let names: Vec<String> = match path.strip_prefix('/') {
            Some(pointer) => pointer.split('/').map(|name| name.replace("~1", "/").replace("~0", "~")).collect(),
            None => path.split('.').map(str::to_owned).collect(),
        };
        if names.iter().any(String::is_empty) {
            return Err(Error::new(ErrorKind::Misconfigured, format!("{path:?} is no path of a claim: give one such as \"tenant_id\"")));
        }
        Ok(Self(names))
    }

    fn find<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().try_fold(claims.get(first)?, |value, name| value.as_object()?.get(name))
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use http::Request;
    use jsonwebtoken::EncodingKey;
    use jsonwebtoken::jwk::Jwk;
    use serde_json::json;
    use tenancy_core::ManualClock;

    use super::*;
    use crate::resolve::KeySet;

    const NOW: i64 = 1_800_000_000;
    const SECRET: &[u8] = b"a secret for tests, of 32 bytes.";
    const RSA_PUBLIC: &[u8] = include_bytes!("../../tests/keys/rsa.pub.pem");

    /// The private keys, each with the algorithm it is for.
    fn signers() -> [(Algorithm, EncodingKey); 4] {
        [
            (Algorithm::Hs256, EncodingKey::from_secret(SECRET)),
            (Algorithm::Rs256, EncodingKey::from_rsa_pem(include_bytes!("../../tests/keys/rsa.pem")).expect("rsa")),
            (Algorithm::Es256, EncodingKey::from_ec_pem(include_bytes!("../../tests/keys/ec.pem")).expect("ec")),
            (Algorithm::EdDsa, EncodingKey::from_ed_pem(include_bytes!("../../tests/keys/ed.pem")).expect("ed")),
        ]
    }

    fn signer(algorithm: Algorithm) -> EncodingKey {
        signers().into_iter().find(|(other, _)| *other == algorithm).expect("one of four").1
    }

    fn public(algorithm: Algorithm) -> KeySet {
        match algorithm {
            Algorithm::Hs256 => KeySet::from_secret(SECRET),
            Algorithm::Rs256 => KeySet::from_pem(algorithm, RSA_PUBLIC),
            Algorithm::Es256 => KeySet::from_pem(algorithm, include_bytes!("../../tests/keys/ec.pub.pem")),
            Algorithm::EdDsa => KeySet::from_pem(algorithm, include_bytes!("../../tests/keys/ed.pub.pem")),
        }
        .expect("key")
    }

    fn at(now: i64) -> ManualClock {
        ManualClock::new(DateTime::from_timestamp(now, 0).expect("time"))
    }

    fn resolver(algorithm: Algorithm) -> JwtResolver {
        JwtResolver::new(public(algorithm), &[algorithm], "https://issuer.test", "app").expect("resolver").with_clock(at(NOW))
    }

    fn claims() -> Value {
        json!({
            "iss": "https://issuer.test", "aud": "app", "sub": "user-1", "exp": NOW + 60,
            "tenant_id": "acme", "role": "admin", "scope": "read write", "scopes": ["export"],
        })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[name] = value;
        claims
    }

    fn without(name: &str) -> Value {
        let mut claims = claims();
        claims.as_object_mut().expect("object").remove(name);
        claims
    }

    fn part(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    /// Signs any header and claims with `key`, whatever the header says.
    fn sign_with(key: &EncodingKey, algorithm: Algorithm, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", part(header), part(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm.as_jsonwebtoken()).expect("signed");
        format!("{message}.{signature}")
    }

    fn sign(algorithm: Algorithm, header: &Value, claims: &Value) -> String {
        sign_with(&signer(algorithm), algorithm, header, claims)
    }

    fn hs256(claims: &Value) -> String {
        sign(Algorithm::Hs256, &json!({"alg": "HS256", "typ": "JWT"}), claims)
    }

    fn why(algorithm: Algorithm, token: &str) -> &'static str {
        resolver(algorithm).verify(token).expect_err("refused")
    }

    /// The reason why otherwise good claims are refused.
    fn why_claims(claims: &Value) -> &'static str {
        why(Algorithm::Hs256, &hs256(claims))
    }

    #[test]
    fn each_algorithm_verifies_its_own_tokens_alone() {
        for (algorithm, key) in signers() {
            let token = sign_with(&key, algorithm, &json!({"alg": algorithm.as_str()}), &claims());
            for (other, _) in signers() {
                let verified = resolver(other).verify(&token);
                assert_eq!(verified.is_ok(), other == algorithm, "{algorithm:?} at {other:?}");
            }
            let mut forged = token.into_bytes();
            let at = forged.len() - 10;
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).expect("ascii");
            assert_eq!(why(algorithm, &forged), "the signature does not verify");
        }
    }

    #[test]
    fn a_token_gives_tenant_principal_and_scopes() {
        let found = resolver(Algorithm::Hs256).verify(&hs256(&claims())).expect("good");
        assert_eq!(found.hint().to_string(), "acme");
        let subject: Subject = "user-1".parse().expect("subject");
        assert_eq!(*found.principal(), Principal::Member { subject: subject.clone(), role: Role::Admin });
        assert!(found.scopes().iter().eq(["export", "read", "write"]));
        let service = resolver(Algorithm::Hs256).verify(&hs256(&without("role"))).expect("good");
        assert_eq!(*service.principal(), Principal::Service { subject });
    }

    #[test]
    fn hostile_algorithms_verify_nothing() {
        let part_of = |header: &Value| format!("{}.{}.", part(header), part(&claims()));
        for alg in ["none", "None", "nOnE", "", "HS384", "RS256", "hs256"] {
            for token in [part_of(&json!({"alg": alg})), sign(Algorithm::Hs256, &json!({"alg": alg}), &claims())] {
                assert_eq!(why(Algorithm::Hs256, &token), "the algorithm is not allowed", "{alg}");
            }
        }
        assert_eq!(why(Algorithm::Hs256, &part_of(&json!({"alg": "HS256"}))), "the signature does not verify");
        // The public key, taken for a secret.
        let public_as_secret = EncodingKey::from_secret(RSA_PUBLIC);
        for alg in ["HS256", "RS256"] {
            let token = sign_with(&public_as_secret, Algorithm::Hs256, &json!({"alg": alg}), &claims());
            assert!(resolver(Algorithm::Rs256).verify(&token).is_err(), "{alg}");
        }
        // Even a resolver that is told to allow both can't be made.
        let mixed = JwtResolver::new(public(Algorithm::Rs256), &[Algorithm::Rs256, Algorithm::Hs256], "i", "a");
        assert_eq!(mixed.expect_err("mixed").kind(), ErrorKind::Misconfigured);
    }

    #[test]
    fn keys_in_the_header_are_not_honoured() {
        let theirs = EncodingKey::from_ed_pem(include_bytes!("../../tests/keys/ed-next.pem")).expect("key");
        let jwk = serde_json::to_value(Jwk::from_encoding_key(&theirs, jsonwebtoken::Algorithm::EdDSA).expect("jwk")).expect("json");
        for (name, value) in [
            ("jwk", jwk),
            ("jku", json!("http://127.0.0.1:9/jwks.json")),
            ("x5u", json!("http://127.0.0.1:9/x.pem")),
            ("x5c", json!(["AAAA"])),
        ] {
            let header = json!({"alg": "EdDSA", name: value});
            let token = sign_with(&theirs, Algorithm::EdDsa, &header, &claims());
            assert_eq!(why(Algorithm::EdDsa, &token), "the signature does not verify", "{name}");
            // Not the member makes it fail: signed with our key, the same header passes.
            assert!(resolver(Algorithm::EdDsa).verify(&sign(Algorithm::EdDsa, &header, &claims())).is_ok(), "{name}");
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        for (header, reason) in [
            (json!({"alg": "HS256", "crit": ["exp"]}), "the header has critical extensions"),
            (json!({"alg": "HS256", "crit": []}), "the header has critical extensions"),
            (json!({"alg": "HS256", "typ": "logout+jwt"}), "the token is of another type"),
            (json!({"alg": ["HS256"]}), "the header is malformed"),
            (json!({"alg": "HS256", "kid": {"a": 1}}), "the header is malformed"),
            (json!({"typ": "JWT"}), "the header is malformed"),
            (json!([]), "the header is malformed"),
            (json!(null), "the header is malformed"),
        ] {
            assert_eq!(why(Algorithm::Hs256, &sign(Algorithm::Hs256, &header, &claims())), reason, "{header}");
        }
        for kid in ["../../dev/null", "' or 1=1 --", &"k".repeat(4000)] {
            // The only key has no kid, so any will do: it points at nothing.
            let token = sign(Algorithm::Hs256, &json!({"alg": "HS256", "kid": kid}), &claims());
            assert!(resolver(Algorithm::Hs256).verify(&token).is_ok());
        }
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let good = hs256(&claims());
        let (message, signature) = good.rsplit_once('.').expect("three parts");
        for bad in [
            "",
            ".",
            "..",
            "...",
            "a.b.c",
            "' or 1=1 --",
            message,
            &format!("{good}."),
            &format!(".{good}"),
            &format!("{good}.{signature}"),
            &format!("{good}="),
            &format!(" {good}"),
            &format!("{message}.."),
            &"a".repeat(10_000),
            &format!("{message}.{}", "a".repeat(10_000)),
        ] {
            assert!(resolver(Algorithm::Hs256).verify(bad).is_err(), "{bad:.40}");
        }
        assert_eq!(why_claims(&json!(["acme"])), "the claims are no JSON object");
        assert_eq!(why_claims(&with("pad", json!("x".repeat(10_000)))), "the token is too long");
    }

    #[test]
    fn the_tenant_claim_is_a_short_text() {
        let reason = "the tenant claim is not a short text";
        for bad in [json!(["acme"]), json!({"id": "acme"}), json!(7), json!(true), json!(null), json!("a".repeat(65))] {
            assert_eq!(why_claims(&with("tenant_id", bad.clone())), reason, "{bad}");
        }
        for bad in
            ["", "Acme", "acme\0", "acme ", "' or 1=1; drop table tenants --", "../beta", "admin", "00000000-0000-0000-0000-000000000000"]
        {
            assert_eq!(why_claims(&with("tenant_id", json!(bad))), "the tenant claim is no UUID or slug", "{bad}");
        }
        assert_eq!(why_claims(&without("tenant_id")), "the tenant claim is missing");
    }

    #[test]
    fn the_tenant_claim_can_be_nested() {
        let nested = with("app_metadata", json!({"tenant_id": "beta", "list": ["gamma"]}));
        let nested = hs256(&nested);
        let at = |path: &str| resolver(Algorithm::Hs256).with_tenant_claim(path).expect(path).verify(&nested);
        assert_eq!(at("app_metadata.tenant_id").expect("dotted").hint().to_string(), "beta");
        assert_eq!(at("/app_metadata/tenant_id").expect("pointer").hint().to_string(), "beta");
        for path in ["app_metadata", "app_metadata.list", "app_metadata.list.0", "app_metadata.tenant_id.x", "/app_metadata.tenant_id"] {
            assert!(at(path).is_err(), "{path}");
        }
        let url = hs256(&with("https://example.com/tenant", json!("gamma")));
        let by_url = resolver(Algorithm::Hs256).with_tenant_claim("/https:~1~1example.com~1tenant").expect("path");
        assert_eq!(by_url.verify(&url).expect("pointer").hint().to_string(), "gamma");
        for bad in ["", "a..b", ".a", "/", "/a//b"] {
            assert!(resolver(Algorithm::Hs256).with_tenant_claim(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn issuer_and_audience_are_checked() {
        for bad in [without("iss"), with("iss", json!("https://issuer.test/")), with("iss", json!(["https://issuer.test"]))] {
            assert_eq!(why_claims(&bad), "iss is not the configured issuer");
        }
        for bad in [
            without("aud"),
            with("aud", json!("other")),
            with("aud", json!([])),
            with("aud", json!({"app": 1})),
            with("aud", json!([["app"]])),
        ] {
            assert_eq!(why_claims(&bad), "aud has none of the configured audiences");
        }
        let second = hs256(&with("aud", json!(["x", "app-2"])));
        assert!(resolver(Algorithm::Hs256).with_audience("app-2").verify(&second).is_ok());
        assert!(resolver(Algorithm::Hs256).verify(&second).is_err());
    }

    #[test]
    fn times_are_exact() {
        let verify = |claims: &Value, now: i64, leeway: u64| {
            let resolver = resolver(Algorithm::Hs256).with_leeway(Duration::from_secs(leeway)).expect("leeway");
            resolver.with_clock(at(now)).verify(&hs256(claims)).err()
        };
        let exp = with("exp", json!(NOW));
        for (now, leeway, refused) in [(NOW - 1, 0, false), (NOW, 0, true), (NOW + 29, 30, false), (NOW + 30, 30, true)] {
            assert_eq!(verify(&exp, now, leeway), refused.then_some("the token has expired"), "{now} {leeway}");
        }
        let nbf = with("nbf", json!(NOW));
        for (now, leeway, refused) in [(NOW - 1, 0, true), (NOW, 0, false), (NOW - 30, 30, false), (NOW - 31, 30, true)] {
            assert_eq!(verify(&nbf, now, leeway), refused.then_some("the token is not valid yet"), "{now} {leeway}");
        }
        assert_eq!(verify(&with("exp", json!(NOW as f64 + 0.5)), NOW, 0), None);
        assert_eq!(verify(&with("exp", json!(NOW as f64 - 0.5)), NOW, 0), Some("the token has expired"));
        for bad in [json!("1900000000"), json!(null), json!([NOW + 60]), json!(true)] {
            assert_eq!(verify(&with("exp", bad.clone()), NOW, 0), Some("exp is not a number"), "{bad}");
            assert_eq!(verify(&with("nbf", bad.clone()), NOW, 0), Some("nbf is not a number"), "{bad}");
        }
        assert_eq!(verify(&without("exp"), NOW, 0), Some("exp is not a number"));
        assert_eq!(verify(&with("exp", json!(-1)), NOW, 0), Some("the token has expired"));
        assert!(resolver(Algorithm::Hs256).with_leeway(Duration::from_secs(301)).is_err());
    }

    #[test]
    fn subject_role_and_scopes_are_strict() {
        for bad in
            [without("sub"), with("sub", json!(7)), with("sub", json!("")), with("sub", json!("a b")), with("sub", json!("x".repeat(256)))]
        {
            assert!(why_claims(&bad).starts_with("sub is"));
        }
        for bad in [json!("root"), json!(["admin"]), json!(3), json!(null), json!("Admin")] {
            assert_eq!(why_claims(&with("role", bad)), "the role claim is no role");
        }
        for bad in [with("scope", json!(["read"])), with("scopes", json!("read")), with("scopes", json!([7])), with("scopes", json!([""]))]
        {
            assert!(why_claims(&bad).contains("scope"));
        }
        assert!(why_claims(&with("scopes", json!(vec!["s"; 63]))).contains("too many"));
        assert!(why_claims(&with("scope", json!("s".repeat(129)))).contains("too long"));
    }

    fn by_headers(values: &[&str]) -> Result<Option<Identified>> {
        let mut request = Request::get("/");
        for value in values {
            request = request.header(AUTHORIZATION, *value);
        }
        resolver(Algorithm::Hs256).resolve(&request.body(()).expect("request").into_parts().0)
    }

    #[test]
    fn one_bearer_header() {
        let token = hs256(&claims());
        for good in [format!("Bearer {token}"), format!("bearer {token}"), format!("BEARER {token}")] {
            assert!(by_headers(&[&good]).expect("good").is_some());
        }
        for none in [&[][..], &["Basic dXNlcjpwYXNz"], &["Bearerx y"], &[""]] {
            assert!(by_headers(none).expect("no token").is_none(), "{none:?}");
        }
        let good = format!("Bearer {token}");
        for bad in [
            &["Bearer"][..],
            &["Bearer "],
            &[&format!("Bearer  {token}")],
            &[&good, &good],
            &[&good, "Basic x"],
            &[&format!("{good}, {good}")],
        ] {
            let error = by_headers(bad).expect_err("refused");
            assert_eq!((error.kind(), error.message()), (ErrorKind::Unauthenticated, "the bearer token is not valid"));
        }
    }

    #[test]
    fn a_set_selects_by_kid_and_forgets_removed_keys() {
        let jwk = |pem: &[u8], kid: &str| {
            let key = EncodingKey::from_ed_pem(pem).expect("key");
            let mut jwk = Jwk::from_encoding_key(&key, jsonwebtoken::Algorithm::EdDSA).expect("jwk");
            jwk.common.key_id = Some(kid.into());
            (key, serde_json::to_value(jwk).expect("json"))
        };
        let (old, old_jwk) = jwk(include_bytes!("../../tests/keys/ed.pem"), "old");
        let (new, new_jwk) = jwk(include_bytes!("../../tests/keys/ed-next.pem"), "new");
        let set = |keys: &[&Value]| KeySet::from_jwks(json!({"keys": keys}).to_string().as_bytes()).expect("set");
        let keys = Keys::from(set(&[&old_jwk, &new_jwk]));
        let resolver =
            JwtResolver::new(keys.clone(), &[Algorithm::EdDsa], "https://issuer.test", "app").expect("resolver").with_clock(at(NOW));
        let token = |key: &EncodingKey, kid: &str| sign_with(key, Algorithm::EdDsa, &json!({"alg": "EdDSA", "kid": kid}), &claims());
        assert!(resolver.verify(&token(&old, "old")).is_ok() && resolver.verify(&token(&new, "new")).is_ok());
        assert!(resolver.verify(&token(&old, "new")).is_err(), "a kid can't borrow another key");
        assert!(resolver.verify(&token(&old, "other")).is_err());
        keys.replace(set(&[&new_jwk]));
        assert_eq!(resolver.verify(&token(&old, "old")).expect_err("removed"), "no key fits the token");
        assert!(resolver.verify(&token(&new, "new")).is_ok());
    }
}
