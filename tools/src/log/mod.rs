//! `ezctl log`: look into a log, live or damaged, without changing a byte of it; `repair` alone changes one.

mod crew;
mod diff;
mod dump;
mod files;
mod find;
mod follow;
mod interrupt;
mod judge;
mod lag;
mod ls;
mod pick;
mod place;
mod progress;
mod repair;
mod scan;
mod stat;
mod text;
mod verify;

use clap::{Args, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the exit codes of `ezctl log` are.
const CODES: &str = "Exit code 0: fine. 1: the answer is \"no\" (verify: torn; diff: they differ; find: no record). \
                     2: corrupt, of a newer format, unreadable, or wrong usage. 3: verify found a gap. 130: interrupted.";

#[derive(Subcommand)]
#[command(after_help = CODES)]
pub enum Command {
    /// List streams, mirrors and their segments
    ///
    /// Of sealed segments only header and footer are read: the verdict is that of an open, `verify` reads every byte.
    #[command(after_help = "Example: ezctl log ls /var/lib/ezone\n\nExit code 0, or 2: a log could not be listed.")]
    Ls {
        #[command(flatten)]
        at: At,
    },
    /// Print records, also those around damage
    ///
    /// What a live log shows at its end was written, but is perhaps not durable yet.
    #[command(after_help = "Examples:\n  \
        ezctl log dump /var/lib/ezone/log/0 --table orders --from 100 --limit 20 --json\n  \
        ezctl log dump /var/lib/ezone --from 2026-11-21T12:00:00Z --to 2026-11-21T12:05:00+08:00 --op delete\n  \
        ezctl log dump /var/lib/ezone/log/0 --follow --key 42\n\n\
        Damage is told on standard error. Exit code 0, or 2: nothing could be read, or part of it is of a newer format.")]
    Dump {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        options: dump::Options,
    },
    /// Count records and bytes by table, op, shard and hour; sizes and intervals of batches
    #[command(after_help = "Example: ezctl log stat /var/lib/ezone/log/0 --from 2026-11-21T00:00:00Z\n\n\
        Exit code 0, or 2: nothing could be read, or part of it is of a newer format.")]
    Stat {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        pick: pick::Pick,
    },
    /// Check every byte: pages, chain, footers
    #[command(after_help = "Example: ezctl log verify /var/lib/ezone && echo fine\n\n\
        Exit code 0: fine. 1: torn at its end, which the next open mends. 2: corrupt, of a newer format, or unreadable. \
        3: a gap. The highest of several logs counts.")]
    Verify {
        #[command(flatten)]
        at: At,
    },
    /// Compare two copies of a stream: footers first, then batches, then records
    #[command(after_help = "Examples:\n  \
        ezctl log diff /var/lib/ezone/log/0 /mnt/peer/mirror/east-0\n  \
        ezctl log diff --common /var/lib/ezone/log/0 /mnt/peer/mirror/east-0    # a mirror may be behind\n\n\
        Exit code 0: the same. 1: they differ. 2: one of them cannot be read.")]
    Diff {
        /// A stream's directory
        a: PathBuf,
        /// Another one
        b: PathBuf,
        #[command(flatten)]
        options: diff::Options,
    },
    /// Print the history of a key over streams and mirrors, in the order of its HLCs
    #[command(after_help = "Example: ezctl log find --table orders --key 42 /var/lib/ezone /mnt/peer\n\n\
        Exit code 0: found. 1: no record. 2: nothing could be read, or part of it is of a newer format.")]
    Find {
        /// Data directories, streams' directories, or segments
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        options: find::Options,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Put damaged segments back as they were, from another copy of the stream
    ///
    /// Damaged and missing segments are written anew with the source's batches, checked, and put in place; the damaged ones are
    /// kept in quarantine/. A torn end is left alone: the next open mends it. The node must not run.
    #[command(after_help = "Examples:\n  \
        ezctl log repair /var/lib/ezone/log/0 --from /mnt/peer/mirror/east-0          # says what would be done\n  \
        ezctl log repair /var/lib/ezone/log/0 --from /mnt/peer/mirror/east-0 --yes\n  \
        ezctl log repair /backup/east-0 --from /mnt/peer/mirror/east-0 --as mirror    # elsewhere: say what it is\n\n\
        Exit code 0: nothing to repair, or repaired. 1: there is something to repair, and --yes was not given. \
        2: it cannot be repaired, with the reason, or it cannot be read.")]
    Repair {
        /// The damaged stream's directory
        path: PathBuf,
        #[command(flatten)]
        options: repair::Options,
    },
    /// Say how far mirrors and stores are behind the origins
    #[command(after_help = "Example: ezctl log lag --follow /var/lib/ezone-east /var/lib/ezone-south\n\n\
        Exit code 0, or 2: nothing could be read.")]
    Lag {
        /// Data directories of one or more nodes
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        options: lag::Options,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
pub struct At {
    /// A node's data directory, a stream's directory, or one segment file
    path: PathBuf,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn run(command: Command) -> ExitCode {
    if let Err(e) = interrupt::watch() {
        eprintln!("ezctl log: signals cannot be watched: {e}");
        return ExitCode::from(2);
    }
    let mut out = interrupt::Lines::default();
    match carry_out(&mut out, command).and_then(|code| out.flush().map(|()| code)) {
        Ok(code) => ExitCode::from(code),
        // The reader of the pipe has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            let _ = out.flush(); // what was found before it
            eprintln!("ezctl log: {e}");
            ExitCode::from(2)
        }
    }
}

fn carry_out(out: &mut impl Write, command: Command) -> io::Result<u8> {
    match command {
        Command::Ls { at } => ls::run(out, &place::places(&at.path)?, at.json),
        Command::Dump { at, options } => dump::run(out, &place::places(&at.path)?, &options, at.json),
        Command::Stat { at, pick } => stat::run(out, &place::places(&at.path)?, &pick, at.json),
        Command::Verify { at } => verify::run(out, &place::places(&at.path)?, at.json),
        Command::Diff { a, b, options } => diff::run(out, &place::one_place(&a)?, &place::one_place(&b)?, &options),
        Command::Repair { path, options } => {
            repair::run(out, &place::one_place(&path)?, &place::one_place(&options.from)?, &options)
        }
        Command::Find { paths, options, json } => find::run(out, &place::all_places(&paths)?, &options, json),
        Command::Lag { paths, options, json } => lag::run(out, &paths, &options, json),
    }
}
