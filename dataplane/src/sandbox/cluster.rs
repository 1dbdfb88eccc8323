//! A cluster on this host: two to four zones, a Global Zone Service, and the WAN between all of them. Their ports, directories,
//! configurations and processes.
//!
//! ```text
//!   ROOT/service/gzs.toml, data/     the service
//!   ROOT/bj/node.toml, log, store    a zone; where its place is limited, these are in ROOT/bj/data, and the configuration is not
//!   ROOT/bj/router.out, log.out      what its processes say
//! ```

use super::chart;
use super::process::Process;
use super::volume::Volume;
use super::wan::{Side, Wan};
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Room for the segments that are made ahead, and for the stores.
const ROOM_MIN_BYTES: u64 = 48 << 20;

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything is kept below this directory.
    pub root: PathBuf,
    /// `ezone`.
    pub program: PathBuf,
    /// How many zones, 2 to 4: the first of [`chart::ZONES`].
    pub zones: usize,
    /// One way of the WAN.
    pub one_way: Duration,
    /// Of its Global Zone Service.
    pub service: ServiceSettings,
    /// Does its map have a global service, [`chart::GLOBAL`]?
    pub global: bool,
    /// A zone whose data has only so many MiB.
    pub limited: Option<(usize, u64)>,
}

/// What a service's configuration says that drills change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceSettings {
    /// A zone that is silent for so long is taken over; 0: only by a command.
    pub silence_ms: u64,
    /// A move that takes longer is aborted.
    pub move_limit_ms: u64,
}

/// Where one zone listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Clients of the router.
    pub client: SocketAddr,
    /// Routers of the other zones.
    pub peer: SocketAddr,
    /// The router's admin page.
    pub router_admin: SocketAddr,
    /// Logs of the other zones.
    pub link: SocketAddr,
    /// The log's admin page.
    pub log_admin: SocketAddr,
}

/// One zone: where it listens, what it keeps, and its two processes.
pub struct ZoneProcesses {
    /// Its name.
    pub name: &'static str,
    /// Where it listens.
    pub ports: Ports,
    /// Its data directory.
    pub data: PathBuf,
    /// Its router.
    pub router: Process,
    /// Its log.
    pub log: Process,
    /// The place that its data is limited to.
    pub volume: Option<Volume>,
}

/// The Global Zone Service.
pub struct ServiceProcess {
    /// Where it listens: at its own side of the WAN.
    pub listen: SocketAddr,
    /// It.
    pub process: Process,
    config: PathBuf,
}

/// The zones and the WAN.
pub struct Cluster {
    /// The zones.
    pub zones: Vec<ZoneProcesses>,
    /// The service, at the other end of the WAN for each of them.
    pub service: ServiceProcess,
    /// What is between them; gone with this.
    pub wan: Wan,
}

