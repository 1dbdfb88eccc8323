//! How the endpoints of a service are treated: chosen, judged, tried again, bounded. Plain values with their defaults, which
//! are those of the configuration.

use super::bucket::Rate;

/// How one of several endpoints is chosen.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Balance {
    /// The less loaded of two random ones.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// Always the same one for the same key, as long as it is there.
    Hash(HashBy),
}

/// What the consistent hash goes by.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum HashBy {
    /// The request's shard.
    #[default]
    Shard,
    /// The whole tag; without one, the shard.
    Tag,
}

/// Everything about a service but where it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// An endpoint that is new or has come back gets its whole share only after this; 0: at once.
    pub slow_start_ms: u64,
    /// With fewer than this share of the endpoints usable, all are used; 0: never.
    pub panic_percent: u32,
    /// Requests of one core under way; 0: no limit of its own.
    pub requests_max: usize,
    /// Requests of one core that wait for a place.
    pub queue_max: usize,
    /// How long one may wait.
    pub queue_ms_max: u64,
    /// Requests a second, of the whole process.
    pub rate: Option<Rate>,
    /// Connections.
    pub pool: Pooling,
    /// Second attempts.
    pub retry: Retry,
    /// Who is taken out for a while.
    pub eject: Eject,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            balance: Balance::LeastRequest,
            slow_start_ms: 10_000,
            panic_percent: 25,
            requests_max: 0,
            queue_max: 1000,
            queue_ms_max: 1000,
            rate: None,
            pool: Pooling::default(),
            retry: Retry::default(),
            eject: Eject::default(),
        }
    }
}

/// Connections of one core to one endpoint.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Pooling {
    /// Open at once; 0: no limit of its own.
    pub connections_max: usize,
    /// Kept while idle; 0: `Limits::pool_idle_max`.
    pub idle_max: usize,
    /// How long one may be idle; 0: `Limits::upstream_idle_ms`.
    pub idle_ms_max: u64,
    /// Requests on one connection; 0: no limit.
    pub requests_max: u64,
}

/// Second attempts: see the budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retry {
    /// Attempts at one request, the first among them.
    pub attempts_max: u8,
    /// Of the requests under way, so many may be in a second attempt ..
    pub percent: u32,
    /// .. or so many, if that is more.
    pub count_min: u32,
    /// After a connect that failed: any request, for nothing was sent.
    pub on_connect: bool,
    /// After a connection that ended before a byte of the answer: requests that may be done twice (RFC 9110 §9.2.2).
    pub on_reset: bool,
    /// After these answers: requests that may be done twice.
    pub statuses: Statuses,
    /// How long one attempt may take to the answer's head before another is made; 0: `Limits::answer_ms` ends it.
    pub try_ms_max: u64,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry {
            attempts_max: 2,
            percent: 20,
            count_min: 10,
            on_connect: true,
            on_reset: true,
            statuses: Statuses::NONE,
            try_ms_max: 0,
        }
    }
}

/// When an endpoint is taken out for a while: each core judges for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Eject {
    /// Failures in a row; 0: not for that.
    pub failures: u32,
    /// Answers that count as failures.
    pub statuses: Statuses,
    /// A success rate that lies so many percent points below the others'; 0: not for that.
    pub success_points: u32,
    /// A median latency that is so many times the others'; 0: not for that.
    pub latency_factor: u32,
    /// And longer than theirs by so much.
    pub latency_floor_ms: u64,
    /// Rates and latencies are judged from so many answers on.
    pub samples_min: u32,
    /// How often they are judged.
    pub interval_ms: u64,
    /// How long the first time; doubled with each repetition.
    pub eject_ms: u64,
    /// How long at most.
    pub eject_ms_max: u64,
    /// How much of a service may be out; one endpoint may always be, where there are others. 0: none ever.
    pub percent_max: u32,
}

impl Default for Eject {
    fn default() -> Eject {
        Eject {
            failures: 5,
            statuses: Statuses::of(&[502, 503, 504]),
            success_points: 30,
            latency_factor: 4,
            latency_floor_ms: 100,
            samples_min: 10,
            interval_ms: 5000,
            eject_ms: 10_000,
            eject_ms_max: 300_000,
            percent_max: 50,
        }
    }
}

/// Some of the statuses 500 to 599.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statuses(u128);

impl Statuses {
    /// None of them.
    pub const NONE: Statuses = Statuses(0);

    /// Those of `list`; others than 500 to 599 are none of them.
    pub fn of(list: &[u16]) -> Statuses {
        Statuses(list.iter().filter(|s| (500..600).contains(*s)).fold(0, |set, s| set | 1 << (s - 500)))
    }

    /// Is `status` one of them?
    pub fn has(self, status: u16) -> bool {
        (500..600).contains(&status) && self.0 >> (status - 500) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_statuses_has_what_it_was_made_of() {
        let set = Statuses::of(&[500, 503, 599, 200, 600]);
        let has: Vec<_> = (0..1000).filter(|s| set.has(*s)).collect();
        assert_eq!(has, [500, 503, 599]);
    }
}
