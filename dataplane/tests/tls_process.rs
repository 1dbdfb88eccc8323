//! TLS as an operator meets it: `ezone cert`, a configuration, a router, certificates that change under it.

mod process_kit;
mod tls_kit;

use dataplane::tls::{Makers, Roots};
use process_kit::{Dir, PATIENCE, Running, addresses, backend, http, map, read_head, within_or};
use rustls::client::Resumption;
use rustls::{ClientConnection, StreamOwned};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

/// A directory with an authority and a router that uses it; all gone at the end.
struct Node {
    child: Option<Running>,
    dir: Dir,
    plain: SocketAddr,
    tls: SocketAddr,
    peer: SocketAddr,
    admin: SocketAddr,
    upstream: SocketAddr,
}

impl Node {
    fn new(name: &str) -> Node {
        let dir = Dir::new(name);
        let upstream = backend(|_| Some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()));
        let [plain, tls, peer, admin] = addresses();
        let text = format!(
            "[node]\nzone = \"bj\"\ndata_dir = \"data\"\n[map]\nfile = \"{}\"\n[router]\nlisten = [\"{plain}\"]\n\
             tls_listen = [\"{tls}\"]\npeer_listen = [\"{peer}\"]\nadmin = \"{admin}\"\ncores = [0]\n\
             [[tls]]\ncertificate = \"tls/server-localhost.pem\"\nkey = \"tls/server-localhost.key\"\n\
             [cluster]\nca = \"tls/ca.pem\"\ncertificate = \"tls/zone-bj.pem\"\nkey = \"tls/zone-bj.key\"\n\
             [[service]]\nprefix = \"/\"\nendpoints = [\"{upstream}\"]\n",
            map().display(),
        );
        fs::write(dir.join("node.toml"), text).unwrap();
        Node { child: None, dir, plain, tls, peer, admin, upstream }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join("tls").join(name)
    }

    /// Runs a command to its end.
    fn ezone(&self, args: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        let Output { status, stdout, stderr } = command.args(args).stdin(Stdio::null()).output().unwrap();
        (status.code().unwrap_or(-1), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
    }

    fn cert(&self, what: &str, more: &[&str]) -> String {
        let dir = self.dir.join("tls").display().to_string();
        let (code, said) = self.ezone(&[&["cert", what, "--dir", &dir], more].concat());
        assert_eq!(code, 0, "{said}");
        said
    }

    fn check(&self) -> (i32, String) {
        self.ezone(&["check", "--config", &self.dir.join("node.toml").display().to_string()])
    }

    fn start(&mut self) {
        let said = fs::File::create(self.dir.join("said")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.arg("router").arg("--config").arg(self.dir.join("node.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        self.child = Some(Running(command.spawn().unwrap()));
        self.within("the router answers", || TcpStream::connect(self.plain).ok().map(drop));
    }

    fn within<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> T {
        within_or(what, || self.dir.said(), done)
    }

    /// A client that trusts the authority and never takes up an old session.
    fn connect(&self, to: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
        let roots = Roots::read(&fs::read(self.path("ca.pem")).unwrap()).unwrap();
        let how = Makers::new().unwrap().upstream(&roots, None, Some("localhost")).unwrap();
        let mut config = (*how.config).clone();
        config.resumption = Resumption::disabled();
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap(), stream)
    }

    /// The certificate that a new connection is shown, once it has served a request.
    fn shown(&self) -> Vec<u8> {
        let mut stream = self.connect(self.tls);
        assert!(ask(&mut stream).is_some_and(|head| head.starts_with("HTTP/1.1 200")), "a new connection is served");
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    }

    fn metric(&self, name: &str) -> Option<String> {
        let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let (_, page) = http(self.admin, request).ok()?;
        page.lines().find(|l| l.starts_with(name)).and_then(|l| l.rsplit(' ').next()).map(str::to_owned)
    }
}

fn ask(stream: &mut (impl Read + Write)) -> Option<String> {
    stream.write_all(b"GET /a HTTP/1.1\r\nhost: localhost\r\nx-shard: loc=116.40,39.90\r\n\r\n").ok()?;
    stream.flush().ok()?;
    read_head(stream)
}

#[test]
fn certificates_are_made_used_and_changed_without_a_restart() {
    let mut node = Node::new("life");
    let (code, said) = node.check();
    assert!(code == 2 && said.contains("tls/ca.pem: cannot be read"), "{said}");
    node.cert("ca", &[]);
    let said = node.cert("zone", &["--name", "bj"]);
    assert!(said.contains("[cluster]\nca = "), "{said}");
    let said = node.cert("server", &["--name", "localhost"]);
    assert!(said.contains("[[tls]]\ncertificate = "), "{said}");
    let (code, said) = node.check();
    assert!(code == 0 && said.ends_with("node.toml: fine\n") && !said.contains("warning"), "{said}");
    node.start();
    let mut kept = node.connect(node.tls);
    assert!(ask(&mut kept).unwrap().starts_with("HTTP/1.1 200"));
    let first = node.shown();
    // Whoever is no member is not let in where routers meet.
    assert_eq!(ask(&mut node.connect(node.peer)), None);
    // Nor does it believe the router's certificate there, which has no DNS name.
    let failures = || node.metric("ezone_tls_failures_total{core=\"0\",reason=\"refused\"}").filter(|n| n == "1");
    node.within("the failure is counted", failures);
    let ends = |node: &Node| node.metric("ezone_certificate_expires_seconds{file=\"").unwrap();
    assert!(ends(&node).parse::<u64>().unwrap() > tls_kit::now_s() + 300 * tls_kit::DAY_S);

    // A file that is no certificate changes nothing and is told.
    fs::write(node.path("server-localhost.pem"), "nonsense").unwrap();
    let refused = || node.metric("ezone_certificate_refusals_total").filter(|n| n == "1");
    node.within("the bad file is refused", refused);
    assert!(node.shown() == first);
    let said = fs::read_to_string(node.dir.join("said")).unwrap();
    assert!(said.contains("server-localhost.pem: no PEM section"), "{said}");

    // A check reads the files too; and what else is asked for meanwhile goes by those that were good.
    let post = |path: &str| {
        let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        http(node.admin, &request).unwrap()
    };
    let (status, said) = post("/check");
    assert!(status == 422 && said.contains("server-localhost.pem: no PEM section"), "{status} {said}");
    let config = fs::read(node.dir.join("node.toml")).unwrap();
    fs::write(node.dir.join("node.toml"), "nonsense").unwrap();
    assert_eq!(post("/reload").0, 422);
    fs::write(node.dir.join("node.toml"), config).unwrap();
    let at = node.upstream;
    assert_eq!(post(&format!("/upstreams/%2F/{at}/drain")).0, 202);
    let page = || http(node.admin, "GET /upstreams HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap().1;
    node.within("it is drained", || page().contains("\"state\":\"draining\"").then_some(()));
    assert_eq!(post(&format!("/upstreams/%2F/{at}/undrain")).0, 202);
    node.within("it is used again", || (!page().contains("\"state\":\"draining\"")).then_some(()));
    let (status, said) = post("/upstreams/other/1.2.3.4:5/drain");
    assert!(status == 404 && said.contains("\"expected\":[\"/\""), "{said}");

    // A good one is shown to new connections; the old one goes on.
    fs::remove_file(node.path("server-localhost.pem")).unwrap();
    fs::remove_file(node.path("server-localhost.key")).unwrap();
    node.cert("server", &["--name", "localhost", "--days", "20"]);
    node.within("the new certificate is shown", || Some(node.shown()).filter(|now| *now != first));
    assert!(ask(&mut kept).unwrap().starts_with("HTTP/1.1 200"));
}
