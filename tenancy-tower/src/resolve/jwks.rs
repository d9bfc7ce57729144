//! The keys that verify tokens, and how they are replaced while requests run.
//!
//! Keys are read by a thread of their own, never on a request's path. A token signed with an unknown key asks that thread for an early
//! refresh, at most once a minute, and is refused meanwhile: issuers publish a key before they sign with it.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::rust_crypto::DEFAULT_PROVIDER;
use jsonwebtoken::{AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use tenancy_core::{Error, ErrorKind, Result};

/// The signature algorithms that tokens may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// HMAC with SHA-256: one secret both signs and verifies.
    Hs256,
    /// RSA (PKCS #1 v1.5) with SHA-256, 2048 to 4096 bits.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// The name in a token's header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    pub(super) const fn as_jsonwebtoken(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// A key, bound to the one algorithm that it verifies: what a token's header says can't make it another kind of key.
pub(super) struct Key {
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    key: DecodingKey,
}

impl Key {
    /// The key, if it is usable: everything that could fail at a request is tried here.
    fn new(id: Option<String>, algorithm: Algorithm, key: DecodingKey) -> Result<Self, &'static str> {
        let key = match algorithm {
            // jsonwebtoken slices the first 32 bytes without a check.
            Algorithm::EdDsa if key.try_get_as_bytes().map(<[u8]>::len) != Ok(32) => return Err("an Ed25519 key has 32 bytes"),
            Algorithm::Rs256 => rsa(&key)?,
            _ => key,
        };
        (DEFAULT_PROVIDER.verifier_factory)(&algorithm.as_jsonwebtoken(), &key).map_err(|_| "the key is malformed or of another type")?;
        Ok(Self { id, algorithm, key })
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &Vec<u8>) -> bool {
        (DEFAULT_PROVIDER.verifier_factory)(&self.algorithm.as_jsonwebtoken(), &self.key)
            .is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }
}

/// An RSA key of a size that is neither weak nor a burden.
fn rsa(key: &DecodingKey) -> Result<DecodingKey, &'static str> {
    if key.family() != AlgorithmFamily::Rsa {
        return Err("this is no RSA key");
    }
    let (n, e) = match key.kind() {
        jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, e } => (n.clone(), e.clone()),
        jsonwebtoken::DecodingKeyKind::SecretOrDer(der) => {
            (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(der).map_err(|_| "this is no RSA public key")?
        }
    };
    let len = n.iter().skip_while(|byte| **byte == 0).count();
    if !(256..=512).contains(&len) {
        return Err("an RSA key has 2048 to 4096 bits");
    }
    let exponent = e.iter().try_fold(0_u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)));
    if !exponent.is_some_and(|e| e % 2 == 1 && (3..1 << 33).contains(&e)) {
        return Err("an RSA key's exponent is odd, and at least 3");
    }
    Ok(DecodingKey::from_rsa_raw_components(&n, &e))
}

/// The keys that are valid at one time.
pub struct KeySet(Vec<Key>);

impl KeySet {
    /// The largest JWK set, in bytes.
    pub const MAX_LEN: usize = 64 * 1024;
    /// The most keys of a JWK set.
    pub const MAX_KEYS: usize = 32;

    /// One shared secret, for [`Algorithm::Hs256`]: at least 32 random bytes.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if it is shorter, or is a PEM document.
    pub fn from_secret(secret: &[u8]) -> Result<Self> {
        if secret.len() < 32 {
            return Err(Error::new(ErrorKind::Misconfigured, "the token secret is too short: use at least 32 random bytes"));
        }
        if secret.starts_with(b"-----BEGIN") {
            return Err(Error::new(ErrorKind::Misconfigured, "the token secret is a PEM document: use KeySet::from_pem for a public key"));
        }
        Self::one(Algorithm::Hs256, DecodingKey::from_secret(secret))
    }

    /// One public key in PEM form.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if it is no public key for `algorithm`.
    pub fn from_pem(algorithm: Algorithm, pem: &[u8]) -> Result<Self> {
        let key = match algorithm {
            Algorithm::Hs256 => return Err(Error::new(ErrorKind::Misconfigured, "HS256 has no public key: use KeySet::from_secret")),
            Algorithm::Rs256 => DecodingKey::from_rsa_pem(pem),
            Algorithm::Es256 => DecodingKey::from_ec_pem(pem),
            Algorithm::EdDsa => DecodingKey::from_ed_pem(pem),
        };
        let key = key.map_err(|source| {
            Error::new(ErrorKind::Misconfigured, format!("this PEM document is no {} public key", algorithm.as_str())).with_source(source)
        })?;
        Self::one(algorithm, key)
    }

