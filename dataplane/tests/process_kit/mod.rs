//! What tests of the real programs share: waits, processes, backends, directories that go, free addresses, and HTTP in its simplest form.
#![allow(dead_code, reason = "each test program uses some of it")]

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// How long anything may take: machines of tests are loaded.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// How long one answer may take: less than all patience, as what waits for a node asks again.
const ANSWER: Duration = Duration::from_secs(30);

/// Looks until there is something; fails with `what` was waited for.
pub fn within<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within_or(what, String::new, look)
}

/// The same; fails with what `said` tells as well, such as the output of the process.
pub fn within_or<T>(what: &str, said: impl Fn() -> String, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}\n{}", said());
        sleep(Duration::from_millis(10));
    }
}

/// A directory of one test, gone at its end.
pub struct Dir(PathBuf);

impl Dir {
    /// Empty; `name` is its own within the test program.
    pub fn new(name: &str) -> Dir {
        let name = format!("ezone-{}-{name}-{}", env!("CARGO_CRATE_NAME"), std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    /// What processes have written to its file `said`.
    pub fn said(&self) -> String {
        fs::read_to_string(self.join("said")).unwrap_or_default()
    }
}

impl Deref for Dir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program at another path, written by a process of its own: what another thread of this one starts at the same moment would
/// inherit the open file for an instant, and a program that is open for writing cannot be started ("Text file busy").
pub fn copied(from: &Path, to: &Path) {
    let done = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(done.success(), "cp {} {}: {done}", from.display(), to.display());
}

/// A process of the test, which ends with it: a field of this type stands before the directory that the process uses.
pub struct Running(pub Child);

impl Running {
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end.
    pub fn ask_to_end(&self) {
        kill_process(Pid::from_raw(self.id() as i32).unwrap(), Signal::TERM).unwrap();
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        within("the program ends", || self.0.try_wait().unwrap())
    }

    /// Asks it to end and waits for that; its exit code, or -1 if a signal has killed it.
    pub fn term(&mut self) -> i32 {
        self.ask_to_end();
        self.ended().code().unwrap_or(-1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Addresses that nobody listens on, each given once, below those that the kernel gives to connections and to listeners of port 0:
/// what a test opens between this and its program's start would else take one of them now and then. Nothing is bound to find out: what
/// another thread starts at that moment has a copy of this process's sockets until it is the program that it is to be, and of 200,000
/// ports that were tried so, while six threads started programs, 680 were taken a moment later and 16 still after 5 ms.
pub fn addresses<const N: usize>() -> [SocketAddr; N] {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 22_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(97);
    [(); N].map(|()| {
        let next = || {
            let nth = GIVEN.fetch_add(1, Ordering::Relaxed);
            SocketAddr::from(([127, 0, 0, 1], (FIRST + begin.wrapping_add(nth) % PORTS) as u16))
        };
        (0..PORTS).map(|_| next()).find(|at| TcpStream::connect(at).is_err()).expect("a free port")
    })
}

/// The map that never changes.
pub fn map() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shardmap/data/china.toml")
}

/// Sends a whole request, which asks for the end of the connection; status and body of the answer.
pub fn http(at: SocketAddr, request: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, b)| b.to_owned());
    status.zip(body).ok_or_else(|| io::Error::other(format!("no HTTP: {answer:?}")))
}

/// The head of a message, with the empty line; `None` if the connection ends before.
pub fn read_head(stream: &mut impl Read) -> Option<String> {
    let (mut head, mut byte) = (vec![], [0u8; 1]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// Serves every connection until it ends: writes what `answer` makes of each request's head, and nothing where that is `None`.
pub fn backend(answer: impl Fn(&str) -> Option<String> + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            spawn(move || {
                while let Some(head) = read_head(&mut stream) {
                    let answer = answer(&head).unwrap_or_default();
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}
