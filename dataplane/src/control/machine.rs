//! Says clearly when this machine cannot run the log: too little locked memory. (`uring::check` speaks for the rings.)

use rustix::process::{Resource, getrlimit};

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
