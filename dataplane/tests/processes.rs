//! The programs as an operator meets them: real processes, wrong input, taken ports, kills.

mod process_kit;

use process_kit::{Dir, Running, addresses, http, map, within, within_or};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A node of zone bj with a map that never changes.
struct Node {
    dir: Dir,
    ports: [SocketAddr; 5],
    config: PathBuf,
}

impl Node {
    fn new(name: &str) -> Node {
        let dir = Dir::new(name);
        let ports: [_; 5] = addresses();
        let text = format!(
            "[node]\nzone = \"bj\"\ndata_dir = \"{}\"\n[map]\nfile = \"{}\"\n\
             [router]\nlisten = [\"{}\"]\npeer_listen = [\"{}\"]\nadmin = \"{}\"\ncores = [0]\n\
             [log]\nlisten = \"{}\"\nadmin = \"{}\"\ncores = [0]\nstreams = 2\nsegment_mib = 1\n",
            dir.join("data").display(),
            map().display(),
            ports[0],
            ports[1],
            ports[2],
            ports[3],
            ports[4]
        );
        let config = dir.join("node.toml");
        fs::write(&config, text).unwrap();
        Node { dir, ports, config }
    }

    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.config).unwrap();
        assert!(text.contains(from));
        fs::write(&self.config, text.replace(from, to)).unwrap();
    }

    fn start(&self, program: &str) -> Running {
        let out = fs::File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        let mut command = ezone(program, &self.config);
        let child = command.stdin(Stdio::piped()).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        Running(child)
    }

    /// Runs a program that is expected to end by itself.
    fn refused(&self, program: &str) -> (i32, String) {
        // Its standard input stays open: the end of that is a request to end, and could come first.
        let mut child = ezone(program, &self.config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        within("the program ends", || child.try_wait().unwrap());
        let Output { status, stderr, stdout } = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&stderr).into_owned() + &String::from_utf8_lossy(&stdout);
        (status.code().unwrap_or(-1), said)
    }

    /// Waits until the router answers for the log.
    fn ready(&self) {
        let said = || format!("{}\nnow: {:?}\n{:?}", self.said(), self.post("{}"), self.status());
        let written = || self.post("{}").ok().filter(|(status, _)| *status == 201);
        within_or("the node takes writes", said, written);
    }

    fn post(&self, body: &str) -> std::io::Result<(u16, String)> {
        let head = format!("x-shard: loc=116.40,39.90\r\ncontent-length: {}\r\n", body.len());
        http(
            self.ports[0],
            &format!("POST /records/orders HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}\r\n{body}"),
        )
    }

    fn get(&self, id: &str) -> std::io::Result<(u16, String)> {
        http(self.ports[0], &format!("GET /records/orders/{id} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
    }

    /// What the log's admin page shows.
    fn status(&self) -> std::io::Result<serde_json::Value> {
        let (_, body) = http(self.ports[4], "GET /status HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
        Ok(serde_json::from_str(&body)?)
    }

    fn said(&self) -> String {
        self.dir.said()
    }
}

fn ezone(program: &str, config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
    command.arg(program);
    if program != "run" && program != "check" {
        command.arg("--stop-with-stdin");
    }
    command.arg("--config").arg(config);
    command
}

fn id_of(answer: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(answer).unwrap();
    json["id"].as_str().expect("ids are strings in JSON").to_owned()
}

#[test]
fn wrong_input_ends_with_2_and_says_where() {
    let node = Node::new("wrong");
    node.edit("streams = 2", "steams = 2");
    let (code, said) = node.refused("check");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("node.toml:") && said.contains("steams"), "{said}");
    node.edit("steams = 2", "streams = 2");
    node.edit("zone = \"bj\"", "zone = \"gz\"");
    let (code, said) = node.refused("log");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("\"gz\"") && said.contains("bj"), "the zones that there are: {said}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let node = Node::new("taken");
    for (port, program, key) in [
        (0, "router", "listen"),
        (1, "router", "peer_listen"),
        (2, "router", "admin"),
        (3, "log", "listen"),
        (4, "log", "admin"),
    ] {
        let _holder = TcpListener::bind(node.ports[port]).unwrap();
        let (code, said) = node.refused(program);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&format!("{key} = {}", node.ports[port])) && said.contains("another process"), "{said}");
    }
}

