//! The conflict ledger as people ask for it, and tombstones that go by themselves.

use crate::cluster::{A, Cluster, Site};
use crate::{ONE, shards, take_over};
use bytes::Bytes;
use futures_lite::future::block_on;
use replog::port::{Answer, Ask};
use replog::store::{RESOLVED, conflict_key};
use replog::uring::{Asked, Conflict};
use shardmap::{MapEpoch, Shard, Zone};

fn all(site: &Site, most: usize) -> Vec<Conflict> {
    let (node, mut found, mut after) = (site.node(), vec![], None);
    for stream in 0.. {
        while let Some(piece) = block_on(node.conflicts(stream, Asked { after, most })) {
            let last = piece.last().map(|c| (c.listed.row.version.zone, c.listed.row.seq));
            found.extend(piece);
            if last.is_none() {
                break;
            }
            after = last;
        }
        after = None;
        if block_on(node.conflicts(stream + 1, Asked { after, most })).is_none() {
            return found;
        }
    }
    found
}

fn identity(c: &Conflict) -> (Zone, u64, Shard, Bytes, Bytes, bool) {
    let row = &c.listed.row;
    (row.version.zone, row.seq, row.shard, c.listed.key.clone(), row.value.clone(), row.deleted)
}

fn delete(site: &Site, shard: Shard, map_epoch: MapEpoch, key: &str) {
    let (table, key) = (Bytes::from_static(b"orders"), Some(Bytes::from(key.to_owned())));
    let done = site.ask(&Ask::Write { shard, map_epoch, table, key, value: None });
    assert!(matches!(done, Answer::Written { .. }), "{done:?}");
}

#[test]
fn an_entry_keeps_what_was_written_beside_what_became_of_its_row_and_takes_an_operators_word() {
    let (cluster, map) = Cluster::start("ledger");
    cluster.a.put(Shard(0), ONE, "dead", "before").unwrap();
    cluster.compare();
    cluster.b.stop();
    for i in 0..9 {
        cluster.a.put(Shard(i % 4), ONE, &format!("tail{i}"), &format!("tail of {i}")).unwrap();
    }
    delete(&cluster.a, Shard(0), ONE, "dead");
    cluster.a.stop();
    cluster.b.start(&map);
    cluster.b.node().on_gzs(ONE);
    cluster.wait("b takes writes", || !cluster.b.is_read_only());
    let owned = take_over(&cluster, &map, &shards(&[0, 1, 2, 3]), &cluster.b);
    cluster.b.put(Shard(1), owned.epoch(), "tail1", "the survivor's").unwrap();
    cluster.a.start(&map);
    assert_eq!(cluster.compare(), 10);
    let (at_a, at_b) = (all(&cluster.a, 3), all(&cluster.b, 1000));
    assert_eq!(at_a.iter().map(identity).collect::<Vec<_>>(), at_b.iter().map(identity).collect::<Vec<_>>());
    assert_eq!(at_a.len(), 10);
    let of = |key: &'static str| at_b.iter().find(|c| c.listed.key == key).unwrap();
    assert_eq!(of("tail3").listed.row.value, "tail of 3");
    assert_eq!(of("tail3").now.as_ref().unwrap().seq, of("tail3").listed.row.seq, "it is the row");
    assert_eq!(of("tail1").now.as_ref().unwrap().value, "the survivor's");
    assert_eq!((of("tail1").listed.row.version.zone, &of("tail1").listed.row.value[..]), (A, &b"tail of 1"[..]));
    assert!(of("dead").listed.row.deleted);
    // An operator's word is a row of the shard, written by its owner.
    let row = &of("tail1").listed.row;
    let (table, key) = (Bytes::from_static(RESOLVED), Some(conflict_key(A, row.seq)));
    let word = Some(Bytes::from_static(b"{\"keep\":\"current\"}"));
    let ask = Ask::Write { shard: row.shard, map_epoch: owned.epoch(), table, key, value: word.clone() };
    assert!(matches!(block_on(cluster.b.node().ask(ask)), Answer::Written { .. }));
    cluster.compare();
    for site in cluster.sites() {
        let resolved: Vec<_> = all(site, 4).into_iter().filter(|c| c.resolved.is_some()).collect();
        assert_eq!((resolved.len(), &resolved[0].listed.key[..], &resolved[0].resolved), (1, &b"tail1"[..], &word));
    }
}

#[test]
fn a_tombstone_goes_from_every_zone_once_all_have_applied_it() {
    let (cluster, _) = Cluster::start("tombstones");
    for i in 0..8u16 {
        let site = if i < 4 { &cluster.a } else { &cluster.b };
        site.put(Shard(i), ONE, &format!("k{i}"), "v").unwrap();
        delete(site, Shard(i), ONE, &format!("k{i}"));
    }
    cluster.compare();
    let collected = |site: &Site| site.figures().iter().map(|c| c.kept.collected).sum::<u64>();
    cluster.wait("all of them are gone", || cluster.sites().iter().all(|s| collected(s) == 8));
    assert_eq!(cluster.compare(), 0);
}
