//! How fast a link may ship: a bucket that all links to one peer share, and limits by time of day.
//!
//! What is sent is taken from the bucket when its size is known, so that the bucket may owe: nothing is sent until it is paid. A frame of any
//! length passes, and the average holds.

/// The bucket holds so much of a second's rate: what may go out at once after a pause.
const BURST_MS: u64 = 100;
const DAY_MIN: i64 = 24 * 60;

/// A rate that several links share.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    /// Bytes a second; `None`: no limit.
    rate: Option<u64>,
    /// Bytes, times a million, that may be sent; below zero: owed.
    level: i128,
    at_us: u64,
}

impl Bucket {
    /// From now on this rate holds; what is owed stays owed.
    pub fn set(&mut self, rate: Option<u64>, now_us: u64) {
        self.fill(now_us);
        self.rate = rate.map(|r| r.max(1));
        self.level = if self.rate.is_none() { 0 } else { self.level };
    }

    /// The rate.
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// When something may be sent; `None`: now.
    pub fn ready_us(&mut self, now_us: u64) -> Option<u64> {
        self.fill(now_us);
        let rate = i128::from(self.rate?);
        // By the bucket's own time: whoever asks may look back to when it sent last, and would wake too early again and again.
        (self.level < 0).then(|| self.at_us + (-self.level / rate + 1) as u64)
    }

    /// So many bytes were sent.
    pub fn take(&mut self, bytes: u64, now_us: u64) {
        self.fill(now_us);
        if self.rate.is_some() {
            self.level -= i128::from(bytes) * 1_000_000;
        }
    }

    fn fill(&mut self, now_us: u64) {
        let (rate, past) = (i128::from(self.rate.unwrap_or(0)), now_us.saturating_sub(self.at_us));
        self.level = (self.level + rate * i128::from(past)).min(rate * i128::from(BURST_MS) * 1000);
        self.at_us = self.at_us.max(now_us);
    }
}

/// A limit that holds for a part of each day.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limit {
    /// Minutes since midnight: from then ..
    pub from_min: u16,
    /// .. until before then; if that is not later, over midnight.
    pub to_min: u16,
    /// The clock that is meant: minutes east of UTC.
    pub east_min: i16,
    /// Bytes a second.
    pub rate: u64,
}

impl Limit {
    /// Does it hold at `unix_s`, in seconds since 1970?
    pub fn holds(&self, unix_s: u64) -> bool {
        let now = (unix_s as i64 / 60 + i64::from(self.east_min)).rem_euclid(DAY_MIN);
        let (from, to) = (i64::from(self.from_min), i64::from(self.to_min));
        if from < to { (from..to).contains(&now) } else { now >= from || now < to }
    }
}

/// The lowest of the limits that hold at `unix_s`.
pub fn rate_at(limits: &[Limit], unix_s: u64) -> Option<u64> {
    limits.iter().filter(|l| l.holds(unix_s)).map(|l| l.rate).min()
}

/// `"200mbit"` (also kbit, gbit: thousands of bits a second), or bytes a second as a number. In bytes a second.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "\"{text}\": expected a rate such as \"200mbit\", \"500kbit\", \"1gbit\", or bytes a second such as \"25000000\""
        )
    };
    let units = [("kbit", 1_000 / 8), ("mbit", 1_000_000 / 8), ("gbit", 1_000_000_000 / 8)];
    let found = units.into_iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?, bytes)));
    let (number, bytes) = found.unwrap_or((text, 1));
    let rate = number.parse::<u64>().ok().and_then(|n| n.checked_mul(bytes)).ok_or_else(wrong)?;
    if (1000..=1 << 40).contains(&rate) {
        Ok(rate)
    } else {
        Err(format!("{}: at least 1000 bytes a second, at most 2^40", wrong()))
    }
}

/// `"08:30"`, as minutes since midnight.
pub fn parse_time(text: &str) -> Result<u16, String> {
    let wrong = || format!("\"{text}\": expected a time of day such as \"08:30\", up to \"23:59\"");
    let two = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit()); // `parse` would take "+8"
    let (hours, minutes) = text.split_once(':').filter(|(h, m)| two(h) && two(m)).ok_or_else(wrong)?;
    let number = |part: &str, below: u16| part.parse::<u16>().ok().filter(|n| *n < below).ok_or_else(wrong);
    Ok(number(hours, 24)? * 60 + number(minutes, 60)?)
}

