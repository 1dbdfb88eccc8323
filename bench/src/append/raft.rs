//! raft-engine as a log: each append a write with sync, writers group their commits as it does by itself; no compression.
//!
//! A hundred crates come with it, so that it is built with `--features raft-engine` only.

use std::path::Path;

/// Is it built in?
pub const BUILT: bool = cfg!(feature = "raft-engine");

#[cfg(not(feature = "raft-engine"))]
pub fn serve(_: &Path) -> Result<(), String> {
    Err("this ezbench was built without the feature raft-engine".into())
}

/// Answers loads on an engine in `dir`.
#[cfg(feature = "raft-engine")]
pub fn serve(dir: &Path) -> Result<(), String> {
    use super::{threads, worker};
    use raft_engine::{Config, Engine, LogBatch, ReadableSize};

    let config = Config {
        dir: dir.join("raft-engine").display().to_string(),
        batch_compression_threshold: ReadableSize::kb(0),
        target_file_size: ReadableSize::mb(64),
        purge_threshold: ReadableSize::mb(512),
        ..Config::default()
    };
    let engine = Engine::open(config).map_err(|e| e.to_string())?;
    worker::answer_all(|ask| {
        let done = threads::drive(ask, usize::MAX, |thread, pairs| {
            let mut batch = LogBatch::with_capacity(pairs.len());
            for (at, (_, value)) in pairs.into_iter().enumerate() {
                // Each writer writes its own keys over and over, so that the engine's index stays small.
                batch
                    .put(thread as u64 + 1, format!("{:016}", at + 1).into_bytes(), value.to_vec())
                    .map_err(|e| e.to_string())?;
            }
            engine.write(&mut batch, true).map(drop).map_err(|e| e.to_string())
        });
        engine.purge_expired_files().map_err(|e| e.to_string())?;
        done
    })
}
