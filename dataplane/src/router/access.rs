//! What the access log is told of a request: compact records, sampled by the core, formatted by somebody with more time.
//!
//! ```text
//!  batch:  length u32 | wall us u64 | us u64 | record, record, ..        whole batches only; all numbers little-endian
//!  record: fixed part (see `put`) | method | path | reason, each with its length before it
//! ```
//!
//! The core formats nothing: a record is a copy of numbers and of at most 1 KiB of path.

use super::trace::{Done, Outcome};
use bytes::{Buf, BufMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a path that are kept.
pub const PATH_BYTES_MAX: usize = 1024;
/// Bytes of a method that are kept.
const METHOD_BYTES_MAX: usize = 32;
/// What `Access::sample` is a share of: all requests.
pub const SAMPLE_ALL: u64 = 1 << 32;
/// Bytes before a batch's records.
const BATCH_HEAD_BYTES: usize = 4 + 8 + 8;

/// Which requests are logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// How many of 2^32.
    pub sample: u64,
    /// Answers from this status on are always logged.
    pub min_status_always: u16,
    /// With the query of the path.
    pub query: bool,
}

/// Bytes of records that a core keeps until its driver takes them; what is beyond is dropped and counted.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Records that wait for the driver.
#[derive(Default)]
pub struct Batch {
    /// Room for the batch's head, then records; empty if there are none.
    bytes: Vec<u8>,
    records: u64,
    /// Records that found no room, since the start.
    pub dropped: u64,
}

impl Batch {
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Its bytes on their way to the log; both clocks, in microseconds, show the same moment.
    pub fn sealed(&mut self, wall_us: u64, us: u64) -> &[u8] {
        let records = self.bytes.len() - BATCH_HEAD_BYTES;
        let mut head = &mut self.bytes[..BATCH_HEAD_BYTES];
        head.put_u32_le(records as u32);
        head.put_u64_le(wall_us);
        head.put_u64_le(us);
        &self.bytes
    }

    /// It is on its way, or (`lost`) there was no room for it there.
    pub fn clear(&mut self, lost: bool) {
        self.dropped += if lost { self.records } else { 0 };
        self.bytes.clear();
        self.records = 0;
    }

    pub(super) fn put(&mut self, done: &Done, us: u64, whole_us: u64, line: (&[u8], &[u8])) {
        if self.bytes.len() >= BATCH_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        if self.bytes.is_empty() {
            self.bytes.resize(BATCH_HEAD_BYTES, 0);
        }
        put(&mut self.bytes, done, us, whole_us, line);
        self.records += 1;
    }
}

/// Draws the sample: splitmix64, so that no rhythm of the requests meets one of ours; the same in each run.
#[derive(Default)]
pub(super) struct Sampler(u64);

impl Sampler {
    /// Is this request one of those that are logged?
    pub fn draw(&mut self, access: &Access) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 32 < access.sample
    }
}

