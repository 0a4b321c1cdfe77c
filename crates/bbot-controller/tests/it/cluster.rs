//! A PostgreSQL of the test's own: in a temporary directory, as an unprivileged user, over a Unix socket, without syncs; it goes
//! with the test. Nothing of the computer's own is touched.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::Connection as _;

/// The user and group `nobody`, whom root runs it as.
const NOBODY: u32 = 65_534;

#[derive(Debug)]
pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    programs: PathBuf,
    server: Option<Child>,
    /// What else it is told, as `name=value`.
    settings: &'static [&'static str],
    databases: AtomicU32,
}

impl Cluster {
    /// Starts one; `None`, and the test is skipped, where PostgreSQL is not installed.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// The same with these settings.
    pub(crate) fn start_with(settings: &'static [&'static str]) -> Option<Self> {
        let Some(programs) = programs() else {
            testkit::missing("postgres", "no PostgreSQL server");
            return None;
        };
        if is_root() && !testkit::program("setpriv", "setpriv") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        if is_root() {
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut cluster = Self {
            directory,
            programs,
            server: None,
            settings,
            databases: AtomicU32::new(0),
        };
        let made = cluster
            .command("initdb")
            .arg("--pgdata")
            .arg(cluster.data())
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
            .args(["--no-locale", "--no-sync", "--no-instructions"])
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success(), "initdb: {made}");
        cluster.resume();
        Some(cluster)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// One of its programs; it ends with the test, however that ends.
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={NOBODY}"))
                .arg(format!("--regid={NOBODY}"))
                .args(["--clear-groups", "--pdeathsig", "QUIT"])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.path()).stdin(Stdio::null());
        command
    }

    /// Starts the server, and waits until it answers.
    pub(crate) fn resume(&mut self) {
        let log = std::fs::File::create(self.path().join("log")).unwrap();
        let server = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .args(["-c", "shared_buffers=16MB", "-c", "max_connections=80"])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", self.path().display()))
            .args(self.settings.iter().flat_map(|setting| ["-c", setting]))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        let begun = Instant::now();
        while !self.answers() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "PostgreSQL does not start: {}",
                std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn answers(&self) -> bool {
        let socket = self.path().join(".s.PGSQL.5432");
        socket.exists() && try_execute(self.url_of("postgres"), "SELECT 1".to_owned()).is_ok()
    }

    /// Ends the server, as if its host had failed.
    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let pid = rustix::process::Pid::from_child(&server);
            // At once, connections and all; gone already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            server.wait().unwrap();
        }
    }

    fn url_of(&self, database: &str) -> String {
        format!(
            "postgres://postgres@localhost/{database}?host={}",
            self.path().display()
        )
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap()
    }

    /// Does this in a database that `database` has made.
    pub(crate) fn execute(url: &str, statement: &str) {
        try_execute(url.to_owned(), statement.to_owned()).unwrap();
    }

    /// The URL of a new database.
    pub(crate) fn database(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::SeqCst));
        Self::execute(&self.url_of("postgres"), &format!("CREATE DATABASE {name}"));
        self.url_of(&name)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Does this with a controller's own store, and with a database of PostgreSQL.
pub(crate) fn on_both(test: impl Fn(Option<String>)) {
    test(None);
    if let Some(cluster) = Cluster::start() {
        test(Some(cluster.database()));
    }
}

fn try_execute(url: String, statement: String) -> Result<(), sqlx::Error> {
    sqlx::any::install_default_drivers();
    // Of its own: a test may be within one.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut connection = sqlx::AnyConnection::connect(&url).await?;
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .persistent(false)
                .execute(&mut connection)
                .await?;
            connection.close().await
        })
    })
    .join()
    .unwrap()
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Where the newest server's programs are: Debian keeps them apart by version.
fn programs() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            let programs = entry.path().join("bin");
            programs
                .join("postgres")
                .is_file()
                .then_some((version, programs))
        })
        .collect();
    versions.sort_unstable();
    versions.pop().map(|(_, programs)| programs)
}
