//! The bounds of a router core that an operator may set: one line each, with its default and what it may be.

use super::check::Check;
use crate::router;
use serde::Deserialize;
use toml::Spanned;

macro_rules! limits {
    ($($(#[$doc:meta])* $key:ident = $default:expr, $range:expr => $of_core:ident;)*) => {
        /// `[limits]`, checked.
        #[derive(Clone, Debug, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Limits { $($(#[$doc])* pub $key: u64,)* }

        impl Default for Limits {
            fn default() -> Limits {
                Limits { $($key: $default,)* }
            }
        }

        impl Limits {
            /// The bounds as a router core takes them; what no key sets is the core's own default.
            pub fn of_core(&self) -> router::Limits {
                router::Limits {
                    $($of_core: self.$key.try_into().expect("checked: its range lies within the type"),)*
                    ..router::Limits::default()
                }
            }

            fn checks(&self) -> Vec<(&'static str, u64, std::ops::RangeInclusive<u64>)> {
                vec![$((stringify!($key), self.$key, $range)),*]
            }
        }
    };
}

limits! {
    /// Bytes of a request or response head.
    head_bytes_max = 8192, 256..=1 << 20 => head_bytes_max;
    /// Bytes of a request's target.
    uri_bytes_max = 8192, 16..=1 << 20 => uri_bytes_max;
    /// Fields of a request or response head.
    fields_max = 100, 8..=(crate::http::head::FIELDS_MAX - router::HOP_FIELDS) as u64 => fields_max;
    /// 1xx answers to one request.
    interim_max = 16, 0..=1000 => interim_max;
    /// How long a client that expects a 100 waits for the upstream's.
    continue_ms_max = 1_000, 1..=60_000 => continue_ms;
    /// How long a tunnel (WebSocket) may carry nothing.
    tunnel_idle_ms_max = 3_600_000, 1..=86_400_000 => tunnel_idle_ms;
    /// Bytes of a record's value.
    record_bytes_max = 1 << 20, 1..=replog::limits::VALUE_MAX as u64 => record_bytes_max;
    /// How long a write with `x-ezone-ack: remote` waits until another zone has it durable.
    remote_ack_ms_max = 2_000, 1..=60_000 => remote_ack_ms;
    /// How long a read with `x-ezone-after` waits until that write is applied in this zone.
    after_ms_max = 2_000, 0..=60_000 => after_ms;
    /// Readers of `/changes` on one core.
    changes_max = 64, 0..=100_000 => changes_max;
    /// Readers of `/ownership/stream` on one core.
    ownership_max = 256, 0..=100_000 => ownership_max;
    /// Bytes of a request's body.
    body_bytes_max = 1 << 30, 0..=1 << 50 => body_bytes_max;
    /// Clients' connections of one core.
    connections_max = 10_000, 1..=1 << 20 => clients_max;
    /// Requests of one connection.
    requests_max = 1_000_000, 1..=u32::MAX as u64 => requests_max;
    /// Bytes of all buffers of one core.
    memory_bytes_max = 1 << 30, 1 << 20..=1 << 50 => memory_bytes_max;
    /// Bytes that wait for one connection before its other side is no longer read.
    buffer_bytes_max = 65_536, 4096..=1 << 30 => buffer_bytes_max;
    /// Bytes of a body that are kept for a second attempt.
    kept_bytes_max = 65_536, 0..=1 << 30 => kept_bytes_max;
    /// Bytes of held requests on one core.
    hold_bytes_max = 1 << 24, 0..=1 << 40 => hold_bytes_max;
    /// From the first byte of a request's head to its end.
    head_ms_max = 15_000, 1..=3_600_000 => head_ms;
    /// Between two pieces of a request's body.
    read_ms_max = 15_000, 1..=3_600_000 => read_ms;
    /// How long a connection that ends is read so that its client can see the answer.
    linger_ms_max = 1_000, 1..=60_000 => linger_ms;
    /// How long a request may wait for a shard that is moving.
    hold_ms_max = 5_000, 0..=60_000 => hold_ms_max;
    /// How many requests may wait so on one core.
    hold_count_max = 10_000, 0..=1 << 20 => hold_count_max;
    /// How long an upstream may take to connect.
    connect_ms_max = 1_000, 1..=60_000 => connect_ms;
    /// How long an upstream may take to answer.
    answer_ms_max = 30_000, 1..=3_600_000 => answer_ms;
    /// How long a client's connection may be idle.
    idle_ms_max = 60_000, 1..=3_600_000 => idle_ms;
    /// How long a client's TLS handshake may take.
    tls_handshake_ms_max = 5_000, 1..=60_000 => tls_handshake_ms;
    /// How many such handshakes one core has under way at once.
    tls_handshakes_max = 1_000, 1..=1 << 20 => tls_handshakes_max;
    /// How long a router that ends goes on serving what it serves.
    drain_ms_max = 10_000, 0..=3_600_000 => drain_ms;
    /// How long an idle connection may then ask once more.
    drain_idle_ms_max = 1_000, 0..=3_600_000 => drain_idle_ms;
}

pub(super) type RawLimits = Spanned<Limits>;

pub(super) fn default_limits() -> RawLimits {
    Spanned::new(0..0, Limits::default())
}

impl Check<'_> {
    pub(super) fn limits(&mut self, raw: &RawLimits) {
        for (key, seen, range) in raw.get_ref().checks() {
            if !range.contains(&seen) {
                self.say(raw, format!("[limits] {key} = {seen}: expected {} to {}", range.start(), range.end()));
            }
        }
    }
}
