//! The machine as a layout sees it: the cores that this process may use, which of them are one physical core, where they are.
//! Read from the affinity mask, the control group's quota and `/sys`.

use rustix::thread::{CpuSet, sched_getaffinity};
use std::cmp::Reverse;
use std::fs;
use std::path::Path;
use std::thread::available_parallelism;

/// What the kernel calls a processor: one thread of a physical core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// Its number.
    pub id: usize,
    /// Its physical core, named by the first of its threads.
    pub core: usize,
    /// The package that it is in.
    pub package: usize,
    /// The NUMA node that it is in.
    pub node: usize,
}

/// What this process may use.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Machine {
    /// By number, ascending; at least one.
    pub cpus: Vec<Cpu>,
    /// So many processors' time may be used, by the control group's quota; at least 1.
    pub quota: Option<usize>,
}

impl Machine {
    /// This one. On a host that is shared out the numbers need not begin at 0.
    pub fn here() -> Machine {
        let parallel = available_parallelism().map_or(1, usize::from);
        let allowed: Vec<usize> = match sched_getaffinity(None) {
            Ok(mask) => (0..CpuSet::MAX_CPU).filter(|id| mask.is_set(*id)).collect(),
            Err(_) => (0..parallel).collect(),
        };
        Machine::read(Path::new("/sys/devices/system/cpu"), &allowed, Some(parallel))
    }

    /// With these processors as `sys`, a directory like `/sys/devices/system/cpu`, describes them; one that it does not
    /// describe is a physical core of its own, in package and node 0.
    pub fn read(sys: &Path, allowed: &[usize], quota: Option<usize>) -> Machine {
        let read = |id: usize| {
            let dir = sys.join(format!("cpu{id}"));
            let text = |name: &str| fs::read_to_string(dir.join("topology").join(name)).ok();
            let siblings = text("thread_siblings_list").and_then(|list| lowest(&list));
            let package = text("physical_package_id").and_then(|n| n.trim().parse().ok());
            Cpu { id, core: siblings.unwrap_or(id), package: package.unwrap_or(0), node: node_of(&dir).unwrap_or(0) }
        };
        let mut cpus: Vec<Cpu> = allowed.iter().map(|id| read(*id)).collect();
        cpus.sort_unstable_by_key(|c| c.id);
        let quota = quota.map(|q| q.max(1)).filter(|q| *q < cpus.len());
        Machine { cpus, quota }
    }

    /// As many processors as the quota has time for: of one NUMA node as far as it goes, a physical core each as far as there
    /// are any.
    pub fn within_quota(&self) -> Vec<Cpu> {
        let size = |node: usize| self.cpus.iter().filter(|c| c.node == node).count();
        let thread = |c: &Cpu| self.cpus.iter().filter(|o| o.core == c.core && o.id < c.id).count();
        let mut all = self.cpus.clone();
        all.sort_by_key(|c| (Reverse(size(c.node)), c.node, thread(c), c.id));
        all.truncate(self.quota.unwrap_or(usize::MAX));
        all.sort_unstable_by_key(|c| c.id);
        all
    }
}

/// The first number of a list such as `0,64` or `2-3`, which the kernel sorts.
fn lowest(list: &str) -> Option<usize> {
    list.trim().split([',', '-']).next()?.parse().ok()
}

/// A processor's directory has a link `nodeN` to its node.
fn node_of(dir: &Path) -> Option<usize> {
    let names = fs::read_dir(dir).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("node")?.parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_core_at_least_and_no_more_than_the_quota_are_used() {
        let here = Machine::here();
        assert!(!here.cpus.is_empty());
        assert!(here.cpus.iter().all(|c| c.core <= c.id), "{here:?}");
        assert_eq!(here.within_quota().len(), available_parallelism().unwrap().get().min(here.cpus.len()));
    }

    #[test]
    fn what_the_kernel_tells_of_threads_packages_and_nodes_is_read_and_what_it_does_not_tell_is_not_made_up() {
        let sys = std::env::temp_dir().join(format!("ezone-machine-{}", std::process::id()));
        for (id, siblings, package, node) in [(1, "1,5\n", "0\n", 0), (5, "1,5\n", "0\n", 0), (6, "2-3,6\n", "1\n", 1)]
        {
            let topology = sys.join(format!("cpu{id}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::create_dir_all(sys.join(format!("cpu{id}/node{node}"))).unwrap();
            fs::write(topology.join("thread_siblings_list"), siblings).unwrap();
            fs::write(topology.join("physical_package_id"), package).unwrap();
        }
        let machine = Machine::read(&sys, &[6, 1, 5, 9], Some(8));
        fs::remove_dir_all(&sys).unwrap();
        let cpu = |id, core, package, node| Cpu { id, core, package, node };
        assert_eq!(machine.cpus, [cpu(1, 1, 0, 0), cpu(5, 1, 0, 0), cpu(6, 2, 1, 1), cpu(9, 9, 0, 0)]);
        assert_eq!(machine.quota, None, "a quota beyond what there is");
    }

    #[test]
    fn a_quota_is_spent_on_one_node_and_on_whole_physical_cores() {
        let of = |id: usize| Cpu { id, core: id % 4, package: id % 4 / 2, node: id % 4 / 2 };
        let machine = Machine { cpus: (0..8).map(of).collect(), quota: Some(3) };
        let ids: Vec<_> = machine.within_quota().iter().map(|c| c.id).collect();
        assert_eq!(ids, [0, 1, 4]);
    }
}
