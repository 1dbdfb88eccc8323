//! NATS JetStream as a log: its server with `sync_interval: always`, and a small client of its text protocol.
//!
//! A publish with a reply subject is acknowledged by the stream when the message is stored; so many may be under way on the
//! one connection as there are writers. The protocol: docs.nats.io, "Client Protocol".

use super::data::Data;
use super::sample::{Ask, Load, Sample, Times};
use super::worker;
use crate::compare::peers::{Running, free_address, install};
use crate::schedule::{Pace, Schedule};
use crate::sys;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Publishes under way at due times, at most; each has a reply subject of its own.
const SLOTS: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(20);

/// The server's version, if there is one that can be told to flush each message.
pub fn present(program: &str, dir: &Path) -> Result<String, String> {
    let run = |args: &[&str]| Command::new(program).args(args).output();
    let mut version = run(&["--version"]);
    if version.is_err() && program == "nats-server" {
        install(&["nats-server"]).map_err(|e| format!("no nats-server ({e})"))?;
        version = run(&["--version"]);
    }
    let version = version.map_err(|e| format!("{program}: {e}"))?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let config = configure(dir, ([127, 0, 0, 1], 4222).into())?;
    let said = run(&["-t", "-c", &config]).map_err(|e| format!("{program}: {e}"))?;
    if said.status.success() {
        return Ok(version);
    }
    let why = String::from_utf8_lossy(&said.stderr).trim().to_owned();
    Err(format!("{version} cannot be told to flush each message, 2.10 can: --nats-server PATH names another ({why})"))
}