/// Method and target out of the first line of `head`; empty if it has none.
pub(super) fn line_of(head: &[u8], query: bool) -> (&[u8], &[u8]) {
    let end = head.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(head.len());
    let mut parts = head[..end].splitn(3, |b| *b == b' ');
    let (method, mut path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if !query && let Some(at) = path.iter().position(|b| *b == b'?') {
        path = &path[..at];
    }
    (&method[..method.len().min(METHOD_BYTES_MAX)], &path[..path.len().min(PATH_BYTES_MAX)])
}

/// One request, as the log is told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// When it was over, by the core's clock.
    pub us: u64,
    /// First byte in to last byte out.
    pub whole_us: u64,
    /// Waiting for an upstream; `None`: it went to none.
    pub upstream_us: Option<u64>,
    /// Held.
    pub held_us: u64,
    /// Of the request.
    pub bytes_in: u64,
    /// Of the answer.
    pub bytes_out: u64,
    /// The map of the newest attempt; 0: none was asked.
    pub epoch: u64,
    /// 499: the client was gone before there was one.
    pub status: u16,
    /// Its place in the core's figures.
    pub service: u16,
    /// `None`: not known.
    pub shard: Option<u16>,
    /// The zone that the map named.
    pub zone: Option<u8>,
    /// Second attempts.
    pub retries: u8,
    /// How it ended.
    pub ended: Ended,
    /// Who asked; `None`: not known.
    pub client: Option<SocketAddr>,
    /// The last upstream that was asked.
    pub upstream: Option<SocketAddr>,
    /// The trace's id; zeros: none.
    pub trace: [u8; 16],
    /// Of the request's line; empty: it could not be read.
    pub method: Vec<u8>,
    /// Of the request's line, cut at 1 KiB.
    pub path: Vec<u8>,
    /// What was wrong, if the router answered by itself.
    pub reason: Vec<u8>,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Its answer was sent whole.
    Ok,
    /// The router itself answered with an error.
    Refused,
    /// The client was gone before that.
    ClientGone,
    /// The answer had begun and could not be ended.
    UpstreamLost,
}

impl Ended {
    const ALL: [Ended; 4] = [Ended::Ok, Ended::Refused, Ended::ClientGone, Ended::UpstreamLost];

    pub(super) fn of(done: &Done) -> Ended {
        match done.outcome {
            Outcome::Answered if done.reason.is_some() => Ended::Refused,
            Outcome::Answered => Ended::Ok,
            Outcome::ClientGone => Ended::ClientGone,
            Outcome::Broken => Ended::UpstreamLost,
        }
    }

    /// As the log writes it.
    pub fn name(self) -> &'static str {
        match self {
            Ended::Ok => "ok",
            Ended::Refused => "refused",
            Ended::ClientGone => "client_gone",
            Ended::UpstreamLost => "upstream_lost",
        }
    }
}

/// Appends a request that is over.
fn put(out: &mut Vec<u8>, done: &Done, us: u64, whole_us: u64, line: (&[u8], &[u8])) {
    for n in
        [us, whole_us, done.upstream_us.unwrap_or(u64::MAX), done.held_us, done.bytes_in, done.bytes_out, done.epoch.0]
    {
        out.put_u64_le(n);
    }
    out.put_u16_le(done.status);
    out.put_u16_le(done.service);
    out.put_u32_le(done.shard.map_or(u32::MAX, |s| u32::from(s.0)));
    out.put_u8(done.zone.map_or(u8::MAX, |z| z.0));
    out.put_u8(done.retries);
    out.put_u8(Ended::of(done) as u8);
    put_addr(out, done.client);
    put_addr(out, done.upstream);
    out.put_slice(&done.trace_id);
    for text in [line.0, line.1, done.reason.unwrap_or_default().as_bytes()] {
        let text = &text[..text.len().min(PATH_BYTES_MAX)];
        out.put_u16_le(text.len() as u16);
        out.put_slice(text);
    }
}

fn put_addr(out: &mut Vec<u8>, addr: Option<SocketAddr>) {
    match addr {
        None => out.put_u8(0),
        Some(a) => {
            match a.ip() {
                IpAddr::V4(ip) => {
                    out.put_u8(4);
                    out.put_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.put_u8(6);
                    out.put_slice(&ip.octets());
                }
            }
            out.put_u16_le(a.port());
        }
    }
}