    fn one(algorithm: Algorithm, key: DecodingKey) -> Result<Self> {
        let key = Key::new(None, algorithm, key);
        Ok(Self(vec![key.map_err(|why| Error::new(ErrorKind::Misconfigured, format!("the {} key: {why}", algorithm.as_str())))?]))
    }

    /// A JWK set (RFC 7517) of public keys.
    ///
    /// Keys of other types, algorithms and uses are left out, as the RFC asks; so are weak and malformed ones, and symmetric ones, which
    /// have no place in a published document. A set may be empty: then nothing verifies.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if it is no JWK set, too large, or has two usable keys of one `kid` and algorithm.
    pub fn from_jwks(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Jwks {
            keys: Vec<serde_json::Value>,
        }
        let refused = |why: String| Error::new(ErrorKind::Misconfigured, format!("the JWK set {why}"));
        if json.len() > Self::MAX_LEN {
            return Err(refused(format!("is larger than {} bytes", Self::MAX_LEN)));
        }
        let jwks: Jwks = serde_json::from_slice(json).map_err(|source| refused("is not valid".into()).with_source(source))?;
        if jwks.keys.len() > Self::MAX_KEYS {
            return Err(refused(format!("has more than {} keys", Self::MAX_KEYS)));
        }
        let mut keys: Vec<Key> = Vec::new();
        for (at, value) in jwks.keys.into_iter().enumerate() {
            match Jwk::deserialize(value).map_err(|_| "the key is malformed").and_then(Jwk::into_key) {
                Ok(key) if keys.iter().any(|other| other.id == key.id && other.algorithm == key.algorithm) => {
                    return Err(refused(format!("has two {} keys with one kid", key.algorithm.as_str())));
                }
                Ok(key) => keys.push(key),
                Err(reason) => tracing::debug!(at, reason, "a key of the JWK set is left out"),
            }
        }
        Ok(Self(keys))
    }

    pub(super) fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        self.0.iter().map(|key| key.algorithm)
    }

    /// The key that a token with this header was signed with, if any: the one with its `kid`, or a sole key without one.
    pub(super) fn select(&self, algorithm: Algorithm, id: Option<&str>) -> Option<&Key> {
        let mut fitting = self.0.iter().filter(|key| key.algorithm == algorithm);
        match id {
            Some(id) => fitting.find(|key| key.id.as_deref() == Some(id)).or(match &*self.0 {
                [only] if only.id.is_none() && only.algorithm == algorithm => Some(only),
                _ => None,
            }),
            None => fitting.next().filter(|_| fitting.next().is_none()),
        }
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| (key.algorithm, &key.id))).finish()
    }
}

/// The members of a JWK that matter here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    fn into_key(self) -> Result<Key, &'static str> {
        let algorithm = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", None) => Algorithm::Rs256,
            ("EC", Some("P-256")) => Algorithm::Es256,
            ("OKP", Some("Ed25519")) => Algorithm::EdDsa,
            _ => return Err("keys of this type are not used"),
        };
        if self.alg.is_some_and(|alg| alg != algorithm.as_str()) {
            return Err("the key is for another algorithm");
        }
        if self.r#use.is_some_and(|is| is != "sig") || self.key_ops.is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
            return Err("the key is not for signatures");
        }
        let bytes = |member: Option<String>| {
            let member = member.ok_or("a member of the key is missing")?;
            URL_SAFE_NO_PAD.decode(member).map_err(|_| "a member of the key is not base64url")
        };
        let key = match algorithm {
            Algorithm::Rs256 => DecodingKey::from_rsa_raw_components(&bytes(self.n)?, &bytes(self.e)?),
            Algorithm::Es256 => DecodingKey::from_ec_der(&[vec![4], bytes(self.x)?, bytes(self.y)?].concat()),
            _ => DecodingKey::from_ed_der(&bytes(self.x)?),
        };
        Key::new(self.kid, algorithm, key)
    }
}

/// The keys that verify tokens now. Clones share them.
///
/// Where they are watched, one thread reads the source every so often until the last clone is dropped. If a refresh fails it is logged,
/// the keys stay in force, and it is tried again within a minute; a key that is gone from the source stops verifying with the refresh.
#[derive(Clone)]
pub struct Keys(Arc<Shared>);

