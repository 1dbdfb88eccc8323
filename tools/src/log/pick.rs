//! Which records are wanted: by seq, HLC or wall time, table, shard, op, key and origin.

use super::scan::Start;
use clap::{Args, ValueEnum};
use replog::batch::Batch;
use replog::{Hlc, Op, Record};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A place in a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// A seq.
    Seq(u64),
    /// A time of a stream.
    Hlc(Hlc),
    /// Milliseconds since 1970.
    WallMs(u64),
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Point, String> {
        let refuse = || {
            format!(
                "\"{text}\" is neither a seq (123), an HLC (1700000000000.0), a time (2026-11-21T12:00:00Z) nor seconds \
                 since 1970 (@1700000000)"
            )
        };
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if digits(text) {
            return text.parse().map(Point::Seq).map_err(|_| refuse());
        }
        if let Some(seconds) = text.strip_prefix('@') {
            let (whole, part) = seconds.split_once('.').unwrap_or((seconds, "0"));
            if !digits(whole) || !digits(part) {
                return Err(refuse());
            }
            let ms: u64 = format!("{part:0<3}")[..3].parse().map_err(|_| refuse())?;
            let whole: u64 = whole.parse().map_err(|_| refuse())?;
            return whole.checked_mul(1000).map(|s| Point::WallMs(s + ms)).ok_or_else(refuse);
        }
        if let Some((ms, counter)) = text.split_once('.').filter(|(ms, counter)| digits(ms) && digits(counter)) {
            let ms: u64 = ms.parse().ok().filter(|ms| *ms < 1 << 48).ok_or_else(refuse)?;
            return counter.parse().map(|counter| Point::Hlc(Hlc::new(ms, counter))).map_err(|_| refuse());
        }
        let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| refuse())?;
        u64::try_from(time.unix_timestamp_nanos() / 1_000_000).map(Point::WallMs).map_err(|_| refuse())
    }
}

/// An op's name on a command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum OpName {
    Put,
    Delete,
    Fence,
    Marker,
    Gap,
    Answer,
}

impl OpName {
    /// The op of this name.
    pub fn op(self) -> Op {
        match self {
            OpName::Put => Op::Put,
            OpName::Delete => Op::Delete,
            OpName::Fence => Op::Fence,
            OpName::Marker => Op::Marker,
            OpName::Gap => Op::Gap,
            OpName::Answer => Op::Answer,
        }
    }
}

/// A zone, or a stream of a zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    zone: u8,
    stream: Option<u32>,
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Origin, String> {
        let (zone, stream) = text.split_once('/').map_or((text, None), |(zone, stream)| (zone, Some(stream)));
        let refuse = |_| format!("\"{text}\" is neither a zone's number (1) nor a zone's stream (1/0)");
        let stream = stream.map(|s| s.parse().map_err(refuse)).transpose()?;
        Ok(Origin { zone: zone.parse().map_err(refuse)?, stream })
    }
}

/// What a command line says of the records that it wants.
#[derive(Args, Clone, Debug, Default)]
pub struct Pick {
    /// The first: a seq (123), an HLC (1700000000000.0), a time (2026-11-21T12:00:00Z) or seconds (@1700000000)
    #[arg(long)]
    pub from: Option<Point>,
    /// The last, in the same spellings
    #[arg(long)]
    pub to: Option<Point>,
    /// Of this table
    #[arg(long)]
    pub table: Option<OsString>,
    /// Of this shard
    #[arg(long)]
    pub shard: Option<u16>,
    /// Of this op
    #[arg(long)]
    pub op: Option<OpName>,
    /// Of this key, byte for byte
    #[arg(long)]
    pub key: Option<OsString>,
    /// Of this key, in hexadecimal
    #[arg(long, conflicts_with = "key", value_parser = hex)]
    pub key_hex: Option<std::sync::Arc<[u8]>>,
    /// Written by this zone (1) or this stream of it (1/0)
    #[arg(long)]
    pub origin: Option<Origin>,
}

impl Pick {
    /// What is before this need not be read.
    pub fn start(&self) -> Start {
        match self.from {
            None => Start::default(),
            Some(Point::Seq(seq)) => Start { seq, ..Start::default() },
            Some(Point::Hlc(hlc)) => Start { hlc, ..Start::default() },
            Some(Point::WallMs(ms)) => Start { hlc: Hlc::new(ms, 0), ..Start::default() },
        }
    }

