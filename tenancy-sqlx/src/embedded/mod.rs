//! A private PostgreSQL for development and tests: no container, no system service, nothing to install where cargo can fetch it.
//!
//! Not for production: there, give the host a `DATABASE_URL`. On systems other than Unix this module does not exist.
//!
//! # Which PostgreSQL
//! A host that has a `DATABASE_URL` uses that and never comes here. [`start`] takes the first of:
//! 1. binaries on this machine, version 14 or newer: those in the folder that `TENANCY_PG_BIN` names, and no others; else the
//!    newest in `PATH` (links are followed to the real `bin` folder), in what `pg_config --bindir` prints, and in the usual folders of
//!    Debian, Fedora, SUSE, Alpine, Homebrew, Postgres.app and EDB. Durable data stays with the version that made it while that is
//!    installed;
//! 2. the payload, also chosen by `TENANCY_PG_BIN=none`: a registry crate of about 9 MB with PostgreSQL 17 for Linux (glibc 2.34) and
//!    macOS. It is fetched by running cargo, checked against a checksum that this crate pins, and unpacked in the data folder;
//! 3. an error that says what to install.
//!
//! The payload is good for a demonstration and for most tests. It lacks timers and libraries: **statement and lock timeouts do
//! nothing, deadlocks are never detected**, and there is neither ICU nor any contrib module. [`Server`]'s `Display` says so in one line.
//!
//! # Lifecycle
//! A [`Server`] is a hold. Processes that start with the same folder share one server, with the settings of the first; it is stopped
//! two seconds after the last hold is gone, however its process ended (return, panic, kill -9). The server is not in the process
//! group of its user, so Ctrl-C reaches only the program. A server that was killed, or went down with the machine, recovers at the
//! next start.
//!
//! It listens on a Unix socket in a folder of mode 0700 and nowhere else, and trusts whoever gets there. The superuser is `postgres`.
//!
//! # Data
//! Durable data is kept, with the full safety of PostgreSQL. [Throw-away](Options::throw_away) data starts empty with each server and
//! is written without fsync: much faster, and for tests only. Each major version has its own folder, so after an upgrade a server may
//! start empty; a warning then names the folder left behind. To begin again, delete the folder that `Display` names while no server runs.
//!
//! # Root
//! PostgreSQL refuses to run as root. A program that runs as root lends its server the account `postgres`, or else `nobody`, and keeps
//! the data in `/var/tmp/tenancy-…` (one folder per data folder asked for), because that account can seldom reach root's folders. A
//! system that clears `/var/tmp` by age may take it.

mod account;
mod install;
mod payload;
mod process;

use std::borrow::Cow;
use std::fmt;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tenancy_core::{Error, ErrorKind, Result};

use account::Account;
use install::{BIN_VARIABLE, Install, MIN_MAJOR};
use process::{Cluster, Hold, PORT};

/// The end of a throw-away cluster's folder name.
const THROW_AWAY: &str = "-throw-away";

/// How to run a server.
#[derive(Debug, Clone)]
pub struct Options {
    dir: PathBuf,
    throw_away: bool,
    max_connections: Option<u32>,
    local_install: bool,
}

impl Options {
    /// A durable server whose data is in `dir`, a folder of its own (made with mode 0700 if absent).
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), throw_away: false, max_connections: None, local_install: true }
    }

    /// Starts empty and writes without fsync, for tests. It lies beside the durable data and never touches it.
    #[must_use]
    pub fn throw_away(mut self) -> Self {
        self.throw_away = true;
        self
    }

    /// PostgreSQL's `max_connections`, if this process is the one that starts the server. Default: 100, throw-away 300.
    #[must_use]
    pub fn with_max_connections(mut self, max_connections: u32) -> Self {
        self.max_connections = Some(max_connections);
        self
    }

    /// Uses the payload even where PostgreSQL is installed, as `TENANCY_PG_BIN=none` does.
    #[must_use]
    pub fn without_local_install(mut self) -> Self {
        self.local_install = false;
        self
    }
}

