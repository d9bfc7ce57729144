//! Running one server for any number of processes, and stopping it after the last.
//!
//! Three files do the work, and each is right again after a kill -9 of anybody:
//! - `lock`: one process at a time looks, initialises and starts.
//! - `<home>.run`: locked through a descriptor that initdb, the server and all its children inherit, so it is free exactly when
//!   all of them are gone, also those that outlive a killed starter or postmaster.
//! - `<home>/hold`: a FIFO that every holder keeps open. The shell script `watch.sh` reads it and stops the server at its end.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{io, thread};

use tenancy_core::{Error, Result};
use uuid::Uuid;

use super::account::Account;
use super::install::Install;
use super::{failed, misconfigured, unavailable};

/// Names the socket file only: nothing listens on TCP.
pub(super) const PORT: u16 = 5432;

const WATCH: &str = include_str!("watch.sh");
/// How long a start may take, recovery included, and a stop.
const START: Duration = Duration::from_secs(60);
/// How long a running server's watcher may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// One server: which binaries, which data, which settings.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    pub(super) account: &'a Account,
    pub(super) install: &'a Install,
    /// The folder of this cluster; `<home>.run` and `<home>.log` lie beside it.
    pub(super) home: &'a Path,
    pub(super) throw_away: bool,
    pub(super) max_connections: u32,
}

/// Keeps the server running while it exists.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) socket_dir: PathBuf,
    _fifo: File,
}

/// Waits until no other process looks, initialises or starts below `base`; lasts as long as the file.
pub(super) fn lock(base: &Path) -> Result<File> {
    let path = base.join("lock");
    let file = open_lock(&path)?;
    file.lock().map_err(failed(format!("cannot lock {}", path.display())))?;
    Ok(file)
}

fn open_lock(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    file.map_err(failed(format!("cannot open {}", path.display())))
}

