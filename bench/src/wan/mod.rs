//! A WAN on this machine: delay, jitter, loss, rate, queue and cuts between two network namespaces, for any program.
//!
//! ```text
//!   namespace a            this program                            namespace b
//!   10.88.0.1  wan0 (TUN) ─▶ cut, queue, rate, loss, delay ─▶ (TUN) wan0  10.88.0.2
//!                         ◀─            the same           ◀─
//! ```
//!
//! `line` and `packet` are pure: packets and the time in, packets out. `carry`, `side` and `relay` touch the world. The devices hand over
//! what TCP has not cut into segments yet, so that one thread carries more than 1 Gb/s; `line` says what a loss is then.

mod carry;
mod cut;
mod line;
mod options;
mod packet;
mod relay;
mod side;

use crate::{sys, upstream};
pub use carry::Wan;
use options::{Options, Order};
pub use options::{Rate, plain, rate};
use relay::{Relay, Route};
use serde_json::{Value, json};
pub use side::{Side, Stack, leave, sweep};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long the program at b may take to end once it is asked to.
const END_MAX: Duration = Duration::from_secs(3);
/// The longest order that stdin may give.
const ORDER_BYTES_MAX: usize = 1024;

#[derive(clap::Args)]
#[command(after_help = "\
Needs root and /dev/net/tun, but for --relay. Without a program the link stays up until ^C, SIGTERM or the end of stdin, and takes
orders on stdin, one a line, each answered by a line: cut, heal, loss P, corrupt P, each-way-ms N, rate R, counters.
The program runs at a (namespace and addresses are in EZWAN_A, EZWAN_B, EZWAN_ADDRESS_A, EZWAN_ADDRESS_B). The exit code is its own;
2: wrong usage, or the link could not be made.

Example: ezbench wan --each-way-ms 15 --loss 0.001 --rate 1gbit --at-b 'iperf3 -s' -- iperf3 -c 10.88.0.2")]
pub struct Args {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    stack: Stack,
    /// Core of the link's thread; any by default
    #[arg(long)]
    core: Option<usize>,
    /// Relay TCP connections instead, without root: LISTEN=TARGET; may be given several times
    #[arg(long, value_name = "LISTEN=TARGET", conflicts_with_all = ["congestion", "mtu", "send_buffer_mib", "core", "at_b"])]
    relay: Vec<Route>,
    /// Shell command to run at b meanwhile
    #[arg(long, value_name = "COMMAND")]
    at_b: Option<String>,
    /// Only JSON: what was made in the first line, what was carried in the last
    #[arg(long)]
    json: bool,
    /// What to run at a
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

/// What carries.
enum Link {
    Wan(Wan),
    Relay(Relay),
}

pub fn run(args: Args) -> ExitCode {
    match carry_for(&args) {
        Ok(code) => code,
        Err(fault) => {
            eprintln!("ezbench wan: {fault}");
            ExitCode::from(2)
        }
    }
}

fn carry_for(args: &Args) -> Result<ExitCode, String> {
    args.options.check()?;
    let stop = sys::stop_signals().map_err(|e| format!("cannot watch for signals: {e}"))?;
    let mut link = if args.relay.is_empty() { wan(args)? } else { relay(args)? };
    let code = if args.program.is_empty() { hold(&mut link, &stop)? } else { run_program(args, &mut link, &stop)? };
    let seen = link.seen();
    drop(link);
    if args.json {
        say(&seen)
    } else {
        eprintln!("{}", in_words(&seen))
    }
    Ok(code)
}

/// A reader that went away is no reason to stop.
fn say(line: &impl std::fmt::Display) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn wan(args: &Args) -> Result<Link, String> {
    if !sys::is_root() {
        return Err("network namespaces and TUN devices need root; without: --relay LISTEN=TARGET".into());
    }
    for name in sweep() {
        eprintln!("removed the namespace {name}, left behind by a run that was killed");
    }
    let core = upstream::pick_cores(args.core.as_slice())?.first().copied();
    let wan = Wan::start(args.options.lines(), &args.stack, core)?;
    let [a, b] = &wan.sides;
    if args.json {
        let end = |s: &Side| json!({"namespace": s.name, "address": s.address});
        say(&json!({"a": end(a), "b": end(b)}));
    } else {
        eprintln!("a: namespace {}, address {}\nb: namespace {}, address {}", a.name, a.address, b.name, b.address);
        eprintln!(
            "ip netns exec {} PROGRAM (or nsenter --net=/run/netns/{} PROGRAM) runs a program at a",
            a.name, a.name
        );
    }
    Ok(Link::Wan(wan))
}

fn relay(args: &Args) -> Result<Link, String> {
    if args.options.loss > 0.0 {
        return Err(
            "--loss with --relay: TCP ends at the relay, nothing can be lost in it; without --relay it can".into()
        );
    }
    sys::raise_open_files();
    let (relay, at) = Relay::start(&args.relay, &args.options)?;
    if args.json {
        say(&json!({ "listen": at }));
    } else {
        at.iter().zip(&args.relay).for_each(|(at, route)| eprintln!("{at} is relayed to {}", route.target));
    }
    Ok(Link::Relay(relay))
}

impl Link {
    /// Follows an order; the answer is one line.
    fn on_order(&self, line: &str) -> Value {
        let order = match line.parse::<Order>() {
            Ok(Order::Loss(p)) if p > 0.0 && matches!(self, Link::Relay(_)) => {
                return json!({"error": "a relay loses nothing"});
            }
            Ok(order) => order,
            Err(why) => return json!({"error": why}),
        };
        match order {
            Order::Counters => return self.seen(),
            Order::Cut | Order::Heal => match self {
                Link::Wan(wan) => wan.cut(order == Order::Cut),
                Link::Relay(relay) => relay.cut(order == Order::Cut),
            },
            Order::Loss(_) | Order::Corrupt(_) | Order::EachWayMs(_) | Order::Rate(_) => match self {
                Link::Wan(wan) => wan.set(|s| order.apply(s)),
                Link::Relay(relay) => relay.set(|s| order.apply(s)),
            },
        }
        json!({"done": line})
    }