/// A hold on a running server, cheap to clone. See the [module](self) for how long the server lives.
#[derive(Debug, Clone)]
#[must_use = "the server stops when the last hold is dropped"]
pub struct Server(Arc<Running>);

#[derive(Debug)]
struct Running {
    install: Install,
    data: PathBuf,
    throw_away: bool,
    hold: Hold,
}

/// Joins the server of these options, or starts it. Takes 2 to 4 seconds the first time, a fraction of one later.
///
/// # Errors
/// - [`Misconfigured`](ErrorKind::Misconfigured): there is no PostgreSQL to run, or its folder can't be used. The message says what to do.
/// - [`Unavailable`](ErrorKind::Unavailable): it did not start within a minute. The message has the end of its log.
///
/// # Cancel safety
/// Cancel safe. The start goes on in the background, and the server stops by itself.
pub async fn start(options: Options) -> Result<Server> {
    let started = tokio::task::spawn_blocking(move || start_blocking(&options)).await;
    started.map_err(|error| Error::new(ErrorKind::Internal, "the start of PostgreSQL was interrupted").with_source(error))?
}

fn start_blocking(options: &Options) -> Result<Server> {
    let account = Account::current()?;
    let dir = std::path::absolute(&options.dir).map_err(failed(format!("cannot use {}", options.dir.display())))?;
    let base = account.base_dir(&dir)?;
    let _starting = process::lock(&base)?;

    let install = choose(&account, &base, options)?;
    let home = home(&base, &install, options.throw_away);
    if !options.throw_away {
        warn_of_data_left_behind(&base, &home);
    }
    let cluster = Cluster {
        account: &account,
        install: &install,
        home: &home,
        throw_away: options.throw_away,
        max_connections: options.max_connections.unwrap_or(if options.throw_away { 300 } else { 100 }),
    };
    let hold = cluster.hold()?;
    let data = cluster.data();
    Ok(Server(Arc::new(Running { install, data, throw_away: options.throw_away, hold })))
}

fn choose(account: &Account, base: &Path, options: &Options) -> Result<Install> {
    let installs = if options.local_install { install::find(account)? } else { Vec::new() };
    if let Some(install) = pick(&installs, base, options.throw_away) {
        return Ok(install.clone());
    }
    payload::install(account, base).map_err(|error| {
        misconfigured(format!(
            "no PostgreSQL {MIN_MAJOR} or newer to run ({BIN_VARIABLE}, PATH, pg_config and the usual folders were searched), and {error}\n\
             Install one (apt-get install postgresql, dnf install postgresql-server, brew install postgresql@17), or set DATABASE_URL."
        ))
    })
}

/// The newest of `installs`, or the newest that has durable data here.
fn pick<'a>(installs: &'a [Install], base: &Path, throw_away: bool) -> Option<&'a Install> {
    let has_data = |install: &&Install| !throw_away && is_initialised(&home(base, install, false));
    installs.iter().find(has_data).or(installs.first())
}

/// The folder of a cluster: data is not portable between major versions, nor from the payload to another build.
fn home(base: &Path, install: &Install, throw_away: bool) -> PathBuf {
    base.join(format!("{}{}{}", install.major, if install.payload { "-payload" } else { "" }, if throw_away { THROW_AWAY } else { "" }))
}

fn is_initialised(home: &Path) -> bool {
    home.join("data").join("PG_VERSION").is_file()
}

/// A server that starts empty beside data of another version looks like data loss: say where it is.
fn warn_of_data_left_behind(base: &Path, home: &Path) {
    if is_initialised(home) {
        return;
    }
    for other in fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if is_initialised(&other) && !other.as_os_str().as_encoded_bytes().ends_with(THROW_AWAY.as_bytes()) {
            tracing::warn!("this PostgreSQL starts empty; the data of another version stays in {}", other.display());
        }
    }
}

impl Server {
    /// The address of `database` for the role `user`, without a password.
    pub fn url(&self, user: &str, database: &str) -> String {
        let socket_dir = self.0.hold.socket_dir.as_os_str().as_encoded_bytes();
        format!(
            "postgres:///{}?host={}&port={PORT}&user={}&sslmode=disable",
            percent_encode(database.as_bytes()),
            percent_encode(socket_dir),
            percent_encode(user.as_bytes())
        )
    }

