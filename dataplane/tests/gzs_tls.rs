//! Nodes that reach the Global Zone Service by https, each with its token: certificates from `ezone cert`, real processes.

mod process_kit;

use dataplane::control::gzs_client::{Denied, GzsClient};
use gzs::api::{OpAsk, What};
use process_kit::{Dir, PATIENCE, Running, addresses, http, map, within_or};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ZONES: [&str; 2] = ["bj", "sh"];
/// Owned by bj at first; a place in it.
const SHARD: (u16, &str) = (121, "loc=116.40,39.90");

struct World {
    running: Vec<Running>,
    at: [SocketAddr; 11],
    dir: Dir,
}

impl World {
    fn new() -> World {
        let world = World { running: vec![], at: addresses(), dir: Dir::new("world") };
        let dir = world.dir.join("tls");
        for what in [&["ca"][..], &["server", "--name", "127.0.0.1"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
            command.arg("cert").args(what).arg("--dir").arg(&dir);
            let done = command.stdout(Stdio::null()).status().unwrap();
            assert!(done.success(), "ezone cert {what:?}: {done}");
        }
        for who in ["node", "admin", "stranger"] {
            fs::write(world.dir.join(format!("{who}.token")), format!("the token of the {who}\n")).unwrap();
        }
        world
    }

    fn start(&mut self, program: &str, name: &str) {
        let said = File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.args([program, "--config"]).arg(self.dir.join(format!("{name}.toml"))).stdin(Stdio::null());
        let child = command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap();
        self.running.push(Running(child));
    }

    fn start_service(&mut self) {
        let text = format!(
            "[gzs]\ndata_dir = \"gzs\"\nlisten = \"{}\"\nmap = \"{}\"\ncool_down_s = 0\n\
             [[token]]\nname = \"nodes\"\nrole = \"node\"\nfile = \"node.token\"\n\
             [[token]]\nname = \"ana\"\nrole = \"admin\"\nfile = \"admin.token\"\n\
             [tls]\ncertificate = \"tls/server-127.0.0.1.pem\"\nkey = \"tls/server-127.0.0.1.key\"\n",
            self.at[10],
            map().display()
        );
        fs::write(self.dir.join("gzs.toml"), text).unwrap();
        self.start("gzs", "gzs");
    }

    /// A zone's log and router, which show this token and believe this authority.
    fn start_zone(&mut self, i: usize, token: &str, ca: &str) {
        let (zone, own, far, other) = (ZONES[i], &self.at[i * 5..], &self.at[(1 - i) * 5..], ZONES[1 - i]);
        let text = format!(
            "[node]\nzone = \"{zone}\"\ndata_dir = \"{zone}\"\n\
             [map]\ngzs = \"https://{}\"\ntoken_file = \"{token}.token\"\nca = \"{ca}\"\n\
             [router]\nlisten = [\"{}\"]\npeer_listen = [\"{}\"]\nadmin = \"{}\"\ncores = [0]\n\
             [log]\nlisten = \"{}\"\nadmin = \"{}\"\ncores = [0]\nstreams = 1\nsegment_mib = 1\n\
             [zones.{other}]\nrouter = \"{}\"\nlink = \"{}\"\n",
            self.at[10], own[0], own[1], own[2], own[3], own[4], far[1], far[3],
        );
        fs::write(self.dir.join(format!("{zone}.toml")), text).unwrap();
        self.start("log", zone);
        self.start("router", zone);
    }

    fn stop_nodes(&mut self) {
        self.running.truncate(1);
    }

    fn within<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        within_or(what, || self.dir.said(), look)
    }

    fn says(&self, what: &str) {
        self.within(what, || self.dir.said().contains(what).then_some(()));
    }

    fn client(&self, token: &str, ca: Option<&str>) -> GzsClient {
        let token = fs::read_to_string(self.dir.join(format!("{token}.token"))).unwrap().trim().to_owned();
        let ca = ca.map(|ca| self.dir.join(ca));
        GzsClient::believing(&format!("https://{}", self.at[10]), Some(token), ca.as_deref()).unwrap()
    }

    fn order(&self, zone: usize) -> Option<u16> {
        let ask = format!(
            "POST /records/orders HTTP/1.1\r\nhost: x\r\nx-shard: {}\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}",
            SHARD.1
        );
        http(self.at[zone * 5], &ask).ok().map(|(status, _)| status)
    }
}

#[tokio::test]
async fn nodes_are_told_maps_and_tell_how_they_are_over_tls_with_tokens_and_nobody_else_is_let_in() {
    let mut world = World::new();
    world.start_service();
    world.within("the service is heard", || std::net::TcpStream::connect(world.at[10]).ok());
    // A token that is not known, and an authority that has not signed: said, and tried again.
    world.start_zone(0, "stranger", "tls/ca.pem");
    world.says("it answered 401");
    world.stop_nodes();
    let other = world.dir.join("other");
    let mut made = Command::new(env!("CARGO_BIN_EXE_ezone"));
    assert!(made.args(["cert", "ca", "--dir"]).arg(&other).stdout(Stdio::null()).status().unwrap().success());
    world.start_zone(0, "node", "other/ca.pem");
    world.says("invalid peer certificate");
    world.stop_nodes();

    for zone in 0..ZONES.len() {
        world.start_zone(zone, "node", "tls/ca.pem");
    }
    for zone in 0..ZONES.len() {
        world.within("orders are taken", || world.order(zone).filter(|status| *status == 201));
    }
    let client = world.client("admin", Some("tls/ca.pem"));
    let until = Instant::now() + PATIENCE;
    loop {
        let state = client.state().await.unwrap();
        let up = state.zones.iter().filter(|z| z.state == "up" && z.nodes.len() == 2).count();
        if up == ZONES.len() {
            break;
        }
        assert!(Instant::now() < until, "{:?}\n{}", state.zones, world.dir.said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let what = What::Move { shards: vec![SHARD.0], to: "sh".into() };
    let ask = OpAsk { what, by: String::new(), why: "a test".into(), force: false, limit_ms: None };
    let op = client.begin(&ask).await.unwrap();
    let ended = client.ended(op.id, PATIENCE).await.unwrap();
    assert_eq!((ended.state.as_str(), ended.by.as_str()), ("done", "ana"), "{ended:?}");
    assert_eq!(world.order(0), Some(201));

    // What a node may do is not what a person may, and the other way round.
    let refused = world.client("node", Some("tls/ca.pem")).state().await.unwrap_err();
    assert!(matches!(refused, Denied::Refused { status: 403, .. }), "{refused}");
    let stranger = world.client("stranger", Some("tls/ca.pem")).state().await.unwrap_err();
    assert!(matches!(stranger, Denied::Refused { status: 401, .. }), "{stranger}");
    assert!(matches!(world.client("admin", Some("other/ca.pem")).state().await, Err(Denied::Unreachable { .. })));
}
