//! Tells whoever started this process how it is: systemd's notifications (sd_notify(3)), which `ezone run` hears as well.

use rustix::process::getpid;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The variable that names the socket.
pub const SOCKET: &str = "NOTIFY_SOCKET";
/// It serves.
pub const READY: &str = "READY=1";
/// It drains.
pub const STOPPING: &str = "STOPPING=1";

/// Tells it; whoever does not ask is not told.
pub fn tell(what: &str) {
    let Some(to) = std::env::var_os(SOCKET) else { return };
    if let Err(e) = send(Path::new(&to), what) {
        tracing::warn!("{SOCKET}={}: {e}; it is not told {what}", Path::new(&to).display());
    }
}

/// It reads its configuration again; `READY` follows, whatever comes of it. The time tells systemd which reload is meant.
pub fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let us = Duration::new(now.tv_sec as u64, now.tv_nsec as u32).as_micros();
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={us}"));
}

/// Another process takes the place of this one.
pub fn successor(pid: u32) {
    tell(&format!("MAINPID={pid}\n{READY}"));
}

fn send(to: &Path, what: &str) -> io::Result<()> {
    let address = match to.as_os_str().as_encoded_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(to)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?; // whoever does not listen must not stop this process
    socket.send_to_addr(what.as_bytes(), &address).map(drop)
}

/// Where `ezone run` hears one of its processes; gone with it.
pub struct Ear {
    socket: tokio::net::UnixDatagram,
    path: PathBuf,
}

impl Ear {
    /// In the data directory, which is nobody else's.
    pub fn open(data_dir: &Path, number: u32) -> io::Result<Ear> {
        let path = data_dir.join(format!("n-{}-{number}", getpid().as_raw_nonzero()));
        let _ = std::fs::remove_file(&path); // of a process that was killed and had the same number
        Ok(Ear { socket: tokio::net::UnixDatagram::bind(&path)?, path })
    }

    /// What its process has to be told by way of `SOCKET`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the process says next.
    pub async fn next(&self) -> String {
        let mut said = [0u8; 1024];
        match self.socket.recv(&mut said).await {
            Ok(n) => String::from_utf8_lossy(&said[..n]).into_owned(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        while !self.next().await.lines().any(|line| line == READY) {}
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
