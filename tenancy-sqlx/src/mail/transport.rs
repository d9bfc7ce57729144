//! How mail leaves: by SMTP, or into a folder.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use tenancy_core::outbox::DeliveryError;
use tenancy_core::{Error, ErrorKind, Result};
use url::Url;

/// How long the server may take for each answer.
const PATIENCE: Duration = Duration::from_secs(10);

type Smtp = AsyncSmtpTransport<Tokio1Executor>;

/// Where mail goes.
#[derive(Debug, Clone)]
pub struct MailTransport(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Smtp(Smtp),
    Folder(PathBuf),
}

impl MailTransport {
    /// The SMTP server at `url`: `smtp://user:password@host:port?tls=required`, or `smtps://…` for TLS from the first byte. `tls` is
    /// `required` unless said, `opportunistic` or `none`; a password goes over TLS only, or to this machine.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured), without the URL.
    pub fn smtp(url: &str) -> Result<Self> {
        Self::smtp_with(url, None)
    }

    /// [`smtp`](MailTransport::smtp), where the server's certificate is signed by the authority whose certificate this is, in PEM, or by
    /// one that the system trusts.
    ///
    /// # Errors
    /// As `smtp`.
    pub fn smtp_with_root(url: &str, pem: &str) -> Result<Self> {
        let root = Certificate::from_pem(pem.as_bytes()).map_err(|_| wrong("the root certificate must be PEM"))?;
        Self::smtp_with(url, Some(root))
    }

    /// A folder that holds each mail as a file `<id>.eml`: for development.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if it can't be made.
    pub fn folder(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(|source| wrong("the folder of mail can't be made").with_source(source))?;
        Ok(Self(Kind::Folder(path)))
    }

    fn smtp_with(url: &str, root: Option<Certificate>) -> Result<Self> {
        let shape = || wrong("the SMTP URL must be smtp://user:password@host:port?tls=required|opportunistic|none or smtps://…");
        let mut url = Url::parse(url).map_err(|_| shape())?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(shape)?.to_owned();
        let asked: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let tls = match (url.scheme(), asked.as_slice()) {
            ("smtp", []) => "required",
            ("smtp", [(key, how)]) if key == "tls" => {
                ["required", "opportunistic", "none"].into_iter().find(|one| one == how).ok_or_else(shape)?
            }
            ("smtps", []) => "wrapper",
            _ => return Err(shape()),
        };
        let near = matches!(host.as_str(), "localhost" | "127.0.0.1" | "[::1]");
        if url.password().is_some() && !near && matches!(tls, "opportunistic" | "none") {
            return Err(wrong("the SMTP URL has a password, which must not travel in clear: use tls=required or smtps"));
        }
        if tls == "none" {
            url.set_query(None);
        } else if tls == "required" {
            url.set_query(Some("tls=required"));
        }
        let mut builder = Smtp::from_url(url.as_str()).map_err(|_| shape())?.timeout(Some(PATIENCE));
        if let Some(root) = root {
            let parameters = TlsParameters::builder(host).add_root_certificate(root).build().map_err(|_| shape())?;
            builder = match tls {
                "required" => builder.tls(Tls::Required(parameters)),
                "opportunistic" => builder.tls(Tls::Opportunistic(parameters)),
                "wrapper" => builder.tls(Tls::Wrapper(parameters)),
                _ => return Err(wrong("a root certificate needs TLS")),
            };
        }
        Ok(Self(Kind::Smtp(builder.build())))
    }

    pub(super) async fn send(&self, id: &str, mail: Message) -> Result<(), DeliveryError> {
        match &self.0 {
            Kind::Smtp(smtp) => smtp.send(mail).await.map(drop).map_err(|error| {
                let code = error.status().map(u16::from);
                let why = code.map_or_else(|| "the mail server can't be reached".to_owned(), |code| format!("the mail server said {code}"));
                tracing::debug!(?error, "a mail was not sent");
                // 53x is about this server's own credentials: with the right ones it would have been taken.
                if error.is_permanent() && !code.is_some_and(|code| (530..540).contains(&code)) {
                    DeliveryError::Refused(why)
                } else {
                    DeliveryError::Retry(why)
                }
            }),
            Kind::Folder(folder) => {
                let (folder, name) = (folder.clone(), format!("{id}.eml"));
                let written = tokio::task::spawn_blocking(move || keep(&folder, &name, &mail.formatted())).await;
                let failed = |why: &str| DeliveryError::Retry(format!("the mail can't be kept: {why}"));
                written.map_err(|_| failed("interrupted"))?.map_err(|error| failed(&error.kind().to_string()))
            }
        }
    }
}

/// Writes a file as a whole, for nobody else to read: mails have secrets.
fn keep(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let draft = folder.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&draft).and_then(|mut file| file.write_all(bytes)).and_then(|()| fs::rename(&draft, folder.join(name)));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

fn wrong(why: &str) -> Error {
    Error::new(ErrorKind::Misconfigured, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_required_unless_said_and_passwords_do_not_travel_in_clear() {
        for good in [
            "smtp://mail.example.com",
            "smtp://u:p@mail.example.com:587",
            "smtps://u:p%40@mail.example.com",
            "smtp://mail.example.com?tls=none",
            "smtp://mail.example.com?tls=opportunistic",
            "smtp://u:p@127.0.0.1:2525?tls=none",
        ] {
            assert!(MailTransport::smtp(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "mail.example.com",
            "http://mail.example.com",
            "smtp://",
            "smtp://h?tls=maybe",
            "smtp://h?tls=none&x=1",
            "smtps://h?tls=none",
            "smtp://u:hunter2@mail.example.com?tls=none",
            "smtp://u:hunter2@mail.example.com?tls=opportunistic",
        ] {
            let error = MailTransport::smtp(bad).expect_err(bad);
            assert!(error.kind() == ErrorKind::Misconfigured && !error.to_string().contains("hunter2"), "{bad}");
        }
    }
}
