//! A temporary Postgres cluster that listens on loopback and on a Unix socket.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::User;

use crate::harness::libpq::PSQL_BARE;
use crate::harness::message::{PROTOCOL_3_0, PROTOCOL_3_2};
use crate::harness::process::{
    TIMEOUT, lossy, pdeathsig_command, poll_until, postgres_user, run, run_successfully, signal,
    spawn, wait,
};
use crate::harness::settings::sidecar_command;
use crate::harness::{READ_PASSWORD, READWRITE_PASSWORD, SUPERUSER_PASSWORD};

/// The database in which the tests run administrative SQL: `trust` on the Unix socket.
const ADMIN_DATABASE: &str = "operator";

/// `pg_hba.conf`: the database `via_<method>` uses that authentication method.
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
            .ok_or_else(|| format!("{}: not a postgres binary: {text:?}", bin.display()))?;
        Ok(Self {
            bin: bin.to_owned(),
            major,
        })
    }

    /// `pg15`, for the names of tests and folders.
    pub(crate) fn label(&self) -> String {
        format!("pg{}", self.major)
    }

    /// The newest protocol version that it supports.
    pub(crate) fn protocol(&self) -> u32 {
        if self.major >= 18 {
            PROTOCOL_3_2
        } else {
            PROTOCOL_3_0
        }
    }

    /// The newest of the Debian packages, or the one that `pg_config` belongs to.
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
            .map_err(|error| format!("no PostgreSQL server is installed ({error})"))
    }
}

