//! What proves who a caller is: the keys of tenants' tokens, and the operators' token.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use tenancy_core::federation::InstallationKey;
use tenancy_core::{Error, ErrorKind, Result};
use tenancy_sqlx::backup::BackupKeys;
use tenancy_sqlx::erase::CertificateKey;
use tenancy_tower::{Algorithm, JwtResolver, KeySet, Keys};

use crate::config::{Config, Secret, given, text};

const JWKS_REFRESH: Duration = Duration::from_secs(300);

/// Which resolver verifies tenants' tokens, and a line that says so where it is only for development.
pub(crate) async fn token_resolver(config: &Config) -> Result<(JwtResolver, Option<String>)> {
    if let Some(source) = text(&config.jwks) {
        let owned = source.to_owned();
        // Reading the set blocks.
        let keys = tokio::task::spawn_blocking(move || match owned.split_once("://") {
            Some(_) => Keys::from_url(owned, JWKS_REFRESH),
            None => Keys::from_file(owned, JWKS_REFRESH),
        });
        let keys = keys.await.map_err(|source| Error::new(ErrorKind::Internal, "the JWK set was not read").with_source(source))??;
        let algorithms = [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];
        return Ok((JwtResolver::new(keys, &algorithms, &config.jwt_issuer, &config.jwt_audience)?, None));
    }
    let (secret, notice) = signing_secret(config)?;
    let keys = KeySet::from_secret(secret.expose().as_bytes())?;
    Ok((JwtResolver::new(keys, &[Algorithm::Hs256], &config.jwt_issuer, &config.jwt_audience)?, notice))
}

/// The secret that signs and verifies HS256 tokens: the configured one, or the development secret of the data folder, which is made if
/// it is not there.
pub(crate) fn signing_secret(config: &Config) -> Result<(Secret, Option<String>)> {
    if text(&config.jwks).is_some() {
        return Err(Error::new(ErrorKind::Misconfigured, "TENANCY_JWKS is set: tokens come from the issuer that has the private keys"));
    }
    if let Some(secret) = given(&config.jwt_secret) {
        if secret.len() < 32 {
            return Err(Error::new(ErrorKind::Misconfigured, "TENANCY_JWT_SECRET is too short: use at least 32 random bytes"));
        }
        return Ok((secret.into(), None));
    }
    let path = config.data_dir.join("jwt-secret");
    let secret = development_secret(&path).map_err(|source| {
        let what = format!("the development secret {} can't be used: mend that, or set TENANCY_JWT_SECRET", path.display());
        Error::new(ErrorKind::Misconfigured, what).with_source(source)
    })?;
    let notice = format!(
        "tokens are signed with the development secret in {}: set TENANCY_JWT_SECRET or TENANCY_JWKS in production",
        path.display()
    );
    Ok((secret, Some(notice)))
}

/// What signs certificates of erasure.
pub(crate) fn certificate_key(config: &Config) -> Result<CertificateKey> {
    let secret = kept_secret(config, given(&config.certificate_key), "TENANCY_CERTIFICATE_KEY", "certificate-key")?;
    Ok(CertificateKey::new(Sha256::digest(secret.expose()).into()))
}

/// What tenants' backup keys are sealed with: likewise.
pub(crate) fn backup_keys(config: &Config) -> Result<BackupKeys> {
    let secret = kept_secret(config, given(&config.backup_key), "TENANCY_BACKUP_KEY", "backup-key")?;
    Ok(BackupKeys::new(Sha256::digest(secret.expose()).into()))
}

/// What signs for other installations, and what will: likewise.
pub(crate) fn federation_keys(config: &Config) -> Result<(InstallationKey, Option<InstallationKey>)> {
    let key = |secret: &Secret| InstallationKey::new(Sha256::digest(format!("tenancy federation key\n{}", secret.expose())).into());
    let secret = kept_secret(config, given(&config.federation_key), "TENANCY_FEDERATION_KEY", "federation-key")?;
    let next = given(&config.federation_next_key).map(|next| configured(next, "TENANCY_FEDERATION_NEXT_KEY")).transpose()?;
    Ok((key(&secret), next.as_ref().map(key)))
}

