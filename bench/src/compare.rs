//! Puts peers side by side: the same backend and load, round by round, each proxy alone on its core.

use crate::load::{self, Plan};
use crate::manner::Options;
use crate::proxies::{self, Proxy};
use crate::schedule::Pace;
use crate::script::{Body, Script};
use crate::serve::Server;
use crate::target::Url;
use crate::{sys, upstream};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Why there are no figures when a signal came.
const INTERRUPTED: &str = "interrupted";

#[derive(clap::Args)]
#[command(after_help = "Example: ezbench compare proxies --rounds 5")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// CPU time of one proxied request: ours, nginx and haproxy in front of the same backend
    Proxies(Proxies),
}

#[derive(clap::Args)]
#[command(after_help = "\
Each proxy runs alone on its core, round by round; nginx and haproxy are left out where they are not installed.
Exit code 1: a round saw errors. 2: wrong usage, a proxy that does not answer, or a signal.

Example: ezbench compare proxies --rounds 5 --seconds 4 --ours 'target/release/ezone router --config {config}'")]
struct Proxies {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each proxy in each round
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How ours is started; {config}, {listen} and {upstream} are filled in
    #[arg(long, default_value = "ezone router --config {config}")]
    ours: String,
    /// Map that ours routes by
    #[arg(long, default_value = "shardmap/data/china.toml")]
    map: String,
    /// Core of the proxy
    #[arg(long, default_value_t = 0)]
    proxy_core: usize,
    /// Core of the backend and the load
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// The last line is one JSON object
    #[arg(long)]
    json: bool,
}

/// One proxy's rounds.
#[derive(Default)]
struct Seen {
    us: Vec<f64>,
    per_s: Vec<f64>,
    errors: u64,
}

pub fn run(args: Args) -> ExitCode {
    let What::Proxies(args) = args.what;
    match compare(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(fault) => {
            eprintln!("ezbench compare: {fault}");
            ExitCode::from(2)
        }
    }
}

fn compare(args: &Proxies) -> Result<bool, String> {
    if !(1..=100).contains(&args.rounds) || !(1..=4096).contains(&args.connections) {
        return Err("expected --rounds 1 to 100 and --connections 1 to 4096".into());
    }
    if !(0.1..=600.0).contains(&args.seconds) {
        return Err(format!("--seconds {}: expected 0.1 to 600", args.seconds));
    }
    let cores = upstream::pick_cores(&[args.proxy_core, args.load_core])?;
    sys::raise_open_files();
    let stop = sys::stop_signals().map_err(|e| e.to_string())?;
    let dir = std::env::temp_dir().join(format!("ezbench-compare-{}", std::process::id()));
    fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let result = rounds(args, &cores, &stop, &dir);
    match &result {
        Err(fault) if fault != INTERRUPTED => eprintln!("what the proxies said is in {}", dir.display()),
        Ok(_) | Err(_) => drop(fs::remove_dir_all(&dir)),
    }
    result
}

fn rounds(args: &Proxies, cores: &[core_affinity::CoreId], stop: &OwnedFd, dir: &Path) -> Result<bool, String> {
    let listener = Server::listen(([127, 0, 0, 1], 0).into()).map_err(|e| e.to_string())?;
    let backend = listener.local_addr().map_err(|e| e.to_string())?;
    let options = Options { body_bytes: (128, 128), ..Options::default() };
    let (own_stop, load_core) = (stop.try_clone().map_err(|e| e.to_string())?, cores[1]);
    // Serves until this process ends.
    thread::spawn(move || {
        core_affinity::set_for_current(load_core);
        Server::new(listener, options, 0, &own_stop).and_then(|mut s| s.run(None))
    });
    let mut names = vec!["ours"];
    for (name, path) in [("nginx", "/usr/sbin/nginx"), ("haproxy", "/usr/sbin/haproxy")] {
        match Path::new(path).exists() {
            true => names.push(name),
            false => eprintln!("{name}: no {path}, left out; `apt-get install {name}` brings it"),
        }
    }
    let mut seen: Vec<Seen> = names.iter().map(|_| Seen::default()).collect();
    for round in 0..args.rounds {
        for (name, seen) in names.iter().zip(&mut seen) {
            one(args, name, backend, cores, stop, dir, seen)
                .map_err(|e| if e == INTERRUPTED { e } else { format!("{name}: {e}") })?;
            eprintln!("round {} {name}: {:.2} us/request", round + 1, seen.us[round]);
        }
    }
    report(args, &names, &seen);
    Ok(seen.iter().all(|s| s.errors == 0))
}

