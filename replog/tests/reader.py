#!/usr/bin/env python3
"""Reads one stream's directory, written from FORMAT.md alone: a second opinion on the format. Standard library only.

    reader.py DIR [--quiet]

Prints one JSON object a record on standard output (table, key and value in hexadecimal), and the verdict as the last line, on standard
error. Exit code 0: clean or stale. 1: torn. 2: corrupt, of a newer format, or unreadable. 3: gap. 70: a fault of this program.
"""

import json
import os
import re
import struct
import sys
import traceback
import zlib

BLOCK = 4096
VERSION = 1
ZONES = 15
BLOCKS_MAX = 1024
SEGMENT_MAX = 4 << 30
TABLE_MAX, KEY_MAX, VALUE_MAX = 128, 1024, 1 << 20
OPS = {1: "put", 2: "delete", 3: "fence", 4: "marker", 5: "gap", 6: "answer"}


class Damaged(Exception):
    """Bytes that are not what they should be."""


class Newer(Exception):
    """A version that this reader does not know."""


class Found(Exception):
    """A verdict that ends the reading."""

    def __init__(self, verdict, text):
        super().__init__(text)
        self.verdict = verdict


# ---- BLAKE3, the hash mode with an output of 32 bytes -------------------------------------------------------------------

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
MASK = 0xFFFFFFFF


def mix(v, a, b, c, d, x, y):
    v[a] = (v[a] + v[b] + x) & MASK
    t = v[d] ^ v[a]
    v[d] = (t >> 16 | t << 16) & MASK
    v[c] = (v[c] + v[d]) & MASK
    t = v[b] ^ v[c]
    v[b] = (t >> 12 | t << 20) & MASK
    v[a] = (v[a] + v[b] + y) & MASK
    t = v[d] ^ v[a]
    v[d] = (t >> 8 | t << 24) & MASK
    v[c] = (v[c] + v[d]) & MASK
    t = v[b] ^ v[c]
    v[b] = (t >> 7 | t << 25) & MASK


def compress(chaining, block, counter, length, flags):
    m = list(struct.unpack("<16I", block.ljust(64, b"\0")))
    v = list(chaining) + list(IV[:4]) + [counter & MASK, counter >> 32, length, flags]
    for turn in range(7):
        mix(v, 0, 4, 8, 12, m[0], m[1])
        mix(v, 1, 5, 9, 13, m[2], m[3])
        mix(v, 2, 6, 10, 14, m[4], m[5])
        mix(v, 3, 7, 11, 15, m[6], m[7])
        mix(v, 0, 5, 10, 15, m[8], m[9])
        mix(v, 1, 6, 11, 12, m[10], m[11])
        mix(v, 2, 7, 8, 13, m[12], m[13])
        mix(v, 3, 4, 9, 14, m[14], m[15])
        m = [m[i] for i in PERMUTATION]
    return tuple(v[i] ^ v[i + 8] for i in range(8))


def blake3(data):
    """The first 32 bytes of BLAKE3 of `data`."""
    chunks = [data[i : i + 1024] for i in range(0, len(data), 1024)] or [b""]

    def chunk(index, root):
        chaining, body = IV, chunks[index]
        blocks = [body[i : i + 64] for i in range(0, len(body), 64)] or [b""]
        for at, block in enumerate(blocks):
            flags = CHUNK_START * (at == 0)
            if at == len(blocks) - 1:
                flags |= CHUNK_END | root
            chaining = compress(chaining, block, index, len(block), flags)
        return chaining

    def tree(first, count, root):
        if count == 1:
            return chunk(first, root)
        left = 1 << (count - 1).bit_length() - 1  # the largest power of two below count
        both = tree(first, left, 0) + tree(first + left, count - left, 0)
        return compress(IV, struct.pack("<16I", *both), 0, 64, PARENT | root)

    return struct.pack("<8I", *tree(0, len(chunks), ROOT))


# ---- blocks around the batches ------------------------------------------------------------------------------------------


def checked_block(b, magic):
    if len(b) < BLOCK:
        raise Damaged(f"{len(b)} bytes where a block should be")
    if b[:8] != magic:
        raise Damaged("another magic number")
    if zlib.crc32(b[12:BLOCK]) != struct.unpack_from("<I", b, 8)[0]:
        raise Damaged("the block's checksum does not hold")
    version = struct.unpack_from("<H", b, 12)[0]
    if version != VERSION:
        raise Newer(f"format version {version}, this reader knows {VERSION}")


