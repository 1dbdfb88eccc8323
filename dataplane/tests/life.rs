//! The life of a router as an operator leads it: reloads, upgrades, ends, under clients that count every failure. Real processes.

mod process_kit;

use process_kit::{Dir, PATIENCE, Running, addresses, backend, copied, read_head, within, within_or};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

/// Requests that backends never answer, by the process of the test.
static NEVER: AtomicU64 = AtomicU64::new(0);
/// Tests that count them take turns.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A router of zone bj with two backends, alone or under `ezone run`; gone at the end with every process.
struct Node {
    started: Vec<Running>,
    dir: Dir,
    config: PathBuf,
    at: SocketAddr,
    second: SocketAddr,
    admin: SocketAddr,
    backends: [SocketAddr; 2],
}

impl Node {
    fn new(name: &str) -> Node {
        let dir = Dir::new(name);
        let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shardmap/data");
        for file in fs::read_dir(map).unwrap() {
            let from = file.unwrap().path();
            fs::copy(&from, dir.join(from.file_name().unwrap())).unwrap();
        }
        let backends = [named("one"), named("two")];
        let config = dir.join("node.toml");
        let [at, second, admin] = addresses();
        let node = Node { started: vec![], dir, config, at, second, admin, backends };
        node.write(0, &[at], "");
        node
    }

    /// Writes the configuration: which backend, which addresses, and what else is said.
    fn write(&self, backend: usize, listen: &[SocketAddr], more: &str) {
        self.write_on(backend, listen, "[0]", more);
    }

    fn write_on(&self, backend: usize, listen: &[SocketAddr], cores: &str, more: &str) {
        let listen: Vec<String> = listen.iter().map(|a| format!("\"{a}\"")).collect();
        let text = format!(
            "[node]\nzone = \"bj\"\ndata_dir = \"data\"\n[map]\nfile = \"china.toml\"\n\
             [router]\nlisten = [{}]\nadmin = \"{}\"\ncores = {cores}\n{more}\n\
             [[service]]\nname = \"s\"\nprefix = \"/\"\nendpoints = [\"{}\"]\n",
            listen.join(", "),
            self.admin,
            self.backends[backend]
        );
        fs::write(&self.config, text).unwrap();
    }

    fn start(&mut self, program: &str, exe: &Path) {
        let said = fs::File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        let mut command = Command::new(exe);
        command.args([program, "--config"]).arg(&self.config).stdin(Stdio::null());
        self.started.push(Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()));
        within("the router is ready", || (self.get("/readyz").0 == 200).then_some(()));
    }

    fn signal(&self, signal: rustix::process::Signal) {
        kill(self.started[0].id(), signal);
    }

    /// What an admin page says.
    fn page(&self, method: &str, path: &str) -> (u16, String) {
        let asked = connect(self.admin).and_then(|mut stream| {
            stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let answer = asked.unwrap_or_default();
        let status = answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, b)| b.into()))
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.page("GET", path)
    }

    fn life(&self) -> serde_json::Value {
        within("the status", || serde_json::from_str::<serde_json::Value>(&self.get("/status").1).ok())["life"].take()
    }

    fn pid(&self) -> u64 {
        self.life()["pid"].as_u64().unwrap()
    }

    fn said(&self) -> String {
        self.dir.said()
    }

    /// Waits for the end of the process that was started; its exit code.
    fn ended(&mut self) -> i32 {
        self.started[0].ended().code().unwrap_or(-1)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A successor is not our child: it is known by what its own status says, and ends before its directory goes.
        if let Ok(status) = serde_json::from_str::<serde_json::Value>(&self.get("/status").1)
            && let Some(pid) = status["life"]["pid"].as_u64()
        {
            kill(pid as u32, rustix::process::Signal::KILL);
        }
    }
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _ = rustix::process::kill_process(pid, signal); // it may have ended
}

fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ezone"))
}

