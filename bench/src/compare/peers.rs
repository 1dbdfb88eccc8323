//! Starts each proxy alone on a core, with the configuration that lies in `bench/peers`, and reads its CPU time.

use super::figures::Who;
use crate::sys;
use core_affinity::CoreId;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NGINX: &str = "/usr/sbin/nginx";
const HAPROXY: &str = "/usr/sbin/haproxy";
/// How long a proxy may take to end after SIGTERM.
const END_MAX: Duration = Duration::from_secs(3);

/// A program that was started here; ended when dropped.
pub struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        sys::terminate(self.child.id());
        let until = Instant::now() + END_MAX;
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts `command` on `cores`, `last` at the lowest priority; what it says goes to `said`.
    pub fn start(command: &str, cores: &[CoreId], said: &Path, last: bool) -> Result<Running, String> {
        let mut words = command.split_whitespace();
        let program = words.next().ok_or("an empty command")?;
        let said = File::create(said).map_err(|e| format!("{}: {e}", said.display()))?;
        let errors = said.try_clone().map_err(|e| e.to_string())?;
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(said).stderr(errors);
        sys::run_on(&mut command, cores.iter().map(|c| c.id), last);
        let child = command.spawn().map_err(|e| format!("cannot start `{program}`: {e}"))?;
        Ok(Running { child })
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Time on a processor of all threads of the process, in nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        tasks.filter_map(|t| run_ns(&fs::read_to_string(t.path().join("schedstat")).ok()?)).sum()
    }
}

/// The first of `/proc/PID/task/TID/schedstat`'s three numbers: nanoseconds on a processor, soft interrupts included.
fn run_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

/// What is filled into a configuration.
pub struct Places<'a> {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub upstream: SocketAddr,
    /// Where haproxy's log goes.
    pub sink: SocketAddr,
    pub dir: &'a Path,
    /// The proxy's core.
    pub core: usize,
    /// `file = ".."` or `gzs = ".."`.
    pub map: &'a str,
    /// How ours is started.
    pub ours: &'a str,
}

/// Writes the configuration of `who` and says how it is started.
pub fn prepare(who: Who, places: &Places) -> Result<String, String> {
    let (template, name) = match who {
        Who::Ours | Who::OursAgain | Who::OursDisturbed => (include_str!("../../peers/ezone.toml"), "ezone.toml"),
        Who::Nginx | Who::NginxAgain => (include_str!("../../peers/nginx.conf"), "nginx.conf"),
        Who::Haproxy => (include_str!("../../peers/haproxy.cfg"), "haproxy.cfg"),
    };
    let config = places.dir.join(name);
    fs::write(&config, fill(template, places)).map_err(|e| format!("{}: {e}", config.display()))?;
    let shown = config.display();
    Ok(match who {
        Who::Ours | Who::OursAgain | Who::OursDisturbed => places
            .ours
            .replace("{config}", &shown.to_string())
            .replace("{listen}", &places.listen.to_string())
            .replace("{upstream}", &places.upstream.to_string()),
        Who::Nginx | Who::NginxAgain => format!("{NGINX} -c {shown}"),
        Who::Haproxy => format!("{HAPROXY} -db -f {shown}"),
    })
}

fn fill(template: &str, places: &Places) -> String {
    // Comments name the places too; they are not for the proxies.
    let lines = template.lines().filter(|l| !l.trim_start().starts_with('#'));
    let text: String = lines.flat_map(|l| [l, "\n"]).collect();
    [
        ("{listen}", places.listen.to_string()),
        ("{admin}", places.admin.to_string()),
        ("{upstream}", places.upstream.to_string()),
        ("{sink}", places.sink.to_string()),
        ("{dir}", places.dir.display().to_string()),
        ("{core}", places.core.to_string()),
        ("{map}", places.map.to_owned()),
    ]
    .into_iter()
    .fold(text, |text, (place, value)| text.replace(place, &value))
}

/// Those that can be measured here, in order; for each that cannot, why. What is missing is installed where that is allowed.
pub fn present() -> (Vec<Who>, Vec<String>) {
    let missing: Vec<&str> = [(NGINX, "nginx-light"), (HAPROXY, "haproxy")]
        .iter()
        .filter(|p| !Path::new(p.0).exists())
        .map(|p| p.1)
        .collect();
    let outcome = if missing.is_empty() { Ok(()) } else { install(&missing) };
    let (mut all, mut absent) = (vec![Who::Ours, Who::OursAgain], vec![]);
    for (path, those) in [(NGINX, &[Who::Nginx, Who::NginxAgain][..]), (HAPROXY, &[Who::Haproxy])] {
        if Path::new(path).exists() {
            all.extend(those);
            continue;
        }
        let why = outcome.as_ref().err().map_or(String::new(), |e| format!(" ({e})"));
        absent.push(format!("no {path}{why}: `apt-get install -y {}` brings it", missing.join(" ")));
    }
    (all, absent)
}