fn configured(secret: &str, variable: &str) -> Result<Secret> {
    if secret.len() < 32 {
        return Err(Error::new(ErrorKind::Misconfigured, format!("{variable} is too short: use at least 32 random bytes")));
    }
    Ok(secret.into())
}

/// The secret that is `given`, or one in the data folder.
fn kept_secret(config: &Config, given: Option<&str>, variable: &str, file: &str) -> Result<Secret> {
    if let Some(secret) = given {
        return configured(secret, variable);
    }
    let path = config.data_dir.join(file);
    development_secret(&path).map_err(|source| {
        let what = format!("the key {} can't be used: mend that, or set {variable}", path.display());
        Error::new(ErrorKind::Misconfigured, what).with_source(source)
    })
}

/// Reads the secret at `path`, or puts a new one there. Of several processes that start at once, one makes it.
fn development_secret(path: &Path) -> io::Result<Secret> {
    let read = || {
        let text = fs::read_to_string(path)?;
        let text = text.trim();
        if text.len() < 32 { Err(io::Error::new(io::ErrorKind::InvalidData, "it has less than 32 bytes")) } else { Ok(text.into()) }
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        done => return done,
    }
    if let Some(folder) = path.parent() {
        private_folder(folder)?;
    }
    // Made whole under another name, and linked: nobody reads half a secret, and nobody's is overwritten.
    let new = path.with_extension(random_text()?);
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&new)?.write_all(random_text()?.as_bytes())?;
    let linked = fs::hard_link(&new, path);
    fs::remove_file(&new)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => read(),
    }
}

/// Makes the folder, for its user alone, if it is not there.
pub(crate) fn private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// 256 random bits, as 43 characters.
fn random_text() -> io::Result<String> {
    use rand::TryRngCore as _;
    let mut bytes = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// What is kept of the operators' token: enough to recognise it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct OperatorToken([u8; 32]);

impl OperatorToken {
    /// The configured token, or a new one together with its text.
    pub(crate) fn from_config(config: &Config) -> Result<(Self, Option<Secret>)> {
        if let Some(token) = given(&config.operator_token) {
            if token.len() < 16 {
                tracing::warn!("TENANCY_OPERATOR_TOKEN is short enough to be guessed: use at least 32 random characters in production");
            }
            return Ok((Self::digest(token.as_bytes()), None));
        }
        let token = random_text().map_err(|source| {
            Error::new(ErrorKind::Unavailable, "the system has no random numbers: set TENANCY_OPERATOR_TOKEN").with_source(source)
        })?;
        Ok((Self::digest(token.as_bytes()), Some(token.into())))
    }

    fn digest(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Whether `token` is the one. The time that it takes says nothing of the token: digests are compared, all 32 bytes of them.
    pub(crate) fn is(&self, token: &[u8]) -> bool {
        let other = Self::digest(token);
        self.0.iter().zip(other.0).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for OperatorToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OperatorToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_token_is_itself_and_nothing_else() {
        let token = OperatorToken::digest(b"correct");
        assert!(token.is(b"correct"));
        for other in [&b"Correct"[..], b"correct ", b"", b"correc"] {
            assert!(!token.is(other));
        }
    }

    #[test]
    fn the_development_secret_is_made_once_and_is_private() {
        let folder = std::env::temp_dir().join(random_text().expect("random"));
        let path = folder.join("jwt-secret");
        let made: Vec<Secret> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| development_secret(&path).expect("a secret"))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(made.iter().all(|secret| *secret == made[0] && secret.expose().len() == 43));
        assert_eq!(fs::read_dir(&folder).expect("folder").count(), 1, "nothing else is left in the folder");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        }
        fs::write(&path, "short").expect("written");
        assert!(development_secret(&path).is_err());
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn a_short_secret_is_refused() {
        let config = Config { jwt_secret: Some("x".repeat(31).into()), ..Config::default() };
        assert!(signing_secret(&config).expect_err("short").to_string().contains("at least 32"));
        let config = Config { jwks: Some("keys.json".into()), ..Config::default() };
        assert!(signing_secret(&config).is_err());
    }
}
