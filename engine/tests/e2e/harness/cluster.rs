//! A throw-away Postgres server in a folder of its own, on loopback only.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::User;

use crate::harness::process::{
    TIMEOUT, lossy, pdeathsig_command, poll_until, postgres_user, run, run_successfully, signal,
    spawn, wait,
};
use crate::harness::{READ_PASSWORD, READWRITE_PASSWORD, SUPERUSER_PASSWORD};

/// The database that is the tests' own back door: `trust` on the Unix socket.
const OPERATOR_DATABASE: &str = "operator";

/// A database `via_<method>` for each way in which Postgres may ask for a password.
const HBA: &str = "\
local operator     postgres  trust
local all          all       trust
host  via_trust    all  127.0.0.1/32  trust
host  via_password all  127.0.0.1/32  password
host  via_md5      all  127.0.0.1/32  md5
host  all          all  127.0.0.1/32  scram-sha-256
";

/// The programs of one Postgres version.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) bin: PathBuf,
    pub(crate) major: u32,
}

impl Server {
    pub(crate) fn in_folder(bin: &Path) -> Result<Self, String> {
        let mut command = Command::new(bin.join("postgres"));
        command.arg("--version");
        let output = command
            .output()
            .map_err(|e| format!("{}: {e}", bin.display()))?;
        let text = lossy(&output.stdout);
        let major = text
            .split_whitespace()
            .find_map(|word| word.split('.').next()?.parse().ok())
            .ok_or_else(|| format!("{}: not a postgres: {text:?}", bin.display()))?;
        Ok(Self {
            bin: bin.to_owned(),
            major,
        })
    }

    /// `pg15`, for the names of tests and folders.
    pub(crate) fn label(&self) -> String {
        format!("pg{}", self.major)
    }

    /// The newest protocol that it speaks.
    pub(crate) fn protocol(&self) -> u32 {
        if self.major >= 18 {
            0x0003_0002
        } else {
            0x0003_0000
        }
    }

    /// The newest of the Debian packages, or what `pg_config` points at.
    pub(crate) fn installed() -> Result<Self, String> {
        let mut found: Vec<Self> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .filter_map(|entry| Self::in_folder(&entry.ok()?.path().join("bin")).ok())
            .collect();
        found.sort_by_key(|server| server.major);
        if let Some(newest) = found.pop() {
            return Ok(newest);
        }
        let output = Command::new("pg_config").arg("--bindir").output();
        let folder = output.map(|o| lossy(&o.stdout)).unwrap_or_default();
        Self::in_folder(Path::new(folder.trim()))
            .map_err(|why| format!("no PostgreSQL server installed ({why})"))
    }
}

/// How a cluster differs from the usual one.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterOptions {
    /// Added to the server's command line, after the usual settings.
    pub(crate) settings: Vec<&'static str>,
    /// Replaces the usual `pg_hba.conf` for TCP.
    pub(crate) hba: Option<&'static str>,
    /// Databases to create, with the two roles provisioned in each.
    pub(crate) databases: Vec<&'static str>,
}

#[derive(Debug)]
pub(crate) struct Cluster {
    server: Server,
    folder: PathBuf,
    port: u16,
    settings: Vec<&'static str>,
    owner: Option<User>,
    postmaster: Mutex<Option<Child>>,
}

