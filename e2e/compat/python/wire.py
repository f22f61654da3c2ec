"""What the Python clients have in common: options, values, printed lines."""
import hashlib
import json
import signal
import sys
import threading

lock = threading.Lock()
stopped = threading.Event()


class Unsupported(Exception):
    """The library cannot do it with any broker."""


def emit(**event):
    with lock:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def value(prefix, i, size):
    b = ("%s-%d." % (prefix, i)).encode()
    if size <= len(b):
        return b
    filling = bytes(ord("a") + j % 26 for j in range(26)) * (size // 26 + 1)
    return b + filling[len(b):size]


def headers(o):
    if "headers" not in o:
        return []
    return [("name", "k\u00e4se".encode()), ("twice", b"1"), ("twice", b"2"), ("bin", b"\x80\xff")]


def acked(prefix, i, partition, offset):
    emit(event="acked", value="%s-%d" % (prefix, i), partition=partition, offset=offset)


def record(partition, offset, key, val, hs):
    emit(event="record", partition=partition, offset=offset, key=(key or b"").decode(),
         value=val.split(b".")[0].decode(), sum=hashlib.sha256(val).hexdigest(),
         headers=[[k, (v or b"").hex()] for k, v in (hs or [])])


def run(features, args):
    o = dict(a.split("=", 1) for a in args[1:] if "=" in a)
    try:
        features[args[0]](o)
        emit(event="done")
    except Unsupported as e:
        emit(event="unsupported", error=str(e))
    except Exception as e:
        emit(event="error", error="%s: %s" % (type(e).__name__, e))


def serve(features, args):
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    if args[0] != "-":
        run(features, args)
        return
    for line in sys.stdin:
        run(features, line.split())
