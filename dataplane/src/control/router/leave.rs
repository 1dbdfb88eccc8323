//! The end of a router: what it serves is served to the end, within a limit.

use super::{Doing, END_WAIT, Leaving, Running, adopt, drained};
use crate::control::listen::Held;
use crate::control::maps::News;
use crate::control::{Failed, notify};
use crate::uring::Control;
use shardmap::map::Map;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Child;
use tokio::sync::mpsc;

impl Running {
    /// Serves what it serves to the end, within the limit.
    pub(super) async fn leave(mut self, why: Leaving) -> Result<(), Failed> {
        self.life.set(Doing::Draining);
        match why {
            Leaving::HandedOver => self.leave_to_successor().await,
            Leaving::Stopped if self.leave_nobody().await => return self.cut_short(),
            Leaving::Stopped => {}
        }
        let drain_ms = self.config.limits.of_core().drain_ms;
        let ended = tokio::select! {
            ended = drained(&self.cores, Duration::from_millis(drain_ms) + END_WAIT) => ended,
            () = follow(&mut self.newer, &self.control, &mut self.map) => false,
            () = self.signals.stop() => return self.cut_short(),
        };
        let cut = self.control.shared().total().cut_off;
        if cut > 0 {
            tracing::warn!("{cut} requests were cut off after {drain_ms} ms (drain_ms_max)");
        }
        if !ended {
            tracing::warn!("a core did not end within {} s of its limit", END_WAIT.as_secs());
        }
        if let Some(pages) = self.pages.take() {
            pages.stop().await;
        }
        tracing::info!("ended");
        Ok(())
    }

    pub(super) async fn leave_to_successor(&mut self) {
        tracing::info!("a successor has taken over; draining");
        self.life.upgraded(None);
        self.successor.as_ref().and_then(Child::id).into_iter().for_each(notify::successor);
        self.held = Held::default();
        self.control.hand_over();
        self.admin = None; // it is the successor's now
        if let Some(pages) = self.pages.take() {
            pages.stop().await;
        }
    }

    /// True: it was asked again.
    pub(super) async fn leave_nobody(&mut self) -> bool {
        notify::tell(notify::STOPPING);
        let delay = Duration::from_millis(self.config.router.as_ref().map_or(0, |r| r.drain_delay_ms));
        tracing::info!("stopping: /readyz says 503 now; new connections are taken for {} ms more", delay.as_millis());
        let hurry = !delay.is_zero() && tokio::time::timeout(delay, self.signals.stop()).await.is_ok();
        self.held = Held::default();
        // Who is taking over now has the same sockets: they are not closed under its hands.
        if self.giving {
            self.control.hand_over()
        } else {
            self.control.stop()
        }
        hurry
    }

    pub(super) fn cut_short(&self) -> Result<(), Failed> {
        let clients = self.control.shared().total().clients;
        tracing::warn!("asked again to stop: ends at once, {clients} connections are cut off");
        Ok(())
    }
}

/// Maps go on to arrive while a router drains: what is held waits for one. Never ends.
async fn follow(newer: &mut mpsc::UnboundedReceiver<News>, control: &Control, map: &mut Arc<Map>) {
    while let Some(news) = newer.recv().await {
        adopt(control, map, news);
    }
    std::future::pending().await
}