/// Answers with its name; `/slow` after a second, `/never` not at all.
fn named(name: &'static str) -> SocketAddr {
    backend(move |head| {
        match head.split(' ').nth(1) {
            Some("/slow") => sleep(Duration::from_secs(1)),
            Some("/never") => {
                NEVER.fetch_add(1, Relaxed);
                sleep(PATIENCE);
            }
            _ => {}
        }
        Some(format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{name}"))
    })
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request; its head and its body.
fn ask(stream: &mut TcpStream, path: &str) -> Result<(String, String), String> {
    let head = format!("GET {path} HTTP/1.1\r\nhost: h\r\nx-shard: loc=116.40,39.90\r\n\r\n");
    stream.write_all(head.as_bytes()).map_err(|e| format!("send: {e}"))?;
    let head = read_head(stream).ok_or("the connection ended without an answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(head);
    }
    let mut body = [0u8; 3];
    stream.read_exact(&mut body).map_err(|e| format!("body: {e}"))?;
    Ok((head, String::from_utf8_lossy(&body).into()))
}

/// Clients that ask all the time: some with a new connection for each request, some that keep theirs as long as they may.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(at: SocketAddr) -> Load {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let one = |keeps: bool| {
            let (stop, served) = (stop.clone(), served.clone());
            spawn(move || {
                let (mut failed, mut kept) = (vec![], None);
                while !stop.load(Relaxed) {
                    let stream = kept.take().map_or_else(|| connect(at).map_err(|e| format!("connect: {e}")), Ok);
                    match stream.and_then(|mut s| ask(&mut s, "/").map(|answer| (s, answer))) {
                        Ok((stream, (head, _))) => {
                            served.fetch_add(1, Relaxed);
                            kept = (keeps && !head.contains("connection: close")).then_some(stream);
                        }
                        Err(why) => failed.push(why),
                    }
                }
                failed
            })
        };
        let threads = [false, false, true, true].into_iter().map(one).collect();
        Load { stop, served, threads }
    }

    /// Waits until so many more are served.
    fn goes_on(&self, more: u64) {
        let before = self.served.load(Relaxed);
        within("requests are served", || (self.served.load(Relaxed) >= before + more).then_some(()));
    }

    /// Ends without a failure.
    fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        let failed: Vec<String> = self.threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        assert!(failed.is_empty(), "{} failed, such as {:?}", failed.len(), failed.first());
        self.served.load(Relaxed)
    }
}

#[test]
fn a_hundred_reloads_under_load_fail_no_request() {
    let mut node = Node::new("reloads");
    node.start("router", exe());
    let load = Load::start(node.at);
    for round in 0..100 {
        let both = [node.at, node.second];
        let listen = if round % 10 < 5 { &both[..1] } else { &both[..] };
        node.write(round % 2, listen, &format!("[limits]\nidle_ms_max = {}\n", 30_000 + round));
        let (status, said) = node.page("POST", "/reload");
        assert_eq!(status, 200, "{said}");
        let answers = || ask(&mut connect(node.at).unwrap(), "/").unwrap().1;
        within("the other backend answers", || (answers() == ["one", "two"][round % 2]).then_some(()));
        if listen.len() == 2 {
            assert!(ask(&mut connect(node.second).unwrap(), "/").is_ok());
        }
        load.goes_on(5);
    }
    let served = load.end();
    assert_eq!(node.life()["reloads"], 100, "served {served}");
    eprintln!("100 reloads, {served} requests, 0 failed");
}