struct Shared {
    current: RwLock<Arc<KeySet>>,
    /// Wakes the thread that watches the source.
    wake: Option<SyncSender<()>>,
}

impl From<KeySet> for Keys {
    /// Keys that change only by [`Keys::replace`].
    fn from(set: KeySet) -> Self {
        Self(Arc::new(Shared { current: RwLock::new(Arc::new(set)), wake: None }))
    }
}

impl Keys {
    /// The shortest time from a refresh to one that an unknown key asks for.
    pub const MIN_REFRESH: Duration = Duration::from_secs(60);

    /// The JWK set in a file, which is read now and then again `every` so often.
    ///
    /// Blocks while it reads. Replace the file by renaming another one over it.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) if the file can't be read; [`Misconfigured`](ErrorKind::Misconfigured) if it is no JWK set
    /// or has no usable key.
    pub fn from_file(path: impl Into<PathBuf>, every: Duration) -> Result<Self> {
        let path = path.into();
        Self::watch(every, move || {
            let read = || {
                let mut json = Vec::new();
                std::fs::File::open(&path)?.take(KeySet::MAX_LEN as u64 + 1).read_to_end(&mut json)?;
                Ok(json)
            };
            read().map_err(|source: std::io::Error| {
                Error::new(ErrorKind::Unavailable, format!("the JWK set {} can't be read", path.display())).with_source(source)
            })
        })
    }

    /// The JWK set at a URL, which is fetched now and then again `every` so often.
    ///
    /// Blocks for at most ten seconds: call it before the server starts, or in `spawn_blocking`. Redirects are not followed. The proxy
    /// settings of the environment apply. TLS trusts Mozilla's roots; for others use [`Keys::watch`] with your own client.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) if it can't be fetched; [`Misconfigured`](ErrorKind::Misconfigured) if it is no JWK set or
    /// has no usable key.
    ///
    /// # Security
    /// Over `http://` whoever is on the way can give you their keys. It is logged as a warning, unless the host is this one.
    #[cfg(feature = "jwks-url")]
    pub fn from_url(url: impl Into<String>, every: Duration) -> Result<Self> {
        let url = url.into();
        let uri: http::Uri =
            url.parse().map_err(|source| Error::new(ErrorKind::Misconfigured, format!("{url:?} is no URL")).with_source(source))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("https"), Some(_)) | (Some("http"), Some("localhost" | "127.0.0.1" | "[::1]")) => {}
            (Some("http"), Some(_)) => tracing::warn!(url, "the JWK set is fetched without TLS: whoever is on the way can replace it"),
            _ => return Err(Error::new(ErrorKind::Misconfigured, format!("{url:?} is no http or https URL"))),
        }
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).max_redirects(0);
        let agent = config.http_status_as_error(false).build().new_agent();
        Self::watch(every, move || {
            let away = || Error::new(ErrorKind::Unavailable, format!("the JWK set {url} can't be fetched"));
            let mut response = agent.get(&url).call().map_err(|source| away().with_source(source))?;
            if response.status() != http::StatusCode::OK {
                return Err(away().with_source(format!("the answer is {}", response.status())));
            }
            let body = response.body_mut().with_config().limit(KeySet::MAX_LEN as u64);
            body.read_to_vec().map_err(|source| away().with_source(source))
        })
    }

    /// The JWK set that `fetch` returns, which is called now and then again `every` so often, on a thread of its own: for sources that
    /// need the host's own client. `fetch` may block.
    ///
    /// # Errors
    /// Those of `fetch`; [`Misconfigured`](ErrorKind::Misconfigured) if it returns no JWK set or one that has no usable key.
    pub fn watch(every: Duration, fetch: impl FnMut() -> Result<Vec<u8>> + Send + 'static) -> Result<Self> {
        Self::watch_at_most(every, Self::MIN_REFRESH, fetch)
    }

    fn watch_at_most(every: Duration, gap: Duration, mut fetch: impl FnMut() -> Result<Vec<u8>> + Send + 'static) -> Result<Self> {
        if every.is_zero() {
            return Err(Error::new(
                ErrorKind::Misconfigured,
                "keys can't be refreshed without a pause: give an interval such as 5 minutes",
            ));
        }
        let set = KeySet::from_jwks(&fetch()?)?;
        if set.0.is_empty() {
            return Err(Error::new(ErrorKind::Misconfigured, "the JWK set has no usable key: it needs RS256, ES256 or EdDSA keys"));
        }
        let (wake, woken) = sync_channel(1);
        let shared = Arc::new(Shared { current: RwLock::new(Arc::new(set)), wake: Some(wake) });
        let weak = Arc::downgrade(&shared);
        let thread = std::thread::Builder::new().name("tenancy-jwks".into());
        let spawned = thread.spawn(move || refresh(&weak, &woken, every, gap, fetch));
        spawned.map_err(|source| Error::new(ErrorKind::Unavailable, "the thread that watches the keys can't start").with_source(source))?;
        Ok(Self(shared))
    }

    /// Puts `set` in force: for hosts that learn of new keys by themselves.
    pub fn replace(&self, set: KeySet) {
        self.0.replace(set);
    }

    pub(super) fn current(&self) -> Arc<KeySet> {
        Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A token names a key that isn't here.
    pub(super) fn ask_for_refresh(&self) {
        if let Some(wake) = &self.0.wake {
            // Full: it is asked for already. Disconnected: the thread is gone, and nothing can be done here.
            let _ = wake.try_send(());
        }
    }
}

