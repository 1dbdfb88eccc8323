//! A router gives its listeners to its successor, so that no connection is refused while one binary replaces another.
//!
//! ```text
//!   predecessor, at data_dir/router.sock            successor, started with --take-over
//!        ◀──────────────────────────────────────── connects
//!    one byte and one descriptor for each listener ─▶ binds what is missing, starts its cores, accepts
//!        ◀──────────────────────────────────── 'R'  it is ready
//!    'K' it lets go ───────────────────────────────▶ has its place from now on
//!    drains, ends
//! ```
//!
//! Until the `R` the predecessor has changed nothing: whatever happens to the other, it goes on.

use super::program;
use crate::router::Side;
use crate::uring::Listener;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg, sockopt,
};
use rustix::process::{geteuid, getpid};
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// How long a successor may take until it asks: it reads its configuration first, and nothing else.
pub const ASK_WAIT: Duration = Duration::from_secs(30);
/// How long a successor may take until it is ready: it may have to wait for its first map.
pub const READY_WAIT: Duration = Duration::from_secs(60);
/// How long the other may take for a byte that it does not have to think about.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// More descriptors are no router's.
const DESCRIPTORS_MAX: usize = 16 * 1024;

const SIDES: [(u8, Side); 4] =
    [(b'c', Side::Client), (b'p', Side::Peer), (b'C', Side::TlsClient), (b'P', Side::TlsPeer)];
const ADMIN: u8 = b'a';
const THAT_IS_ALL: u8 = b'.';
const READY: u8 = b'R';
const KEEP: u8 = b'K';

/// Where successors ask.
pub struct Heirs {
    listener: tokio::net::UnixListener,
}

impl Heirs {
    /// Takes the place of whoever listened there before.
    pub fn open(data_dir: &Path) -> io::Result<Heirs> {
        let beside = data_dir.join(format!("r-{}", getpid().as_raw_nonzero()));
        let _ = std::fs::remove_file(&beside); // of a process that was killed and had the same number
        let listener = UnixListener::bind(&beside)?;
        listener.set_nonblocking(true)?;
        std::fs::rename(&beside, socket_path(data_dir))?;
        Ok(Heirs { listener: tokio::net::UnixListener::from_std(listener)? })
    }