impl Cluster {
    /// Writes the configurations, starts the relays and then every process. Must be called within a tokio runtime.
    pub fn of(plan: &Plan) -> io::Result<Cluster> {
        let names = chart::ZONES.get(..plan.zones).filter(|names| names.len() >= 2).ok_or_else(|| {
            io::Error::other(format!("{} zones are asked for, expected 2 to {}", plan.zones, chart::ZONES.len()))
        })?;
        let (mut at, mut wan) = (probe(names.len() * PORTS + 1)?, Wan::default());
        let service_at = at.split_off(names.len() * PORTS)[0];
        let ports: Vec<Ports> = at.chunks(PORTS).map(Ports::of).collect();
        let service = ServiceProcess::new(plan, service_at)?;
        let mut zones = vec![];
        for i in 0..names.len() {
            let gzs = wan.add(Side::Zone(i), Side::Service, service_at, plan.one_way)?;
            let mut peers = String::new();
            for (j, other) in names.iter().enumerate().filter(|(j, _)| *j != i) {
                let mut way = |target| wan.add(Side::Zone(i), Side::Zone(j), target, plan.one_way);
                let (router, link) = (way(ports[j].peer)?, way(ports[j].link)?);
                peers += &format!("[zones.{other}]\nrouter = \"{router}\"\nlink = \"{link}\"\n\n");
            }
            zones.push(ZoneProcesses::new(plan, i, ports[i], gzs, &peers)?);
        }
        let mut cluster = Cluster { zones, service, wan };
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Starts each process that does not run; those that are stopped in their tracks go on.
    pub fn start_all(&mut self) -> io::Result<()> {
        self.service.process.resume();
        self.service.process.start()?;
        for zone in &mut self.zones {
            zone.log.resume();
            zone.router.resume();
            zone.start()?;
        }
        Ok(())
    }

    /// The first process that has ended although nobody killed it, with the last lines it said.
    pub fn fallen(&mut self) -> Option<String> {
        self.service
            .process
            .fallen()
            .or_else(|| self.zones.iter_mut().find_map(|z| z.log.fallen().or_else(|| z.router.fallen())))
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

    /// Stops every process: routers first, then logs, then the service.
    pub async fn stop(&mut self) {
        for zone in &mut self.zones {
            zone.router.stop().await;
        }
        for zone in &mut self.zones {
            zone.log.stop().await;
        }
        self.service.process.stop().await;
    }
}

impl ServiceProcess {
    fn new(plan: &Plan, listen: SocketAddr) -> io::Result<ServiceProcess> {
        let home = plan.root.join("service");
        fs::create_dir_all(&home)?;
        fs::write(home.join("china.toml"), chart::text(plan.zones, plan.global))?;
        fs::write(home.join(chart::FENCES_FILE), chart::FENCES)?;
        let config = home.join("gzs.toml");
        let name = "Global Zone Service".into();
        let process = Process::new(name, &plan.program, "gzs", &config, home.join("gzs.out")).listening(&[listen]);
        let service = ServiceProcess { listen, process, config };
        service.configure(&plan.service)?;
        Ok(service)
    }

    /// Holds from its next start on.
    pub fn configure(&self, settings: &ServiceSettings) -> io::Result<()> {
        let ServiceSettings { silence_ms, move_limit_ms } = settings;
        let home = self.config.parent().unwrap_or(Path::new("."));
        // No cool-down: one drill follows the other.
        let text = format!(
            "# Written for a sandbox.\n[gzs]\ndata_dir = \"{0}/data\"\nlisten = \"{1}\"\ncluster = \"demo\"\n\
             map = \"{0}/china.toml\"\nsilence_ms = {silence_ms}\ncool_down_s = 0\nmove_limit_ms = {move_limit_ms}\n",
            home.display(),
            self.listen
        );
        fs::write(&self.config, text)
    }
}

impl ZoneProcesses {
    fn new(plan: &Plan, zone: usize, ports: Ports, gzs: SocketAddr, peers: &str) -> io::Result<ZoneProcesses> {
        let name = chart::ZONES[zone];
        let home = plan.root.join(name);
        let limit = plan.limited.filter(|(limited, _)| *limited == zone).map(|(_, mib)| mib);
        let data = if limit.is_some() { home.join("data") } else { home.clone() };
        fs::create_dir_all(&data)?;
        let volume = limit.map(|mib| Volume::mount(&data, mib)).transpose().map_err(io::Error::other)?;
        let config = home.join("node.toml");
        fs::write(&config, configuration(zone, &data, &ports, gzs, peers))?;
        let process = |part: &str, listens: &[SocketAddr]| {
            let said = home.join(format!("{part}.out"));
            Process::new(format!("{part} of zone {name}"), &plan.program, part, &config, said).listening(listens)
        };
        let router = process("router", &[ports.client, ports.peer, ports.router_admin]);
        let log = process("log", &[ports.link, ports.log_admin]);
        Ok(ZoneProcesses { name, ports, data, router, log, volume })
    }

    /// Starts the zone's log and router.
    pub fn start(&mut self) -> io::Result<()> {
        self.log.start()?;
        self.router.start()
    }

    /// SIGKILL to both, at once.
    pub async fn kill(&mut self) {
        self.router.start_kill();
        self.log.start_kill();
        self.router.kill().await;
        self.log.kill().await;
    }

    /// Both end as they are asked to, the router first.
    pub async fn stop(&mut self) {
        self.router.stop().await;
        self.log.stop().await;
    }
}

fn configuration(zone: usize, data: &Path, at: &Ports, gzs: SocketAddr, peers: &str) -> String {
    let Ports { client, peer, router_admin, link, log_admin } = at;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // One core for each router and each log, spread over what there is: a sandbox's load is far below one core's.
    let core = zone % cores;
    format!(
        "# Written for a sandbox.\n[node]\nzone = \"{}\"\ncluster = \"demo\"\ndata_dir = \"{}\"\n\n\
         [map]\ngzs = \"http://{gzs}\"\n\n\
         [router]\nlisten = [\"{client}\"]\npeer_listen = [\"{peer}\"]\nadmin = \"{router_admin}\"\ncores = [{core}]\n\n\
         [log]\nlisten = \"{link}\"\nadmin = \"{log_admin}\"\ncores = [{core}]\nstreams = 2\nsegment_mib = 4\n\n\
         {peers}",
        chart::ZONES[zone],
        data.display()
    )
}

/// How many each zone listens on.
const PORTS: usize = 5;

impl Ports {
    fn of(at: &[SocketAddr]) -> Ports {
        Ports { client: at[0], peer: at[1], router_admin: at[2], link: at[3], log_admin: at[4] }
    }
}

/// Below the ports that the kernel gives to connections: one of those could take a port while the process that listens there is down.
const PORTS_FROM: u16 = 10_000;
const PORTS_TO: u16 = 32_000;

/// Free ports, each another one. Nothing is bound to find out: a program that another thread starts at that moment would hold it for a
/// while longer.
fn probe(count: usize) -> io::Result<Vec<SocketAddr>> {
    let span = PORTS_TO - PORTS_FROM;
    // Not where another sandbox began that was started at the same time.
    let begin = (std::process::id() * 37 % u32::from(span)) as u16;
    let at = |n: u16| SocketAddr::from(([127, 0, 0, 1], PORTS_FROM + (begin + n) % span));
    let free: Vec<SocketAddr> = (0..span).map(at).filter(|at| TcpStream::connect(at).is_err()).take(count).collect();
    if free.len() < count {
        let (from, seen) = (PORTS_FROM, free.len());
        return Err(io::Error::other(format!("{seen} ports are free from {from} on, {count} are needed")));
    }
    Ok(free)
}
