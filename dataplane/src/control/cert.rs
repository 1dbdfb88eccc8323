//! `ezone cert`: makes a cluster's authority and the certificates that it signs, for tests, trials and small clusters.
//!
//! Keys can be read by their owner alone, nothing is overwritten, and what was made is said with the lines of configuration
//! that use it.

use super::Failed;
use crate::tls::Identity;
use crate::tls::authority::{Made, Period};
use clap::{Args, Subcommand};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The authority's files in the directory.
const AUTHORITY: &str = "ca";

/// What to make.
#[derive(Subcommand)]
pub enum What {
    /// An authority: ca.pem and ca.key
    #[command(after_help = "Example: ezone cert ca --dir /etc/ezone/tls --cluster ezone")]
    Ca {
        /// Where
        #[command(flatten)]
        place: Place,
        /// The cluster that its certificates are for, as in [node] cluster
        #[arg(long, default_value = "ezone")]
        cluster: String,
        /// For how long it is valid
        #[arg(long, default_value_t = 3650)]
        days: u32,
    },
    /// A certificate of a zone's nodes: zone-NAME.pem and .key, signed by the directory's authority
    #[command(after_help = "Example: ezone cert zone --dir /etc/ezone/tls --name bj")]
    Zone {
        /// Where
        #[command(flatten)]
        place: Place,
        /// The zone, as the map names it
        #[arg(long)]
        name: String,
        /// For how long it is valid
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
    /// A certificate of edge routers: edge.pem and edge.key, signed by the directory's authority
    #[command(after_help = "Example: ezone cert edge --dir /etc/ezone/tls")]
    Edge {
        /// Where
        #[command(flatten)]
        place: Place,
        /// For how long it is valid
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
    /// A certificate to show to clients: server-NAME.pem and .key, signed by the directory's authority
    #[command(after_help = "Example: ezone cert server --dir /etc/ezone/tls --name example.com --name www.example.com")]
    Server {
        /// Where
        #[command(flatten)]
        place: Place,
        /// A DNS name, also *.example.com, or an address; may be given several times
        #[arg(long = "name", required = true)]
        names: Vec<String>,
        /// For how long it is valid
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
}

/// Where the files lie.
#[derive(Args)]
pub struct Place {
    /// The directory; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Makes it; the text says what was made.
pub fn run(what: &What) -> Result<String, Failed> {
    let now_s = super::wall_ms() / 1000;
    match what {
        What::Ca { place, cluster, days } => {
            let made = Made::authority(cluster, Period::days(now_s, *days)).map_err(Failed::Input)?;
            let at = write(&place.dir, AUTHORITY, &made)?;
            let next = place.dir.display();
            Ok(said(&at, &[format!("next: ezone cert zone --dir {next} --name ZONE, for each zone")]))
        }
        What::Zone { place, name, days } => {
            let identity = Identity::Zone(name.clone());
            member(place, &format!("zone-{name}"), &identity, Period::days(now_s, *days))
        }
        What::Edge { place, days } => member(place, "edge", &Identity::Edge, Period::days(now_s, *days)),
        What::Server { place, names, days } => {
            let made = authority(&place.dir)?.server(names, Period::days(now_s, *days)).map_err(Failed::Input)?;
            let first = names.first().map_or("", String::as_str).replace('*', "any").replace(':', "_");
            let at = write(&place.dir, &format!("server-{first}"), &made)?;
            let (certificate, key) = (at.certificate.display(), at.key.display());
            let lines = [
                "[router]".into(),
                "tls_listen = [\"0.0.0.0:8443\"]".into(),
                String::new(),
                "[[tls]]".into(),
                format!("certificate = \"{certificate}\""),
                format!("key = \"{key}\""),
            ];
            Ok(said(&at, &lines))
        }
    }
}

struct At {
    certificate: PathBuf,
    key: PathBuf,
}

impl At {
    fn new(dir: &Path, name: &str) -> At {
        At { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) }
    }
}

fn member(place: &Place, file: &str, who: &Identity, period: Period) -> Result<String, Failed> {
    let made = authority(&place.dir)?.member(who, period).map_err(Failed::Input)?;
    let at = write(&place.dir, file, &made)?;
    let ca = At::new(&place.dir, AUTHORITY).certificate;
    let lines = [
        "[cluster]".into(),
        format!("ca = \"{}\"", ca.display()),
        format!("certificate = \"{}\"", at.certificate.display()),
        format!("key = \"{}\"", at.key.display()),
    ];
    Ok(said(&at, &lines))
}

fn said(at: &At, lines: &[String]) -> String {
    let keep = "the key is a secret: only its owner can read it";
    format!("made {} and {} ({keep})\n\n{}", at.certificate.display(), at.key.display(), lines.join("\n"))
}

fn authority(dir: &Path) -> Result<Made, Failed> {
    let at = At::new(dir, AUTHORITY);
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                let dir = dir.display();
                Failed::Input(format!("{}: not there; make it: ezone cert ca --dir {dir}", path.display()))
            }
            _ => Failed::Input(format!("{}: {e}", path.display())),
        })
    };
    Ok(Made { certificate: read(&at.certificate)?, key: read(&at.key)? })
}