def header(b):
    checked_block(b, b"RLGSEG1\0")
    h = {}
    (h["zone"], block, h["stream"]) = struct.unpack_from("<HII", b, 14)
    h["log_uuid"] = int.from_bytes(b[24:40], "little")
    (h["number"], h["first_seq"], h["term"], h["salt"], before) = struct.unpack_from("<5Q", b, 40)
    (h["prev_chain"], h["flags"], h["prev_end"], h["size"], h["created"]) = struct.unpack_from("<IIQQQ", b, 80)
    (h["prev_sealed"],) = struct.unpack_from("<I", b, 112)
    wrong = (
        block != BLOCK
        or h["zone"] >= ZONES
        or h["number"] == 0
        or h["first_seq"] == 0
        or before != h["first_seq"] - 1
        or h["flags"] > 1
        or any(n % BLOCK or n > SEGMENT_MAX for n in (h["prev_end"], h["size"]))
    )
    if wrong:
        raise Damaged("a field of the segment header cannot be")
    return h


def footer(b):
    checked_block(b, b"RLGEND1\0")
    names = ("salt", "last_seq", "records", "low", "high")
    f = dict(zip(names, struct.unpack_from("<5Q", b, 16)))
    f["digest"] = bytes(b[56:88])
    return f


def checkpoint(b):
    checked_block(b, b"RLGCKP1\0")
    (generation,) = struct.unpack_from("<Q", b, 16)
    durable, term, kept = struct.unpack_from("<3Q", b, 40)
    uuid = int.from_bytes(b[24:40], "little")
    return {"generation": generation, "log_uuid": uuid, "durable": durable, "term": term, "kept": max(kept, 1)}


# ---- batches and records ------------------------------------------------------------------------------------------------


