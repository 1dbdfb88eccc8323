//! What tests of logs on a real disk share.

use bytes::Bytes;
use glommio::{LocalExecutorBuilder, Placement};
use replog::open::Floor;
use replog::uring::stream::{Kind, Options, Scrub};
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard, Zone};
use std::path::{Path, PathBuf};

/// An origin with small segments.
pub const OPTIONS: Options = Options {
    zone: Zone(1),
    stream: 2,
    kind: Kind::Origin,
    segment_bytes: 1 << 20,
    floor: Floor { applied: 0, peers: 0 },
    scrub: Scrub::NEVER,
};

/// A directory that is removed with the test.
pub struct Temp(pub PathBuf);

impl Temp {
    pub fn new(name: &str) -> Temp {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Temp(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs `work` on an executor of its own.
pub fn run<T: Send + 'static, F: Future<Output = T> + 'static>(work: impl FnOnce() -> F + Send + 'static) -> T {
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(1 << 20)
        .spawn(|| async move { work().await })
        .expect("an executor")
        .join()
        .expect("the executor ends well")
}

/// Sets row `n` to a value of `len` bytes that begins with `n`.
pub fn put(n: u64, len: usize) -> Record {
    let mut value = n.to_le_bytes().to_vec();
    value.resize(len.max(8), n as u8);
    Record {
        op: Op::Put,
        transaction: 0,
        shard: Shard(n as u16 % 1024),
        owner_epoch: OwnerEpoch(1),
        hlc: Hlc(n),
        table: Bytes::from_static(b"orders"),
        key: n.to_string().into(),
        value: value.into(),
    }
}
