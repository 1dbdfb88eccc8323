//! How this zone stands to each shard now: what a log core tells its routers, and they tell services.
//!
//! ```text
//!              a map gives it the shard, it is not read-only
//!   Nothing ─────────────────────────────────────────────────▶ Writes ──┐ a map says moving, lost, or another owner:
//!      ▲                                                          ▲     │ the FENCE is decided, and nothing more is taken
//!      │ the FENCE is durable, and the map names another owner    │     ▼
//!      └────────────────────────────────────────────────────────  Halted
//!                                                      aborted: a new ownership
//! ```
//!
//! The gate alone knows, since it takes maps by itself and is what refuses: a router's map may be older or newer. Everything that this zone
//! has written under an ownership lies before its FENCE in the log, so once that is durable nothing of it is on its way any more but
//! answers.

use crate::port::{Malformed, get_u8, get_u32, get_u64};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use shardmap::ownership::Kind;
use shardmap::{MapEpoch, OwnerEpoch, Shard, Zone};

/// What this zone may do with a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum May {
    /// Write it, now.
    Writes,
    /// Nothing for now: it is fenced and the map has no new owner yet, its FENCE is not durable yet, the log has restarted and does not know
    /// what it owns, or it is a global service without a lease.
    Halted,
    /// Nothing: another zone has it, or nobody.
    Nothing,
}

/// One shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stand {
    /// Which.
    pub shard: Shard,
    /// What the log's map says of it.
    pub kind: Kind,
    /// Its owner there.
    pub owner: Option<Zone>,
    /// When that ownership began.
    pub owner_epoch: OwnerEpoch,
    /// The target of a move.
    pub to: Option<Zone>,
    /// What this zone may do with it.
    pub may: May,
    /// When the newest ownership of this zone began; 0: it has had none that is still known.
    pub own_epoch: OwnerEpoch,
    /// Of a global service: what is left of this zone's lease, in milliseconds; 0: it has none.
    pub lease_ms: u32,
}

/// All shards of one log core.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Rises with each change, as long as the log runs; never 0.
    pub revision: u64,
    /// The map that the core goes by.
    pub map_epoch: MapEpoch,
    /// Rising.
    pub stands: Vec<Stand>,
}

pub(crate) fn put_standing(out: &mut BytesMut, all: &Standing) {
    out.put_u64_le(all.revision);
    out.put_u64_le(all.map_epoch.0);
    out.put_u16_le(all.stands.len() as u16);
    let zone = |z: Option<Zone>| z.map_or(u8::MAX, |z| z.0);
    for s in &all.stands {
        out.put_u16_le(s.shard.0);
        out.put_u8(match s.kind {
            Kind::Own => 0,
            Kind::Moving => 1,
            Kind::Lost => 2,
            Kind::Unlock => 3,
        });
        out.put_u8(match s.may {
            May::Writes => 0,
            May::Halted => 1,
            May::Nothing => 2,
        });
        out.put_u8(zone(s.owner));
        out.put_u8(zone(s.to));
        out.put_u64_le(s.owner_epoch.0);
        out.put_u64_le(s.own_epoch.0);
        out.put_u32_le(s.lease_ms);
    }
}

pub(crate) fn get_standing(m: &mut Bytes) -> Result<Standing, Malformed> {
    let (revision, map_epoch) = (get_u64(m)?, MapEpoch(get_u64(m)?));
    let count = m.try_get_u16_le().map_err(|_| Malformed::Fields)?;
    let stands = (0..count).map(|_| get_stand(m)).collect::<Result<_, _>>()?;
    Ok(Standing { revision, map_epoch, stands })
}

fn get_stand(m: &mut Bytes) -> Result<Stand, Malformed> {
    let shard = Shard(m.try_get_u16_le().map_err(|_| Malformed::Fields)?);
    let kind = match get_u8(m)? {
        0 => Kind::Own,
        1 => Kind::Moving,
        2 => Kind::Lost,
        3 => Kind::Unlock,
        _ => return Err(Malformed::Fields),
    };
    let may = match get_u8(m)? {
        0 => May::Writes,
        1 => May::Halted,
        2 => May::Nothing,
        _ => return Err(Malformed::Fields),
    };
    let zone = |b: u8| Some(b).filter(|z| *z != u8::MAX).map(Zone);
    let (owner, to) = (zone(get_u8(m)?), zone(get_u8(m)?));
    let (owner_epoch, own_epoch) = (OwnerEpoch(get_u64(m)?), OwnerEpoch(get_u64(m)?));
    let lease_ms = get_u32(m)?;
    Ok(Stand { shard, kind, owner, owner_epoch, to, may, own_epoch, lease_ms })
}
