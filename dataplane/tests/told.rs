//! What real logs tell of their links: a peer that listens and says nothing, or nonsense, and one that restarts while nothing is written.

mod pair_kit;
mod process_kit;

use bytes::{Bytes, BytesMut};
use pair_kit::{BJ, Pair, SH, SHARDS};
use replog::link::{Frame, Hello, put};
use shardmap::{MapEpoch, Zone};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

/// Stands where zone sh's log is expected; says nothing, or nonsense once it is to.
fn stand_in(listener: TcpListener, talks: Arc<AtomicBool>) {
    thread::spawn(move || {
        let mut held = vec![];
        while let Ok((mut socket, _)) = listener.accept() {
            if talks.load(Relaxed) {
                let _ = socket.write_all(&[0x55; 300]);
            }
            held.push(socket);
        }
    });
}

#[test]
fn a_peer_that_says_nothing_or_nonsense_is_shown_with_the_reason() {
    let mut pair = Pair::new("mute", "cores = [0]\nstreams = 1\nsegment_mib = 1");
    let talks = Arc::new(AtomicBool::new(false));
    stand_in(TcpListener::bind(pair.links[SH]).unwrap(), talks.clone());
    pair.start(BJ);
    let state = |what: &str| pair.link(BJ, 0, what, |l| l["state"].as_str().is_some_and(|s| s.contains(what)));
    let link = state("nothing was heard for 3 s");
    assert!(link["failures"].as_u64() > Some(0) && link["stopped"].is_null(), "{link}");
    talks.store(true, Relaxed);
    state("a frame of 1431655765 bytes, 2 to");
    for why in ["waits: nothing was heard for 3 s", "waits: a frame of 1431655765 bytes"] {
        assert!(pair.dir.said().contains(why), "{why}: {}", pair.dir.said());
    }
}

#[test]
fn what_garbles_a_link_is_told_where_it_is_received_and_not_without_end() {
    let mut pair = Pair::new("garbled", "cores = [0]\nstreams = 1\nsegment_mib = 1");
    pair.start(BJ);
    let mut hello = BytesMut::new();
    let cluster = Bytes::from_static(b"ezone");
    let (origin, peer, map_epoch) = (Zone(1), Zone(0), MapEpoch(1));
    let of = Hello {
        cluster,
        origin,
        peer,
        stream: 0,
        streams: 1,
        log_uuid: 7,
        term: 1,
        map_epoch,
        first_kept: 1,
        durable: 0,
        codecs: 0,
    };
    put(&mut hello, &Frame::Hello(of));
    let garbled = |count: usize| {
        for _ in 0..count {
            let mut socket = TcpStream::connect(pair.links[BJ]).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            socket.write_all(&hello).unwrap();
            assert!(socket.read(&mut [0; 1024]).unwrap() > 0, "WELCOME");
            // A frame that has a length, and nothing that fits its checksum.
            let _ = socket.write_all(&[20, 0, 0, 0, 1, 2, 3, 4]).and_then(|()| socket.write_all(&[9; 20]));
            let mut rest = vec![];
            let _ = socket.read_to_end(&mut rest); // it is ended
        }
    };
    garbled(1);
    let told = "a connection from zone 1 was ended: a frame that fails its checksum; 1 since the start";
    pair.within("it is told", || pair.dir.said().contains(told).then_some(()));
    garbled(20);
    let lines = pair.dir.said().lines().filter(|l| l.contains("was ended: a frame")).count();
    assert!(lines < 20, "told each time: {}", pair.dir.said());
}

#[test]
fn a_zone_that_restarts_says_what_it_has_applied_though_nothing_more_is_written() {
    let mut pair = Pair::new("restarted", "cores = [0]\nstreams = 2\nsegment_mib = 1");
    pair.start(BJ);
    pair.start(SH);
    let last = pair.write(BJ, SHARDS[BJ], 0..200, |k| format!("{k}"));
    pair.agree(2);
    let connects = pair.link(BJ, 1, "a link", |_| true)["connects"].as_u64();
    for end in [Pair::stop, Pair::kill] {
        end(&mut pair, SH);
        pair.start(SH);
        let again = |l: &serde_json::Value| l["connects"].as_u64() > connects && l["state"] == "live";
        let link = pair.link(BJ, 1, "all is applied there", |l| again(l) && l["applied_lag"] == 0);
        assert!(link["applied_seq"].as_u64() >= Some(last), "{link}");
    }
}