#[test]
fn a_bad_file_changes_nothing_and_says_all_that_is_wrong() {
    let mut node = Node::new("bad");
    node.start("router", exe());
    let answers = || ask(&mut connect(node.at).unwrap(), "/").unwrap().1;
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    for (listen, more, said) in [
        (vec![node.at], "[limits]\nhead_bytes_max = 1\nidle_ms_max = 0\n", vec!["head_bytes_max", "idle_ms_max"]),
        (vec![node.at, stranger.local_addr().unwrap()], "", vec!["another process listens there"]),
        (vec![node.at], "nonsense = 1", vec!["nonsense"]),
        (vec![node.at], "[zones.atlantis]\nrouter = \"127.0.0.1:1\"\n", vec!["[zones.atlantis] is not in the map"]),
    ] {
        node.write(1, &listen, more);
        let (check, _) = node.page("POST", "/check");
        let (status, body) = node.page("POST", "/reload");
        assert!(said.iter().all(|s| body.contains(s)), "{said:?} not in {body}");
        assert_eq!(status, 422);
        assert!(check == 422 || more.is_empty(), "a check binds nothing and says the rest");
        assert_eq!(answers(), "one");
    }
    node.write_on(1, &[node.at, node.second], "[0, 1]", "");
    let (status, body) = node.page("POST", "/reload");
    assert!(
        status == 422 && body.contains("[router] cores was [0] and is now [0, 1]") && body.contains("SIGUSR2"),
        "{body}"
    );
    assert!(TcpStream::connect(node.second).is_err() && answers() == "one", "nothing is partly applied");
    let life = node.life();
    assert_eq!((&life["reloads"], &life["reloads_refused"]), (&0.into(), &5.into()));
    assert_eq!(life["last_reload"]["outcome"], "refused");
    node.write(1, &[node.at], "");
    node.signal(rustix::process::Signal::HUP);
    within("the reload by signal", || (node.life()["reloads"] == 1).then_some(()));
    within("the other backend answers", || (answers() == "two").then_some(()));
}

/// A copy of the program that may be replaced.
fn installed(node: &Node) -> PathBuf {
    let path = node.dir.join("ezone");
    copied(exe(), &path);
    path
}

fn replace(path: &Path, with: &Path) {
    let beside = path.with_extension("new");
    copied(with, &beside);
    fs::rename(beside, path).unwrap();
}

/// The successor's process, once it answers; an upgrade that fails, beyond those that were to, is told at once.
fn upgraded(node: &Node, from: u64, failed: u64) -> u64 {
    let look = || {
        let life = node.life();
        let same = life["pid"] == from;
        assert!(!same || life["upgrades_failed"] == failed, "{life}\n{}", node.said());
        life["pid"].as_u64().filter(|_| !same)
    };
    within_or("a successor", || node.said(), look)
}

#[test]
fn five_upgrades_under_load_refuse_and_fail_nothing() {
    let mut node = Node::new("upgrades");
    let program = installed(&node);
    node.start("router", &program);
    let load = Load::start(node.at);
    let mut pid = node.pid();
    for round in 0..5 {
        load.goes_on(200);
        replace(&program, exe());
        // Fewer and more cores in turn: every queue of the predecessor goes on to be accepted from.
        node.write_on(round % 2, &[node.at], ["[0, 1]", "[0]"][round % 2], "");
        if round % 2 == 0 {
            kill(pid as u32, rustix::process::Signal::USR2);
        } else {
            assert_eq!(node.page("POST", "/upgrade").0, 202);
        }
        let next = upgraded(&node, pid, 0);
        load.goes_on(50);
        within("the predecessor ends", || {
            (!Path::new(&format!("/proc/{pid}/cmdline")).exists() || zombie(pid)).then_some(())
        });
        pid = next;
    }
    load.goes_on(200);
    let served = load.end();
    eprintln!("5 upgrades, {served} requests, 0 failed");
    assert_eq!(node.ended(), 0, "the first one ended in order");
    kill(pid as u32, rustix::process::Signal::TERM);
    within("the last one ends", || TcpStream::connect(node.at).is_err().then_some(()));
}

/// It has ended and was not waited for.
fn zombie(pid: u64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "))
}

#[test]
fn a_node_follows_its_router_to_its_successors() {
    let mut node = Node::new("run");
    let program = installed(&node);
    node.start("run", &program);
    let load = Load::start(node.at);
    let mut pid = node.pid();
    for round in 0..3 {
        load.goes_on(100);
        replace(&program, exe());
        if round % 2 == 0 {
            node.signal(rustix::process::Signal::USR2);
        } else {
            assert_eq!(node.page("POST", "/upgrade").0, 202);
        }
        pid = upgraded(&node, pid, 0);
    }
    node.write(1, &[node.at], "");
    node.signal(rustix::process::Signal::HUP);
    within("the reload, passed on", || (node.life()["reloads"] == 1).then_some(()));
    load.goes_on(100);
    load.end();
    // The successor is watched: killed, it is started again, by the program that lies there now.
    kill(pid as u32, rustix::process::Signal::KILL);
    within("it is started again", || (node.get("/readyz").0 == 200).then_some(()));
    assert!(node.said().contains("starting it again"));
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.ended(), 0, "{}", node.said());
    assert!(TcpStream::connect(node.at).is_err());
}

