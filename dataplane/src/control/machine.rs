//! What the machine lets a process have: locked memory for the log, descriptors for the router. (`uring::check` speaks for the
//! rings.)

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What glommio locks at least for each executor.
const LOCKED_BYTES_PER_CORE: u64 = 512 * 1024;

/// May enough memory be locked for so many log cores?
pub fn locked_memory(cores: usize) -> Result<(), String> {
    let need = LOCKED_BYTES_PER_CORE * cores as u64;
    match getrlimit(Resource::Memlock).current {
        Some(have) if have < need => Err(format!(
            "at most {} KiB of memory may be locked here, {cores} log core(s) need {} KiB: \
             raise `ulimit -l`, or LimitMEMLOCK= in the systemd unit",
            have / 1024,
            need / 1024
        )),
        Some(_) | None => Ok(()),
    }
}

/// Takes as many descriptors as the process may have, where a shell's habit gives it 1,024; what is to be said if `wanted` are
/// more than that.
pub fn descriptors(wanted: u64) -> Option<String> {
    let had = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: had.maximum, maximum: had.maximum });
    let may = if raised.is_ok() { had.maximum } else { had.current };
    let may = may.filter(|may| *may < wanted)?;
    Some(format!(
        "at most {may} descriptors may be open here, {wanted} are needed where each core has connections_max clients: \
         raise `ulimit -n`, or LimitNOFILE= in the systemd unit, or lower connections_max"
    ))
}
