#!/usr/bin/env python3
"""Cuts the power of a machine that appends to a log, again and again, and compares what it finds with what was acknowledged.

    cargo build -p replog --example appender && replog/tests/power/run.py --cuts 50

README.md beside this file says what it needs, what it proves and what not.
"""

import argparse
import collections
import glob
import gzip
import os
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time

from disk import Disk

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"]
UNMOUNTED = "the file system does not mount"
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for m in $(/bin/busybox cat /modules); do /bin/busybox insmod /lib/$m; done
/bin/busybox mount -t ext4 /dev/vda /mnt || echo "verdict the file system does not mount"
applied=$(/bin/busybox sed 's/.*applied=\\([0-9]*\\).*/\\1/' /proc/cmdline)
/bin/busybox grep -q ' /mnt ' /proc/mounts && /appender /mnt/log $applied 2>&1
echo "ended $?"
/bin/busybox poweroff -f
"""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lies", action="store_true", help="a disk that lies about flushes: losses have to be seen, or the run proves nothing")
    parser.add_argument("--appender", default=os.path.join(HERE, "../../../target/debug/examples/appender"))
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--firmware", action="append", default=[], help="QEMU's -L, if it is not installed where it expects to be")
    parser.add_argument("--kernel", help="a Debian kernel; the newest /boot/vmlinuz-*-cloud-amd64 if not given")
    parser.add_argument("--image-mib", type=int, default=96)
    return parser.parse_args()


# ---- the machine ---------------------------------------------------------------------------------------------------------


def modules(version):
    """The module files to load, in order, with what they depend on before them."""
    root, depends, order = f"/lib/modules/{version}", {}, []
    with open(f"{root}/modules.dep") as lines:
        for line in lines:
            path, after = line.rstrip().split(":")
            depends[path] = after.split()
    with open(f"{root}/modules.builtin") as lines:
        builtin = {os.path.basename(line.strip()).replace("-", "_") for line in lines}

    def load(path):
        for other in depends[path]:
            load(other)
        if path not in order:
            order.append(path)

    for name in MODULES:
        found = [p for p in depends if os.path.basename(p).replace("-", "_").startswith(name + ".ko")]
        if found:
            load(found[0])
        elif name + ".ko" not in builtin:
            sys.exit(f"{root} has no module {name}")
    return [f"{root}/{path}" for path in order]


def initramfs(work, appender, version):
    root = os.path.join(work, "root")
    for name in ["bin", "lib", "lib64", "proc", "sys", "dev", "mnt", "tmp"]:
        os.makedirs(os.path.join(root, name))
    shutil.copy("/bin/busybox", os.path.join(root, "bin/busybox"))
    shutil.copy(appender, os.path.join(root, "appender"))
    subprocess.run(["strip", "-g", os.path.join(root, "appender")], check=False)
    for line in subprocess.check_output(["ldd", appender], text=True).splitlines():
        library = re.search(r"(/\S+) \(0x", line)
        if library:
            target = root + library[1]
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(library[1], target)
    loaded = modules(version)
    for path in loaded:
        shutil.copy(path, os.path.join(root, "lib"))
    with open(os.path.join(root, "modules"), "w") as f:
        f.write("\n".join(os.path.basename(path) for path in loaded))
    with open(os.path.join(root, "init"), "w") as f:
        f.write(INIT)
    os.chmod(os.path.join(root, "init"), 0o755)
    names = subprocess.check_output(["find", "."], cwd=root)
    packed = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names, stdout=subprocess.PIPE, check=True)
    path = os.path.join(work, "initrd")
    with gzip.open(path, "wb", compresslevel=1) as f:
        f.write(packed.stdout)
    shutil.rmtree(root)
    return path


def boot(args, work, applied):
    """QEMU without KVM, its disk over NBD, its serial port on our pipe."""
    command = [args.qemu, "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-no-reboot", "-serial", "stdio", "-kernel", args.kernel, "-initrd", os.path.join(work, "initrd")]
    command += ["-append", f"console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off applied={applied}"]
    command += ["-drive", f"file=nbd:unix:{work}/disk,format=raw,if=none,id=log,cache=none"]
    command += ["-device", "virtio-blk-pci,drive=log,write-cache=on"]
    for directory in args.firmware:
        command += ["-L", directory]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# ---- one life ------------------------------------------------------------------------------------------------------------


class Observer:
    """What was acknowledged, and read, so far: seq -> record number."""

    def __init__(self):
        self.known, self.acked, self.found = {}, 0, {}
        self.held, self.verdict, self.losses, self.mended = 0, None, [], 0

    def line(self, line):
        word, _, rest = line.partition(" ")
        if word == "verdict":
            self.verdict, self.found = rest, {}
        elif word == "held":
            self.held = int(rest)
            self.compare()
        elif word in ("read", "acked"):
            numbers = [int(n) for n in rest.split()]
            if len(numbers) == 3:  # the last line of a life may be cut short
                first, start, count = numbers
                for at in range(count):
                    self.take(word, first + at, start + at)

    def take(self, word, seq, number):
        if word == "read":
            self.found[seq] = number
        else:
            if seq in self.known:
                self.losses.append(f"seq {seq} was given out twice")
            self.known[seq], self.acked = number, self.acked + 1

    def compare(self):
        """All that is known from before is there, from the first seq that is kept."""
        first = min(self.found, default=self.held + 1)
        for seq, number in self.known.items():
            if seq >= first and self.found.get(seq) != number:
                self.losses.append(f"seq {seq} was record {number}, now {self.found.get(seq)}; the log ends at {self.held}")
        self.known.update(self.found)


def live(args, work, rng, observer, applied):
    """One life, and another if the file system itself has to be mended before. Returns a line for people."""
    line = one(args, work, rng, observer, applied)
    if observer.verdict == UNMOUNTED:
        # A torn superblock is nothing that the log could help: what an administrator does then.
        mended = subprocess.run(["/sbin/e2fsck", "-fy", os.path.join(work, "image")], stdout=subprocess.PIPE, text=True)
        line = f"ext4 does not mount, e2fsck ends with {mended.returncode}; " + one(args, work, rng, observer, applied)
        observer.mended += 1
    return line


def one(args, work, rng, observer, applied):
    """Boots, listens, cuts the power."""
    disk = Disk(os.path.join(work, "image"), args.lies)
    disk.serve(os.path.join(work, "disk"))
    machine = boot(args, work, applied)
    early = rng.randrange(5) == 0  # in the middle of the open
    patience, cut_at, acks, pending, ended = time.time() + 300, None, 0, b"", None
    observer.verdict = None
    while cut_at is None or time.time() < cut_at:
        left = (cut_at or patience) - time.time()
        ready, _, _ = select.select([machine.stdout], [], [], max(left, 0))
        if not ready:
            break
        part = os.read(machine.stdout.fileno(), 65536)
        if not part:
            break
        pending += part
        *lines, pending = pending.split(b"\n")
        for line in lines:
            line = line.decode(errors="replace").strip()
            observer.line(line)
            acks += line.startswith("acked")
            if line.startswith("ended") or line.startswith("Error"):
                ended = line
            begins = line.startswith("held") if early else line.startswith("acked")
            if begins and cut_at is None:
                cut_at = time.time() + rng.random() * (0.5 if early else 3.0)
    # Most cuts wait until something is at risk.
    fuse = rng.choice([None, 1, 1, 2, 2, 3, 4, 6])
    if fuse:
        disk.burn(fuse)
        disk.off.wait(2)
    machine.kill()
    rest, errors = machine.communicate()
    for line in (pending + rest).split(b"\n")[:-1]:
        observer.line(line.decode(errors="replace").strip())
        acks += line.startswith(b"acked")
    at_risk, kept = disk.cut(rng)
    if observer.verdict is None:
        sys.exit(f"the machine did not come up: {errors.decode()[-2000:]} {pending[-2000:]!r}")
    said = f"verdict {observer.verdict[:70]}; seq {observer.held}, then {acks} acknowledgements"
    return f"{said}; cut with {at_risk} writes at risk, {kept} kept, {disk.flushes} flushes" + (f"; {ended}" if ended else "")


def main():
    args = arguments()
    kernels = sorted(glob.glob("/boot/vmlinuz-*-cloud-amd64"))
    args.kernel = args.kernel or (kernels[-1] if kernels else sys.exit("no /boot/vmlinuz-*-cloud-amd64: see README.md"))
    rng, observer, verdicts = random.Random(args.seed), Observer(), collections.Counter()
    work = tempfile.mkdtemp(prefix="power-")
    try:
        initramfs(work, args.appender, os.path.basename(args.kernel).removeprefix("vmlinuz-"))
        image = os.path.join(work, "image")
        with open(image, "wb") as f:
            f.truncate(args.image_mib << 20)
        subprocess.run(["/sbin/mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
        applied, begun = 0, time.time()
        for cut in range(args.cuts + 1):  # the last life is there to read what the last cut left
            applied = max(applied, rng.randrange(observer.held + 1)) if not args.lies else 0
            line = live(args, work, rng, observer, applied)
            verdicts[observer.verdict.split(":")[0][:20]] += 1
            print(f"{cut:3} {line}", flush=True)
            if observer.losses or not re.match("empty|clean|torn", observer.verdict):
                break
    finally:
        shutil.rmtree(work)
    sound = all(re.match("empty|clean|torn", v) for v in verdicts)
    print(f"{cut} cuts in {time.time() - begun:.0f} s; {observer.acked} records acknowledged; verdicts: {dict(verdicts)}; ext4 mended {observer.mended} times")
    for loss in observer.losses[:5]:
        print("LOST:", loss)
    failed = bool(observer.losses) or not sound
    if args.lies:
        print("the lies were seen" if failed else "the lies were not seen: this run proves nothing about honest disks")
        sys.exit(0 if failed else 1)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