/// It is sent to whole process groups, and to one that has not come up yet.
#[test]
fn a_signal_does_not_keep_a_successor_from_taking_over() {
    let node = Node::new("interrupted");
    fs::create_dir_all(node.dir.join("data")).unwrap();
    let predecessor = std::os::unix::net::UnixListener::bind(node.dir.join("data/router.sock")).unwrap();
    let said = fs::File::create(node.dir.join("said")).unwrap();
    let mut command = Command::new(exe());
    command.args(["router", "--take-over", "--config"]).arg(&node.config).stdin(Stdio::null());
    let mut successor = Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap());
    let (stream, _) = predecessor.accept().unwrap();
    for _ in 0..20 {
        sleep(Duration::from_millis(10));
        kill(successor.id(), rustix::process::Signal::HUP);
    }
    assert!(successor.0.try_wait().unwrap().is_none(), "{}", node.said());
    drop(stream);
    assert_eq!(successor.ended().code(), Some(1));
    assert!(node.said().contains("router.sock: the predecessor refused, or ended"), "{}", node.said());
}

/// Otherwise 1,024 clients are all, where the system would give a million.
#[test]
fn a_router_takes_the_descriptors_that_it_may_have_and_says_if_they_are_few() {
    let mut node = Node::new("descriptors");
    let few = node.dir.join("few");
    fs::write(&few, format!("#!/bin/sh\nulimit -Sn 300\nulimit -Hn 900\nexec {} \"$@\"\n", exe().display())).unwrap();
    fs::set_permissions(&few, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    node.start("router", &few);
    let limits = fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["900", "900"], "{line}");
    assert!(node.said().contains("at most 900 descriptors may be open here, 20000 are needed"), "{}", node.said());
}

