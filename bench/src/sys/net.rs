//! Network namespaces and TUN devices: what the kernel offers for them and std does not.

use super::{check, owned};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A request of the interface ioctls (netdevice(7)): the name, then what the call needs, 40 bytes in all as in `struct ifreq`.
#[repr(C)]
struct Request {
    name: [u8; 16],
    /// `sockaddr_in`: family, port, address; or a number.
    value: [u8; 24],
}

impl Request {
    fn of(name: &str) -> Request {
        let mut request = Request { name: [0; 16], value: [0; 24] };
        let long = name.len().min(15);
        request.name[..long].copy_from_slice(&name.as_bytes()[..long]);
        request
    }

    fn number(name: &str, number: i32) -> Request {
        let mut request = Request::of(name);
        request.value[..4].copy_from_slice(&number.to_ne_bytes());
        request
    }

    fn address(name: &str, address: Ipv4Addr) -> Request {
        let mut request = Request::of(name);
        request.value[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        request.value[4..8].copy_from_slice(&address.octets());
        request
    }
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Moves this thread into a network namespace of its own, with the name of the file `at`, which exists and is empty.
pub fn make_namespace(at: &Path) -> io::Result<()> {
    let (from, to) = (c"/proc/thread-self/ns/net", path_of(at)?);
    // SAFETY: no memory is passed to unshare; both strings outlive the mount; no type and no data are passed.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNET))?;
        let none = std::ptr::null();
        check(libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast())).map(drop)
    }
}

/// Takes a namespace's name off the file that holds it.
pub fn unmount(at: &Path) -> io::Result<()> {
    let at = path_of(at)?;
    // SAFETY: the string outlives the call.
    check(unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Moves this thread into the namespace.
pub fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: no memory is passed; the descriptor is open for the call.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Lets `command` start in the namespace, and be killed when the thread that starts it ends.
pub fn run_in(command: &mut Command, namespace: File) {
    let ready = move || {
        enter(&namespace)?;
        // SAFETY: prctl takes two numbers here, no memory.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) }).map(drop)
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(ready) };
}

/// Makes a TUN device in this thread's namespace that hands over packets the kernel has neither cut nor summed up
/// (`virtio_net_hdr` before each). It is gone with the descriptor.
pub fn tun(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request::of(name);
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request.value[..2].copy_from_slice(&flags.to_ne_bytes());
    ioctl(&file, libc::TUNSETIFF as libc::c_ulong, &mut request)?;
    let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    // SAFETY: TUNSETOFFLOAD takes a number; the descriptor is open for the call. The same holds for the flags below.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offload)) })?;
    // SAFETY: as above.
    let before = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, before | libc::O_NONBLOCK) })?;
    Ok(file)
}

/// Gives a device of this thread's namespace an address in a network of 256, an MTU and a queue, and brings it up.
pub fn bring_up(name: &str, address: Ipv4Addr, mtu: u16, queue: u16) -> io::Result<()> {
    let socket = any_socket()?;
    let ask = |code: libc::c_ulong, mut request: Request| ioctl(&socket, code, &mut request);
    ask(libc::SIOCSIFADDR as _, Request::address(name, address))?;
    ask(libc::SIOCSIFNETMASK as _, Request::address(name, Ipv4Addr::new(255, 255, 255, 0)))?;
    ask(libc::SIOCSIFMTU as _, Request::number(name, mtu.into()))?;
    ask(libc::SIOCSIFTXQLEN as _, Request::number(name, queue.into()))?;
    up(&socket, name)
}

/// Brings up the loopback device of this thread's namespace.
pub fn loopback_up() -> io::Result<()> {
    up(&any_socket()?, "lo")
}

fn up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = Request::of(name);
    ioctl(socket, libc::SIOCGIFFLAGS as _, &mut request)?;
    let flags = u16::from_ne_bytes([request.value[0], request.value[1]]) | libc::IFF_UP as u16;
    request.value[..2].copy_from_slice(&flags.to_ne_bytes());
    ioctl(socket, libc::SIOCSIFFLAGS as _, &mut request)
}

fn any_socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; the result is checked.
    check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }).map(owned)
}

fn ioctl(fd: &impl AsFd, code: libc::c_ulong, request: &mut Request) -> io::Result<()> {
    // SAFETY: each code that this file uses reads or writes one `struct ifreq`, whose size and layout `Request` has.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code as _, std::ptr::from_mut(request)) }).map(drop)
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());
