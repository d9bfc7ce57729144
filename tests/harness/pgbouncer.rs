//! A real PgBouncer in transaction mode, in front of a test's database.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};

/// The most connections that its clients share. As many as any one test needs at the same time, and less than most tests open.
pub const SERVERS: u32 = 4;

/// A running PgBouncer, stopped when dropped.
#[derive(Debug)]
pub struct PgBouncer {
    child: Child,
    dir: PathBuf,
}

impl PgBouncer {
    /// Starts one in front of the database at `url`. `None`, with a line on stderr, if this machine has none; with
    /// `TENANCY_REQUIRE_PGBOUNCER` set, as in CI, that is a failure.
    pub async fn start(url: &str) -> Option<Self> {
        let Some(program) =
            ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/opt/homebrew/bin/pgbouncer"].iter().find(|path| PathBuf::from(path).exists())
        else {
            assert!(std::env::var_os("TENANCY_REQUIRE_PGBOUNCER").is_none(), "PgBouncer is required: apt-get install pgbouncer");
            eprintln!("skipped: there is no PgBouncer on this machine");
            return None;
        };
        let target = PgConnectOptions::from_str(url).expect("a URL");
        let socket = target.get_socket().expect("a socket").clone();
        let database = target.get_database().expect("a database").to_owned();
        // The server's own account reaches its socket, and PgBouncer refuses to run as root.
        let owner = std::fs::metadata(&socket).expect("the socket's folder");
        let dir = std::env::temp_dir().join(format!("tenancy-bouncer-{database}"));
        std::fs::create_dir(&dir).expect("a folder");
        let config = format!(
            "[databases]\n{database} = host={socket} port={port} dbname={database} pool_size={SERVERS}\n\
             [pgbouncer]\nlisten_addr =\nunix_socket_dir = {dir}\nlisten_port = 6432\nauth_type = any\npool_mode = transaction\n\
             ignore_startup_parameters = extra_float_digits\nlogfile = {dir}/log\npidfile = {dir}/pid\n",
            socket = socket.display(),
            port = target.get_port(),
            dir = dir.display(),
        )
        .replace(&format!("dbname={database}"), &format!("dbname={database} user=tenancy_app"));
        std::fs::write(dir.join("pgbouncer.ini"), config).expect("the configuration");
        let mut command = Command::new(program);
        command.arg("-q").arg(dir.join("pgbouncer.ini")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if std::fs::metadata(&dir).expect("our folder").uid() == 0 {
            std::os::unix::fs::chown(&dir, Some(owner.uid()), Some(owner.gid())).expect("hand the folder over");
            command.uid(owner.uid()).gid(owner.gid());
        }
        let bouncer = Self { child: command.spawn().expect("start PgBouncer"), dir };
        for _ in 0..100 {
            if let Ok(conn) = PgConnectOptions::from_str(&bouncer.url()).expect("our own URL").connect().await {
                conn.close().await.expect("close");
                return Some(bouncer);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("PgBouncer did not start: {}", std::fs::read_to_string(bouncer.dir.join("log")).unwrap_or_default());
    }

    /// The URL of the database through the pooler.
    pub fn url(&self) -> String {
        let database =
            self.dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("tenancy-bouncer-")).expect("our folder");
        format!("postgres:///{database}?host={}&port=6432&user=tenancy_app", self.dir.display())
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
