# Reads an object as docs/bundle-format.md says, with Debian's zstd for the frames: a second
# reader, so that the page and the first one agree.
#
#   readobject.py OLD OBJECT NEW        OLD is - for a full object
import hashlib, os, struct, subprocess, sys, tempfile

SEGMENT = 1 << 20


class Numbers:
    def __init__(self, data):
        self.data, self.at = data, 0

    def uvarint(self):
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def svarint(self):
        value = self.uvarint()
        return (value >> 1) ^ -(value & 1)


def frame(body, window, folder):
    names = [os.path.join(folder, name) for name in ("window", "body.zst", "out")]
    for name, data in zip(names, (window, body)):
        with open(name, "wb") as f:
            f.write(data)
    command = ["zstd", "-q", "-d", "-f", names[1], "-o", names[2]]
    if window:
        command.append("--patch-from=" + names[0])
    subprocess.run(command, check=True)
    with open(names[2], "rb") as f:
        return f.read()


def summed(data, window, length):
    numbers, differences = Numbers(data), data[len(data) - length:]
    runs, to, start = [], 0, 0
    for _ in range(numbers.uvarint()):
        skip, n = numbers.uvarint(), numbers.uvarint()
        to, start = to + skip, start + skip + numbers.svarint()
        runs.append((to, start, n))
        to, start = to + n, start + n
    assert numbers.at == len(data) - length, "the map is not what precedes the differences"
    rest = sum(n for _, _, n in runs)
    term, out = 0, bytearray()
    for to, start, n in runs:
        skip = to - len(out)
        out += differences[rest:rest + skip]
        rest += skip
        end = to + n
        while len(out) < end:
            if len(out) % 4 == 0 and end - len(out) >= 4:
                words = struct.unpack_from("<I", differences, term)[0] + struct.unpack_from("<I", window, start)[0]
                out += struct.pack("<I", words & 0xFFFFFFFF)
                term, start = term + 4, start + 4
            else:
                out.append((differences[term] + window[start]) & 0xFF)
                term, start = term + 1, start + 1
    return bytes(out + differences[rest:])


def main(old_name, object_name, new_name):
    with open(object_name, "rb") as f:
        data = f.read()
    old = b""
    if old_name != "-":
        with open(old_name, "rb") as f:
            old = f.read()
    magic, version, length, size, old_size, digest, old_digest = struct.unpack_from("<8sIIQQ32s32s", data)
    assert (magic, version, old_size) == (b"FRLpatch", 1, len(old))
    if old:
        assert hashlib.sha256(old).digest() == old_digest
    table, at, end, out = Numbers(data[96:96 + length]), 100 + length, 0, bytearray()
    with tempfile.TemporaryDirectory() as folder:
        while len(out) < size:
            n, kind, window = min(SEGMENT, size - len(out)), table.uvarint(), b""
            count = {1: lambda: n, 3: table.uvarint, 4: table.uvarint}.get(kind, lambda: 0)()
            body, at = data[at:at + count], at + count
            for _ in range(table.uvarint() if kind >= 2 else 0):
                start = end + table.svarint()
                end = start + table.uvarint()
                window += old[start:end]
            make = [lambda: bytes(n), lambda: body, lambda: window, lambda: frame(body, window, folder),
                    lambda: summed(frame(body, window, folder), window, n)]
            out += make[kind]()
    assert at == len(data) and table.at == length and hashlib.sha256(out).digest() == digest
    with open(new_name, "wb") as f:
        f.write(out)


main(*sys.argv[1:])