    fn seen(&self) -> Value {
        match self {
            Link::Wan(wan) => serde_json::to_value(wan.seen()).expect("counters are numbers"),
            Link::Relay(relay) => {
                let [there, back] = relay.seen();
                json!({"there": there, "back": back})
            }
        }
    }

    fn broken(&mut self) -> Result<(), String> {
        match self {
            Link::Wan(wan) => wan.broken().map_or(Ok(()), |why| Err(format!("the link broke: {why}"))),
            Link::Relay(_) => Ok(()),
        }
    }
}

fn in_words(seen: &Value) -> String {
    let way = |name: &str| {
        let n = |field: &str| seen[name][field].as_u64().unwrap_or(0);
        format!(
            "{name}: {} segments, {} bytes, {} lost, {} in a full queue, {} cut, {} corrupted",
            n("sent_segments"),
            n("sent_bytes"),
            n("lost"),
            n("overflowed"),
            n("cut"),
            n("corrupted")
        )
    };
    if seen["there"].is_object() {
        return format!("there: {}; back: {}", seen["there"], seen["back"]);
    }
    let late = ["late_us_p50", "late_us_p99", "late_us_max"].map(|f| seen[f].as_u64().unwrap_or(0));
    format!(
        "{}\n{}\n{:.1} s, {:.2} s of a processor; packets were late by {} us p50, {} us p99, {} us at most; {} dropped by the kernel",
        way("a_to_b"),
        way("b_to_a"),
        seen["seconds"].as_f64().unwrap_or(0.0),
        seen["cpu_s"].as_f64().unwrap_or(0.0),
        late[0],
        late[1],
        late[2],
        seen["dropped_by_kernel"]
    )
}

/// Keeps the link up and follows the orders of stdin.
fn hold(link: &mut Link, stop: &OwnedFd) -> Result<ExitCode, String> {
    let said = |e: io::Error| format!("waiting: {e}");
    let mut poller = sys::Poller::new().map_err(said)?;
    poller.add(stop, 0, sys::READ).map_err(said)?;
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(said)?);
    // A file, or /dev/null, cannot be waited for: then only a signal ends this.
    let _ = poller.add(&stdin, 1, sys::READ);
    let (mut ready, mut text, mut part) = (Vec::new(), Vec::new(), [0; 512]);
    loop {
        poller.wait(&mut ready, Some(Duration::from_millis(200))).map_err(said)?;
        link.broken()?;
        if ready.contains(&0) {
            return Ok(ExitCode::SUCCESS);
        }
        if !ready.contains(&1) {
            continue;
        }
        match stdin.read(&mut part).map_err(said)? {
            0 => return Ok(ExitCode::SUCCESS),
            n => text.extend_from_slice(&part[..n]),
        }
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            say(&link.on_order(String::from_utf8_lossy(&line).trim()));
        }
        if text.len() > ORDER_BYTES_MAX {
            return Err(format!("an order of more than {ORDER_BYTES_MAX} bytes on stdin"));
        }
    }
}

