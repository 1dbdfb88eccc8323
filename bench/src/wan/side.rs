//! Makes and removes one end of the link: a network namespace with a name, and a TUN device in it.

use crate::sys::net;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// Where `ip netns` keeps names; what it finds there it can use.
const NAMES: &str = "/run/netns";
const PREFIX: &str = "ezwan-";
/// The device in either namespace.
pub const DEVICE: &str = "wan0";
/// Packets, each of up to 64 KiB, that a device holds until the link takes them.
const DEVICE_QUEUE: u16 = 1000;

/// The addresses of a and b.
pub const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 88, 0, 1), Ipv4Addr::new(10, 88, 0, 2)];

/// What both namespaces have of their own.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Stack {
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..))]
    pub mtu: u16,
    /// TCP congestion control of both namespaces, for sockets that choose none
    #[arg(long, value_name = "NAME")]
    pub congestion: Option<String>,
    /// Most that TCP's autotuning gives a sending socket (tcp_wmem) in both namespaces; the machine's by default
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub send_buffer_mib: Option<u32>,
}

impl Stack {
    pub fn with(congestion: &str, send_buffer_mib: u32) -> Stack {
        Stack { mtu: 1500, congestion: Some(congestion.to_owned()), send_buffer_mib: Some(send_buffer_mib) }
    }

    /// Settings of this thread's namespace: file and text.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let mut all = vec![];
        if let Some(name) = &self.congestion {
            all.push(("/proc/sys/net/ipv4/tcp_congestion_control", name.clone()));
        }
        if let Some(mib) = self.send_buffer_mib {
            all.push(("/proc/sys/net/ipv4/tcp_wmem", format!("4096 16384 {}", u64::from(mib) << 20)));
        }
        all
    }
}

/// One end; dropped, its name goes, and its device with the descriptor.
pub struct Side {
    pub name: String,
    pub address: Ipv4Addr,
    path: PathBuf,
    namespace: File,
}

impl Side {
    /// End 0 is a, end 1 is b. Also the end's device.
    pub fn make(end: usize, stack: &Stack) -> Result<(Side, File), String> {
        let name = format!("{PREFIX}{}-{}", std::process::id(), ["a", "b"][end]);
        let (path, address) = (Path::new(NAMES).join(&name), ADDRESSES[end]);
        let stack = stack.clone();
        fs::create_dir_all(NAMES)
            .and_then(|()| File::create_new(&path))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        let made = thread::spawn({
            let path = path.clone();
            move || equip(&path, address, &stack)
        });
        let side = |namespace| Side { name, address, path: path.clone(), namespace };
        match made.join().expect("making an end does not panic") {
            Ok((namespace, device)) => Ok((side(namespace), device)),
            Err(why) => {
                remove(&path);
                Err(why)
            }
        }
    }

    /// Lets a program start at this end; it is killed when this program dies.
    pub fn hold(&self, command: &mut Command) -> io::Result<()> {
        net::run_in(command, self.namespace.try_clone()?);
        Ok(())
    }

    /// Moves this thread to this end; it stays there.
    pub fn enter(&self) -> io::Result<()> {
        net::enter(&self.namespace)
    }

    /// Packets that the device dropped because the link did not take them in time.
    pub fn dropped(&self) -> u64 {
        let Ok(namespace) = self.namespace.try_clone() else { return 0 };
        // A thread that has entered a namespace stays there: so this takes one of its own.
        let read = thread::spawn(move || {
            net::enter(&namespace).ok()?;
            let all = fs::read_to_string("/proc/thread-self/net/dev").ok()?;
            let line = all.lines().find_map(|l| l.trim().strip_prefix(DEVICE)?.strip_prefix(':'))?;
            line.split_whitespace().nth(11)?.parse().ok()
        });
        read.join().ok().flatten().unwrap_or(0)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// In a thread of its own, which is in the new namespace from then on.
fn equip(path: &Path, address: Ipv4Addr, stack: &Stack) -> Result<(File, File), String> {
    let said = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| format!("{what}: {e}")
    };
    net::make_namespace(path).map_err(said("making a network namespace"))?;
    net::loopback_up().map_err(said("the loopback device of the namespace"))?;
    let device = net::tun(DEVICE).map_err(said("a TUN device from /dev/net/tun"))?;
    // An address of its own for each end; IPv6 would only add its own chatter.
    let _ = fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    net::bring_up(DEVICE, address, stack.mtu, DEVICE_QUEUE).map_err(said("bringing the device up"))?;
    for (file, text) in stack.settings() {
        // A namespace may have only the congestion controls that the machine allows to everybody.
        let hint = "see net.ipv4.tcp_allowed_congestion_control";
        fs::write(file, &text).map_err(said(&format!("{text} into {file} ({hint})")))?;
    }
    Ok((File::open(path).map_err(said(&path.display().to_string()))?, device))
}

fn remove(path: &Path) {
    // Both fail only on what somebody else has removed meanwhile.
    let _ = net::unmount(path);
    let _ = fs::remove_file(path);
}

/// Removes the namespaces of runs that were killed, known by the number of a process that is no more, or is another program.
pub fn sweep() -> Vec<String> {
    let names = fs::read_dir(NAMES).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    let left: Vec<String> = names.filter(|name| owner(name).is_some_and(|pid| !lives(pid))).collect();
    left.iter().for_each(|name| remove(&Path::new(NAMES).join(name)));
    left
}

/// Removes the namespaces of this program, whoever still uses them: the last step before it ends without `drop`.
pub fn leave() {
    let own = ["a", "b"].map(|end| format!("{PREFIX}{}-{end}", std::process::id()));
    own.iter().for_each(|name| remove(&Path::new(NAMES).join(name)));
}

/// The process that made a namespace of this name; `None`: not ours.
fn owner(name: &str) -> Option<u32> {
    let (pid, end) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok().filter(|_| ["a", "b"].contains(&end))
}

/// A process with this number runs, and is this program.
fn lives(pid: u32) -> bool {
    let program = |pid: String| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    program(pid.to_string()).is_some_and(|name| Some(name) == program("self".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_program_have_an_owner() {
        let all = ["ezwan-12-a", "ezwan-12-b", "ezwan-12-c", "ezwan-x-a", "ezwan-12", "blue", "ezwan--a"].map(owner);
        assert_eq!(all, [Some(12), Some(12), None, None, None, None, None]);
    }

    #[test]
    fn a_process_lives_while_it_is_this_program() {
        assert!(lives(std::process::id()));
        assert!(!lives(u32::MAX), "there is no such process");
        let parent = std::os::unix::process::parent_id();
        assert!(!lives(parent), "cargo, or a shell, is another program");
    }
}
