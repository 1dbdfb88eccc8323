//! Two zones on this host: their ports, configurations, processes, and the relays that stand for the WAN between them.

use super::relay::Relay;
use crate::control;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};

/// The names of the zones, in the order of their numbers in the map.
pub const NAMES: [&str; 2] = ["bj", "sh"];

/// Room for the segments that are made ahead, and for the stores.
const ROOM_MIN_BYTES: u64 = 48 << 20;

/// Where one zone listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Clients of the router.
    pub client: SocketAddr,
    /// Routers of the other zone.
    pub peer: SocketAddr,
    /// The router's admin page.
    pub router_admin: SocketAddr,
    /// Logs of the other zone.
    pub link: SocketAddr,
    /// The log's admin page.
    pub log_admin: SocketAddr,
}

/// One zone: where it listens, what it keeps, and its two processes while they run.
pub struct ZoneProcesses {
    /// Its name.
    pub name: &'static str,
    /// Where it listens.
    pub ports: Ports,
    /// Its data directory.
    pub data: PathBuf,
    router: Option<Child>,
    log: Option<Child>,
}

/// Both zones and the WAN.
pub struct Cluster {
    /// The zones.
    pub zones: Vec<ZoneProcesses>,
    /// Held for its tasks: the WAN is gone when this is.
    _wan: Vec<Relay>,
}

impl Cluster {
    /// Writes the configurations below `root`, starts the relays and then every process.
    pub fn start(root: &Path, gzs: SocketAddr, one_way: Duration) -> io::Result<Cluster> {
        let ports = probe(NAMES.len())?;
        let mut wan = vec![];
        let mut zones = vec![];
        for (i, name) in NAMES.into_iter().enumerate() {
            let data = root.join(name);
            fs::create_dir_all(&data)?;
            let mut peers = String::new();
            for (j, other) in NAMES.into_iter().enumerate().filter(|(j, _)| *j != i) {
                let router = Relay::start(any(), ports[j].peer, one_way)?;
                let link = Relay::start(any(), ports[j].link, one_way)?;
                peers +=
                    &format!("[zones.{other}]\nrouter = \"{}\"\nlink = \"{}\"\n\n", router.address(), link.address());
                wan.extend([router, link]);
            }
            fs::write(data.join("node.toml"), configuration(name, &data, &ports[i], gzs, &peers))?;
            zones.push(ZoneProcesses { name, ports: ports[i], data, router: None, log: None });
        }
        let mut cluster = Cluster { zones, _wan: wan };
        for zone in &mut cluster.zones {
            zone.start()?;
        }
        Ok(cluster)
    }

    /// The first process that has ended although nobody killed it, with the last lines it said.
    pub fn fallen(&mut self) -> Option<String> {
        self.zones.iter_mut().find_map(ZoneProcesses::fallen)
    }

    /// Says so when the disk of the data directory is about to be full: each zone would refuse orders soon.
    pub fn no_room(&self) -> Option<String> {
        let data = self.zones.first()?.data.parent()?;
        let disk = rustix::fs::statvfs(data).ok()?;
        let free = disk.f_bavail * disk.f_frsize;
        (free < ROOM_MIN_BYTES).then(|| {
            let (free, need) = (free >> 20, ROOM_MIN_BYTES >> 20);
            format!(
                "disk full: {free} MiB are left at {}, the demo wants {need}; free some or name another --data-dir",
                data.display()
            )
        })
    }

    /// Stops every process: routers first, then logs.
    pub async fn stop(&mut self) {
        for zone in &mut self.zones {
            stop(zone.router.take()).await;
        }
        for zone in &mut self.zones {
            stop(zone.log.take()).await;
        }
    }
}

impl ZoneProcesses {
    /// Starts the zone's log and router.
    pub fn start(&mut self) -> io::Result<()> {
        self.log = Some(self.spawn("log")?);
        self.router = Some(self.spawn("router")?);
        Ok(())
    }

    /// SIGKILL to both, at once.
    pub async fn kill(&mut self) {
        let mut both: Vec<Child> = [self.router.take(), self.log.take()].into_iter().flatten().collect();
        for child in &mut both {
            let _ = child.start_kill(); // it may have ended by itself: the result is the same
        }
        for child in &mut both {
            let _ = child.wait().await;
        }
    }

    fn spawn(&self, program: &str) -> io::Result<Child> {
        let said = File::options().create(true).append(true).open(self.said_by(program))?;
        Command::new(std::env::current_exe()?)
            .args([program, "--stop-with-stdin", "--config"])
            .arg(self.data.join("node.toml"))
            .stdin(Stdio::piped())
            .stdout(said.try_clone()?)
            .stderr(said)
            .kill_on_drop(true)
            .spawn()
    }

    fn said_by(&self, program: &str) -> PathBuf {
        self.data.join(format!("{program}.out"))
    }

    fn fallen(&mut self) -> Option<String> {
        let end = |c: &mut Option<Child>| c.as_mut().and_then(|c| c.try_wait().ok().flatten());
        let (program, status): (_, ExitStatus) = match (end(&mut self.log), end(&mut self.router)) {
            (Some(status), _) => ("log", status),
            (None, Some(status)) => ("router", status),
            (None, None) => return None,
        };
        let said = fs::read_to_string(self.said_by(program)).unwrap_or_default();
        let from = said.lines().count().saturating_sub(8);
        let last: Vec<&str> = said.lines().skip(from).collect();
        Some(format!("the {program} of zone {} ended ({status}); it said last:\n  {}", self.name, last.join("\n  ")))
    }
}

async fn stop(child: Option<Child>) {
    let Some(mut child) = child else { return };
    control::terminate(&child);
    if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn configuration(name: &str, data: &Path, at: &Ports, gzs: SocketAddr, peers: &str) -> String {
    let Ports { client, peer, router_admin, link, log_admin } = at;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // One core for each router and each log, spread over what there is: the demo's load is far below one core's.
    let core = NAMES.iter().position(|n| *n == name).unwrap_or(0) % cores;
    format!(
        "# Written by `ezone demo`.\n[node]\nzone = \"{name}\"\ncluster = \"demo\"\ndata_dir = \"{}\"\n\n\
         [map]\ngzs = \"http://{gzs}\"\n\n\
         [router]\nlisten = [\"{client}\"]\npeer_listen = [\"{peer}\"]\nadmin = \"{router_admin}\"\ncores = [{core}]\n\n\
         [log]\nlisten = \"{link}\"\nadmin = \"{log_admin}\"\ncores = [{core}]\nstreams = 2\nsegment_mib = 4\n\n\
         {peers}",
        data.display()
    )
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Five free ports for each zone: bound together, so that they differ, then released.
fn probe(zones: usize) -> io::Result<Vec<Ports>> {
    let held: Vec<TcpListener> = (0..zones * 5).map(|_| TcpListener::bind(any())).collect::<io::Result<_>>()?;
    let at: Vec<SocketAddr> = held.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
    let ports =
        at.chunks(5).map(|p| Ports { client: p[0], peer: p[1], router_admin: p[2], link: p[3], log_admin: p[4] });
    Ok(ports.collect())
}
