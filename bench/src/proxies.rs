//! Starts each proxy of the comparison on one core, with a configuration of its own, and reads its CPU time.

use crate::sys;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running proxy; ended when dropped.
pub struct Proxy {
    child: Child,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        sys::terminate(self.child.id());
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// Starts `command` with the calling thread's cores; what it says goes to `log`.
    pub fn start(command: &[String], log: &Path) -> Result<Proxy, String> {
        let (program, args) = command.split_first().ok_or("an empty command")?;
        let log = fs::File::create(log).map_err(|e| format!("{}: {e}", log.display()))?;
        let errors = log.try_clone().map_err(|e| e.to_string())?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|e| format!("cannot start `{program}`: {e}"))?;
        Ok(Proxy { child })
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// User and system time of the process and all below it, in clock ticks.
    pub fn cpu_ticks(&self) -> u64 {
        tree_ticks(self.child.id())
    }
}

fn tree_ticks(pid: u32) -> u64 {
    let own = fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|s| stat_ticks(&s)).unwrap_or(0);
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|t| fs::read_to_string(t.path().join("children")).ok());
    let below: u64 =
        children.flat_map(|c| c.split(' ').filter_map(|p| p.parse().ok()).collect::<Vec<u32>>()).map(tree_ticks).sum();
    own + below
}

/// Fields 14 and 15 of `/proc/PID/stat` (proc(5)); the name in field 2 may hold spaces and parentheses.
fn stat_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

pub fn nginx_conf(dir: &Path, listen: SocketAddr, upstream: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\npid {dir}/nginx.pid;\nerror_log {dir}/nginx.err;\n\
         events {{ worker_connections 4096; }}\nhttp {{\n  access_log off;\n  keepalive_requests 1000000000;\n  \
         client_body_temp_path {dir}/nb;\n  proxy_temp_path {dir}/np;\n  fastcgi_temp_path {dir}/nf;\n  \
         uwsgi_temp_path {dir}/nu;\n  scgi_temp_path {dir}/ns;\n  \
         upstream b {{ server {upstream}; keepalive 1024; keepalive_requests 1000000000; }}\n  \
         server {{ listen {listen}; location / {{ proxy_pass http://b; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; }} }}\n}}\n"
    )
}

pub fn haproxy_conf(listen: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  \
         timeout server 60s\n  http-reuse always\nfrontend f\n  bind {listen}\n  default_backend b\n\
         backend b\n  server s {upstream}\n"
    )
}

pub fn ours_conf(dir: &Path, map: &Path, core: usize, listen: SocketAddr, upstream: SocketAddr) -> String {
    let dir = dir.join("ours");
    format!(
        "[node]\nzone = \"bj\"\ndata_dir = {dir:?}\n\n[map]\nfile = {map:?}\n\n\
         [router]\nlisten = [\"{listen}\"]\ncores = [{core}]\n\n\
         [[service]]\nprefix = \"/\"\nendpoints = [\"{upstream}\"]\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_with_parentheses() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 31 11 0 0 20 0";
        assert_eq!(stat_ticks(stat), Some(42));
        assert_eq!(stat_ticks("7 (x"), None);
    }

    #[test]
    fn our_configuration_is_one_that_the_router_takes() {
        let at = SocketAddr::from(([127, 0, 0, 1], 1));
        let text = ours_conf(Path::new("/tmp/a \"b\""), Path::new("/m/china.toml"), 0, at, at);
        let config = dataplane::config::Config::parse("ours.conf", &text);
        assert!(config.is_ok(), "{}", config.err().map(|e| e.to_string()).unwrap_or_default());
    }
}