/// The key first: a certificate without its key would be in the way of the next attempt and of no use.
fn write(dir: &Path, name: &str, made: &Made) -> Result<At, Failed> {
    fs::create_dir_all(dir).map_err(|e| Failed::Input(format!("{}: {e}", dir.display())))?;
    let at = At::new(dir, name);
    if let Some(there) = [&at.certificate, &at.key].into_iter().find(|p| p.exists()) {
        return Err(Failed::Input(format!("{} is there already: move it away first", there.display())));
    }
    let key = write_new(&at.key, &made.key, 0o600);
    key.and_then(|()| write_new(&at.certificate, &made.certificate, 0o644))?;
    Ok(at)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failed> {
    let failed = |e: std::io::Error| Failed::Fault(format!("{}: {e}", path.display()));
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file: File = file.map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Pair;
    use rustls::crypto::ring::default_provider;
    use std::os::unix::fs::PermissionsExt;

    struct Dir(PathBuf);
    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("ezone-cert-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Dir(dir)
        }
        fn place(&self) -> Place {
            Place { dir: self.0.clone() }
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_cluster_is_made_with_secret_keys_and_is_not_overwritten() {
        let dir = Dir::new("cluster");
        let zone = |name: &str| What::Zone { place: dir.place(), name: name.into(), days: 9 };
        let Err(Failed::Input(why)) = run(&zone("bj")) else { panic!("a zone without an authority") };
        assert!(why.contains("ezone cert ca --dir"), "{why}");
        let ca = What::Ca { place: dir.place(), cluster: "trial".into(), days: 9 };
        run(&ca).ok().unwrap();
        let Err(Failed::Input(why)) = run(&ca) else { panic!("the authority was overwritten") };
        assert!(why.ends_with("is there already: move it away first"), "{why}");
        let said = run(&zone("bj")).ok().unwrap();
        assert!(said.contains("[cluster]\nca = ") && said.contains("zone-bj.key\""), "{said}");
        run(&What::Edge { place: dir.place(), days: 9 }).ok().unwrap();
        let names = vec!["*.example.com".into(), "::1".into()];
        run(&What::Server { place: dir.place(), names, days: 9 }).ok().unwrap();
        for (name, who) in [
            ("zone-bj", Some(Identity::Zone("bj".into()))),
            ("edge", Some(Identity::Edge)),
            ("server-any.example.com", None),
        ] {
            let at = At::new(&dir.0, name);
            let mode = fs::metadata(&at.key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
            let read = |p: &Path| fs::read(p).unwrap();
            let pair = Pair::read(&read(&at.certificate), &read(&at.key), &default_provider()).unwrap();
            assert_eq!(Identity::of(pair.certificate(), "trial").ok(), who);
        }
    }

    #[test]
    fn names_that_reach_out_of_the_directory_are_refused() {
        let dir = Dir::new("names");
        run(&What::Ca { place: dir.place(), cluster: "ezone".into(), days: 9 }).ok().unwrap();
        for name in ["../x", "a/b", ""] {
            assert!(run(&What::Zone { place: dir.place(), name: name.into(), days: 9 }).is_err(), "{name}");
            assert!(run(&What::Server { place: dir.place(), names: vec![name.into()], days: 9 }).is_err(), "{name}");
        }
    }
}
