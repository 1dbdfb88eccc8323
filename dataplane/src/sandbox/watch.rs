//! Waits for a cluster: until everything runs and hears of each other, and until nothing is under way any more.

use super::cluster::Cluster;
use super::pages::Pages;
use crate::control::report::{LogStatus, StreamStatus};
use std::time::{Duration, Instant};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until every process answers, takes writes, goes by map `epoch` or a newer one, and every link is live.
pub async fn ready(cluster: &mut Cluster, pages: &Pages, epoch: u64, patience: Duration) -> Result<(), String> {
    let until = Instant::now() + patience;
    loop {
        if let Some(why) = cluster.fallen() {
            return Err(why);
        }
        let waiting = not_ready(cluster, pages, epoch).await;
        if waiting.is_empty() {
            return Ok(());
        }
        late(until, patience, || waiting.join(", ")).await?;
    }
}

async fn not_ready(cluster: &Cluster, pages: &Pages, epoch: u64) -> Vec<String> {
    let mut waiting = vec![];
    for zone in &cluster.zones {
        let name = zone.name;
        match pages.log(zone.ports.log_admin).await {
            None => waiting.push(format!("{name}'s log does not answer")),
            Some(s) if s.map_epoch < epoch => {
                waiting.push(format!("{name}'s log goes by map {}, not {epoch}", s.map_epoch))
            }
            Some(s) if s.read_only => waiting.push(format!("{name}'s log is read-only")),
            Some(s) if s.store_full => waiting.push(format!("{name}'s store is full")),
            Some(s) => waiting.extend(link_down(name, &s, cluster.zones.len() - 1)),
        }
        match pages.router(zone.ports.router_admin).await {
            None => waiting.push(format!("{name}'s router does not answer")),
            Some(s) if s.map_epoch < epoch => {
                waiting.push(format!("{name}'s router goes by map {}, not {epoch}", s.map_epoch))
            }
            Some(_) => {}
        }
    }
    waiting
}

/// The first link that is not up, with what it waits for or stopped at.
fn link_down(name: &str, status: &LogStatus, others: usize) -> Option<String> {
    status.streams.iter().find_map(|s| match s.links.iter().find(|(_, l)| l.state != "live") {
        Some((to, link)) => Some(format!("{name}'s link to {to}, stream {}: {}", s.stream, link.state)),
        None if s.links.len() < others => Some(format!("{name}'s links of stream {} are not up", s.stream)),
        None => None,
    })
}

/// Waits until every zone has applied all that is durable in every zone, and nothing is parked.
pub async fn quiet(cluster: &mut Cluster, pages: &Pages, patience: Duration) -> Result<(), String> {
    let until = Instant::now() + patience;
    loop {
        if let Some(why) = cluster.fallen() {
            return Err(why);
        }
        let mut logs = vec![];
        for zone in &cluster.zones {
            logs.extend(pages.log(zone.ports.log_admin).await);
        }
        let silent = (logs.len() < cluster.zones.len()).then(|| "a log does not answer".to_owned());
        let Some(waits) = silent.or_else(|| lacking(&logs)) else { return Ok(()) };
        late(until, patience, || waits).await?;
    }
}

/// What some zone has not applied yet.
fn lacking(logs: &[LogStatus]) -> Option<String> {
    logs.iter().find_map(|here| {
        if here.parked > 0 {
            return Some(format!("{} records are parked in {}", here.parked, here.zone));
        }
        logs.iter().find_map(|origin| {
            let records = lacks(here, origin);
            (records > 0).then(|| format!("{} has not applied {records} records of {}", here.zone, origin.zone))
        })
    })
}

/// How many records that are durable in `origin`'s log are not applied `here`.
pub fn lacks(here: &LogStatus, origin: &LogStatus) -> u64 {
    let of = |o: &StreamStatus| {
        let here = here.streams.iter().find(|s| s.stream == o.stream);
        o.durable_seq.saturating_sub(here.and_then(|s| s.applied.get(&origin.zone).copied()).unwrap_or(0))
    };
    origin.streams.iter().map(of).sum()
}

/// The next look, or the end of patience.
async fn late(until: Instant, patience: Duration, waits: impl FnOnce() -> String) -> Result<(), String> {
    if Instant::now() >= until {
        return Err(format!("after {} s: {}", patience.as_secs(), waits()));
    }
    tokio::time::sleep(LOOK).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(zone: &str, durable: u64, applied: [u64; 2]) -> LogStatus {
        let applied = ["bj", "sh"].map(str::to_owned).into_iter().zip(applied).collect();
        let stream = StreamStatus { durable_seq: durable, applied, ..StreamStatus::default() };
        LogStatus { zone: zone.into(), streams: vec![stream], ..LogStatus::default() }
    }

    #[test]
    fn a_cluster_is_quiet_when_everyone_has_applied_everything_and_nothing_is_parked() {
        let check = |bj: &LogStatus, sh: &LogStatus, expected: Option<&str>| {
            assert_eq!(lacking(&[bj.clone(), sh.clone()]).as_deref(), expected);
        };
        let (bj, sh) = (status("bj", 7, [7, 3]), status("sh", 3, [7, 3]));
        check(&bj, &sh, None);
        check(&bj, &status("sh", 3, [5, 3]), Some("sh has not applied 2 records of bj"));
        check(&status("bj", 7, [7, 0]), &sh, Some("bj has not applied 3 records of sh"));
        check(&bj, &LogStatus { parked: 4, ..sh }, Some("4 records are parked in sh"));
    }
}