impl Shared {
    fn replace(&self, set: KeySet) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.current()).finish()
    }
}

/// Reads the source again and again, until nobody has the keys any more.
fn refresh(keys: &Weak<Shared>, woken: &Receiver<()>, every: Duration, gap: Duration, mut fetch: impl FnMut() -> Result<Vec<u8>>) {
    let mut last = Instant::now();
    let mut wait = every;
    loop {
        match woken.recv_timeout(wait.saturating_sub(last.elapsed())) {
            Ok(()) => {
                wait = wait.min(gap);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let fetched = fetch().and_then(|json| KeySet::from_jwks(&json));
        last = Instant::now();
        let Some(keys) = keys.upgrade() else { return };
        wait = match fetched {
            Ok(set) => {
                keys.replace(set);
                every
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(tracing::field::display);
                tracing::warn!(source, "the keys can't be refreshed, and stay as they are: {error}");
                every.min(gap)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const RSA: &[u8] = include_bytes!("../../tests/keys/rsa.pub.pem");
    const EC: &[u8] = include_bytes!("../../tests/keys/ec.pub.pem");
    const ED: &[u8] = include_bytes!("../../tests/keys/ed.pub.pem");
    const ED_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"; // RFC 8037, A.2

    fn ed(kid: &str) -> Vec<u8> {
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{ED_X}"}}]}}"#).into_bytes()
    }

    fn has(keys: &Keys, kid: &str) -> bool {
        keys.current().select(Algorithm::EdDsa, Some(kid)).is_some()
    }

    fn soon(what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(10), "it does not happen");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_key_fits_one_algorithm() {
        let pems = [(Algorithm::Rs256, RSA), (Algorithm::Es256, EC), (Algorithm::EdDsa, ED)];
        for (algorithm, own) in pems {
            for (_, pem) in pems {
                assert_eq!(KeySet::from_pem(algorithm, pem).is_ok(), pem == own, "{algorithm:?}");
            }
        }
        let weak: [(Algorithm, &[u8]); 4] = [
            (Algorithm::Rs256, include_bytes!("../../tests/keys/rsa-1024.pub.pem")),
            (Algorithm::Es256, include_bytes!("../../tests/keys/ec-384.pub.pem")),
            (Algorithm::Rs256, include_bytes!("../../tests/keys/rsa.pem")),
            (Algorithm::Rs256, b"-----BEGIN PUBLIC KEY-----"),
        ];
        for (algorithm, pem) in weak {
            assert_eq!(KeySet::from_pem(algorithm, pem).expect_err("unusable").kind(), ErrorKind::Misconfigured);
        }
        assert!(KeySet::from_secret(&[7; 32]).is_ok());
        for bad in [&[7; 31][..], RSA] {
            assert!(KeySet::from_secret(bad).is_err());
        }
        assert!(KeySet::from_pem(Algorithm::Hs256, RSA).is_err());
    }

    #[test]
    fn keys_that_do_not_serve_are_left_out() {
        let unusable = [
            r#"{"kty":"oct","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA","alg":"HS256"}"#.to_owned(),
            r#"{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}"#.to_owned(),
            r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#.to_owned(),
            r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#.to_owned(),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQ"}}"#, "_".repeat(342)),
            r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#.to_owned(),
            r#"{"kty":"OKP","crv":"Ed25519"}"#.to_owned(),
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{ED_X}","use":"enc"}}"#),
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{ED_X}","key_ops":["sign"]}}"#),
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{ED_X}","alg":"HS256"}}"#),
            r#"{"kty":7}"#.to_owned(),
            "null".to_owned(),
        ];
        for key in unusable {
            let set = KeySet::from_jwks(format!(r#"{{"keys":[{key}]}}"#).as_bytes()).expect(&key);
            assert_eq!(set.0.len(), 0, "{key}");
        }
        let good =
            format!(r#"{{"keys":[null,{{"kty":"OKP","crv":"Ed25519","x":"{ED_X}","use":"sig","key_ops":["verify"],"alg":"EdDSA"}}]}}"#);
        assert_eq!(KeySet::from_jwks(good.as_bytes()).expect("set").0.len(), 1);
    }

    #[test]
    fn sets_are_bounded_and_unambiguous() {
        let key = |kid: usize| format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{ED_X}"}}"#);
        let set = |keys: &[String]| KeySet::from_jwks(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes());
        assert!(set(&(0..32).map(key).collect::<Vec<_>>()).is_ok());
        assert!(set(&(0..33).map(key).collect::<Vec<_>>()).is_err());
        assert!(set(&[key(1), key(1)]).is_err());
        let padded = [ed("a"), vec![b' '; KeySet::MAX_LEN]].concat();
        assert!(KeySet::from_jwks(&padded).is_err());
        for bad in ["", "[]", "{}", r#"{"keys":{}}"#, "<html>"] {
            assert_eq!(KeySet::from_jwks(bad.as_bytes()).expect_err(bad).kind(), ErrorKind::Misconfigured);
        }
    }

    #[test]
    fn a_key_is_selected_by_its_kid() {
        let two =
            format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"a","x":"{ED_X}"}},{{"kty":"OKP","crv":"Ed25519","x":"{ED_X}"}}]}}"#);
        let two = KeySet::from_jwks(two.as_bytes()).expect("set");
        assert!(two.select(Algorithm::EdDsa, Some("a")).is_some());
        for (algorithm, kid) in [(Algorithm::EdDsa, Some("b")), (Algorithm::EdDsa, None), (Algorithm::Hs256, Some("a"))] {
            assert!(two.select(algorithm, kid).is_none(), "{algorithm:?} {kid:?}");
        }
        let one = KeySet::from_jwks(&ed("a")).expect("set");
        assert!(one.select(Algorithm::EdDsa, None).is_some() && one.select(Algorithm::EdDsa, Some("b")).is_none());
        let unnamed = KeySet::from_secret(&[7; 32]).expect("secret");
        assert!(unnamed.select(Algorithm::Hs256, Some("any")).is_some());
    }

    #[test]
    fn a_file_is_read_again_and_a_broken_one_changes_nothing() {
        let path = std::env::temp_dir().join(format!("tenancy-jwks-{}.json", std::process::id()));
        let write = |json: &[u8]| {
            let next = path.with_extension("next");
            std::fs::write(&next, json).expect("written");
            std::fs::rename(&next, &path).expect("renamed");
        };
        assert_eq!(Keys::from_file(&path, Duration::from_secs(9)).expect_err("no file").kind(), ErrorKind::Unavailable);
        write(br#"{"keys":[]}"#);
        assert_eq!(Keys::from_file(&path, Duration::from_secs(9)).expect_err("no key").kind(), ErrorKind::Misconfigured);
        write(&ed("a"));
        assert_eq!(Keys::from_file(&path, Duration::ZERO).expect_err("no pause").kind(), ErrorKind::Misconfigured);
        let keys = Keys::from_file(&path, Duration::from_millis(5)).expect("keys");
        write(&ed("b"));
        soon(|| has(&keys, "b") && !has(&keys, "a"));
        write(b"not json");
        std::thread::sleep(Duration::from_millis(50));
        assert!(has(&keys, "b"));
        write(br#"{"keys":[]}"#);
        soon(|| !has(&keys, "b"));
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn unknown_keys_cause_one_refresh_per_gap() {
        let reads = Arc::new(AtomicUsize::new(0));
        let source = Arc::new(Mutex::new(ed("a")));
        let (count, from) = (Arc::clone(&reads), Arc::clone(&source));
        let keys = Keys::watch_at_most(Duration::from_secs(3600), Duration::from_millis(300), move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(from.lock().expect("lock").clone())
        });
        let keys = keys.expect("keys");
        *source.lock().expect("lock") = ed("b");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(250) {
            keys.ask_for_refresh();
        }
        assert_eq!(reads.load(Ordering::SeqCst), 1, "no refresh before the gap is over");
        soon(|| has(&keys, "b"));
        assert_eq!(reads.load(Ordering::SeqCst), 2, "thousands of unknown keys, one refresh");
        std::thread::sleep(Duration::from_millis(700));
        assert!(reads.load(Ordering::SeqCst) <= 3, "at most one that was asked for during the refresh");
    }

    #[test]
    fn the_thread_ends_with_the_last_clone() {
        let alive = Arc::new(());
        let witness = Arc::downgrade(&alive);
        let keys = Keys::watch(Duration::from_secs(3600), move || {
            let _ = &alive;
            Ok(ed("a"))
        });
        let other = keys.expect("keys").clone();
        assert!(witness.upgrade().is_some());
        drop(other);
        soon(|| witness.upgrade().is_none());
    }

    #[cfg(feature = "jwks-url")]
    mod url {
        use std::io::Write as _;
        use std::net::TcpListener;

        use super::*;

        /// A server on this host that answers every request with what `answer` holds.
        fn serve(answer: Arc<Mutex<Vec<u8>>>) -> String {
            let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
            let url = format!("http://{}/jwks.json", listener.local_addr().expect("address"));
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.expect("stream");
                    let mut request = Vec::new();
                    let mut byte = [0];
                    while !request.ends_with(b"\r\n\r\n") && request.first().is_none_or(|first| *first == b'G') {
                        stream.read_exact(&mut byte).expect("request");
                        request.push(byte[0]);
                    }
                    // A client that has read enough may be gone.
                    let _ = stream.write_all(&answer.lock().expect("lock"));
                }
            });
            url
        }

        fn ok(body: &[u8]) -> Vec<u8> {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            [head.as_bytes(), body].concat()
        }

        #[test]
        fn keys_rotate_and_failures_keep_the_old_ones() {
            let answer = Arc::new(Mutex::new(ok(&ed("a"))));
            let keys = Keys::from_url(serve(Arc::clone(&answer)), Duration::from_millis(5)).expect("keys");
            assert!(has(&keys, "a"));
            *answer.lock().expect("lock") = ok(&ed("b"));
            soon(|| has(&keys, "b"));
            assert!(!has(&keys, "a"), "a key that is gone from the set verifies nothing");
            let broken = [
                b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec(),
                ok(b"<html>"),
                ok(&[ed("c"), vec![b' '; KeySet::MAX_LEN]].concat()),
            ];
            for broken in broken {
                *answer.lock().expect("lock") = broken;
                std::thread::sleep(Duration::from_millis(60));
                assert!(has(&keys, "b") && !has(&keys, "c"));
            }
            *answer.lock().expect("lock") = ok(&ed("d"));
            soon(|| has(&keys, "d"));
        }

        #[test]
        fn redirects_are_not_followed_and_urls_are_checked() {
            let elsewhere = serve(Arc::new(Mutex::new(ok(&ed("a")))));
            let redirect = format!("HTTP/1.1 302 Found\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let url = serve(Arc::new(Mutex::new(redirect.into_bytes())));
            assert_eq!(Keys::from_url(url, Duration::from_secs(9)).expect_err("redirect").kind(), ErrorKind::Unavailable);
            assert!(Keys::from_url(elsewhere.clone(), Duration::from_secs(9)).is_ok());
            // This server speaks no TLS.
            let tls = elsewhere.replace("http:", "https:");
            assert_eq!(Keys::from_url(tls, Duration::from_secs(9)).expect_err("no TLS").kind(), ErrorKind::Unavailable);
            for bad in ["", "jwks.json", "file:///etc/passwd", "ftp://host/x", "https:"] {
                assert_eq!(Keys::from_url(bad, Duration::from_secs(9)).expect_err(bad).kind(), ErrorKind::Misconfigured, "{bad}");
            }
            assert_eq!(Keys::from_url("http://127.0.0.1:1/", Duration::from_secs(9)).expect_err("closed").kind(), ErrorKind::Unavailable);
        }
    }
}