    /// Such as `15.18`.
    pub fn version(&self) -> &str {
        &self.0.install.version
    }

    /// Whether this is the fetched payload, with its [limits](self#which-postgresql).
    pub fn is_payload(&self) -> bool {
        self.0.install.payload
    }

    /// Creates the database `name` if it is absent. Any number of processes may do so at once.
    ///
    /// # Errors
    /// - [`Invalid`](ErrorKind::Invalid): the name is not `[a-z_][a-z0-9_]*` of at most 63 characters.
    /// - [`Unavailable`](ErrorKind::Unavailable): the server refused.
    ///
    /// # Cancel safety
    /// Cancel safe. The database may be made nevertheless.
    pub async fn ensure_database(&self, name: &str) -> Result<()> {
        check_database_name(name)?;
        self.create_database(name).await.map_err(|error| unavailable(format!("cannot create the database {name}")).with_source(error))
    }

    async fn create_database(&self, name: &str) -> Result<(), sqlx::Error> {
        let mut connection = PgConnection::connect_with(&PgConnectOptions::from_str(&self.url("postgres", "postgres"))?).await?;
        let found = sqlx::query("SELECT FROM pg_database WHERE datname = $1").bind(name).fetch_optional(&mut connection).await?;
        if found.is_none() {
            // template0: nobody can be connected to it, which would fail the copy.
            let create = AssertSqlSafe(format!(r#"CREATE DATABASE "{name}" TEMPLATE template0"#));
            let created = sqlx::raw_sql(create).execute(&mut connection).await;
            // duplicate_database, or unique_violation: another process was faster.
            let exists =
                |error: &sqlx::Error| error.as_database_error().is_some_and(|e| matches!(e.code().as_deref(), Some("42P04" | "23505")));
            if let Err(error) = created
                && !exists(&error)
            {
                return Err(error);
            }
        }
        connection.close().await
    }
}

/// One line: what is used, what it lacks, and where its data is.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Running { install, data, throw_away, .. } = &*self.0;
        write!(f, "embedded PostgreSQL {} (", install.version)?;
        if install.payload {
            write!(f, "fetched payload; {}", payload::LIMITS)?;
        } else {
            write!(f, "{}", install.bin.display())?;
        }
        write!(f, "), {} in {}", if *throw_away { "throw-away data" } else { "data" }, data.display())
    }
}

fn check_database_name(name: &str) -> Result<()> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !plain || name.is_empty() || name.len() > 63 || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Error::invalid("database", "must be 1 to 63 of a-z, 0-9 and _, and not begin with a digit"));
    }
    Ok(())
}

fn percent_encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, &b| {
        if b.is_ascii_alphanumeric() || b"/._-".contains(&b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}"); // a String takes everything
        }
        out
    })
}

fn misconfigured(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Misconfigured, message)
}

fn unavailable(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Unavailable, message)
}

