"""A disk with a volatile cache, served over NBD: what was not flushed is at the mercy of a power cut.

The image file is the platter. A write goes into the cache and is answered; a flush, or a write with FUA, moves what was answered
before it to the platter. `cut` keeps, loses, or tears (512-byte sectors) each write in the cache by itself, in no order.
A disk that lies answers flushes and moves nothing. Only Python's standard library is used.

Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, fixed newstyle, simple replies.
"""

import os
import socket
import struct
import threading

SECTOR = 512
FLUSH_S = 0.02
OPT_EXPORT_NAME, OPT_ABORT, OPT_INFO, OPT_GO = 1, 2, 6, 7
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, 0x80000001
OPT_REPLY_MAGIC, REQUEST_MAGIC, REPLY_MAGIC = 0x3E889045565A9, 0x25609513, 0x67446698
FLAGS = 1 | 4 | 8  # has flags, flush, FUA
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
FUA = 1
EINVAL = 22


class Disk:
    def __init__(self, image, lies=False):
        self.platter = open(image, "r+b")
        self.view = bytearray(self.platter.read())
        self.cache = []  # (number of the write, offset, bytes), oldest first
        self.writes = 0
        self.lies = lies
        self.lock, self.sending = threading.Lock(), threading.Lock()
        self.off = threading.Event()
        self.flushes = 0
        self.fuse = None  # so many writes in the cache end it

    def write(self, at, data, fua):
        self.writes += 1
        self.view[at : at + len(data)] = data
        if fua and not self.lies:
            self.put(at, data)
        else:
            self.cache.append((self.writes, at, data))

    def put(self, at, data):
        self.platter.seek(at)
        self.platter.write(data)

    def flush(self, answer):
        """A flush takes its time; it covers what was answered before it, and others go on writing meanwhile."""
        covered = self.writes

        def done():
            with self.lock:
                if self.off.is_set():
                    return
                self.flushes += 1
                while self.cache and self.cache[0][0] <= covered and not self.lies:
                    _, at, data = self.cache.pop(0)
                    self.put(at, data)
            answer()

        threading.Timer(FLUSH_S, done).start()

    def cut(self, rng):
        """The power is gone. Returns how many writes were at risk, and how many of them were kept whole."""
        with self.lock:
            self.off.set()
            kept, at_risk = 0, len(self.cache)
            for _, at, data in self.cache:
                fate = rng.randrange(3)  # kept, torn, lost
                kept += fate == 0
                for part in range(0, len(data), SECTOR):
                    if fate == 0 or fate == 1 and rng.randrange(2):
                        self.put(at + part, data[part : part + SECTOR])
            self.platter.flush()
            self.platter.close()
            return at_risk, kept

    def burn(self, at_risk):
        """The power goes by itself when so many writes are at risk, at the request after them: at the worst moment, not at a calm one."""
        with self.lock:
            self.fuse = at_risk

    # ---- NBD -------------------------------------------------------------------------------------------------------------

    def serve(self, path):
        """Serves one client in a thread; returns when the socket is there."""
        if os.path.exists(path):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        threading.Thread(target=self.client, args=(listener,), daemon=True).start()

    def client(self, listener):
        connection, _ = listener.accept()
        listener.close()
        try:
            with connection:
                if self.greet(connection):
                    while self.answer(connection):
                        pass
        except (ConnectionError, EOFError):
            pass  # QEMU was killed

    def greet(self, c):
        c.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1 | 2))
        receive(c, 4)
        while True:
            _, option, length = struct.unpack(">QII", receive(c, 16))
            receive(c, length)
            reply = lambda kind, data=b"": c.sendall(struct.pack(">QIII", OPT_REPLY_MAGIC, option, kind, len(data)) + data)
            if option == OPT_EXPORT_NAME:
                c.sendall(struct.pack(">QH", len(self.view), FLAGS))
                return True
            if option in (OPT_GO, OPT_INFO):
                reply(REP_INFO, struct.pack(">HQH", 0, len(self.view), FLAGS))
                reply(REP_ACK)
                if option == OPT_GO:
                    return True
            elif option == OPT_ABORT:
                reply(REP_ACK)
                return False
            else:
                reply(REP_ERR_UNSUP)

    def answer(self, c):
        magic, flags, kind, handle, at, length = struct.unpack(">IHHQQI", receive(c, 28))
        assert magic == REQUEST_MAGIC, hex(magic)
        data, error, answer = (receive(c, length) if kind == WRITE else b""), 0, b""
        with self.lock:
            if self.off.is_set() or kind == DISCONNECT:
                return False
            if self.fuse and len(self.cache) >= self.fuse:
                self.off.set()
                return False
            if at + length > len(self.view):
                error = EINVAL
            elif kind == READ:
                answer = bytes(self.view[at : at + length])
            elif kind == WRITE:
                self.write(at, data, flags & FUA)
            elif kind == FLUSH:
                self.flush(lambda: self.reply(c, handle))
                return True
            else:
                error = EINVAL
        self.reply(c, handle, error, answer)
        return True

    def reply(self, c, handle, error=0, answer=b""):
        with self.sending:
            try:
                c.sendall(struct.pack(">IIQ", REPLY_MAGIC, error, handle) + answer)
            except OSError:
                pass  # QEMU was killed


def receive(c, length):
    data = bytearray()
    while len(data) < length:
        part = c.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
