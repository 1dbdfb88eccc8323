//! `ezctl fence`: what new fences would change, and changing them. By the Global Zone Service.

use crate::service::{self, Asking, At, Limit, Not, json, say, shown, table};
use clap::{Args, Subcommand};
use dataplane::config::file;
use gzs::api::{FencesAsk, FencesPreview, GiveView, Town, What};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bytes of a file of fences: the service takes no more.
const FENCES_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a file of towns.
const TOWNS_BYTES_MAX: u64 = 8 << 20;
/// Towns and names of fences that a page shows.
const SHOWN_MAX: usize = 40;

#[derive(Subcommand)]
pub enum Command {
    /// Show which land would change its shard, and its zone: exit 0 if the fences could be the map's, 1 if something is wrong with them
    #[command(after_help = "\
FILE is GeoJSON with all fences, in the order that settles overlaps: `ezctl fence export` writes those of today. Each has the property
`name`, and `shard` unless a fence of that name has one. `held`: shards whose requests wait for a moment when the edit is made, since they
give land to a shard of another zone. The map's number in the first line is what `fence apply --from` wants.

Example: ezctl fence preview new.geojson --towns shardmap/data/china-places.csv --gzs http://127.0.0.1:7300")]
    Preview(Preview),
    /// Change the fences to those of a file, as they were previewed. Waits for the end
    #[command(after_help = "\
Clients in the places that change feel a delay, no error. Refused if the map has got other fences since the preview. What was placed before
stays where it is, and is found by its id. Exit 0: done. 1: refused, or it ended otherwise. 2: wrong input.

Example: ezctl fence apply new.geojson --from 12 --why \"the new bridge\"")]
    Apply(Apply),
    /// Write the fences of today as GeoJSON
    #[command(after_help = "Example: ezctl fence export > fences.geojson")]
    Export(Export),
}

#[derive(Args)]
pub struct Given {
    /// The new fences, all of them, as GeoJSON
    file: PathBuf,
    /// What its coordinates mean: WGS84 or GCJ-02
    #[arg(long, default_value = "WGS84")]
    datum: String,
}

#[derive(Args)]
pub struct Preview {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    given: Given,
    /// Places of which it is told whether they change: lines of name,lat,lng, below a line that says so
    #[arg(long, value_name = "FILE")]
    towns: Option<PathBuf>,
}

#[derive(Args)]
pub struct Apply {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    given: Given,
    /// The map that the preview was made of
    #[arg(long, value_name = "EPOCH")]
    from: u64,
    #[command(flatten)]
    asking: Asking,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    at: At,
}

pub fn run(command: Command) -> ExitCode {
    match command {
        Command::Preview(p) => service::with(&p.at, async |client| {
            let towns = p.towns.as_deref().map(towns).transpose()?.unwrap_or_default();
            let ask = FencesAsk { geojson: read(&p.given.file)?, datum: Some(p.given.datum.clone()), towns };
            let seen = client.preview(&ask).await.map_err(judged)?;
            if p.at.json {
                json(&seen)?
            } else {
                say(&page(&seen))?
            }
            Ok(ExitCode::SUCCESS)
        }),
        Command::Apply(a) => service::with(&a.at, async |client| {
            let (geojson, datum) = (read(&a.given.file)?, Some(a.given.datum.clone()));
            let what = What::Fences { from_epoch: a.from, geojson, datum };
            service::begin(client, what, &a.asking, a.limit.limit_ms, a.at.json).await
        }),
        Command::Export(e) => service::with(&e.at, async |client| {
            let fences = client.fences().await?;
            let features = fences["features"].as_array().map_or(&[][..], Vec::as_slice);
            let lines: Vec<String> = features.iter().map(Value::to_string).collect();
            let open = "{\"type\":\"FeatureCollection\",\"features\":[\n";
            say(&format!("{open}{}\n]}}\n", lines.join(",\n")))?;
            Ok(ExitCode::SUCCESS)
        }),
    }
}

/// Fences that cannot be the map's are an answer, and "no".
fn judged(denied: dataplane::control::gzs_client::Denied) -> Not {
    match Not::from(denied) {
        Not::Refused { status: 400, fault } if !fault.reasons.is_empty() => {
            Not::No(fault.reasons.iter().fold(format!("{}:", fault.error), |text, r| format!("{text}\n  {r}")))
        }
        other => other,
    }
}