impl Cluster<'_> {
    /// Joins the running server, or starts one. The caller has the [`lock`].
    pub(super) fn hold(&self) -> Result<Hold> {
        self.account.private_dir(self.home)?;
        let socket_dir = self.account.socket_dir(self.home)?;
        let run = open_lock(&self.beside("run"))?;
        let fifo = match self.join(&run, &socket_dir)? {
            Some(fifo) => fifo,
            None => self.start(run, &socket_dir)?,
        };
        Ok(Hold { socket_dir, _fifo: fifo })
    }

    /// Joins the running server. `None`: there is none, and `run` is locked.
    fn join(&self, run: &File, socket_dir: &Path) -> Result<Option<File>> {
        let patience = Instant::now() + PATIENCE;
        while !self.is_over(run)? {
            if let Some(fifo) = self.take_hold(|| Ok(Instant::now() < patience && !self.is_over(run)?))? {
                let deadline = Instant::now() + START;
                if self.wait_ready(|| Ok(Instant::now() < deadline && !self.is_over(run)?))? {
                    return Ok(Some(fifo));
                }
                if Instant::now() >= deadline {
                    return Err(self.did_not_start());
                }
            } else if Instant::now() >= patience {
                self.stop(run, socket_dir)?;
            }
            thread::sleep(POLL);
        }
        Ok(None)
    }

    /// Whether every process of the server is gone; then `run` is locked.
    fn is_over(&self, run: &File) -> Result<bool> {
        match run.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(failed(format!("cannot lock {}", self.beside("run").display()))(error)),
        }
    }

    /// Stops a server that lost its watcher: nobody else would.
    fn stop(&self, run: &File, socket_dir: &Path) -> Result<()> {
        let pid_file = fs::read_to_string(self.pid_file()).unwrap_or_default();
        let pid = pid_file.lines().next().unwrap_or_default();
        // Only a postmaster that answers is still the process that its file names.
        if !pid.is_empty() && listens(socket_dir, &PORT.to_string()) {
            let kill = self.account.command("/bin/sh").args(["-c", "kill -INT \"$1\"", "kill", pid]).status();
            kill.map_err(failed("cannot run /bin/sh"))?;
        }
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if self.is_over(run)? {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        Err(unavailable(format!("the previous server in {} does not stop (process {pid}): end it, then try again", self.home.display())))
    }

    /// Starts a server; `run` is locked, and the server inherits it.
    fn start(&self, run: File, socket_dir: &Path) -> Result<File> {
        self.forget_dead_postmaster()?;
        self.prepare_data(&run)?;
        remove(fs::remove_file(self.fifo()), &self.fifo())?; // a killed watcher's: nobody would answer
        let log_path = self.beside("log");
        let log = File::create(&log_path).map_err(failed(format!("cannot create {}", log_path.display())))?;
        let log_too = log.try_clone().map_err(failed("cannot share the log"))?;
        let mut command = self.account.command("/bin/sh");
        command.arg("-c").arg(WATCH).arg("tenancy-embedded").arg(self.fifo());
        self.server_arguments(&mut command, socket_dir);
        command.process_group(0); // Ctrl-C is for the program: the server goes when the program has gone
        command.stdin(run).stdout(log).stderr(log_too);
        let mut child = command.spawn().map_err(failed("cannot run /bin/sh"))?;
        drop(command); // our copy of the lock

        let deadline = Instant::now() + START;
        let mut go_on = || Ok(Instant::now() < deadline && child.try_wait().map_err(failed("cannot watch the server"))?.is_none());
        let mut hold = None;
        while hold.is_none() && go_on()? {
            hold = self.take_hold(&mut go_on)?; // none before the watcher has made the FIFO
            thread::sleep(POLL);
        }
        let ready = hold.is_some() && self.wait_ready(&mut go_on)?;
        thread::spawn(move || child.wait()); // leaves no zombie, should it end before us
        hold.filter(|_| ready).ok_or_else(|| self.did_not_start())
    }

    fn did_not_start(&self) -> Error {
        let log = self.beside("log");
        unavailable(format!("PostgreSQL did not start; the end of its log ({}):\n{}", log.display(), tail(&log)))
    }

    fn server_arguments(&self, command: &mut Command, socket_dir: &Path) {
        command.arg(self.install.bin.join("postgres")).arg("-D").arg(self.data()).arg("-k").arg(socket_dir);
        command.args(["-p", &PORT.to_string(), "-c", "listen_addresses=", "-c"]);
        command.arg(format!("max_connections={}", self.max_connections));
        if self.install.payload {
            command.args(["-c", "dynamic_shared_memory_type=mmap"]); // its System V calls are stubs
        }
        if self.throw_away {
            command.args(["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]);
        }
    }

    /// Removes the pid file of a server that was killed, or went down with the machine: its number may be another process's now,
    /// and then PostgreSQL would refuse to start. `run` has shown that no server of ours runs.
    fn forget_dead_postmaster(&self) -> Result<()> {
        let path = self.pid_file();
        let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
        let lines: Vec<_> = text.lines().collect();
        if let [pid, _, _, port, socket_dir, ..] = lines[..]
            && listens(Path::new(socket_dir.trim()), port.trim())
        {
            return Err(misconfigured(format!(
                "{} is in use by a server that was started by hand (process {pid}): stop it first",
                self.data().display()
            )));
        }
        remove(fs::remove_file(&path), &path)
    }

    /// Durable data is initialised once; throw-away data is a new copy of an initialised template.
    fn prepare_data(&self, run: &File) -> Result<()> {
        let (data, template) = (self.data(), self.home.join("template"));
        let initialised = if self.throw_away { &template } else { &data };
        if !initialised.join("PG_VERSION").is_file() {
            tracing::info!("initialising PostgreSQL {} in {}", self.install.version, self.home.display());
            self.init(initialised, run)?;
        }
        if self.throw_away {
            remove(fs::remove_dir_all(&data), &data)?;
            let mut copy = self.account.command("cp");
            copy.arg("-R").arg(&template).arg(&data);
            finish(copy, run)?;
        }
        Ok(())
    }

    /// Initialises beside `target` and renames, so that `target` is whole or absent.
    fn init(&self, target: &Path, run: &File) -> Result<()> {
        let partial = target.with_added_extension("tmp");
        remove(fs::remove_dir_all(&partial), &partial)?;
        let mut initdb = self.account.command(self.install.bin.join("initdb"));
        initdb.arg("-D").arg(&partial).args(["-U", "postgres", "-E", "UTF8", "--no-locale"]);
        initdb.args(["--auth-local=trust", "--auth-host=reject"]);
        if self.throw_away {
            initdb.arg("--no-sync");
        }
        finish(initdb, run)?;
        fs::rename(&partial, target).map_err(failed(format!("cannot create {}", target.display())))
    }

    /// Opens the FIFO and waits for the watcher's answer while `go_on`. `None`: there is no FIFO, or no answer.
    fn take_hold(&self, mut go_on: impl FnMut() -> Result<bool>) -> Result<Option<File>> {
        // Also open for reading: then neither opening nor writing depends on the watcher.
        let Ok(mut fifo) = OpenOptions::new().read(true).write(true).open(self.fifo()) else { return Ok(None) };
        let told = || failed("cannot use the FIFO of the server");
        if !fifo.metadata().map_err(told())?.file_type().is_fifo() {
            return Err(misconfigured(format!("{} must be a FIFO: remove it", self.fifo().display())));
        }
        let name = Uuid::now_v7().simple().to_string();
        fifo.write_all(format!("{name}\n").as_bytes()).map_err(told())?;
        let answer = self.fifo().with_added_extension(name);
        while go_on()? {
            if fs::remove_file(&answer).is_ok() {
                return Ok(Some(fifo));
            }
            thread::sleep(POLL);
        }
        Ok(None)
    }

    /// Waits while `go_on` until the postmaster says that it takes connections.
    fn wait_ready(&self, mut go_on: impl FnMut() -> Result<bool>) -> Result<bool> {
        while go_on()? {
            let status = fs::read_to_string(self.pid_file()).unwrap_or_default();
            if status.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
                return Ok(true);
            }
            thread::sleep(POLL);
        }
        Ok(false)
    }

    pub(super) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn pid_file(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }

    fn fifo(&self) -> PathBuf {
        self.home.join("hold")
    }

    /// A file that stays ours when the home is lent to another account.
    fn beside(&self, extension: &str) -> PathBuf {
        self.home.with_added_extension(extension)
    }
}

fn listens(socket_dir: &Path, port: &str) -> bool {
    UnixStream::connect(socket_dir.join(format!(".s.PGSQL.{port}"))).is_ok()
}

/// The result of removing `path`, which may be absent.
fn remove(result: io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(format!("cannot remove {}", path.display()))(error)),
        _ => Ok(()),
    }
}

/// Runs `command` to its end. It inherits `run`, so that it is waited for even if we are killed before.
fn finish(mut command: Command, run: &File) -> Result<()> {
    let program = Path::new(command.get_program()).display().to_string();
    let told = || failed(format!("cannot run {program}"));
    let out = command.stdin(run.try_clone().map_err(told())?).output().map_err(told())?;
    if !out.status.success() {
        return Err(misconfigured(format!("{program} failed: {}", String::from_utf8_lossy(&out.stderr).trim())));
    }
    Ok(())
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