/// How a cluster differs from the default.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterOptions {
    /// Settings on the server's command line, after the default ones.
    pub(crate) settings: Vec<&'static str>,
    /// Replaces the TCP entries of `pg_hba.conf`.
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
        fs::create_dir(&folder).expect("a new folder");
        if let Some(user) = &owner {
            chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
        }
        let cluster = Self {
            server: accessible_copy(server, &folder, owner.as_ref()),
            folder,
            port: unused_port(),
            settings: options.settings.clone(),
            owner,
            postmaster: Mutex::new(None),
        };
        cluster.initialize(options.hba);
        cluster.start();
        cluster.sql("postgres", &format!("CREATE DATABASE {ADMIN_DATABASE}"));
        cluster.sql(
            "postgres",
            &format!("ALTER ROLE postgres PASSWORD '{SUPERUSER_PASSWORD}'"),
        );
        for database in &options.databases {
            cluster.create_database(database);
        }
        cluster
    }

    /// Copies a data directory that initdb has made once for each server: a copy takes a tenth of the time. All
    /// clusters of a server therefore have one system identifier.
    fn initialize(&self, hba: Option<&str>) {
        let data = self.folder.join("data");
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.template()).arg(&data);
        run_successfully(copy, TIMEOUT * 4);
        let hba = hba.map_or_else(|| HBA.to_owned(), with_socket_entry);
        fs::write(data.join("pg_hba.conf"), hba).expect("pg_hba.conf");
    }

    /// The data directory to copy, beside the folders of all clusters.
    fn template(&self) -> PathBuf {
        static TEMPLATES: Mutex<BTreeMap<(PathBuf, u32), PathBuf>> = Mutex::new(BTreeMap::new());
        let parent = self.folder.parent().expect("a folder for all clusters");
        // Held during initdb, so that others wait for it.
        let mut templates = TEMPLATES.lock().expect("no panic while locked");
        let key = (parent.to_owned(), self.server.major);
        let template = templates.entry(key).or_insert_with(|| {
            let folder = parent.join(format!("template_{}", self.server.label()));
            fs::create_dir(&folder).expect("a new folder");
            if let Some(user) = &self.owner {
                chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
            }
            let data = folder.join("data");
            self.run_initdb(&data);
            data
        });
        template.clone()
    }

    fn run_initdb(&self, data: &Path) {
        let mut initdb =
            pdeathsig_command(self.server.bin.join("initdb"), "KILL", self.owner.as_ref());
        initdb
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8"])
            .args(["--no-locale", "--no-sync", "-D"])
            .arg(data)
            .current_dir(&self.folder);
        // CPU-bound: on a busy machine several at the same time take longer than other commands.
        run_successfully(initdb, TIMEOUT * 4);
    }

    /// Its TCP address, on loopback.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The user that it runs as.
    pub(crate) fn owner_name(&self) -> String {
        match &self.owner {
            Some(user) => user.name.clone(),
            None => nix::unistd::Uid::effective().to_string(),
        }
    }

    /// Puts entries before those of `pg_hba.conf`, and reloads.
    pub(crate) fn prepend_to_hba(&self, entries: &str) {
        let path = self.folder.join("data/pg_hba.conf");
        let before = fs::read_to_string(&path).expect("pg_hba.conf");
        fs::write(&path, format!("{entries}{before}")).expect("pg_hba.conf");
        let loaded = self.sql(ADMIN_DATABASE, "SELECT pg_conf_load_time()");
        self.sql(ADMIN_DATABASE, "SELECT pg_reload_conf()");
        self.await_result(&format!("SELECT pg_conf_load_time() > '{loaded}'"), "t");
    }

    /// Its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join(format!(".s.PGSQL.{}", self.port))
    }

    /// Creates `database` with the two roles provisioned, and drops an old one first.
    pub(crate) fn create_database(&self, database: &str) {
        self.sql(
            ADMIN_DATABASE,
            &format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)"),
        );
        self.sql(ADMIN_DATABASE, &format!("CREATE DATABASE {database}"));
        self.provision(database);
    }

    pub(crate) fn drop_database(&self, database: &str) {
        self.sql(
            ADMIN_DATABASE,
            &format!("DROP DATABASE {database} WITH (FORCE)"),
        );
    }

    pub(crate) fn provision(&self, database: &str) {
        let mut command = self.provision_command(database);
        // Tests share the cluster, with their own databases and numbers of sessions.
        command
            .env("TEESQL_ALLOW_OTHER_DATABASES", "true")
            .env("TEESQL_PG_CONNECTIONS_READ", "unlimited")
            .env("TEESQL_PG_CONNECTIONS_READWRITE", "unlimited");
        run_successfully(command, TIMEOUT);
        if self.settings.contains(&"password_encryption=md5") {
            self.set_md5_passwords(database);
        }
    }

    /// `teesql-sidecar provision` over the Unix socket, with nothing else in its environment.
    pub(crate) fn provision_command(&self, database: &str) -> Command {
        let socket = self.socket();
        let environment = [
            ("TEESQL_POSTGRES", socket.to_str().expect("UTF-8")),
            ("TEESQL_PG_DATABASE", database),
            ("TEESQL_PG_PASSWORD_READ", READ_PASSWORD),
            ("TEESQL_PG_PASSWORD_READWRITE", READWRITE_PASSWORD),
        ];
        sidecar_command(&["provision"], &environment)
    }

    /// Sets the passwords again, so that Postgres stores MD5 hashes. Provisioning stores SCRAM
    /// verifiers only.
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

    /// Runs `sql` as superuser: columns separated by `|`, rows by newlines.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = self.psql(database);
        psql.args(["-c", sql]);
        run_successfully(psql, TIMEOUT * 4).trim_end().to_owned()
    }

    /// Runs `sql` as superuser in the administrative database.
    pub(crate) fn admin_sql(&self, sql: &str) -> String {
        self.sql(ADMIN_DATABASE, sql)
    }

    /// Waits until `sql` returns `expected` in the administrative database.
    pub(crate) fn await_result(&self, sql: &str, expected: &str) {
        self.await_result_in(ADMIN_DATABASE, sql, expected);
    }

    /// Waits until `sql` returns `expected` in `database`.
    pub(crate) fn await_result_in(&self, database: &str, sql: &str, expected: &str) {
        let mut last = String::new();
        poll_until(TIMEOUT, || {
            last = self.sql(database, sql);
            (last == expected).then_some(())
        })
        .unwrap_or_else(|| panic!("{sql}: still {last:?}, not {expected:?}"));
    }

    /// A psql of the superuser over the Unix socket that prints bare values.
    pub(crate) fn psql(&self, database: &str) -> Command {
        let mut psql = pdeathsig_command("psql", "KILL", None);
        psql.args(PSQL_BARE)
            .args(["-U", "postgres", "-d", database])
            .arg("-h")
            .arg(&self.folder)
            .args(["-p", &self.port.to_string()])
            .env("PGCLIENTENCODING", "UTF8");
        psql
    }

    /// A psql of `role` over TCP.
    pub(crate) fn tcp_psql(&self, role: &str, password: &str, database: &str) -> Command {
        let mut psql = pdeathsig_command("psql", "KILL", None);
        psql.args(PSQL_BARE)
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(["-U", role, "-d", database])
            .env("PGPASSWORD", password);
        psql
    }

    /// The whole log of the server.
    pub(crate) fn log(&self) -> String {
        lossy(&fs::read(self.folder.join("log")).unwrap_or_default())
    }

    /// Starts the server. Retries, because Postgres does not start while children of a killed server
    /// still use its shared memory.
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
        // SIGQUIT is Postgres's immediate shutdown, which also ends its children.
        let mut postgres = pdeathsig_command(
            self.server.bin.join("postgres"),
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
        let defaults = [
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
        for setting in defaults.iter().chain(&self.settings) {
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

    /// Restarts it as a standby without a primary.
    pub(crate) fn restart_as_standby(&self) {
        self.stop(Signal::SIGINT);
        let signal = self.folder.join("data/standby.signal");
        fs::write(&signal, "").expect("standby.signal");
        if let Some(user) = &self.owner {
            chown(&signal, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
        }
        self.start();
    }

    /// A standby in `folder`, which must not exist, that streams from this cluster. The options have to allow that.
    pub(crate) fn standby(&self, folder: PathBuf, port: u16) -> Self {
        fs::create_dir(&folder).expect("a new folder");
        if let Some(user) = &self.owner {
            chown(&folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
        }
        let program = self.server.bin.join("pg_basebackup");
        let mut backup = pdeathsig_command(program, "KILL", self.owner.as_ref());
        backup
            .args([
                "-U",
                "postgres",
                "-R",
                "-X",
                "stream",
                "-c",
                "fast",
                "--no-sync",
                "-h",
            ])
            .arg(&self.folder)
            .args(["-p", &self.port.to_string(), "-D"])
            .arg(folder.join("data"))
            .current_dir(&folder);
        run_successfully(backup, TIMEOUT * 4);
        let standby = Self {
            server: self.server.clone(),
            folder,
            port,
            settings: self.settings.clone(),
            owner: self.owner.clone(),
            postmaster: Mutex::new(None),
        };
        standby.start();
        standby
    }

    /// Sends a signal to the postmaster only, which alone accepts connections.
    pub(crate) fn signal_postmaster(&self, which: Signal) {
        let postmaster = self.postmaster.lock().expect("no panic while locked");
        signal(postmaster.as_ref().expect("it runs"), which);
    }

    /// Stops the server. SIGINT is a fast shutdown, SIGQUIT an immediate one.
    pub(crate) fn stop(&self, how: Signal) {
        let child = self
            .postmaster
            .lock()
            .expect("no panic while locked")
            .take();
        if let Some(mut child) = child {
            signal(&child, how);
            // A frozen server handles the signal only then.
            signal(&child, Signal::SIGCONT);
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

fn with_socket_entry(hba: &str) -> String {
    format!("local all all trust\n{hba}")
}

/// The server's programs where its user can run them: copied into the cluster's folder if a
/// parent folder is private, as /root is.
fn accessible_copy(server: &Server, folder: &Path, user: Option<&User>) -> Server {
    let mut probe = pdeathsig_command(server.bin.join("postgres"), "KILL", user);
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

/// Ports below those that the kernel gives to other connections of this machine, so that they stay free.
pub(crate) fn unused_ports(count: u16) -> u16 {
    const FIRST: u16 = 20_000;
    const LAST: u16 = 32_000;
    static NEXT: AtomicU16 = AtomicU16::new(FIRST);
    for _ in 0..1_000 {
        let first = NEXT.fetch_add(count, Ordering::Relaxed);
        assert!(first < LAST, "no ports are left");
        let bind = |offset| TcpListener::bind((Ipv4Addr::LOCALHOST, first + offset));
        if (0..count).all(|offset| bind(offset).is_ok()) {
            return first;
        }
    }
    panic!("no {count} ports in a row are unused");
}

pub(crate) fn unused_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("a bound socket").port()
}
