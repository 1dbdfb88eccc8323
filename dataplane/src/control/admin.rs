//! The router's admin pages. Each part of control brings its own routes: one line in `pages`, the rest in its own file.

use super::life::{self, Life};
use super::report::RouterStatus;
use super::upstreams::Upstreams;
use super::{access, state};
use crate::router::Shared;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use std::sync::Arc;

/// What the pages look at.
#[derive(Clone)]
pub struct Shown {
    /// The zone's name, `none` for an edge.
    pub zone: String,
    /// What the cores show.
    pub shared: Arc<Shared>,
    /// The access log, if there is one.
    pub access: Option<Arc<access::Figures>>,
    /// What this process is doing.
    pub life: Arc<Life>,
    /// What requests are sent to.
    pub upstreams: Upstreams,
}

/// Every page of the router.
pub fn pages(shown: Shown) -> Router {
    Router::new()
        .merge(basic())
        .merge(life::pages())
        .merge(super::figures::routes())
        .merge(access::routes())
        .merge(super::explain::routes())
        .merge(state::routes())
        .merge(super::upstreams::routes())
        .with_state(shown)
}

fn basic() -> Router<Shown> {
    Router::new().route("/status", get(async |State(s): State<Shown>| Json(status(&s))))
}

fn status(shown: &Shown) -> RouterStatus {
    let c = shown.shared.total();
    RouterStatus {
        zone: shown.zone.clone(),
        map_epoch: c.map_epoch,
        in_flight_unsettled: c.in_flight_moving,
        holding: c.holding,
        held_ms_max: c.held_ms_max,
        held: c.held,
        second_attempts: c.retried_421,
        requests: c.answered_2xx_3xx + c.answered_4xx + c.answered_5xx,
        forwarded: c.forwarded,
        life: shown.life.status(),
        detail: state::detail(&shown.shared),
    }
}
