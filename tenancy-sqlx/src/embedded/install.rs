//! Finding the PostgreSQL that is installed on this machine.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use tenancy_core::Result;

use super::account::Account;
use super::misconfigured;

/// The oldest major version that is used.
pub(super) const MIN_MAJOR: u32 = 14;

/// Names the `bin` folder to use, or `none`.
pub(super) const BIN_VARIABLE: &str = "TENANCY_PG_BIN";

/// Parents of installations, what the folder's name begins with, and where in it the binaries are.
const USUAL_FOLDERS: [(&str, &str, &str); 10] = [
    ("/usr/lib/postgresql", "", "bin"),                      // Debian, Ubuntu
    ("/usr", "pgsql-", "bin"),                               // Fedora, RHEL
    ("/usr/lib", "postgresql", "bin"),                       // SUSE
    ("/usr/libexec", "postgresql", ""),                      // Alpine
    ("/usr/local", "pgsql", "bin"),                          // from source
    ("/opt/homebrew/opt", "postgresql", "bin"),              // Homebrew
    ("/usr/local/opt", "postgresql", "bin"),                 // Homebrew on Intel
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql", "bin"), // Homebrew on Linux
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ("/Library/PostgreSQL", "", "bin"), // EDB's installer
];

/// A set of server binaries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Install {
    pub(super) bin: PathBuf,
    /// Such as `15.18`.
    pub(super) version: String,
    pub(super) major: u32,
    pub(super) payload: bool,
}

impl Install {
    /// The installation in `bin`, if the server's account can run it.
    pub(super) fn probe(account: &Account, bin: &Path) -> Option<Self> {
        if !bin.join("initdb").is_file() {
            return None;
        }
        let out = account.command(bin.join("postgres")).arg("--version").stderr(Stdio::null()).output().ok()?;
        let (version, major) = parse_version(&String::from_utf8_lossy(&out.stdout))?;
        Some(Self { bin: bin.to_owned(), version, major, payload: false })
    }
}

/// Every usable installation, the newest first.
///
/// # Errors
/// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) when `TENANCY_PG_BIN` names a folder without one.
pub(super) fn find(account: &Account) -> Result<Vec<Install>> {
    match env::var_os(BIN_VARIABLE) {
        Some(none) if none == "none" => return Ok(Vec::new()),
        Some(bin) if !bin.is_empty() => {
            let install = Install::probe(account, Path::new(&bin)).filter(|install| install.major >= MIN_MAJOR);
            return install.map(|install| vec![install]).ok_or_else(|| {
                misconfigured(format!(
                    "{BIN_VARIABLE}={} has no initdb and postgres of version {MIN_MAJOR} or newer that can run: name a `bin` folder, or unset it",
                    bin.display()
                ))
            });
        }
        _ => {}
    }
    let mut bins = Vec::new();
    for dir in candidates() {
        // A link on the PATH leads to the folder that has the other binaries too.
        let real = fs::canonicalize(dir.join("postgres")).ok().and_then(|real| Some(real.parent()?.to_owned()));
        for bin in real.into_iter().chain([dir]) {
            if !bins.contains(&bin) {
                bins.push(bin);
            }
        }
    }
    let mut installs: Vec<_> = bins.iter().filter_map(|bin| Install::probe(account, bin)).filter(|i| i.major >= MIN_MAJOR).collect();
    installs.sort_by_key(|install| Reverse(install.major)); // stable: the PATH's order within a version
    Ok(installs)
}

fn candidates() -> Vec<PathBuf> {
    let mut dirs: Vec<_> = env::var_os("PATH").iter().flat_map(env::split_paths).filter(|dir| dir.is_absolute()).collect();
    if let Ok(out) = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output()
        && out.status.success()
    {
        dirs.push(PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()));
    }
    for (parent, prefix, tail) in USUAL_FOLDERS {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
                dirs.push(entry.path().join(tail));
            }
        }
    }
    dirs
}

/// `postgres (PostgreSQL) 15.18 (Debian …)` is version `15.18` of major 15.
fn parse_version(text: &str) -> Option<(String, u32)> {
    let version = text.split_once(") ")?.1.split_whitespace().next()?;
    let major = version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    Some((version.to_owned(), major))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed() {
        for (text, version, major) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", "15.18", 15),
            ("postgres (PostgreSQL) 17.5\n", "17.5", 17),
            ("postgres (PostgreSQL) 19beta1\n", "19beta1", 19),
            ("postgres (PostgreSQL) 9.6.24", "9.6.24", 9),
        ] {
            assert_eq!(parse_version(text), Some((version.to_owned(), major)), "{text}");
        }
        for text in ["", "postgres", "postgres (PostgreSQL) ", "postgres (PostgreSQL) devel"] {
            assert_eq!(parse_version(text), None, "{text}");
        }
    }

    #[test]
    fn a_folder_without_postgres_is_no_installation() {
        let account = Account::current().unwrap();
        assert_eq!(Install::probe(&account, Path::new("/nonexistent")), None);
        assert_eq!(Install::probe(&account, Path::new("/")), None);
    }
}