#[test]
fn a_successor_that_does_not_come_up_changes_nothing() {
    let mut node = Node::new("failing");
    let program = installed(&node);
    node.start("router", &program);
    let load = Load::start(node.at);
    let pid = node.pid();
    let mut failed = 0;
    let mut fails = |node: &Node, why: &str| {
        assert!(node.page("POST", "/upgrade").0 != 409);
        failed += 1;
        within("the failure is shown", || (node.life()["upgrades_failed"] == failed).then_some(()));
        let life = node.life();
        assert!(life["last_upgrade"]["problems"].to_string().contains(why), "{life}");
        assert_eq!(life["pid"], pid);
        load.goes_on(50);
    };
    node.write(0, &[node.at], "nonsense = 1");
    fails(&node, "exit status: 2");
    node.write(0, &[node.at], "[zones.atlantis]\nrouter = \"127.0.0.1:1\"\n");
    fails(&node, "ended");
    fs::write(node.dir.join("hangs"), "#!/bin/sh\nexec sleep 100000\n").unwrap();
    fs::set_permissions(node.dir.join("hangs"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(node.dir.join("hangs"), &program).unwrap();
    fails(&node, "signal: 9");
    assert!(node.said().contains("did not ask for the listeners within 30s"), "{}", node.said());
    fs::write(node.dir.join("broken"), "no program").unwrap();
    fs::rename(node.dir.join("broken"), &program).unwrap();
    fails(&node, "ezone");
    replace(&program, exe());
    node.write(0, &[node.at], "");
    assert_eq!(node.page("POST", "/upgrade").0, 202);
    upgraded(&node, pid, 4);
    load.goes_on(50);
    load.end();
}

/// Its end and the end of its connection are two events, in either order; counted twice, the second would end its successor.
#[test]
fn a_successor_that_ends_while_it_takes_the_listeners_failed_once() {
    let mut node = Node::new("once");
    let program = installed(&node);
    node.start("router", &program);
    let ends = format!("#!/bin/sh\nwhile [ ! -e {} ]; do sleep 0.05; done\nexit 3\n", node.dir.join("go").display());
    fs::write(node.dir.join("ends"), ends).unwrap();
    fs::set_permissions(node.dir.join("ends"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(node.dir.join("ends"), &program).unwrap();
    assert_eq!(node.page("POST", "/upgrade").0, 202);
    let mut connection = std::os::unix::net::UnixStream::connect(node.dir.join("data/router.sock")).unwrap();
    connection.read_exact(&mut [0]).unwrap();
    fs::write(node.dir.join("go"), "").unwrap();
    sleep(Duration::from_millis(500));
    assert_eq!(node.page("POST", "/upgrade").0, 409, "the listeners are still being given");
    drop(connection);
    within("the failure is shown", || (node.life()["upgrades_failed"] != 0).then_some(()));
    sleep(Duration::from_millis(300));
    let life = node.life();
    assert_eq!(life["upgrades_failed"], 1, "{life}\n{}", node.said());
    assert!(life["last_upgrade"]["problems"].to_string().contains("exit status: 3"), "{life}");
    replace(&program, exe());
    assert_eq!(node.page("POST", "/upgrade").0, 202);
    let pid = node.pid();
    upgraded(&node, pid, 1);
}

#[test]
fn sigterm_lets_load_balancers_look_away_then_answers_what_is_in_flight() {
    let mut node = Node::new("term");
    node.write(0, &[node.at], "drain_delay_ms = 1500");
    node.start("router", exe());
    let (mut idle, mut slow) = (connect(node.at).unwrap(), connect(node.at).unwrap());
    ask(&mut idle, "/").unwrap();
    node.signal(rustix::process::Signal::TERM);
    within("readyz says 503", || (node.get("/readyz").0 == 503).then_some(()));
    assert_eq!(node.get("/status").0, 200);
    assert!(ask(&mut connect(node.at).unwrap(), "/").is_ok(), "who has not looked away yet is served");
    let slow = spawn(move || {
        sleep(Duration::from_millis(1000));
        ask(&mut slow, "/slow")
    });
    let (head, _) = slow.join().unwrap().expect("a request in flight is answered");
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!(node.ended(), 0);
    assert!(!node.said().contains("cut off"), "{}", node.said());
}

/// A request that is in flight, and stays so.
fn stuck(at: SocketAddr) -> JoinHandle<Result<(String, String), String>> {
    let (mut stream, before) = (connect(at).unwrap(), NEVER.load(Relaxed));
    let asked = spawn(move || ask(&mut stream, "/never"));
    within("it is in flight", || (NEVER.load(Relaxed) > before).then_some(()));
    asked
}

#[test]
fn what_does_not_end_is_cut_off_at_the_limit_and_counted() {
    let mut node = Node::new("limit");
    node.write(0, &[node.at], "[limits]\ndrain_ms_max = 500\n");
    node.start("router", exe());
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let stuck = stuck(node.at);
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.ended(), 0);
    assert!(node.said().contains("1 requests were cut off after 500 ms"), "{}", node.said());
    assert!(stuck.join().unwrap().is_err());
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let mut node = Node::new("twice");
    node.write(0, &[node.at], "[limits]\ndrain_ms_max = 3600000\n");
    node.start("router", exe());
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let stuck = stuck(node.at);
    node.signal(rustix::process::Signal::TERM);
    within("it drains", || node.said().contains("stopping").then_some(()));
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.ended(), 0);
    assert!(node.said().contains("asked again to stop: ends at once, 1 connections"), "{}", node.said());
    assert!(stuck.join().unwrap().is_err());
}

#[test]
fn the_systemd_units_are_units() {
    for name in ["ezone.service", "ezone-gzs.service"] {
        let unit = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)).unwrap();
        let dir = Dir::new("unit");
        let file = dir.join(name);
        fs::write(&file, unit.replace("/usr/bin/ezone", &exe().display().to_string())).unwrap();
        let verified = Command::new("systemd-analyze").arg("verify").arg(&file).output();
        let Ok(verified) = verified else {
            // Said, not hidden.
            return eprintln!("NOT RUN: systemd-analyze is not installed here");
        };
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let ours: Vec<&str> = said.lines().filter(|l| l.contains(name)).collect();
        assert!(verified.status.success() && ours.is_empty(), "{said}");
    }
}