fn read(path: &Path) -> Result<Value, Not> {
    let wrong = |e: String| Not::wrong(format!("{}: {e}", path.display()));
    let text = file::read_text(path, FENCES_BYTES_MAX).map_err(|e| wrong(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| wrong(format!("not JSON: {e}")))
}

/// A file whose first line names its columns: `name`, `lat` and `lng` are among them, and no field has a comma.
fn towns(path: &Path) -> Result<Vec<Town>, Not> {
    let wrong = |e: String| Not::wrong(format!("--towns {}: {e}", path.display()));
    let text = file::read_text(path, TOWNS_BYTES_MAX).map_err(|e| wrong(e.to_string()))?;
    towns_in(&text).map_err(wrong)
}

fn towns_in(text: &str) -> Result<Vec<Town>, String> {
    let mut lines = text.lines().enumerate();
    let head: Vec<&str> = lines.next().map_or("", |(_, head)| head).split(',').map(str::trim).collect();
    let column = |name: &str| {
        let at = head.iter().position(|c| *c == name);
        at.ok_or_else(|| format!("its first line has no column \"{name}\"; expected name,lat,lng"))
    };
    let (name, lat, lng) = (column("name")?, column("lat")?, column("lng")?);
    let town = |(at, line): (usize, &str)| {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let degrees = |column: usize| fields.get(column).and_then(|f| f.parse::<f64>().ok());
        let found = fields.get(name).zip(degrees(lng)).zip(degrees(lat));
        let found = found.map(|((name, lng), lat)| Town { name: (*name).to_owned(), lng, lat });
        found.ok_or_else(|| format!("line {}: expected {}", at + 1, head.join(",")))
    };
    lines.filter(|(_, line)| !line.trim().is_empty()).map(town).collect()
}

fn page(p: &FencesPreview) -> String {
    let mut text = format!("compared with map {}: `ezctl fence apply FILE --from {}`\n", p.from_epoch, p.from_epoch);
    for (what, names) in [("added", &p.added), ("removed", &p.removed), ("changed", &p.changed)] {
        if !names.is_empty() {
            text += &format!("fences {what}: {}\n", some(names));
        }
    }
    p.notes.iter().for_each(|note| text += &format!("note: {}\n", shown(note)));
    if p.gives.is_empty() {
        return text + "no land changes its shard\n";
    }
    text += "\n";
    text += &table(
        &["from", "zone", "to", "zone", "km2", "towns", "for example"],
        &p.gives.iter().map(row).collect::<Vec<_>>(),
    );
    text += &format!("\nland that is narrower than {:.0} m may be missing\n", p.resolution_m);
    if !p.bare.is_empty() {
        text += &format!("without a fence then: shards {}\n", some(&p.bare));
    }
    match p.held.as_slice() {
        [] => text += "no land changes its zone: nobody waits\n",
        held => text += &format!("held for a moment: shards {}\n", some(held)),
    }
    if !p.towns.is_empty() {
        let names: Vec<&String> = p.towns.iter().map(|t| &t.name).collect();
        text += &format!("towns that change their shard: {}\n", some(&names));
    }
    text
}

fn row(g: &GiveView) -> Vec<String> {
    let shard = |s: Option<u16>| s.map_or("-".into(), |s| s.to_string());
    let zone = |z: &Option<String>| z.clone().unwrap_or_else(|| "-".into());
    let place = g.samples.first().cloned().unwrap_or_default();
    vec![
        shard(g.from),
        zone(&g.from_zone),
        shard(g.to),
        zone(&g.to_zone),
        format!("{:.3}", g.km2),
        g.towns.to_string(),
        place,
    ]
}

fn some<T: ToString>(all: &[T]) -> String {
    let named: Vec<String> = all.iter().take(SHOWN_MAX).map(|n| shown(&n.to_string())).collect();
    let more = all.len().saturating_sub(SHOWN_MAX);
    named.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gzs::api::TownView;

    #[test]
    fn towns_are_read_by_the_names_of_their_columns_and_a_bad_line_is_named() {
        let towns = towns_in("name,lat,lng,province\nZito,30.73893,95.83613,Tibet\n\nAlong,28,94,Tibet\n").unwrap();
        assert_eq!((towns.len(), towns[0].name.as_str(), towns[0].lng, towns[1].lat), (2, "Zito", 95.83613, 28.0));
        assert!(towns_in("name,lat\nZito,1\n").unwrap_err().contains("no column \"lng\""));
        assert!(towns_in("name,lat,lng\nZito,1,x\n").unwrap_err().starts_with("line 2: expected"));
        assert!(towns_in("").is_err());
    }

    #[test]
    fn a_page_says_what_goes_where_and_who_waits() {
        let give = GiveView {
            from: Some(352),
            to: Some(341),
            from_zone: Some("bj".into()),
            to_zone: Some("sh".into()),
            changes_zone: true,
            km2: 12.3456,
            samples: vec!["121.1,31.4".into()],
            towns: 1,
        };
        let preview = FencesPreview {
            from_epoch: 7,
            changed: vec!["Jiangsu".into(), "Shanghai\u{7}".into()],
            gives: vec![give],
            held: vec![352],
            bare: vec![9],
            towns: vec![TownView { name: "Kunshan".into(), from: Some(352), to: Some(341) }],
            resolution_m: 11.4,
            ..FencesPreview::default()
        };
        let text = page(&preview);
        assert!(text.starts_with("compared with map 7: `ezctl fence apply FILE --from 7`\n"), "{text}");
        let row: Vec<_> = text.lines().find(|l| l.starts_with("352")).unwrap().split_whitespace().collect();
        assert_eq!(row, ["352", "bj", "341", "sh", "12.346", "1", "121.1,31.4"]);
        for part in [
            "held for a moment: shards 352\n",
            "without a fence then: shards 9\n",
            "change their shard: Kunshan\n",
            "than 11 m",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let nothing = page(&FencesPreview { gives: vec![], ..preview });
        assert!(nothing.ends_with("no land changes its shard\n"), "{nothing}");
    }
}