#[test]
fn a_data_directory_in_use_is_refused_and_so_is_another_number_of_streams() {
    let node = Node::new("in-use");
    let (mut log, _router) = (node.start("log"), node.start("router"));
    node.ready();
    let other = Node::new("in-use-too");
    other.edit(&other.dir.join("data").display().to_string(), &node.dir.join("data").display().to_string());
    let (code, said) = other.refused("log");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("in use by another process"), "{said}");
    assert_eq!(log.term(), 0);
    other.edit("streams = 2", "streams = 3");
    let (code, said) = other.refused("log");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("has 2 streams") && said.contains("says 3"), "{said}");
}

#[test]
fn damage_in_the_middle_of_a_log_keeps_it_closed_and_is_named() {
    let node = Node::new("corrupt");
    {
        let (mut log, _router) = (node.start("log"), node.start("router"));
        node.ready();
        for i in 0..20 {
            assert_eq!(node.post(&format!("{{\"i\":{i}}}")).unwrap().0, 201);
        }
        assert_eq!(log.term(), 0);
    }
    let mut flipped = 0;
    for stream in ["0", "1"] {
        for file in fs::read_dir(node.dir.join("data/log").join(stream)).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            // The body of the second batch: the first block is the segment's header.
            if path.extension().is_some_and(|e| e == "rlog") && bytes.len() > 8400 && bytes[8192..8196] == *b"RLB1" {
                bytes[8192 + 140] ^= 0x10;
                fs::write(&path, bytes).unwrap();
                flipped += 1;
            }
        }
    }
    assert!(flipped > 0);
    let (code, said) = node.refused("log");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("corrupt") && said.contains(".rlog") && said.contains("checksum"), "{said}");
}

#[test]
fn what_was_acknowledged_survives_kills_of_the_log_and_is_there_once() {
    let node = Node::new("killed");
    let _router = node.start("router");
    let mut acknowledged = vec![];
    for round in 0..8 {
        let mut log = node.start("log");
        node.ready();
        let until = Instant::now() + Duration::from_millis(100 + 37 * round);
        while Instant::now() < until {
            let token = format!("{{\"token\":{}}}", acknowledged.len());
            if let Ok((201, answer)) = node.post(&token) {
                acknowledged.push((id_of(&answer), token));
            }
        }
        log.kill();
    }
    let _log = node.start("log");
    node.ready();
    assert!(acknowledged.len() > 50, "{} writes are too few to tell", acknowledged.len());
    for (id, token) in &acknowledged {
        assert_eq!(node.get(id).unwrap(), (200, token.clone()), "{id}");
    }
    let mut ids: Vec<_> = acknowledged.iter().map(|a| &a.0).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), acknowledged.len(), "no id is given twice, over all restarts");
}

#[test]
fn a_node_starts_again_what_is_killed_and_ends_in_order() {
    let node = Node::new("run");
    let mut run = node.start("run");
    node.ready();
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.id())).unwrap();
    let pids: Vec<i32> = children.split_whitespace().map(|p| p.parse().unwrap()).collect();
    assert_eq!(pids.len(), 2, "{children}");
    for pid in pids {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    within("both were started again", || (node.said().matches("starting it again").count() >= 2).then_some(()));
    node.ready();
    assert_eq!(run.term(), 0, "{}", node.said());
    assert!(TcpStream::connect(node.ports[0]).is_err() && TcpStream::connect(node.ports[4]).is_err());
}