/// `"+08:00"`, `"-03:30"`: minutes east of UTC.
pub fn parse_offset(text: &str) -> Result<i16, String> {
    let wrong = || format!("\"{text}\": expected a distance from UTC such as \"+08:00\" or \"-03:30\", up to 14 hours");
    let (sign, rest) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(rest), _) => (1, rest),
        (None, Some(rest)) => (-1, rest),
        (None, None) => return Err(wrong()),
    };
    let minutes = parse_time(rest).map_err(|_| wrong())? as i16;
    if minutes <= 14 * 60 { Ok(sign * minutes) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_holds_on_average_whatever_the_size_of_what_is_sent() {
        for (rate, size) in [(1_000_000, 100), (1_000_000, 300_000), (25_000_000, 1 << 20), (1000, 4 << 20)] {
            let (mut bucket, mut now, mut sent) = (Bucket::default(), 1, 0u64);
            bucket.set(Some(rate), now);
            let end = now + (200 * size * 1_000_000 / rate).max(5_000_000);
            while now < end {
                match bucket.ready_us(now) {
                    Some(at) => now = at,
                    None => {
                        bucket.take(size, now);
                        sent += size;
                    }
                }
            }
            let due = rate * (end - 1) / 1_000_000;
            assert!(
                sent <= due + rate / 10 + 2 * size && sent + 2 * size + rate / 10 >= due,
                "{rate} {size}: {sent} of {due}"
            );
        }
    }

    #[test]
    fn without_a_rate_nothing_waits_and_an_old_debt_does_not_outlive_it() {
        let mut bucket = Bucket::default();
        bucket.take(1 << 40, 1);
        assert_eq!(bucket.ready_us(1), None);
        bucket.set(Some(1000), 1);
        bucket.take(1_000_000, 1);
        assert!(bucket.ready_us(2).is_some_and(|at| at > 900_000_000));
        let at = bucket.ready_us(500_000_000);
        assert_eq!(bucket.ready_us(2), at, "an older time changes nothing");
        bucket.set(None, 3);
        assert_eq!(bucket.ready_us(3), None);
    }

    #[test]
    fn a_limit_holds_at_its_hours_by_the_clock_that_it_names() {
        let limit = |from: &str, to: &str, east: &str| Limit {
            from_min: parse_time(from).unwrap(),
            to_min: parse_time(to).unwrap(),
            east_min: parse_offset(east).unwrap(),
            rate: 9,
        };
        let at = |hours: u64, minutes: u64| 1_800_057_600 + hours * 3600 + minutes * 60; // a midnight, UTC
        assert_eq!(at(0, 0) % 86_400, 0);
        for (limit, hours, minutes, holds) in [
            (limit("08:00", "22:00", "+00:00"), 7, 59, false),
            (limit("08:00", "22:00", "+00:00"), 8, 0, true),
            (limit("08:00", "22:00", "+00:00"), 22, 0, false),
            (limit("08:00", "22:00", "+08:00"), 0, 0, true),
            (limit("08:00", "22:00", "+08:00"), 14, 0, false),
            (limit("08:00", "22:00", "-03:30"), 11, 29, false),
            (limit("08:00", "22:00", "-03:30"), 11, 30, true),
            (limit("22:00", "06:00", "+00:00"), 23, 0, true),
            (limit("22:00", "06:00", "+00:00"), 5, 59, true),
            (limit("22:00", "06:00", "+00:00"), 6, 0, false),
            (limit("00:00", "00:00", "+00:00"), 13, 0, true), // all day
        ] {
            assert_eq!(limit.holds(at(hours, minutes)), holds, "{limit:?} {hours}:{minutes}");
        }
        let two = [Limit { rate: 5, ..limit("00:00", "00:00", "+00:00") }, limit("08:00", "22:00", "+00:00")];
        assert_eq!((rate_at(&two, at(9, 0)), rate_at(&two[1..], at(23, 0))), (Some(5), None));
    }

    #[test]
    fn rates_times_and_offsets_that_cannot_be_meant_are_refused() {
        assert_eq!(parse_rate("200mbit"), Ok(25_000_000));
        assert_eq!((parse_rate("1gbit"), parse_rate("5000")), (Ok(125_000_000), Ok(5000)));
        for wrong in ["", "mbit", "-1mbit", "1.5mbit", "200 mbit", "7", "99999999999gbit", "200mb"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "8:00", "24:00", "08:60", "0800", "08:0", "+8:00"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "08:00", "+15:00", "+8", "UTC"] {
            assert!(parse_offset(wrong).is_err(), "{wrong}");
        }
    }
}