impl Cluster {
    /// Creates the cluster in `folder`, which must not exist, and starts it.
    pub(crate) fn create(server: &Server, folder: PathBuf, options: &ClusterOptions) -> Self {
        let owner = postgres_user();
        fs::create_dir(&folder).expect("a fresh folder");
        if let Some(user) = &owner {
            chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
        }
        let server = reachable(server, &folder, owner.as_ref());
        let data = folder.join("data");
        let mut initdb = pdeathsig_command(&server.bin.join("initdb"), "KILL", owner.as_ref());
        initdb.args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        ]);
        initdb.arg("-D").arg(&data).current_dir(&folder);
        run_successfully(initdb, TIMEOUT);
        fs::write(
            data.join("pg_hba.conf"),
            options.hba.map_or_else(|| HBA.to_owned(), with_door),
        )
        .expect("pg_hba.conf");

        let cluster = Self {
            server,
            folder,
            port: unused_port(),
            settings: options.settings.clone(),
            owner,
            postmaster: Mutex::new(None),
        };
        cluster.start();
        cluster.sql("postgres", &format!("CREATE DATABASE {OPERATOR_DATABASE}"));
        cluster.sql(
            "postgres",
            &format!("ALTER ROLE postgres PASSWORD '{SUPERUSER_PASSWORD}'"),
        );
        for database in &options.databases {
            cluster.create_database(database);
        }
        cluster
    }

    /// Where it listens: TCP, on loopback.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join(format!(".s.PGSQL.{}", self.port))
    }

    /// Creates `database`, dropping an old one, with the two roles provisioned.
    pub(crate) fn create_database(&self, database: &str) {
        self.sql(
            OPERATOR_DATABASE,
            &format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)"),
        );
        self.sql(OPERATOR_DATABASE, &format!("CREATE DATABASE {database}"));
        self.provision(database);
    }

    pub(crate) fn drop_database(&self, database: &str) {
        self.sql(
            OPERATOR_DATABASE,
            &format!("DROP DATABASE {database} WITH (FORCE)"),
        );
    }

    pub(crate) fn provision(&self, database: &str) {
        run_successfully(self.provision_command(database), TIMEOUT);
        if self.settings.contains(&"password_encryption=md5") {
            self.set_md5_passwords(database);
        }
    }

    /// `teesql-sidecar provision` at the back door, with nothing else in its environment.
    pub(crate) fn provision_command(&self, database: &str) -> Command {
        let mut provision = pdeathsig_command(
            Path::new(env!("CARGO_BIN_EXE_teesql-sidecar")),
            "KILL",
            None,
        );
        provision
            .arg("provision")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TEESQL_POSTGRES", self.socket())
            .env("TEESQL_PG_DATABASE", database)
            .env("TEESQL_PG_PASSWORD_READ", READ_PASSWORD)
            .env("TEESQL_PG_PASSWORD_READWRITE", READWRITE_PASSWORD);
        provision
    }

    /// Passwords as Postgres kept them once; provisioning itself keeps SCRAM verifiers only.
    fn set_md5_passwords(&self, database: &str) {
        for (role, password) in [
            ("teesql_read", READ_PASSWORD),
            ("teesql_readwrite", READWRITE_PASSWORD),
        ] {
            let password = password.replace('\'', "''").replace('\\', "\\\\");
            self.sql(
                database,
                &format!("ALTER ROLE {role} PASSWORD E'{password}'"),
            );
        }
    }

    /// Runs `sql` as superuser through the back door: columns by `|`, rows by newline.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = self.psql(database);
        psql.args(["-c", sql]);
        run_successfully(psql, TIMEOUT * 4).trim_end().to_owned()
    }

    /// The same in the back door's own database.
    pub(crate) fn admin_sql(&self, sql: &str) -> String {
        self.sql(OPERATOR_DATABASE, sql)
    }

    /// Waits until `sql` in the back door's database answers `wanted`.
    pub(crate) fn await_result(&self, sql: &str, wanted: &str) {
        let mut last = String::new();
        poll_until(TIMEOUT, || {
            last = self.admin_sql(sql);
            (last == wanted).then_some(())
        })
        .unwrap_or_else(|| panic!("{sql}: still {last:?}, not {wanted:?}"));
    }

    /// A `psql` at the back door, superuser, quiet and unaligned.
    pub(crate) fn psql(&self, database: &str) -> Command {
        let mut psql = pdeathsig_command(Path::new("psql"), "KILL", None);
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
        ])
        .arg("-h")
        .arg(&self.folder)
        .args(["-p", &self.port.to_string(), "-d", database])
        .env("PGCLIENTENCODING", "UTF8");
        psql
    }

    /// All that the server wrote into its log.
    pub(crate) fn log(&self) -> String {
        lossy(&fs::read(self.folder.join("log")).unwrap_or_default())
    }

    /// Starts the server. One that was killed leaves children that hold its shared
    /// memory for a moment: until they are gone, the next one refuses to start.
    pub(crate) fn start(&self) {
        poll_until(TIMEOUT, || self.try_to_start())
            .unwrap_or_else(|| panic!("Postgres does not start\n{}", self.log()));
    }

    fn try_to_start(&self) -> Option<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"));
        let log = log.expect("the server's log");
        // SIGQUIT is Postgres's immediate shutdown: it takes its children along.
        let mut postgres = pdeathsig_command(
            &self.server.bin.join("postgres"),
            "QUIT",
            self.owner.as_ref(),
        );
        postgres
            .current_dir(&self.folder)
            .arg("-D")
            .arg(self.folder.join("data"))
            .args(["-p", &self.port.to_string(), "-k"])
            .arg(&self.folder)
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        let usual = [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "wal_level=minimal",
            "max_wal_senders=0",
            "max_wal_size=4GB",
            "max_connections=400",
            "shared_buffers=64MB",
            "autovacuum=off",
            "jit=off",
            "log_connections=on",
        ];
        for setting in usual.iter().chain(&self.settings) {
            postgres.args(["-c", setting]);
        }
        let mut child = spawn(postgres).expect("setpriv starts");
        let pid_file = self.folder.join("data/postmaster.pid");
        poll_until(TIMEOUT, || {
            if let Ok(Some(_)) = child.try_wait() {
                return Some(false);
            }
            let text = fs::read_to_string(&pid_file).ok()?;
            let ours = text.starts_with(&format!("{}\n", child.id()));
            (ours && text.trim_end().ends_with("ready")).then_some(true)
        })?
        .then(|| *self.postmaster.lock().expect("no panic while locked") = Some(child))
    }

    /// Restarts it as a standby that has no primary.
    pub(crate) fn restart_as_standby(&self) {
        self.stop(Signal::SIGINT);
        let signal = self.folder.join("data/standby.signal");
        fs::write(&signal, "").expect("standby.signal");
        if let Some(user) = &self.owner {
            chown(&signal, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
        }
        self.start();
    }

    /// Ends the server as `signal` says: SIGINT fast, SIGQUIT immediate.
    pub(crate) fn stop(&self, how: Signal) {
        let child = self
            .postmaster
            .lock()
            .expect("no panic while locked")
            .take();
        if let Some(mut child) = child {
            signal(&child, how);
            if wait(&mut child, TIMEOUT).is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop(Signal::SIGQUIT);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn with_door(hba: &str) -> String {
    format!("local all all trust\n{hba}")
}

/// The server's programs where its user can run them: copied into the cluster's
/// folder if they lie behind a private one, as under /root.
fn reachable(server: &Server, folder: &Path, user: Option<&User>) -> Server {
    let mut probe = pdeathsig_command(&server.bin.join("postgres"), "KILL", user);
    probe.arg("--version");
    if run(probe, TIMEOUT).status.success() {
        return server.clone();
    }
    let home = server.bin.parent().expect("bin has a parent");
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(home).arg(folder.join("home"));
    run_successfully(copy, Duration::from_secs(60));
    Server {
        bin: folder.join("home/bin"),
        major: server.major,
    }
}

pub(crate) fn unused_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("a bound socket").port()
}
