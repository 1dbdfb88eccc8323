//! A change of the map reaches a thousand subscribers of `ezone gzs`, which runs on one core. How long that takes is printed:
//! `cargo test --release -p dataplane --test subscribers -- --nocapture`.

use dataplane::control::gzs_client::GzsClient;
use gzs::api::{OpAsk, What};
use gzs::service::hex;
use shardmap::map::Map;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SUBSCRIBERS: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(60);

struct Service {
    child: Child,
    dir: PathBuf,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// On one core, as the thread that starts it is.
fn start(at: SocketAddr) -> Service {
    let dir = std::env::temp_dir().join(format!("ezone-subscribers-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let china = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shardmap/data/china.toml");
    let config = format!("[gzs]\ndata_dir = \"data\"\nlisten = \"{at}\"\nmap = \"{}\"\n", china.display());
    std::fs::write(dir.join("gzs.toml"), config).unwrap();
    let file = dir.join("gzs.toml");
    let spawned = std::thread::spawn(move || {
        let core = core_affinity::get_core_ids().and_then(|all| all.into_iter().next());
        core.into_iter().for_each(|core| assert!(core_affinity::set_for_current(core)));
        let mut program = Command::new(env!("CARGO_BIN_EXE_ezone"));
        program.args(["gzs", "--stop-with-stdin", "--config"]).arg(file);
        program.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    Service { child: spawned.join().unwrap(), dir }
}

/// One poll: the answer's head and body, and when it was whole.
async fn poll(at: SocketAddr, epoch: u64, digest: String) -> (Vec<u8>, Instant) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let ask = format!(
        "GET /v1/map?after={epoch}&digest={digest}&wait_ms=60000 HTTP/1.1\r\nhost: gzs\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = vec![];
    stream.read_to_end(&mut answer).await.unwrap();
    (answer, Instant::now())
}

fn body(answer: &[u8]) -> &[u8] {
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..answer.len().min(200)]));
    let at = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head ends");
    &answer[at + 4..]
}

#[tokio::test]
async fn a_change_reaches_a_thousand_subscribers() {
    let at = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut service = start(at);
    let client = GzsClient::new(&format!("http://{at}"), None).unwrap();
    let until = Instant::now() + PATIENCE;
    while client.state().await.is_err() {
        if let Some(ended) = service.child.try_wait().unwrap() {
            let mut said = String::new();
            service.child.stderr.take().map(|mut e| e.read_to_string(&mut said));
            panic!("the service ended ({ended}): {said}");
        }
        assert!(Instant::now() < until, "the service does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let first = Map::decode(body(&poll(at, 0, "0".repeat(64)).await.0)).unwrap();
    let (epoch, digest) = (first.epoch().0, hex(&first.digest()));
    let waiting: Vec<_> = (0..SUBSCRIBERS).map(|_| tokio::spawn(poll(at, epoch, digest.clone()))).collect();
    let waits = async || {
        let page = metrics(at).await;
        let line = page.lines().find(|l| l.starts_with("ezone_gzs_subscribers "));
        line.and_then(|l| l.rsplit(' ').next()?.parse::<usize>().ok()).unwrap_or(0)
    };
    while waits().await < SUBSCRIBERS {
        assert!(Instant::now() < until, "{} of {SUBSCRIBERS} polls wait", waits().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ask = OpAsk {
        what: What::Unlock { shards: vec![341] },
        by: "test".into(),
        why: String::new(),
        force: false,
        limit_ms: None,
    };
    let begun = Instant::now();
    client.begin(&ask).await.unwrap();
    let mut last = begun;
    for poll in waiting {
        let (answer, whole) = poll.await.unwrap();
        let map = Map::decode_after(body(&answer), &first).unwrap();
        assert_eq!((map.epoch().0, map.previous()), (epoch + 1, first.digest()));
        assert!(answer.len() < 64 << 10, "{} bytes: the fences have not changed", answer.len());
        last = last.max(whole);
    }
    println!(
        "{SUBSCRIBERS} subscribers had the new map {:.0} ms after it was asked for",
        (last - begun).as_secs_f64() * 1e3
    );
}

/// The metrics page.
async fn metrics(at: SocketAddr) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: gzs\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