/// Debian's packages, if the user is root.
pub fn install(packages: &[&str]) -> Result<(), String> {
    if !sys::is_root() {
        return Err("not root, so nothing was installed".into());
    }
    eprintln!("installing {}", packages.join(" "));
    for args in [&["update", "-qq"][..], &[&["install", "-y", "-qq"], packages].concat()] {
        let mut command = Command::new("apt-get");
        let ran = command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).status();
        match ran {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(format!("apt-get {}: {status}", args[0])),
            Err(e) => return Err(format!("apt-get: {e}")),
        }
    }
    Ok(())
}

/// What a proxy says of its version.
pub fn version(who: Who, ours: &str) -> String {
    let (program, flag) = match who {
        Who::Ours | Who::OursAgain | Who::OursDisturbed => {
            (ours.split_whitespace().next().unwrap_or("ezone"), "--version")
        }
        Who::Nginx | Who::NginxAgain => (NGINX, "-v"),
        Who::Haproxy => (HAPROXY, "-v"),
    };
    let said = Command::new(program).arg(flag).stdin(Stdio::null()).output();
    let text = said.map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

/// An address that is free now; whoever is started takes it a moment later.
pub fn free_address() -> Result<SocketAddr, String> {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| format!("no free port: {e}"))
}

/// Receives haproxy's log, and counts the lines that each proxy has logged.
pub struct Sink {
    socket: UdpSocket,
    seen: u64,
}

impl Sink {
    pub fn new() -> Result<Sink, String> {
        let open = || {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.set_nonblocking(true)?;
            socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20)?;
            Ok::<_, std::io::Error>(socket)
        };
        Ok(Sink { socket: open().map_err(|e| format!("no socket for haproxy's log: {e}"))?, seen: 0 })
    }

    pub fn address(&self) -> Result<SocketAddr, String> {
        self.socket.local_addr().map_err(|e| e.to_string())
    }

    /// Takes what has come.
    pub fn drain(&mut self) {
        let mut line = [0; 2048];
        while self.socket.recv(&mut line).is_ok() {
            self.seen += 1;
        }
    }

    /// Lines that `who` has logged since it was started, or `None` if it does not tell.
    pub fn logged(&mut self, who: Who, dir: &Path) -> Option<u64> {
        match who {
            Who::Haproxy => {
                self.drain();
                Some(std::mem::take(&mut self.seen))
            }
            Who::Nginx | Who::NginxAgain => count_lines(&dir.join("nginx.access")),
            Who::Ours | Who::OursAgain | Who::OursDisturbed => count_lines(&dir.join("ezone.access")),
        }
    }
}

/// Counts and removes.
fn count_lines(path: &PathBuf) -> Option<u64> {
    let bytes = fs::read(path).ok()?;
    let _ = fs::remove_file(path); // the next round's file is a new one
    Some(bytes.iter().filter(|b| **b == b'\n').count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places<'a>(dir: &'a Path, map: &'a str) -> Places<'a> {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Places { listen: at(1), admin: at(2), upstream: at(3), sink: at(4), dir, core: 0, map, ours: "x {config}" }
    }

    #[test]
    fn cpu_time_is_the_first_number_of_schedstat() {
        assert_eq!(run_ns("123456 789 12\n"), Some(123_456));
        assert_eq!(run_ns(""), None);
    }

    #[test]
    fn each_place_of_a_template_is_filled_and_comments_are_left_out() {
        for template in [
            include_str!("../../peers/ezone.toml"),
            include_str!("../../peers/nginx.conf"),
            include_str!("../../peers/haproxy.cfg"),
        ] {
            let text = fill(template, &places(Path::new("/tmp/a"), "file = \"m.toml\""));
            for place in ["{listen}", "{admin}", "{upstream}", "{sink}", "{dir}", "{core}", "{map}"] {
                assert!(!text.contains(place), "{place} in {text}");
            }
            assert!(text.contains("127.0.0.1:1") && text.contains("127.0.0.1:3"), "{text}");
        }
    }

    #[test]
    fn our_configuration_is_one_that_the_router_takes() {
        let text = fill(include_str!("../../peers/ezone.toml"), &places(Path::new("/tmp/a"), "file = \"m.toml\""));
        let config = dataplane::config::Config::parse("ezone.toml", &text);
        assert!(config.is_ok(), "{}", config.err().map(|e| e.to_string()).unwrap_or_default());
    }
}