/// Starts the server on whatever core is free; its address.
pub fn start(program: &str, dir: &Path) -> Result<(Running, SocketAddr), String> {
    let address = free_address()?;
    let command = format!("{program} -c {}", configure(dir, address)?);
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let running = Running::start(&command, &cores, &dir.join("nats.said"), false)?;
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        if Instant::now() > until {
            return Err(format!("`{command}` does not listen"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok((running, address))
}

fn configure(dir: &Path, address: SocketAddr) -> Result<String, String> {
    let (file, store) = (dir.join("nats.conf"), dir.join("nats"));
    let text = format!("listen: \"{address}\"\njetstream {{ store_dir: {store:?}, sync_interval: always }}\n");
    fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(file.display().to_string())
}

/// Answers loads on the server at `address`.
pub fn serve(address: &Path) -> Result<(), String> {
    let address: SocketAddr = address.to_str().and_then(|a| a.parse().ok()).ok_or("no server's address")?;
    let mut client = Client::connect(address)?;
    client.create()?;
    worker::answer_all(|ask| client.run(ask))
}

struct Client {
    out: Mutex<TcpStream>,
    read: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> Result<Client, String> {
        let io = |e: std::io::Error| format!("nats-server at {address}: {e}");
        let out = TcpStream::connect(address).map_err(io)?;
        out.set_nodelay(true).and_then(|()| out.set_read_timeout(Some(PATIENCE))).map_err(io)?;
        let read = BufReader::new(out.try_clone().map_err(io)?);
        let client = Client { out: Mutex::new(out), read };
        client.send(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB _INBOX.a.* 1\r\n")?;
        Ok(client)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), String> {
        let mut out = self.out.lock().map_err(|_| "the other half has panicked")?;
        out.write_all(bytes).map_err(|e| format!("nats-server: {e}"))
    }

    /// The stream: in files, one copy.
    fn create(&mut self) -> Result<(), String> {
        let wish = r#"{"name":"log","subjects":["log"],"storage":"file","num_replicas":1,"retention":"limits"}"#;
        self.send(format!("PUB $JS.API.STREAM.CREATE.log _INBOX.a.0 {}\r\n{wish}\r\n", wish.len()).as_bytes())?;
        acknowledged(&mut self.read, &self.out).map(drop)
    }

    fn run(&mut self, ask: &Ask) -> Result<Sample, String> {
        let (pace, slots) = match ask.load {
            Load::Closed { records: 1, writers } => (Pace::Closed, writers),
            Load::Closed { .. } => return Err("a message is a record: this server has no batches".into()),
            Load::Even { rate } => (Pace::Even { rate }, SLOTS),
        };
        let schedule = Schedule::new(pace, (ask.seconds * 1e9) as u64, u64::MAX);
        let (free, take) = channel();
        (0..slots).try_for_each(|slot| free.send(slot)).map_err(|e| e.to_string())?;
        let dues: Vec<Mutex<u64>> = (0..slots).map(|_| Mutex::new(0)).collect();
        let (cpu, begun) = (sys::cpu_ns(), Instant::now());
        let (sent, done) = channel();
        let out = &self.out;
        let read = &mut self.read;
        let times = thread::scope(|scope| {
            let sender = scope.spawn(|| publish(out, ask, schedule, begun, take, &dues, sent));
            let times = receive(read, out, begun, free, &dues, done);
            let sent = sender.join().unwrap_or_else(|_| Err("the sender has panicked".into()));
            sent.and(times)
        })?;
        let mut sample = Sample {
            seconds: begun.elapsed().as_secs_f64(),
            records: times.count(),
            bytes: times.count() * ask.record_bytes as u64,
            cpu_ns: sys::cpu_ns() - cpu,
            peak_bytes: sys::peak_bytes(),
            ..Sample::default()
        };
        times.tell(&mut sample);
        Ok(sample)
    }
}

/// Publishes what is due; each says so to `sent` first.
fn publish(
    out: &Mutex<TcpStream>,
    ask: &Ask,
    mut schedule: Schedule,
    begun: Instant,
    take: Receiver<usize>,
    dues: &[Mutex<u64>],
    sent: Sender<()>,
) -> Result<(), String> {
    sys::exact_timers();
    let mut data = Data::new(ask.record_bytes, 1);
    let now = || begun.elapsed().as_nanos() as u64;
    loop {
        let slot = take.recv_timeout(PATIENCE).map_err(|_| "nats-server acknowledges nothing any more")?;
        let Some(due) = schedule.peek(now()) else { return Ok(()) };
        schedule.advance();
        thread::sleep(Duration::from_nanos(due.saturating_sub(now())));
        *dues[slot].lock().map_err(|_| "the receiver has panicked")? = due;
        let (key, value) = data.pair();
        let mut message = format!("PUB log _INBOX.a.{slot} {}\r\n", key.len() + value.len()).into_bytes();
        [&key[..], &value[..], b"\r\n"].iter().for_each(|part| message.extend_from_slice(part));
        sent.send(()).map_err(|_| "the receiver has ended")?;
        let mut out = out.lock().map_err(|_| "the receiver has panicked")?;
        out.write_all(&message).map_err(|e| format!("nats-server: {e}"))?;
    }
}

/// Takes an acknowledgement for each that was sent, until the sender has gone.
fn receive(
    read: &mut BufReader<TcpStream>,
    out: &Mutex<TcpStream>,
    begun: Instant,
    free: Sender<usize>,
    dues: &[Mutex<u64>],
    done: Receiver<()>,
) -> Result<Times, String> {
    let mut times = Times::new();
    while done.recv().is_ok() {
        let slot = acknowledged(read, out)?;
        let due =
            *dues.get(slot).ok_or("an acknowledgement for nobody")?.lock().map_err(|_| "the sender has panicked")?;
        times.record((begun.elapsed().as_nanos() as u64).saturating_sub(due));
        let _ = free.send(slot); // the sender has gone: nobody wants it
    }
    Ok(times)
}

/// Reads up to the next answer; whose it is.
fn acknowledged(read: &mut BufReader<TcpStream>, out: &Mutex<TcpStream>) -> Result<usize, String> {
    let io = |e: std::io::Error| format!("nats-server: {e}");
    loop {
        let mut line = String::new();
        if read.read_line(&mut line).map_err(io)? == 0 {
            return Err("nats-server closed the connection".into());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["MSG", subject, .., len] => {
                let len: usize = len.parse().map_err(|_| format!("nats-server said {line:?}"))?;
                if len > 1 << 20 {
                    return Err(format!("nats-server answers with {len} bytes"));
                }
                let mut body = vec![0; len + 2];
                read.read_exact(&mut body).map_err(io)?;
                let body: Value = serde_json::from_slice(&body[..len]).map_err(|e| format!("nats-server: {e}"))?;
                if !body["error"].is_null() {
                    return Err(format!("nats-server: {}", body["error"]));
                }
                let slot = subject.rsplit('.').next().and_then(|s| s.parse().ok());
                return slot.ok_or_else(|| format!("nats-server said {line:?}"));
            }
            ["PING"] => {
                let mut out = out.lock().map_err(|_| "the sender has panicked")?;
                out.write_all(b"PONG\r\n").map_err(io)?;
            }
            ["-ERR", ..] => return Err(format!("nats-server: {}", line.trim())),
            _ => {} // INFO, +OK, PONG
        }
    }
}