    /// Is this batch, and so every later one of its log, behind the last that is wanted?
    pub fn is_past(&self, batch: &Batch) -> bool {
        match self.to {
            None => false,
            Some(Point::Seq(seq)) => batch.first_seq > seq,
            Some(Point::Hlc(hlc)) => batch.first_hlc > hlc,
            Some(Point::WallMs(ms)) => batch.first_hlc.ms() > ms,
        }
    }

    /// May a record of this batch be wanted?
    pub fn may(&self, batch: &Batch) -> bool {
        let early = match self.from {
            None => false,
            Some(Point::Seq(seq)) => batch.last_seq() < seq,
            Some(Point::Hlc(hlc)) => batch.last_hlc < hlc,
            Some(Point::WallMs(ms)) => batch.last_hlc.ms() < ms,
        };
        let of = |o: Origin| batch.zone.0 == o.zone && o.stream.is_none_or(|s| batch.stream == s);
        !early && !self.is_past(batch) && self.origin.is_none_or(of)
    }

    /// Is this record of a batch that `may` wanted?
    pub fn wants(&self, seq: u64, r: &Record) -> bool {
        let from = match self.from {
            None => true,
            Some(Point::Seq(from)) => seq >= from,
            Some(Point::Hlc(from)) => r.hlc >= from,
            Some(Point::WallMs(from)) => r.hlc.ms() >= from,
        };
        let to = match self.to {
            None => true,
            Some(Point::Seq(to)) => seq <= to,
            Some(Point::Hlc(to)) => r.hlc <= to,
            Some(Point::WallMs(to)) => r.hlc.ms() <= to,
        };
        from && to
            && self.table.as_ref().is_none_or(|t| t.as_bytes() == &r.table[..])
            && self.shard.is_none_or(|s| s == r.shard.0)
            && self.op.is_none_or(|op| op.op() == r.op)
            && self.key.as_ref().is_none_or(|k| k.as_bytes() == &r.key[..])
            && self.key_hex.as_ref().is_none_or(|k| k[..] == r.key[..])
    }
}

/// Reads hexadecimal digits.
pub fn hex(text: &str) -> Result<std::sync::Arc<[u8]>, String> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    match digits {
        Some(digits) if digits.len().is_multiple_of(2) => Ok(digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()),
        Some(digits) => Err(format!("{} hexadecimal digits, an even number was expected", digits.len())),
        None => Err("other characters than hexadecimal digits".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_has_four_spellings() {
        let check = |text: &str, point| assert_eq!(text.parse(), Ok(point), "{text}");
        check("123", Point::Seq(123));
        check("1700000000000.7", Point::Hlc(Hlc::new(1_700_000_000_000, 7)));
        check("@1700000000", Point::WallMs(1_700_000_000_000));
        check("@1700000000.25", Point::WallMs(1_700_000_000_250));
        check("2023-11-14T22:13:20Z", Point::WallMs(1_700_000_000_000));
        check("2023-11-15T06:13:20.5+08:00", Point::WallMs(1_700_000_000_500));
        for text in [
            "",
            "x",
            "-1",
            "@",
            "@x",
            "1.",
            ".1",
            "1.65536",
            "2023-11-14",
            "99999999999999999999",
            "1960-01-01T00:00:00Z",
            "@99999999999999999999",
            "281474976710656.0",
            "@1.é",
        ] {
            assert!(text.parse::<Point>().is_err(), "{text}");
        }
    }

    #[test]
    fn hexadecimal_is_read_in_whole_bytes() {
        assert_eq!(&hex("00ffA1").unwrap()[..], [0, 255, 0xa1]);
        assert!(hex("0").is_err() && hex("zz").is_err() && hex("é0").is_err());
    }

    #[test]
    fn an_origin_is_a_zone_or_a_stream_of_it() {
        assert_eq!("3".parse(), Ok(Origin { zone: 3, stream: None }));
        assert_eq!("3/1".parse(), Ok(Origin { zone: 3, stream: Some(1) }));
        assert!("a".parse::<Origin>().is_err() && "1/".parse::<Origin>().is_err() && "300".parse::<Origin>().is_err());
    }
}