def batch_header(b):
    """The fields of a batch whose header_crc holds."""
    if len(b) < 128 or b[:4] != b"RLB1":
        raise Damaged("no batch begins here")
    (hdr_len,) = struct.unpack_from("<H", b, 20)
    if not 132 <= hdr_len <= 128 + 4 * BLOCKS_MAX or len(b) < hdr_len:
        raise Damaged("the header's length cannot be")
    h = {"hdr_len": hdr_len}
    (h["place_crc"], h["local_durable"], h["header_crc"]) = struct.unpack_from("<IQI", b, 4)
    if zlib.crc32(b[20:hdr_len]) != h["header_crc"]:
        raise Damaged("the header's checksum does not hold")
    version, codec, flags = struct.unpack_from("<BBI", b, 22)
    if (version, codec, flags) != (VERSION, 0, 0):
        raise Newer(f"a batch of version {version}, codec {codec}, flags {flags}")
    (h["stream"], h["zone"], zero, h["records"]) = struct.unpack_from("<IHHI", b, 28)
    (h["body_len"], raw_len, raw_crc, h["prev_chain"]) = struct.unpack_from("<4I", b, 40)
    (h["first_seq"], h["term"], h["low"], h["high"], h["append_ns"]) = struct.unpack_from("<5Q", b, 56)
    (h["transactions"], _, h["uuid_low"]) = struct.unpack_from("<IIQ", b, 96)
    h["blocks"] = -(-(128 + h["body_len"]) // (BLOCK - 4))
    wrong = (
        hdr_len != 128 + 4 * h["blocks"]
        or h["blocks"] > BLOCKS_MAX
        or zero
        or any(b[112:128])
        or h["zone"] >= ZONES
        or h["records"] == 0
        or h["first_seq"] == 0
        or h["low"] > h["high"]
        or raw_len != h["body_len"]
        or raw_crc
    )
    if wrong:
        raise Damaged("a field of the batch header cannot be")
    h["last_seq"] = h["first_seq"] + h["records"] - 1
    return h


def stands_here(h, salt, pos):
    """Was the batch written for this place in this use of the file?"""
    return zlib.crc32(struct.pack("<QQQI", salt, pos, h["local_durable"], h["header_crc"])) == h["place_crc"]


def batch(data, salt, pos):
    """The batch at `pos`, intact or an exception; with its records."""
    h = batch_header(data[pos : pos + 128 + 4 * BLOCKS_MAX])
    disk = data[pos : pos + h["blocks"] * BLOCK]
    if len(disk) < h["blocks"] * BLOCK:
        raise Damaged("the batch goes on where the file ends")
    if not stands_here(h, salt, pos):
        raise Damaged("the batch was written for another place")
    crcs = struct.unpack_from(f"<{h['blocks']}I", disk, 128)
    for page, crc in enumerate(crcs):
        begin, end = (max(BLOCK * n, h["hdr_len"]) for n in (page, page + 1))
        if zlib.crc32(disk[begin:end]) != crc:
            raise Damaged(f"page {page} fails its checksum")
    end = h["hdr_len"] + h["body_len"]
    if any(disk[end:]):
        raise Damaged("the padding is not zeros")
    h["digested"] = bytes(disk[16:20]) + bytes(disk[128 : h["hdr_len"]])
    h["list"] = records(bytes(disk[h["hdr_len"] : end]), h)
    return h


def varint(b, at):
    n = 0
    for i in range(10):
        if at + i >= len(b):
            raise Damaged("a record is cut off")
        byte = b[at + i]
        if (i == 9 and byte > 1) or (i > 0 and byte == 0):
            raise Damaged("a number in a longer spelling than its shortest")
        n |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return n, at + i + 1
    raise Damaged("a number that is too large")


def records(body, h):
    at, all_of = 0, []
    for index in range(h["records"]):
        if at >= len(body):
            raise Damaged("a record is cut off")
        op = OPS.get(body[at])
        if op is None:
            raise Damaged(f"unknown op {body[at]}")
        r = {"seq": h["first_seq"] + index, "op": op}
        at += 1
        for name, bits in (("transaction", 32), ("shard", 16), ("owner_epoch", 64), ("hlc", 64)):
            r[name], at = varint(body, at)
            if r[name] >> bits:
                raise Damaged(f"{name} is out of range")
        r["hlc"] += h["low"]
        if r["hlc"] > h["high"]:
            raise Damaged("an HLC above the highest of the batch")
        for name, most in (("table", TABLE_MAX), ("key", KEY_MAX), ("value", VALUE_MAX)):
            length, at = varint(body, at)
            if length > most or at + length > len(body):
                raise Damaged(f"a {name} of {length} bytes")
            r[name] = body[at : at + length].hex()
            at += length
        all_of.append(r)
    if at != len(body):
        raise Damaged("bytes behind the last record")
    return all_of


# ---- a directory --------------------------------------------------------------------------------------------------------


class Stream:
    """Follows a stream through its segments."""

    def __init__(self, path, show):
        self.path, self.show = path, show
        self.seq, self.chain, self.before, self.known = 1, None, None, 0
        self.footers_lost = []

    def read(self):
        names = sorted(n for n in os.listdir(self.path) if re.fullmatch(r"[0-9]{20}\.rlog", n))
        newest = self.checkpoint()
        kept = newest["kept"] if newest else None
        # What is below the first seq kept is on its way out.
        while len(names) > 1 and kept and int(names[1][:20]) <= kept:
            names.pop(0)
        headers = []
        for name in names:
            with open(os.path.join(self.path, name), "rb") as f:
                headers.append(self.segment_header(name, f.read(BLOCK)))
        if newest and (not headers or newest["log_uuid"] == headers[-1]["log_uuid"]):
            self.known = newest["durable"]
        if not names:
            if self.known:
                raise Found("gap", f"everything up to seq {self.known} is missing")
            return "empty"
        first = headers[0]["first_seq"]
        self.seq = min(kept or first, first)
        verdict = "clean"
        for at, name in enumerate(names):
            after = headers[at + 1] if at + 1 < len(names) else None
            verdict = self.segment(name, headers[at], after)
        if self.footers_lost:
            raise Found("corrupt", f"the footers of {', '.join(self.footers_lost)} are lost; every record was read")
        return verdict

    def checkpoint(self):
        found = []
        for name in ("CHECKPOINT.a", "CHECKPOINT.b"):
            try:
                with open(os.path.join(self.path, name), "rb") as f:
                    found.append(checkpoint(f.read()))
            except (FileNotFoundError, Damaged):
                pass  # the other one counts
        return max(found, key=lambda c: c["generation"], default=None)

    def segment_header(self, name, block):
        try:
            return header(block)
        except Damaged as e:
            raise Found("corrupt", f"{name}: segment header: {e}") from e

    def link(self, name, h):
        if h["first_seq"] > self.seq:
            raise Found("gap", f"seq {self.seq} to {h['first_seq'] - 1} are missing before {name}")
        before = self.before
        wrong = int(name[:20]) != h["first_seq"] or (
            before is not None
            and (
                h["number"] != before["number"] + 1
                or any(h[field] != before[field] for field in ("log_uuid", "zone", "stream"))
                or h["first_seq"] != self.seq
                or h["prev_chain"] != self.chain
            )
        )
        if wrong:
            raise Found("corrupt", f"{name}: its header does not continue what is before it")
        if before is None:
            self.seq, self.chain = h["first_seq"], h["prev_chain"]

    def segment(self, name, h, after):
        self.link(name, h)
        with open(os.path.join(self.path, name), "rb") as f:
            data = memoryview(f.read())
        end = after["prev_end"] if after else None
        limit = min(len(data), SEGMENT_MAX if end is None else end)
        pos, fault, digested, hlcs, inside = BLOCK, None, [], [], 0
        while pos != end:
            try:
                b = batch(data[:limit], h["salt"], pos)
            except Damaged as e:
                fault = e
                break
            own = (h["zone"], h["stream"], h["log_uuid"] & (1 << 64) - 1)
            if (b["zone"], b["stream"], b["uuid_low"]) != own or (b["first_seq"], b["prev_chain"]) != (self.seq, self.chain):
                raise Found("corrupt", f"{name} at byte {pos}: an intact batch that does not continue the log")
            for record in b["list"]:
                self.show(record)
            digested.append(b["digested"])
            hlcs += [b["low"], b["high"]]
            inside = max(inside, b["local_durable"])
            self.seq, self.chain = b["last_seq"] + 1, b["header_crc"]
            pos += b["blocks"] * BLOCK
        sealed = self.seal(name, data, pos, h, digested, hlcs)
        self.before = h
        if fault is None:
            if after["prev_sealed"] & 1 and not sealed:
                self.footers_lost.append(name)
            return "clean"
        where = f"{name} at byte {pos}, seq {self.seq}"
        if end is not None:
            raise Found("corrupt", f"{where}: {fault}")
        behind = Behind(data, h["salt"], pos, self.seq, self.chain)
        known = max(self.known, inside, behind.known)
        if known >= self.seq:
            raise Found("gap" if sealed else "corrupt", f"{where}: {fault}; seq {known} is known to be durable")
        if sealed or not behind.anything:
            return "clean"
        if behind.foreign or h["flags"] & 1 and not behind.own and not behind.continues:
            return "stale"
        raise Found("torn", f"{where}: {fault}")

    def seal(self, name, data, pos, h, digested, hlcs):
        """Is there a footer that fits?"""
        try:
            f = footer(bytes(data[pos : pos + BLOCK]))
        except Damaged:
            return False
        if (f["salt"], f["last_seq"]) != (h["salt"], self.seq - 1):
            return False
        records_of = self.seq - h["first_seq"]
        said = (f["records"], f["low"], f["high"], f["digest"])
        if said != (records_of, min(hlcs, default=0), max(hlcs, default=0), blake3(b"".join(digested))):
            raise Found("corrupt", f"{name}: the batches are not those that the footer was made of")
        return True


class Behind:
    """What lies behind the last intact batch of the last segment."""

    def __init__(self, data, salt, pos, seq, chain):
        self.anything = self.continues = self.foreign = self.own = False
        self.known = 0
        for at in range(pos, len(data), BLOCK):
            block = bytes(data[at : at + BLOCK])
            if not any(block):
                continue
            self.anything = True
            head = bytes(data[at : at + 128 + 4 * BLOCKS_MAX])
            try:
                f = footer(block)
                if f["salt"] == salt:
                    self.own, self.known = True, max(self.known, f["last_seq"])
            except (Damaged, Newer):
                pass
            try:
                b = batch_header(head)
            except (Damaged, Newer):
                continue
            if stands_here(b, salt, at):
                self.own, self.known = True, max(self.known, b["local_durable"])
            if at == pos:
                self.continues = (b["first_seq"], b["prev_chain"]) == (seq, chain)
                self.foreign = not self.own and not self.continues


def main():
    quiet = "--quiet" in sys.argv[2:]
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2

    def show(record):
        if not quiet:
            print(json.dumps(record))

    try:
        verdict = Stream(sys.argv[1], show).read()
        text = verdict
    except Found as e:
        verdict, text = e.verdict, f"{e.verdict}: {e}"
    except Newer as e:
        verdict, text = "newer", f"{e}: use a newer reader"
    except OSError as e:
        verdict, text = "unreadable", str(e)
    sys.stdout.flush()
    print(text, file=sys.stderr)
    return {"empty": 0, "clean": 0, "stale": 0, "torn": 1, "gap": 3}.get(verdict, 2)


if __name__ == "__main__":
    try:
        code = main()
    except Exception:  # a fault of this program is not a verdict; uncaught, it would exit with that of "torn"
        traceback.print_exc()
        code = 70
    sys.exit(code)