/// For `map_err`: what could not be done, and the reason. The reason is in the message: whoever sets up a machine needs it there.
fn failed<E: fmt::Display>(doing: impl Into<String>) -> impl FnOnce(E) -> Error {
    let doing = doing.into();
    move |reason| misconfigured(format!("{doing}: {reason}"))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use sqlx::Row;
    use uuid::Uuid;

    use super::*;

    /// Tells [`holder_process`] which folder to hold.
    const HOLD: &str = "TENANCY_TEST_HOLD";

    /// A folder for one test, removed with its servers.
    struct TestDir(PathBuf);

    impl TestDir {
        fn new() -> Self {
            Self(std::env::temp_dir().join(format!("tenancy-test-{}", Uuid::now_v7().simple())))
        }

        fn durable(&self) -> Options {
            Options::new(&self.0)
        }

        fn throw_away(&self) -> Options {
            Options::new(&self.0).throw_away()
        }

        fn base(&self) -> PathBuf {
            Account::current().unwrap().base_dir(&self.0).unwrap()
        }

        /// Waits until every process of every server here is gone.
        fn await_stop(&self) {
            let runs = fs::read_dir(self.base()).unwrap().map(|entry| entry.unwrap().path());
            for run in runs.filter(|path| path.extension().is_some_and(|extension| extension == "run")) {
                let file = fs::File::open(&run).unwrap();
                wait("the server to stop", || file.try_lock().is_ok());
            }
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            if !thread::panicking() {
                self.await_stop();
            }
            let _ = fs::remove_dir_all(self.base());
        }
    }

    fn wait(what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline, "waited too long for {what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    async fn connect(server: &Server) -> PgConnection {
        PgConnection::connect(&server.url("postgres", "postgres")).await.unwrap()
    }

    async fn run(server: &Server, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&mut connect(server).await).await.unwrap();
    }

    async fn text(server: &Server, sql: &'static str) -> String {
        sqlx::query(sql).fetch_one(&mut connect(server).await).await.unwrap().get(0)
    }

    /// What the server's `postmaster.pid` says.
    fn pid_file(server: &Server) -> String {
        fs::read_to_string(server.0.data.join("postmaster.pid")).unwrap()
    }

    fn kill_9(pid: &str) {
        assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    }

    /// Another process that starts the throw-away server of `dir` and holds it.
    fn spawn_starter(dir: &TestDir) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["embedded::tests::holder_process", "--exact", "--ignored", "--nocapture"])
            .env(HOLD, &dir.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The same, when it holds the server.
    fn spawn_holder(dir: &TestDir) -> Child {
        let mut child = spawn_starter(dir);
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("HOLDING")), "the other process did not start a server");
        child
    }

    #[tokio::test]
    #[ignore = "the other process of other tests"]
    async fn holder_process() {
        let Some(dir) = std::env::var_os(HOLD) else { return };
        let _server = start(Options::new(dir).throw_away()).await.unwrap();
        println!("HOLDING");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }

    #[test]
    fn urls_survive_any_name() {
        for name in ["app", "my db", "a%b", "ü/?&#", "x@y:z"] {
            let url = format!("postgres:///{0}?host={1}&port=5432&user={0}", percent_encode(name.as_bytes()), percent_encode(b"/tmp/a b"));
            let options = PgConnectOptions::from_str(&url).unwrap();
            assert_eq!((options.get_username(), options.get_database()), (name, Some(name)), "{url}");
            assert_eq!(options.get_socket().map(PathBuf::as_path), Some(Path::new("/tmp/a b")));
        }
    }

    #[test]
    fn database_names_are_plain() {
        for name in ["app", "_x9", &"a".repeat(63)] {
            assert!(check_database_name(name).is_ok(), "{name}");
        }
        for name in ["", "9a", "App", "a-b", "a\"; DROP DATABASE postgres; --", "ü", &"a".repeat(64)] {
            assert_eq!(check_database_name(name).unwrap_err().kind(), ErrorKind::Invalid, "{name}");
        }
    }

    #[test]
    fn durable_data_stays_with_the_version_that_made_it() {
        let dir = TestDir::new();
        let base = dir.base();
        let install = |major, payload| Install { bin: "/bin".into(), version: format!("{major}.1"), major, payload };
        let installs = [install(18, false), install(17, false), install(15, false)];
        assert_eq!(pick(&[], &base, false), None);
        assert_eq!(pick(&installs, &base, false), Some(&installs[0]));
        for (used, picked) in [(install(17, true), 0), (install(15, false), 2), (install(17, false), 1)] {
            let data = home(&base, &used, false).join("data");
            fs::create_dir_all(&data).unwrap();
            fs::write(data.join("PG_VERSION"), "").unwrap();
            assert_eq!(pick(&installs, &base, false), Some(&installs[picked]));
            assert_eq!(pick(&installs, &base, true), Some(&installs[0]));
        }
    }

    #[tokio::test]
    async fn durable_data_survives_a_stop_and_a_killed_postmaster() {
        let dir = TestDir::new();
        let server = start(dir.durable()).await.unwrap();
        let line = server.to_string();
        assert!(line.starts_with(&format!("embedded PostgreSQL {} (", server.version())) && line.contains(", data in "), "{line}");
        assert!(text(&server, "SHOW server_version").await.starts_with(server.version()));
        assert_eq!(text(&server, "SHOW fsync").await, "on");
        assert_eq!(text(&server, "SHOW max_connections").await, "100");
        assert_eq!(text(&server, "SHOW listen_addresses").await, "");
        run(&server, "CREATE TABLE t AS SELECT 'kept' AS v").await;

        drop(server);
        dir.await_stop();
        let server = start(dir.durable()).await.unwrap();
        assert_eq!(text(&server, "SELECT v FROM t").await, "kept");

        run(&server, "UPDATE t SET v = 'kept after a crash'").await;
        kill_9(pid_file(&server).lines().next().unwrap());
        let recovered = start(dir.durable()).await.unwrap(); // while `server` still has its hold
        assert_eq!(text(&recovered, "SELECT v FROM t").await, "kept after a crash");
        drop(server); // the old hold is gone, the new one counts
        thread::sleep(Duration::from_secs(3));
        assert_eq!(text(&recovered, "SELECT v FROM t").await, "kept after a crash");

        // The machine went down, and the postmaster's number now belongs to another process of the same account.
        let stale = pid_file(&recovered);
        let data = recovered.0.data.clone();
        drop(recovered);
        dir.await_stop();
        let account = Account::current().unwrap();
        let mut other = account.command("sleep").arg("60").spawn().unwrap();
        let mut lines: Vec<_> = stale.lines().map(str::to_owned).collect();
        lines[0] = other.id().to_string();
        fs::write(data.join("postmaster.pid"), lines.join("\n")).unwrap();
        let server = start(dir.durable()).await.unwrap();
        assert_eq!(text(&server, "SELECT v FROM t").await, "kept after a crash");
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[tokio::test]
    async fn a_server_started_by_hand_is_left_alone() {
        let dir = TestDir::new();
        let server = start(dir.durable()).await.unwrap();
        let Running { install, data, hold, .. } = &*server.0;
        let mut by_hand = Account::current().unwrap().command(install.bin.join("postgres"));
        by_hand.arg("-D").arg(data).arg("-k").arg(&hold.socket_dir).args(["-p", "5433", "-c", "listen_addresses="]);
        let socket = hold.socket_dir.join(".s.PGSQL.5433");
        drop(server);
        dir.await_stop();
        let mut by_hand = by_hand.stderr(Stdio::null()).spawn().unwrap();
        wait("the server started by hand", || socket.exists());
        let refused = start(dir.durable()).await.unwrap_err();
        assert!(refused.to_string().contains("started by hand"), "{refused}");
        assert!(by_hand.try_wait().unwrap().is_none(), "it still runs");
        assert!(Command::new("kill").args(["-INT", &by_hand.id().to_string()]).status().unwrap().success());
        by_hand.wait().unwrap();
    }

    #[tokio::test]
    async fn processes_share_a_throw_away_server_until_the_last_is_killed() {
        let dir = TestDir::new();
        let mut holder = spawn_holder(&dir);
        let server = start(dir.throw_away()).await.unwrap();
        assert_eq!(text(&server, "SHOW fsync").await, "off");
        assert_eq!(text(&server, "SHOW max_connections").await, "300");
        run(&server, "CREATE TABLE t AS SELECT 'shared' AS v").await;
        let pid = pid_file(&server);

        // We go, the other process keeps the server; then it is the other way round.
        drop(server);
        thread::sleep(Duration::from_secs(3));
        let server = start(dir.throw_away()).await.unwrap();
        assert_eq!(text(&server, "SELECT v FROM t").await, "shared");
        holder.kill().unwrap();
        holder.wait().unwrap();
        thread::sleep(Duration::from_secs(3));
        assert_eq!(pid_file(&server), pid);
        assert_eq!(text(&server, "SELECT v FROM t").await, "shared");
        drop(server);
        dir.await_stop();

        // The only holder is killed.
        let mut holder = spawn_holder(&dir);
        holder.kill().unwrap();
        holder.wait().unwrap();
        dir.await_stop();

        let server = start(dir.throw_away()).await.unwrap();
        assert_eq!(text(&server, "SELECT count(*)::text FROM pg_class WHERE relname = 't'").await, "0");
    }

    #[tokio::test]
    async fn a_starter_killed_midway_hinders_nobody() {
        let dir = TestDir::new();
        let mut starter = spawn_starter(&dir);
        let base = dir.base();
        wait("initdb", || fs::read_dir(&base).unwrap().any(|entry| entry.unwrap().path().join("template.tmp").exists()));
        starter.kill().unwrap();
        starter.wait().unwrap();
        let server = start(dir.throw_away()).await.unwrap();
        assert_eq!(text(&server, "SELECT 'alive'").await, "alive");
    }

    #[tokio::test]
    async fn a_server_without_its_watcher_is_replaced() {
        let dir = TestDir::new();
        let server = start(dir.throw_away()).await.unwrap();
        let before = pid_file(&server);
        let postmaster = before.lines().next().unwrap();
        let ps = Command::new("ps").args(["-A", "-o", "pid=,ppid=,args="]).output().unwrap();
        let ps = String::from_utf8_lossy(&ps.stdout).into_owned();
        let processes: Vec<Vec<_>> = ps.lines().map(|line| line.split_whitespace().collect()).collect();
        let parent = processes.iter().find(|p| p.first() == Some(&postmaster)).unwrap()[1];
        let watcher = processes.iter().find(|p| p.get(1) == Some(&parent) && p[2] == "/bin/sh").unwrap()[0];
        kill_9(watcher);
        let server = start(dir.throw_away()).await.unwrap();
        assert_ne!(pid_file(&server), before);
        assert_eq!(text(&server, "SELECT 'alive'").await, "alive");
    }

    #[tokio::test]
    async fn databases_are_made_once() {
        let dir = TestDir::new();
        let server = start(dir.throw_away().with_max_connections(20)).await.unwrap();
        assert_eq!(text(&server, "SHOW max_connections").await, "20");
        let racers: Vec<_> = (0..8)
            .map(|_| {
                let server = server.clone();
                tokio::spawn(async move { server.ensure_database("app").await })
            })
            .collect();
        for racer in racers {
            racer.await.unwrap().unwrap();
        }
        PgConnection::connect(&server.url("postgres", "app")).await.unwrap();
        assert_eq!(server.ensure_database("App").await.unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[tokio::test]
    async fn a_failed_start_shows_the_end_of_the_log() {
        let dir = TestDir::new();
        let error = start(dir.throw_away().with_max_connections(0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("outside the valid range for parameter \"max_connections\""), "{error}");
    }

    #[tokio::test]
    async fn the_payload_serves_and_forces_row_security() {
        let dir = TestDir::new();
        let server = start(dir.throw_away().without_local_install()).await.unwrap();
        assert!(server.is_payload() && server.to_string().contains("deadlocks are never detected"), "{server}");
        assert!(text(&server, "SELECT version()").await.starts_with(&format!("PostgreSQL {} ", server.version())));
        assert_eq!(text(&server, "SHOW max_connections").await, "300");
        run(
            &server,
            "CREATE ROLE owner LOGIN;
             CREATE TABLE t (v text); ALTER TABLE t OWNER TO owner;
             INSERT INTO t VALUES ('a'), ('b');
             ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
             CREATE POLICY p ON t USING (v = 'a')",
        )
        .await;
        let count = "SELECT string_agg(v, ',' ORDER BY v) FROM t";
        assert_eq!(text(&server, count).await, "a,b"); // the superuser is past it
        let mut owner = PgConnection::connect(&server.url("owner", "postgres")).await.unwrap();
        assert_eq!(sqlx::query(count).fetch_one(&mut owner).await.unwrap().get::<String, _>(0), "a");
    }
}
