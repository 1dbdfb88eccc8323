//! MariaDB's asynchronous replication over the same link: two servers of our own, one at each end, fully durable.

use super::lag::Mark;
use super::zones::watch;
use crate::sys;
use crate::wan::Wan;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

const START_MAX: Duration = Duration::from_secs(60);
/// Commits a second; each has as many rows as the rate asks for.
const COMMITS_PER_S: f64 = 100.0;
/// What both servers run with, beside what says where.
pub const SETTINGS: [&str; 7] = [
    "sync_binlog=1",
    "innodb_flush_log_at_trx_commit=1",
    "binlog_format=ROW",
    "innodb_flush_method=O_DIRECT",
    "innodb_buffer_pool_size=256M",
    "innodb_log_file_size=256M",
    "slave_parallel_threads=0",
];

pub struct Maria {
    servers: Vec<Child>,
    dir: PathBuf,
}

impl Drop for Maria {
    fn drop(&mut self) {
        for child in &mut self.servers {
            let _ = child.kill().and_then(|()| child.wait());
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Why it cannot be measured here; `Ok`: its version.
pub fn present() -> Result<String, String> {
    let missing = "NOT RUN: MariaDB: no mariadbd and mariadb-install-db here (apt-get install mariadb-server)";
    let version = Command::new("mariadbd").arg("--version").output().map_err(|_| missing.to_owned())?;
    Command::new("mariadb-install-db").arg("--help").output().map_err(|_| missing.to_owned())?;
    Ok(String::from_utf8_lossy(&version.stdout).trim().to_owned())
}

impl Maria {
    pub fn start(wan: &Wan, dir: &Path) -> Result<Maria, String> {
        let mut maria = Maria { servers: vec![], dir: dir.to_owned() };
        for (i, side) in wan.sides.iter().enumerate() {
            let data = dir.join(format!("m{i}"));
            fs::create_dir_all(&data).map_err(|e| format!("{}: {e}", data.display()))?;
            let at = data.display();
            let done = Command::new("mariadb-install-db")
                .args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"])
                .arg(format!("--datadir={at}/data"))
                .output();
            let done = done.map_err(|e| format!("mariadb-install-db: {e}"))?;
            if !done.status.success() {
                return Err(format!("mariadb-install-db: {}", String::from_utf8_lossy(&done.stderr)));
            }
            let said = File::create(data.join("said")).map_err(|e| e.to_string())?;
            let mut command = Command::new("mariadbd");
            command.args(["--no-defaults", "--user=root", "--log-bin=binlog", "--port=3306", "--skip-name-resolve"]);
            command.args([
                format!("--datadir={at}/data"),
                format!("--socket={at}/sock"),
                format!("--server-id={}", i + 1),
            ]);
            command.arg(format!("--bind-address={}", side.address)).args(SETTINGS.map(|s| format!("--{s}")));
            command.stdin(Stdio::null()).stdout(said.try_clone().map_err(|e| e.to_string())?).stderr(said);
            side.hold(&mut command).map_err(|e| e.to_string())?;
            maria.servers.push(command.spawn().map_err(|e| format!("mariadbd: {e}"))?);
        }
        let rows = "CREATE DATABASE ship; CREATE TABLE ship.orders (id BIGINT PRIMARY KEY, value VARBINARY(4096)) ENGINE=InnoDB";
        let user = "CREATE USER r@'%' IDENTIFIED BY 'r'; GRANT REPLICATION SLAVE ON *.* TO r@'%'";
        let a = wan.sides[0].address;
        let follow = format!(
            "CHANGE MASTER TO master_host='{a}', master_user='r', master_password='r', master_use_gtid=slave_pos, \
             master_connect_retry=1, master_heartbeat_period=1; SET GLOBAL slave_net_timeout=3; START SLAVE"
        );
        let mut client = maria.client(0)?;
        client.ask(&format!("{user}; SELECT 1"))?;
        maria.client(1)?.ask(&format!("{follow}; SELECT 1"))?;
        client.ask(&format!("{rows}; INSERT INTO ship.orders VALUES (0, ''); SELECT 1"))?;
        let until = Instant::now() + START_MAX;
        while Instant::now() < until {
            let mut there = maria.client(1)?;
            if there.ask("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema='ship'")? == "1" {
                return Ok(maria);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err("MariaDB replicates nothing".into())
    }

    /// Once the server answers.
    fn client(&self, at: usize) -> Result<Client, String> {
        let until = Instant::now() + START_MAX;
        loop {
            let mut client = Client::start(&self.dir.join(format!("m{at}/sock")))?;
            match client.ask("SELECT 1") {
                Ok(_) => return Ok(client),
                Err(why) if Instant::now() > until => return Err(why),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Commits rows at a rate for so long; when, and the last id of each.
    pub fn write_for(&self, per_s: f64, bytes: usize, begun: Instant, time: Duration) -> Result<Vec<Mark>, String> {
        let (mut client, mut next, mut committed, from) = (self.client(0)?, 1u64, vec![], Instant::now());
        let mut commit = 0.0;
        while from.elapsed() < time {
            let due = from + Duration::from_secs_f64(commit / COMMITS_PER_S);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // What was due while a commit took longer than its turn goes with the next one.
            let upto = (from.elapsed().as_secs_f64() * per_s) as u64 + 1;
            let rows: Vec<String> = (next..=upto)
                .map(|id| format!("({id},'{}')", String::from_utf8_lossy(&super::zones::order(id, bytes))))
                .collect();
            client.ask(&format!("INSERT INTO ship.orders VALUES {}; SELECT 1", rows.join(",")))?;
            committed.push(Mark { at_ms: begun.elapsed().as_secs_f64() * 1e3, upto });
            next = upto + 1;
            commit = (commit + 1.0).max((from.elapsed().as_secs_f64() * COMMITS_PER_S).floor());
        }
        Ok(committed)
    }

    /// What is visible at the replica until it is ended.
    pub fn watch(&self, begun: Instant, ended: &AtomicBool) -> Result<Vec<Mark>, String> {
        let mut client = self.client(1)?;
        sys::exact_timers();
        watch(begun, ended, Duration::from_millis(1), || {
            let upto = client.ask("SELECT MAX(id) FROM ship.orders")?;
            upto.parse().map_err(|_| format!("MariaDB says {upto:?}"))
        })
    }
}

/// A session of the command line client: one line in, one line out.
struct Client {
    child: Child,
    stdin: ChildStdin,
    out: BufReader<ChildStdout>,
}

impl Client {
    fn start(socket: &Path) -> Result<Client, String> {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "--user=root", "--batch", "--skip-column-names", "--unbuffered", "--quick"]);
        command.arg(format!("--socket={}", socket.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|e| format!("mariadb: {e}"))?;
        let (stdin, out) = (child.stdin.take(), child.stdout.take());
        let (stdin, out) = stdin.zip(out).ok_or("mariadb has no pipes")?;
        Ok(Client { child, stdin, out: BufReader::new(out) })
    }

    /// The last statement answers one line.
    fn ask(&mut self, statements: &str) -> Result<String, String> {
        let mut line = String::new();
        let asked = writeln!(self.stdin, "{statements};").and_then(|()| self.stdin.flush());
        asked.and_then(|()| self.out.read_line(&mut line)).map_err(|e| format!("mariadb: {e}"))?;
        match line.is_empty() {
            true => Err(format!("mariadb refuses {}", &statements[..statements.len().min(200)])),
            false => Ok(line.trim().to_owned()),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}