    /// The next one, of our own user or root.
    pub async fn next(&self) -> UnixStream {
        loop {
            let heir = match self.listener.accept().await {
                Ok((stream, _)) => stream.into_std().and_then(|s| s.set_nonblocking(false).map(|()| s)),
                Err(e) => Err(e),
            };
            match heir.and_then(|s| Ok((sockopt::socket_peercred(&s)?.uid, s))) {
                Ok((uid, stream)) if uid == geteuid() || uid.is_root() => return stream,
                Ok((uid, _)) => tracing::warn!("user {uid:?} asked for the listeners: refused"),
                Err(e) => {
                    tracing::warn!("a successor that asked for the listeners: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("router.sock")
}

/// What is handed over, each with what it is.
pub fn parcel(listeners: &[Listener], admin: Option<&TcpListener>) -> io::Result<Vec<(u8, OwnedFd)>> {
    let kind = |l: &Listener| SIDES.iter().find(|(_, side)| *side == l.side()).map(|(kind, _)| *kind);
    let own = |l: &Listener| {
        let kind = kind(l).ok_or_else(|| io::Error::other(format!("{:?} has no letter", l.side())))?;
        Ok((kind, l.as_fd().try_clone_to_owned()?))
    };
    let admin = admin.map(|a| Ok((ADMIN, a.as_fd().try_clone_to_owned()?)));
    listeners.iter().map(own).chain(admin).collect()
}

/// Gives `parcel` and waits until the successor is ready; the stream then takes the word that lets it go on. Blocks.
pub fn give(stream: UnixStream, parcel: Vec<(u8, OwnedFd)>) -> Result<UnixStream, String> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => "it ended before it was ready; its own messages say why".to_owned(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!("it was not ready within {READY_WAIT:?}"),
        _ => e.to_string(),
    };
    let all = || -> io::Result<u8> {
        stream.set_write_timeout(Some(ANSWER_WAIT))?;
        stream.set_read_timeout(Some(READY_WAIT))?;
        for (kind, fd) in &parcel {
            send(&stream, *kind, Some(fd.as_fd()))?;
        }
        send(&stream, THAT_IS_ALL, None)?;
        let mut word = [0u8];
        (&stream).read_exact(&mut word)?;
        Ok(word[0])
    };
    match all().map_err(failed)? {
        READY => Ok(stream),
        other => Err(format!("it said {other:#04x}, expected {READY:#04x}")),
    }
}

/// Lets the successor go on; from now on the listeners are its own.
pub fn let_go(mut stream: UnixStream) -> io::Result<()> {
    stream.write_all(&[KEEP])
}

/// What a predecessor gave.
pub struct Taken {
    /// Its listeners.
    pub listeners: Vec<Listener>,
    /// The listener of its admin pages.
    pub admin: Option<TcpListener>,
    stream: UnixStream,
}

/// Takes the listeners over from the router that runs with this data directory. Blocks.
pub fn take(data_dir: &Path) -> Result<Taken, String> {
    let path = socket_path(data_dir);
    let from = |e: io::Error| format!("--take-over: {}: {e}", path.display());
    let stream = UnixStream::connect(&path)
        .map_err(|e| format!("--take-over: no router runs with this data directory ({}: {e})", path.display()))?;
    stream.set_read_timeout(Some(ANSWER_WAIT)).map_err(from)?;
    let mut taken = Taken { listeners: vec![], admin: None, stream };
    for _ in 0..DESCRIPTORS_MAX {
        match receive(&taken.stream).map_err(from)? {
            (THAT_IS_ALL, None) => return Ok(taken),
            (ADMIN, Some(fd)) => taken.admin = Some(TcpListener::from(fd)),
            (kind, fd) => match SIDES.iter().find(|(known, _)| *known == kind).zip(fd) {
                Some(((_, side), fd)) => taken.listeners.push(Listener::adopt(fd, *side).map_err(from)?),
                None => return Err(from(io::Error::other(format!("{kind:#04x}: not a router's hand-over")))),
            },
        }
    }
    Err(from(io::Error::other(format!("more than {DESCRIPTORS_MAX} descriptors"))))
}

impl Taken {
    /// Says that this process is ready, and waits until the other has let go. Blocks.
    pub fn ready(mut self) -> Result<(), String> {
        let mut word = [0u8];
        let said = self.stream.write_all(&[READY]).and_then(|()| self.stream.read_exact(&mut word));
        match (said, word) {
            (Ok(()), [KEEP]) => Ok(()),
            (Ok(()), [other]) => Err(format!("the predecessor said {other:#04x}, expected {KEEP:#04x}: it goes on")),
            (Err(e), _) => Err(format!("the predecessor did not let go ({e}): it goes on")),
        }
    }
}

fn send(stream: &UnixStream, kind: u8, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    retry_on_intr(|| sendmsg(stream, &[IoSlice::new(&[kind])], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// One byte, and the descriptor that came with it.
fn receive(stream: &UnixStream) -> io::Result<(u8, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    // A read that has a time limit is interrupted by every signal, and by a ring that this thread has closed.
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = retry_on_intr(|| recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, flags))?;
    if got.bytes == 0 {
        return Err(io::Error::other("the predecessor refused, or ended"));
    }
    let mut fds = vec![];
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(all) = message {
            fds.extend(all);
        }
    }
    Ok((byte[0], fds.pop()))
}

/// Starts this router's successor: the program that now lies where this one was started from, with the same arguments.
pub fn start() -> Result<Child, String> {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if !args.iter().any(|a| a == "--take-over") {
        args.push("--take-over".into());
    }
    let program = program::path();
    let started = Command::new(&program).args(args).stdin(Stdio::inherit()).spawn();
    started.map_err(|e| format!("{}: {e}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring;

    #[test]
    fn listeners_arrive_as_what_they_are_and_who_is_not_ready_changes_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listen = |side| uring::listen("127.0.0.1:0".parse().unwrap(), side).unwrap();
        let own = [listen(Side::Client), listen(Side::TlsPeer)];
        let admin = TcpListener::bind("127.0.0.1:0").unwrap();
        let parcel = parcel(&own, Some(&admin)).unwrap();
        let giver = std::thread::spawn(move || give(ours, parcel));
        for (kind, at) in [
            (b'c', own[0].local_addr().unwrap()),
            (b'P', own[1].local_addr().unwrap()),
            (ADMIN, admin.local_addr().unwrap()),
        ] {
            let (seen, fd) = receive(&theirs).unwrap();
            assert_eq!((seen, TcpListener::from(fd.unwrap()).local_addr().unwrap()), (kind, at));
        }
        assert!(matches!(receive(&theirs), Ok((THAT_IS_ALL, None))));
        drop(theirs);
        assert!(giver.join().unwrap().unwrap_err().contains("ended before it was ready"));
    }
}
