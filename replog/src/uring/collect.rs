//! Has tombstones dropped that nobody needs any more: a few times a minute, a bounded number at a time.

use super::core::{Core, Stream};
use super::keeper::Job;
use glommio::timer::sleep;
use shardmap::Positions;
use std::rc::Rc;
use std::time::Duration;

/// How often it is looked for some.
const LOOK: Duration = Duration::from_secs(5);

/// Looks at every stream of this core until it stops.
pub(super) async fn run(core: Rc<Core>) {
    while !core.stopping.get() {
        sleep(LOOK).await; // nobody waits for this task to end: it goes with its executor
        for stream in &core.streams {
            let (number, everywhere) = (stream.number, everywhere(&core, stream));
            let mut more = true;
            while more && !core.stopping.get() {
                let everywhere = everywhere.clone();
                let asked = core.ask(|done| Job::Collect { stream: number, everywhere, done }).await;
                more = asked.unwrap_or(false);
            }
        }
    }
}

/// What every zone has applied of each zone's log, as far as they have said since this start.
fn everywhere(core: &Core, stream: &Stream) -> Positions {
    let peers = &core.options.peers;
    let mut all = Positions::default();
    all.set(stream.zone, stream.applied_by_all(peers).unwrap_or_else(|| stream.applied_seq(stream.zone)));
    for (zone, mirror) in &stream.mirrors {
        // Of two zones one wrote it, and the other is this one.
        all.set(*zone, if peers.len() == 1 { stream.applied_seq(*zone) } else { mirror.everywhere() });
    }
    all
}
