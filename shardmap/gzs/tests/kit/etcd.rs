//! A real etcd for tests: Debian's `etcd-server`, one member, in a directory of its own.

use gzs::store::etcd::Gateway;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// It ends with the test.
pub struct Server {
    child: Child,
    dir: PathBuf,
    pub at: SocketAddr,
}

impl Server {
    pub fn start(dir: PathBuf) -> Server {
        let until = Instant::now() + Duration::from_secs(60);
        // A port that was free a moment ago may be taken: another is tried.
        while Instant::now() < until {
            let _ = std::fs::remove_dir_all(&dir);
            let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap()).map(|l| l.local_addr().unwrap());
            let [client, peer] = free.map(|at| format!("http://{at}"));
            let mut command = Command::new("etcd");
            command.args(["--data-dir", dir.to_str().unwrap(), "--initial-cluster", &format!("default={peer}")]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let child = command.spawn().expect("etcd is installed (Debian: apt-get install etcd-server)");
            let mut server = Server { child, dir: dir.clone(), at: free[0] };
            while Instant::now() < until && server.child.try_wait().unwrap().is_none() {
                if server.gateway().post("/v3/kv/range", r#"{"key":"YQ=="}"#).is_ok_and(|(status, _)| status == 200) {
                    return server;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("etcd does not come up");
    }

    pub fn gateway(&self) -> Http {
        Http(self.at)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// One connection for each question, as HTTP/1.0: the answer ends with it.
#[derive(Clone)]
pub struct Http(SocketAddr);

impl Gateway for Http {
    fn post(&mut self, path: &str, body: &str) -> Result<(u16, String), String> {
        let told = |e: std::io::Error| e.to_string();
        let mut stream = TcpStream::connect(self.0).map_err(told)?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(told)?;
        let head = format!("POST {path} HTTP/1.0\r\nhost: etcd\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + body).as_bytes()).map_err(told)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(told)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status")?;
        Ok((status, body.to_owned()))
    }
}
