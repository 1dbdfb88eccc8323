//! Looks into what a TUN device hands over: an IP packet, or up to 64 KiB of one TCP stream that the kernel has not cut yet.
//!
//! ```text
//!   virtio_net_hdr (10 bytes)             IP head   TCP head   payload: n segments of gso_size bytes, the last one shorter
//!   flags, type, hdr_len, gso_size, csum  ........  .........  |--------|--------|--------|-----|
//! ```
//!
//! `virtio_net_hdr` is that of the virtio specification, 5.1.6, in this machine's byte order (a TUN device without
//! `TUNSETVNETBE`); heads are those of RFC 791, RFC 8200, RFC 9293 and RFC 768.

/// Bytes of the head that the device puts before each packet.
pub const VNET_BYTES: usize = 10;
/// The checksum field holds the sum over the pseudo header alone: the receiving kernel takes the bytes as they are.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_PSH_FIN: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// Where the parts of a packet lie. What is not understood is one segment without a payload: carried, never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// 4 or 6, or 0 for what is not understood.
    version: u8,
    protocol: u8,
    /// Where the TCP or UDP head begins, and where the payload does.
    transport: usize,
    payload: usize,
    end: usize,
    /// Payload bytes of each segment but the last; 0: not to be cut.
    segment_bytes: usize,
}

impl Shape {
    pub fn of(packet: &[u8]) -> Shape {
        let end = packet.len();
        let opaque = Shape { version: 0, protocol: 0, transport: end, payload: end, end, segment_bytes: 0 };
        Shape::understood(packet).unwrap_or(opaque)
    }

    fn understood(packet: &[u8]) -> Option<Shape> {
        let end = packet.len();
        let byte = |at: usize| packet.get(at).copied();
        let version = byte(VNET_BYTES)? >> 4;
        let (protocol, transport) = match version {
            4 => {
                let fragment = u16::from_be_bytes([byte(VNET_BYTES + 6)?, byte(VNET_BYTES + 7)?]) & 0x3fff;
                let head = usize::from(byte(VNET_BYTES)? & 15) * 4;
                (if fragment == 0 { byte(VNET_BYTES + 9)? } else { 0 }, VNET_BYTES + head)
            }
            6 => (byte(VNET_BYTES + 6)?, VNET_BYTES + 40),
            _ => return None,
        };
        let payload = match protocol {
            TCP => transport + usize::from(byte(transport + 12)? >> 4) * 4,
            UDP => transport + 8,
            _ => return None,
        };
        let offloaded = byte(1)? != GSO_NONE && protocol == TCP;
        let segment_bytes = if offloaded { u16::from_ne_bytes([byte(4)?, byte(5)?]) } else { 0 };
        let sane = transport >= VNET_BYTES + 20 && payload > transport && payload <= end;
        sane.then_some(Shape { version, protocol, transport, payload, end, segment_bytes: segment_bytes.into() })
    }

    /// Packets that a wire would carry for this.
    pub fn segments(&self) -> usize {
        match self.segment_bytes {
            0 => 1,
            each => (self.end - self.payload).div_ceil(each).max(1),
        }
    }

    /// Bytes of the `at`-th of them, with its own IP and TCP heads.
    pub fn wire_bytes(&self, at: usize) -> usize {
        let (from, to) = self.payload_of(at);
        self.payload - VNET_BYTES + to - from
    }

    fn payload_of(&self, at: usize) -> (usize, usize) {
        match self.segment_bytes {
            0 => (self.payload, self.end),
            each => ((self.payload + at * each).min(self.end), (self.payload + (at + 1) * each).min(self.end)),
        }
    }
}

