//! What a running log allows of a repair: a sealed segment that was written anew takes the place of the damaged one.

use super::{DAMAGED, StreamLog};
use crate::open::Segment;
use crate::segment::Header;
use crate::uring::dir;
use std::io;
use std::path::{Path, PathBuf};

impl StreamLog {
    /// Where its files are.
    pub fn dir(&self) -> PathBuf {
        self.shared.dir.clone()
    }

    /// A sealed segment by its file, and the header of the one behind it. `None`: it was let go, or it is the last.
    pub fn sealed_before(&self, file: &str) -> Option<(Segment, Header)> {
        let state = self.shared.state.borrow();
        let (segment, next) = state.log.followed(file)?;
        Some((segment.clone(), next.clone()))
    }

    /// Puts the file `new`, which is durable, in the place of a segment, and has it read from now on; false: the log has let the segment
    /// go meanwhile, or was closed, and `new` was removed.
    pub async fn replace(&self, segment: &Segment, new: &Path) -> io::Result<bool> {
        {
            // In one step of this executor: no order to retire the segment comes between.
            let mut state = self.shared.state.borrow_mut();
            let kept = state.log.followed(&segment.name).is_some_and(|(s, _)| s.header == segment.header);
            if !kept || state.lock.is_none() {
                std::fs::remove_file(new)?;
                return Ok(false);
            }
            std::fs::rename(new, self.shared.dir.join(&segment.name))?;
            state.reader = None; // it reads what has no name any more
        }
        let dir = self.shared.dir.clone();
        glommio::executor().spawn_blocking(move || dir::sync_dir(&dir)).await?;
        Ok(true)
    }

    /// A segment that the scrub had found damaged is whole again, by a repair if `mended`.
    pub fn on_whole(&self, file: &str, mended: bool) {
        let mut state = self.shared.state.borrow_mut();
        let Some(at) = state.scrubbed.damaged.iter().position(|d| d.file == file) else { return };
        let damage = state.scrubbed.damaged.remove(at);
        state.scrubbed.mended += u64::from(mended);
        // The next open need not read everything, if there was no other reason to.
        let note = self.shared.dir.join(DAMAGED);
        let told = std::fs::read_to_string(&note).is_ok_and(|text| text.trim_end() == damage.why);
        if told && state.scrubbed.damaged.is_empty() {
            let _ = std::fs::remove_file(note);
        }
    }
}