/// Runs the program at a, and the one at b while it lasts.
fn run_program(args: &Args, link: &mut Link, stop: &OwnedFd) -> Result<ExitCode, String> {
    let mut at_b = args.at_b.as_ref().map(|line| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("exec {line}")]).stdin(Stdio::null());
        // What the report goes to is for the program at a alone.
        command.stdout(io::stderr());
        start(command, link, 1)
    });
    if let Some(Err(why)) = at_b {
        return Err(format!("--at-b: {why}"));
    }
    let mut command = Command::new(&args.program[0]);
    command.args(&args.program[1..]);
    let result = start(command, link, 0)
        .map_err(|e| format!("{}: {e}", args.program[0]))
        .and_then(|child| wait_for(child, link, stop));
    if let Some(Ok(child)) = &mut at_b {
        end(child);
    }
    let status = result?;
    let code = status.code().or(status.signal().map(|n| 128 + n)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Starts a program at one end, or anywhere where there are no ends.
fn start(mut command: Command, link: &Link, end: usize) -> io::Result<Child> {
    if let Link::Wan(wan) = link {
        for (side, name) in wan.sides.iter().zip(["A", "B"]) {
            command
                .env(format!("EZWAN_{name}"), &side.name)
                .env(format!("EZWAN_ADDRESS_{name}"), side.address.to_string());
        }
        wan.sides[end].hold(&mut command)?;
    }
    command.spawn()
}

/// Until the program has ended; a signal to this program is passed on to it.
fn wait_for(mut child: Child, link: &mut Link, stop: &OwnedFd) -> Result<ExitStatus, String> {
    let said = |e: io::Error| format!("waiting: {e}");
    let (pid, (ended, mut tell)) = (child.id(), UnixStream::pair().map_err(said)?);
    let waiter = thread::spawn(move || {
        let status = child.wait();
        let _ = tell.write_all(b"."); // somebody who no longer listens has no use for it
        status
    });
    let mut poller = sys::Poller::new().map_err(said)?;
    let (mut ready, mut asked) = (Vec::new(), false);
    poller.add(&ended, 1, sys::READ).map_err(said)?;
    poller.add(stop, 0, sys::READ).map_err(said)?;
    loop {
        poller.wait(&mut ready, Some(Duration::from_millis(200))).map_err(said)?;
        if ready.contains(&1) {
            return waiter.join().expect("waiting does not panic").map_err(said);
        }
        let broken = link.broken();
        if !asked && (ready.contains(&0) || broken.is_err()) {
            asked = true;
            sys::terminate(pid);
        }
        if asked {
            broken?;
            thread::sleep(Duration::from_millis(10)); // the signal stays readable
        }
    }
}

/// Asks a program to end, and kills it if it does not.
fn end(child: &mut Child) {
    sys::terminate(child.id());
    let until = Instant::now() + END_MAX;
    while Instant::now() < until {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill().and_then(|()| child.wait());
}
