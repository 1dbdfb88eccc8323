//! `[forwarded]`: what requests that are sent on say of where they come from.

use crate::router::forward::{Forwarding, Own, Way};
use serde::Deserialize;

/// What becomes of `via`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Via {
    #[default]
    Off,
    Append,
}

/// What becomes of `traceparent`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Trace {
    #[default]
    Off,
    Make,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawForwarded {
    x_forwarded_for: Way,
    x_forwarded_proto: Own,
    x_forwarded_host: Own,
    forwarded: Way,
    via: Via,
    traceparent: Trace,
}

impl Default for RawForwarded {
    /// Upstreams learn who asks, and nobody can pretend to be another.
    fn default() -> RawForwarded {
        RawForwarded {
            x_forwarded_for: Way::Set,
            x_forwarded_proto: Own::Set,
            x_forwarded_host: Own::Off,
            forwarded: Way::Off,
            via: Via::Off,
            traceparent: Trace::Off,
        }
    }
}

impl RawForwarded {
    pub(super) fn of_core(self) -> Forwarding {
        Forwarding {
            x_forwarded_for: self.x_forwarded_for,
            x_forwarded_proto: self.x_forwarded_proto,
            x_forwarded_host: self.x_forwarded_host,
            forwarded: self.forwarded,
            via: self.via == Via::Append,
            trace: self.traceparent == Trace::Make,
        }
    }
}