#[test]
fn garbage_on_any_port_harms_nobody() {
    let node = Node::new("garbage");
    let (_log, _router) = (node.start("log"), node.start("router"));
    node.ready();
    let mut seed = 7u64;
    for at in &node.ports {
        for _ in 0..20 {
            let mut bytes = vec![0u8; 3000];
            for b in &mut bytes {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *b = (seed >> 33) as u8;
            }
            let mut stream = TcpStream::connect(at).unwrap();
            let _ = stream.write_all(&bytes); // it may have been refused already
        }
    }
    let mut port = std::os::unix::net::UnixStream::connect(node.dir.join("data/port-0.sock")).unwrap();
    port.write_all(&[0xff; 64]).unwrap();
    let mut end = vec![];
    assert_eq!(port.read_to_end(&mut end).unwrap(), 0, "closed without a word");
    node.ready();
    within("each stranger at the link's port is counted", || {
        (node.status().ok()?["links_refused"].as_u64()? >= 20).then_some(())
    });
    assert!(node.said().matches("; closed").count() < 20, "and not each is told: {}", node.said());
    let (status, body) = http(node.ports[0], "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n").unwrap();
    assert_eq!(status, 400, "{body}");
    let (status, body) = http(node.ports[0], "GET /nothing HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    assert!((400..500).contains(&status) && body.contains("error"), "{status} {body}");
}

/// A small file system on a loop device, unmounted at the end; `None` where one cannot be made.
struct SmallDisk(Dir);

impl SmallDisk {
    fn new(mib: u64) -> Option<SmallDisk> {
        let dir = Dir::new("disk");
        let (image, at) = (dir.join("image"), dir.join("mnt"));
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir_all(&at).unwrap();
        let run = |program: &str, args: &[&std::ffi::OsStr]| {
            Command::new(program).args(args).output().is_ok_and(|o| o.status.success())
        };
        let made = run("mkfs.ext4", &["-q".as_ref(), image.as_ref()])
            && run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), at.as_ref()]);
        made.then(|| SmallDisk(dir))
    }
    fn path(&self) -> PathBuf {
        self.0.join("mnt")
    }
}
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_writes_loses_nothing_and_takes_them_again() {
    let Some(disk) = SmallDisk::new(64) else {
        // Said, not hidden: without root or loop devices this machine cannot show it.
        return eprintln!("NOT RUN: no file system could be made on a loop device here (needs root)");
    };
    let node = Node::new("full");
    node.edit(&node.dir.join("data").display().to_string(), &disk.path().join("data").display().to_string());
    let (mut log, _router) = (node.start("log"), node.start("router"));
    node.ready();
    let ballast = disk.path().join("ballast");
    let file = fs::File::create(&ballast).unwrap();
    let mut all = vec![0u8; 1 << 20];
    all.fill(7);
    while (&file).write_all(&all).is_ok() {}
    let value = format!("{{\"v\":\"{}\"}}", "x".repeat(60_000));
    let mut acknowledged = vec![];
    let refused = within("a write is refused", || match node.post(&value) {
        Ok((201, answer)) => {
            acknowledged.push(id_of(&answer));
            None
        }
        Ok(other) => Some(other),
        Err(_) => None,
    });
    assert_eq!(refused.0, 507, "{refused:?}");
    // Whoever looks why is answered, and the store, which has no room either by now or soon, keeps nobody from ending.
    within("the store is full, and the status says so", || {
        let _ = node.post(&value); // what the log still takes fills the store
        (node.status().ok()?["store_full"] == true).then_some(())
    });
    assert_eq!(node.get(&acknowledged[0]).unwrap().0, 507, "a row may be out of date");
    assert_eq!(http(node.ports[4], "GET /digest HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap().0, 200);
    assert_eq!(log.term(), 0, "{}", node.said());
    drop(file);
    fs::remove_file(&ballast).unwrap();
    let _log = node.start("log");
    within("writes are taken again", || node.post("{}").ok().filter(|(status, _)| *status == 201));
    for id in &acknowledged {
        assert_eq!(within("it is read", || node.get(id).ok()), (200, value.clone()), "{id}");
    }
    assert!(!acknowledged.is_empty());
}
