//! Who runs the server, and whose folders it uses.
//!
//! PostgreSQL refuses to run as root, so root lends it an account that owns nothing else here. Files that root itself reads, locks
//! or runs stay root's; that account owns only the data folder and the socket.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

use tenancy_core::Result;

use super::{failed, misconfigured};

/// Root's first choice is the account of the distribution's own PostgreSQL.
const LENT_ACCOUNTS: [&str; 2] = ["postgres", "nobody"];

#[derive(Debug, Clone, Copy)]
pub(super) struct Account {
    /// Ours.
    uid: u32,
    /// The server's, where it can't be ours.
    lent: Option<(u32, u32)>,
}

impl Account {
    pub(super) fn current() -> Result<Self> {
        // std has no geteuid, and unsafe code is forbidden here.
        let id = Command::new("id").arg("-u").output().map_err(failed("cannot run `id -u`"))?;
        let uid = String::from_utf8_lossy(&id.stdout).trim().parse().map_err(failed("`id -u` printed no number"))?;
        let lent = if uid == 0 {
            let passwd = fs::read_to_string("/etc/passwd").map_err(failed("cannot read /etc/passwd"))?;
            let found = LENT_ACCOUNTS.iter().find_map(|name| lookup(&passwd, name));
            Some(found.ok_or_else(|| {
                misconfigured(
                    "PostgreSQL does not run as root, and there is no user postgres or nobody to lend it: add one, or set DATABASE_URL",
                )
            })?)
        } else {
            None
        };
        Ok(Self { uid, lent })
    }

    /// A command that runs as the server's account, outside our folder and without the `PG…` variables meant for others.
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        if let Some((uid, gid)) = self.lent {
            command.uid(uid).gid(gid); // std drops root's other groups with them
        }
        for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command.current_dir("/");
        command
    }

    /// The folder for everything that belongs to `dir`, made if absent: `dir` itself, or as root one in `/var/tmp`, because the
    /// server's account can seldom reach a checkout of root's.
    pub(super) fn base_dir(&self, dir: &Path) -> Result<PathBuf> {
        if self.lent.is_some() {
            let base = Path::new("/var/tmp").join(format!("tenancy-{:016x}", fnv1a(dir.as_os_str().as_encoded_bytes())));
            own_dir(&base, self.uid, None, 0o711)?;
            return Ok(base);
        }
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent).map_err(failed(format!("cannot create {}", parent.display())))?;
        }
        own_dir(dir, self.uid, None, 0o700)?;
        Ok(dir.to_owned())
    }

    /// Makes `path` a folder that only the server's account (and root) can enter.
    pub(super) fn private_dir(&self, path: &Path) -> Result<()> {
        own_dir(path, self.lent.map_or(self.uid, |(uid, _)| uid), self.lent, 0o700)
    }

    /// Where the socket for `home` goes. A socket's path may have 103 bytes and the server splits it at commas: an unfit `home` gets
    /// a folder in `/tmp`.
    pub(super) fn socket_dir(&self, home: &Path) -> Result<PathBuf> {
        let bytes = home.as_os_str().as_encoded_bytes();
        if bytes.len() < 80 && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(b)) {
            return Ok(home.to_owned());
        }
        let dir = Path::new("/tmp").join(format!("tenancy-{}-{:016x}", self.uid, fnv1a(bytes)));
        self.private_dir(&dir)?;
        Ok(dir)
    }

    /// Lets the server's account read what we unpacked, whatever our umask is.
    pub(super) fn share_files(&self, path: &Path) -> Result<()> {
        if self.lent.is_some() {
            let chmod = Command::new("chmod").args(["-R", "go+rX"]).arg(path).status();
            if !chmod.map_err(failed("cannot run chmod"))?.success() {
                return Err(misconfigured(format!("cannot make {} readable", path.display())));
            }
        }
        Ok(())
    }
}

/// Makes the folder, or proves that it is `owner`'s and closed to others: in `/tmp` anybody may have put one there.
fn own_dir(path: &Path, owner: u32, give_to: Option<(u32, u32)>, mode: u32) -> Result<()> {
    let told = || failed(format!("cannot create {}", path.display()));
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            fs::set_permissions(path, Permissions::from_mode(mode)).map_err(told())?; // past the umask
            if let Some((uid, gid)) = give_to {
                chown(path, Some(uid), Some(gid)).map_err(told())?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(told()(error)),
    }
    let found = fs::symlink_metadata(path).map_err(told())?;
    if !found.is_dir() || found.uid() != owner || found.mode() & 0o777 & !mode != 0 {
        return Err(misconfigured(format!(
            "{} must be a folder of user {owner} with mode {mode:o}: change it, or choose another folder",
            path.display()
        )));
    }
    Ok(())
}

/// The uid and gid of `name` in the text of `/etc/passwd`.
fn lookup(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// A hash that names folders, so it must never change (std's may).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_is_read_by_exact_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\npostgres2:x:9:9::/:\npostgres:x:101:104:PG,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(lookup(passwd, "postgres"), Some((101, 104)));
        assert_eq!(lookup(passwd, "nobody"), None);
        assert_eq!(lookup("nobody:x:sixty:1::/:", "nobody"), None);
    }

    #[test]
    fn folder_names_are_stable() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_folder_that_others_can_enter_is_refused() {
        let dir = env::temp_dir().join(format!("tenancy-{}", uuid::Uuid::now_v7()));
        let account = Account::current().unwrap();
        account.private_dir(&dir).unwrap();
        account.private_dir(&dir).unwrap(); // ours already
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        let refused = account.private_dir(&dir).unwrap_err().to_string();
        assert!(refused.contains("mode 700"), "{refused}");
        fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn a_socket_folder_is_short_and_plain() {
        let account = Account::current().unwrap();
        assert_eq!(account.socket_dir(Path::new("/srv/app/.tenancy/15")).unwrap(), Path::new("/srv/app/.tenancy/15"));
        for unfit in ["/srv/a,b".to_owned(), format!("/{}", "x".repeat(100))] {
            let dir = account.socket_dir(Path::new(&unfit)).unwrap();
            assert!(dir.starts_with("/tmp") && dir.as_os_str().len() < 80, "{}", dir.display());
            fs::remove_dir(&dir).unwrap();
        }
    }
}