fn one(
    args: &Proxies,
    name: &str,
    backend: SocketAddr,
    cores: &[core_affinity::CoreId],
    stop: &OwnedFd,
    dir: &Path,
    seen: &mut Seen,
) -> Result<(), String> {
    // Free now; taken by the proxy a moment later.
    let probe = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    let listen = probe.map_err(|e| e.to_string())?;
    let command = command(args, name, listen, backend, dir)?;
    core_affinity::set_for_current(cores[0]);
    let proxy = Proxy::start(&command, &dir.join(format!("{name}.log")));
    core_affinity::set_for_current(cores[1]);
    let mut proxy = proxy?;
    let url = Url { authority: &listen.to_string(), path: "/".into() };
    let mut plan = Plan {
        address: listen,
        script: Script::new("GET", &url, &["x-shard: loc=116.40,39.90".into()], Body::Fixed(vec![]))?,
        pace: Pace::Closed,
        requests: u64::MAX,
        connections: 1,
        pipeline: 1,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
    };
    let drive = |plan: &Plan| {
        let outcome = load::drive(plan, Some(stop), |_, _| {}).map_err(|e| e.to_string())?;
        if outcome.interrupted { Err(INTERRUPTED.to_owned()) } else { Ok(outcome) }
    };
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let outcome = drive(&plan)?;
        if outcome.is_fine() {
            break;
        }
        if proxy.has_ended() || Instant::now() > until {
            return Err(format!("`{}` does not answer: {}", command.join(" "), outcome.to_text(None)));
        }
        thread::sleep(Duration::from_millis(20));
    }
    plan.connections = args.connections;
    plan.duration = Duration::from_millis(300);
    drive(&plan)?;
    plan.duration = Duration::from_secs_f64(args.seconds);
    let before = proxy.cpu_ticks();
    let outcome = drive(&plan)?;
    let ticks = proxy.cpu_ticks() - before;
    if outcome.answers == 0 {
        return Err("no answers".into());
    }
    seen.us.push(ticks as f64 * 1e6 / sys::ticks_per_s() as f64 / outcome.answers as f64);
    seen.per_s.push(outcome.answers_per_s());
    seen.errors += u64::from(!outcome.is_fine());
    Ok(())
}

fn command(
    args: &Proxies,
    name: &str,
    listen: SocketAddr,
    backend: SocketAddr,
    dir: &Path,
) -> Result<Vec<String>, String> {
    let config: PathBuf = dir.join(format!("{name}.conf"));
    let shown = config.display().to_string();
    let (text, command) = match name {
        "nginx" => (proxies::nginx_conf(dir, listen, backend), format!("/usr/sbin/nginx -c {shown}")),
        "haproxy" => (proxies::haproxy_conf(listen, backend), format!("/usr/sbin/haproxy -db -f {shown}")),
        _ => {
            let map = fs::canonicalize(&args.map).map_err(|e| format!("{}: {e}", args.map))?;
            let text = proxies::ours_conf(dir, &map, args.proxy_core, listen, backend);
            (text, args.ours.replace("{config}", &shown))
        }
    };
    fs::write(&config, text).map_err(|e| format!("{shown}: {e}"))?;
    let command = command.replace("{listen}", &listen.to_string()).replace("{upstream}", &backend.to_string());
    Ok(command.split_whitespace().map(String::from).collect())
}

fn report(args: &Proxies, names: &[&str], seen: &[Seen]) {
    let nginx = names.iter().position(|n| *n == "nginx");
    let ratio = |s: &Seen| nginx.map(|at| median(s.us.iter().zip(&seen[at].us).map(|(a, b)| a / b).collect()));
    println!(
        "| proxy | CPU us / request | requests/s | CPU, ratio to nginx | rounds with errors |\n|---|---|---|---|---|"
    );
    for (name, s) in names.iter().zip(seen) {
        let (us, per_s) = (median(s.us.clone()), median(s.per_s.clone()));
        let shown = ratio(s).map_or("-".into(), |r| format!("{r:.2}"));
        println!("| {name} | {us:.2} | {per_s:.0} | {shown} | {} |", s.errors);
    }
    if args.json {
        let one = |(name, s): (&&str, &Seen)| {
            let value = serde_json::json!({ "cpu_us": median(s.us.clone()), "per_s": median(s.per_s.clone()),
                "ratio_to_nginx": ratio(s), "rounds_us": s.us, "rounds_with_errors": s.errors });
            (name.to_string(), value)
        };
        println!("{}", serde_json::Value::Object(names.iter().zip(seen).map(one).collect()));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = values.len() / 2;
    if values.len() % 2 == 1 { values[at] } else { (values[at - 1] + values[at]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