/// Takes the first batch off `from`: the wall clock and the core's clock of one moment, both in microseconds, and its records.
pub fn batch<'b>(from: &mut &'b [u8]) -> Option<(u64, u64, &'b [u8])> {
    let len = from.try_get_u32_le().ok()? as usize;
    let (wall_us, us) = (from.try_get_u64_le().ok()?, from.try_get_u64_le().ok()?);
    let (records, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some((wall_us, us, records))
}

/// Takes the first record off `from`. It was written by `put` in this process: anything else is a fault of ours, and ends the
/// batch with `None`.
pub fn take(from: &mut &[u8]) -> Option<Record> {
    if from.is_empty() {
        return None;
    }
    let mut number = || from.try_get_u64_le().ok();
    let (us, whole_us, upstream_us, held_us) = (number()?, number()?, number()?, number()?);
    let (bytes_in, bytes_out, epoch) = (number()?, number()?, number()?);
    let (status, service) = (from.try_get_u16_le().ok()?, from.try_get_u16_le().ok()?);
    let shard = u16::try_from(from.try_get_u32_le().ok()?).ok();
    let zone = Some(from.try_get_u8().ok()?).filter(|z| *z != u8::MAX);
    let retries = from.try_get_u8().ok()?;
    let ended = *Ended::ALL.get(usize::from(from.try_get_u8().ok()?))?;
    let (client, upstream) = (take_addr(from)?, take_addr(from)?);
    let mut trace = [0; 16];
    from.try_copy_to_slice(&mut trace).ok()?;
    let mut text = || {
        let len = usize::from(from.try_get_u16_le().ok()?);
        let (text, rest) = from.split_at_checked(len)?;
        *from = rest;
        Some(text.to_vec())
    };
    let (method, path, reason) = (text()?, text()?, text()?);
    let upstream_us = Some(upstream_us).filter(|us| *us != u64::MAX);
    Some(Record {
        us,
        whole_us,
        upstream_us,
        held_us,
        bytes_in,
        bytes_out,
        epoch,
        status,
        service,
        shard,
        zone,
        retries,
        ended,
        client,
        upstream,
        trace,
        method,
        path,
        reason,
    })
}

fn take_addr(from: &mut &[u8]) -> Option<Option<SocketAddr>> {
    let ip: IpAddr = match from.try_get_u8().ok()? {
        0 => return Some(None),
        4 => {
            let mut octets = [0; 4];
            from.try_copy_to_slice(&mut octets).ok()?;
            Ipv4Addr::from(octets).into()
        }
        6 => {
            let mut octets = [0; 16];
            from.try_copy_to_slice(&mut octets).ok()?;
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(Some(SocketAddr::new(ip, from.try_get_u16_le().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_as_large_as_was_asked_for_and_the_same_each_time() {
        let drawn = |sample: u64| {
            let (mut s, access) = (Sampler::default(), Access { sample, min_status_always: 500, query: true });
            (0..100_000).filter(|_| s.draw(&access)).count()
        };
        assert_eq!((drawn(0), drawn(SAMPLE_ALL)), (0, 100_000));
        assert!((900..1100).contains(&drawn(SAMPLE_ALL / 100)), "{}", drawn(SAMPLE_ALL / 100));
        assert_eq!(drawn(SAMPLE_ALL / 3), drawn(SAMPLE_ALL / 3));
    }

    #[test]
    fn a_line_is_split_and_bounded_whatever_the_head_is() {
        let text = |head: &[u8], query| {
            let (m, p) = line_of(head, query);
            (String::from_utf8_lossy(m).into_owned(), String::from_utf8_lossy(p).into_owned())
        };
        assert_eq!(text(b"GET /a?b=c HTTP/1.1\r\nhost: x\r\n", true), ("GET".into(), "/a?b=c".into()));
        assert_eq!(text(b"GET /a?b=c HTTP/1.1\r\n", false), ("GET".into(), "/a".into()));
        assert_eq!(text(b"", true), (String::new(), String::new()));
        assert_eq!(text(b"nonsense", true), ("nonsense".into(), String::new()));
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(5000));
        assert_eq!(text(long.as_bytes(), true).1.len(), PATH_BYTES_MAX);
    }

    #[test]
    fn nonsense_is_no_record_and_never_a_panic() {
        for len in 0..300 {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            let _ = take(&mut bytes.as_slice());
        }
        assert_eq!(take(&mut [0xff; 500].as_slice()), None);
    }
}