/// The segments `from..to` of a packet as a packet of their own, as the kernel would have cut it.
pub fn piece(packet: &[u8], shape: &Shape, from: usize, to: usize) -> Vec<u8> {
    if from == 0 && to >= shape.segments() {
        return packet.to_vec();
    }
    let (begin, end) = (shape.payload_of(from).0, shape.payload_of(to - 1).1);
    let mut out = Vec::with_capacity(shape.payload + end - begin);
    out.extend_from_slice(&packet[..shape.payload]);
    out.extend_from_slice(&packet[begin..end]);
    if to - from == 1 {
        out[1] = GSO_NONE;
        out[4..6].fill(0);
    }
    let long = out.len();
    patch_ip(&mut out, shape, long - VNET_BYTES, from);
    let at = shape.transport;
    let seq = u32::from_be_bytes([out[at + 4], out[at + 5], out[at + 6], out[at + 7]]);
    let seq = seq.wrapping_add((begin - shape.payload) as u32);
    out[at + 4..at + 8].copy_from_slice(&seq.to_be_bytes());
    if to < shape.segments() {
        out[at + 13] &= !TCP_PSH_FIN;
    }
    if from > 0 {
        out[at + 13] &= !TCP_CWR;
    }
    let sum = pseudo_sum(&out, shape, long - at);
    out[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
    out
}

fn patch_ip(out: &mut [u8], shape: &Shape, long: usize, from: usize) {
    let ip = VNET_BYTES;
    if shape.version == 6 {
        out[ip + 4..ip + 6].copy_from_slice(&((long - 40) as u16).to_be_bytes());
        return;
    }
    out[ip + 2..ip + 4].copy_from_slice(&(long as u16).to_be_bytes());
    let id = u16::from_be_bytes([out[ip + 4], out[ip + 5]]).wrapping_add(from as u16);
    out[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
    out[ip + 10..ip + 12].fill(0);
    let sum = !folded(sum_of(&out[ip..shape.transport]));
    out[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
}

/// What the checksum field of a packet holds whose sum is still to be made: addresses, protocol and length, not inverted.
fn pseudo_sum(out: &[u8], shape: &Shape, transport_bytes: usize) -> u16 {
    let addresses = match shape.version {
        6 => VNET_BYTES + 8..VNET_BYTES + 40,
        _ => VNET_BYTES + 12..VNET_BYTES + 20,
    };
    folded(sum_of(&out[addresses]) + u64::from(shape.protocol) + transport_bytes as u64)
}

fn sum_of(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    bytes.chunks(2).map(word).sum()
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Flips one bit of the payload of the `at`-th segment, chosen by `random`, and mends the checksum, so that the program that
/// receives it sees it. `false`: it has no payload, or is neither TCP nor UDP.
pub fn flip(packet: &mut [u8], at: usize, random: u64) -> bool {
    let shape = Shape::of(packet);
    let (from, to) = shape.payload_of(at);
    if from >= to {
        return false;
    }
    let place = from + (random >> 3) as usize % (to - from);
    let word = |packet: &[u8]| {
        let low = place - (place - shape.transport) % 2;
        u16::from_be_bytes([packet[low], packet.get(low + 1).copied().unwrap_or(0)])
    };
    let before = word(packet);
    packet[place] ^= 1 << (random & 7);
    let after = word(packet);
    let field = shape.transport + if shape.protocol == TCP { 16 } else { 6 };
    let sum = u16::from_be_bytes([packet[field], packet[field + 1]]);
    let none = shape.protocol == UDP && sum == 0;
    if packet[0] & NEEDS_CSUM == 0 && !none {
        // RFC 1624: the new sum from the old one and the word that changed.
        let mended = !folded(u64::from(!sum) + u64::from(!before) + u64::from(after));
        packet[field..field + 2].copy_from_slice(&mended.to_be_bytes());
    }
    true
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A TCP packet as a device hands it over: `payload` bytes in segments of `each`, from 10.0.0.1 to 10.0.0.2.
    pub fn tcp(payload: &[u8], each: u16) -> Vec<u8> {
        let gso = payload.len() > usize::from(each);
        let mut p = vec![NEEDS_CSUM, if gso { 1 } else { 0 }, 40, 0];
        p.extend_from_slice(&(if gso { each } else { 0 }).to_ne_bytes());
        p.extend_from_slice(&[20, 0, 16, 0]);
        let long = (40 + payload.len()) as u16;
        p.extend_from_slice(&[0x45, 0, (long >> 8) as u8, long as u8, 0x12, 0x34, 0x40, 0, 64, TCP, 0, 0]);
        p.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        p.extend_from_slice(&[
            0x10, 0, 0x20, 0, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 9, 0x50, 0x98, 0xff, 0xff, 0, 0, 0, 0,
        ]);
        p.extend_from_slice(payload);
        let shape = Shape::of(&p);
        patch_ip(&mut p, &shape, usize::from(long), 0);
        let sum = pseudo_sum(&p, &shape, payload.len() + 20);
        p[46..48].copy_from_slice(&sum.to_be_bytes());
        p
    }

    /// The checksum of the IP head, and of the TCP part as the sum over pseudo header and bytes: both are 0 when right.
    fn sums(packet: &[u8]) -> (u16, u16) {
        let shape = Shape::of(packet);
        let tcp = packet.len() - shape.transport;
        let all = u64::from(pseudo_sum(packet, &shape, tcp)) + sum_of(&packet[shape.transport..]);
        (!folded(sum_of(&packet[VNET_BYTES..shape.transport])), !folded(all))
    }

    /// As a network card does for a packet whose sum is still to be made.
    fn completed(packet: &[u8]) -> Vec<u8> {
        let (mut out, shape) = (packet.to_vec(), Shape::of(packet));
        let sum = !folded(sum_of(&out[shape.transport..]));
        out[shape.transport + 16..shape.transport + 18].copy_from_slice(&sum.to_be_bytes());
        out[0] = 0;
        out
    }

    #[test]
    fn a_super_packet_counts_as_the_segments_that_a_wire_would_carry() {
        let shape = Shape::of(&tcp(&[7; 3500], 1448));
        assert_eq!((shape.segments(), shape.wire_bytes(0), shape.wire_bytes(2)), (3, 1488, 40 + 604));
        let shape = Shape::of(&tcp(&[], 1448));
        assert_eq!((shape.segments(), shape.wire_bytes(0)), (1, 40), "a bare acknowledgement");
    }

    #[test]
    fn pieces_join_to_the_whole_and_each_is_a_right_packet() {
        let payload: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
        let whole = tcp(&payload, 1000);
        let shape = Shape::of(&whole);
        let mut joined = vec![];
        for (from, to) in [(0, 1), (1, 4), (4, 5)] {
            let piece = piece(&whole, &shape, from, to);
            let seen = Shape::of(&piece);
            assert_eq!(seen.segments(), to - from);
            assert_eq!(sums(&completed(&piece)), (0, 0), "segments {from}..{to}");
            let seq = u32::from_be_bytes(piece[seen.transport + 4..seen.transport + 8].try_into().unwrap());
            assert_eq!(seq, 0xffff_fff0u32.wrapping_add(from as u32 * 1000));
            let flags = piece[seen.transport + 13];
            assert_eq!((flags & TCP_PSH_FIN != 0, flags & TCP_CWR != 0), (to == 5, from == 0));
            joined.extend_from_slice(&piece[seen.payload..]);
        }
        assert_eq!(joined, payload);
        assert_eq!(piece(&whole, &shape, 0, 5), whole);
    }

    #[test]
    fn a_flipped_bit_is_one_bit_of_the_payload_under_a_right_checksum() {
        for (random, made) in (0..2000u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15), i % 2 == 0)) {
            let whole = tcp(&[0x55; 1201], 1448);
            let whole = if made { completed(&whole) } else { whole };
            let mut hit = whole.clone();
            assert!(flip(&mut hit, 0, random));
            let payload = Shape::of(&hit).payload;
            let differ: u32 = hit[payload..].iter().zip(&whole[payload..]).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!(differ, 1);
            assert_eq!(sums(&if made { hit } else { completed(&hit) }), (0, 0));
        }
        assert!(!flip(&mut tcp(&[], 1448), 0, 9), "there is nothing to flip");
    }

    #[test]
    fn whatever_comes_is_one_segment_at_least_and_never_a_panic() {
        let whole = tcp(&[1; 3000], 1400);
        for end in 0..whole.len() {
            let shape = Shape::of(&whole[..end]);
            assert!(shape.segments() >= 1);
            flip(&mut whole[..end].to_vec(), 0, 77);
        }
        for at in 0..60 {
            for bit in 0..8 {
                let mut odd = whole.clone();
                odd[at] ^= 1 << bit;
                let shape = Shape::of(&odd);
                let all: usize = (0..shape.segments()).map(|i| piece(&odd, &shape, i, i + 1).len()).sum();
                assert!(all >= odd.len() - VNET_BYTES);
            }
        }
    }
}
