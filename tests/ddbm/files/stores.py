"""A server on this machine that answers as Google Cloud Storage and as Azure Blob Storage, as far as blobfile asks.

Its objects are names in a dictionary: no directories, no renaming, no growing, lists by prefix, and a file appears
when its upload is complete.
"""

import json
import re
import threading
import zlib
from base64 import b64encode
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import urllib3

from ddbm.files import stores

ROOTS = {"gs": "gs://bucket", "az": "az://account/bucket"}


class Store(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects = {}  # name: bytes
        self.pieces = {}  # of uploads that are not complete
        self.asked = []  # "METHOD path" of every request
        self.ill = lambda request: 0  # the status to answer with instead

    def below(self, prefix, delimiter):
        """(names, folders) of a list."""
        rest = [n[len(prefix) :] for n in sorted(self.objects) if n.startswith(prefix)]
        folders = {f"{prefix}{n.split('/')[0]}/" for n in rest if delimiter and "/" in n}
        return [prefix + n for n in rest if not (delimiter and "/" in n)], sorted(folders)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        content = json.dumps(content).encode() if isinstance(content, dict) else content
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_any(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self.query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        self.server.asked.append(f"{self.command} {self.path}")
        status = self.server.ill(self.server.asked[-1])
        kind, path = url.path.split("/", 2)[1:]
        try:
            if status:
                self.answer(status, b'{"error": "ill"}')
            elif kind == "gs":
                self.google(path)
            else:
                self.azure(*map(unquote, path.partition("/")[2].partition("/")[::2]))
        except KeyError:
            self.answer(404, x_ms_error_code="BlobNotFound")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def part(self, data, **headers):
        start, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        self.answer(206 if start < len(data) else 416, data[start : end + 1], **headers)

    # ------------------------------------------------------------------------------ Google: storage/v1/b/BUCKET/o/NAME

    def google(self, path):
        store, parts = self.server, [unquote(part) for part in path.split("/")]
        if parts[0] == "session":
            return self.session(parts[1])
        place = parts.index("b")
        bucket, names = parts[place + 1], parts[place + 3 :]
        if bucket != "bucket":
            return self.answer(404)
        if parts[0] == "upload":
            store.pieces[session := str(len(store.asked))] = [json.loads(self.body)["name"]]
            return self.answer(200, Location=f"https://storage.googleapis.com/session/{session}")
        if not names:
            return self.google_list() if parts[-1] == "o" else self.answer(200)
        data = store.objects[names[0]]
        if self.command == "DELETE":
            del store.objects[names[0]]
            return self.answer(204)
        return self.part(data) if "Range" in self.headers else self.answer(200, google_item(names[0], data))

    def google_list(self):
        names, folders = self.server.below(self.query.get("prefix", ""), self.query.get("delimiter"))
        items = [google_item(name, self.server.objects[name]) for name in names]
        self.answer(200, {k: v for k, v in (("items", items), ("prefixes", folders)) if v})

    def session(self, number):
        pieces, size = self.server.pieces[number], self.headers["Content-Range"].split("/")[1]
        pieces.append(self.body)
        if size == "*":
            return self.answer(308)
        name, *pieces = self.server.pieces.pop(number)
        assert len(b"".join(pieces)) == int(size)
        self.server.objects[name] = b"".join(pieces)
        return self.answer(200, google_item(name, self.server.objects[name]))

    # ------------------------------------------------------------------------------------ Azure: ACCOUNT/CONTAINER/NAME

    def azure(self, container, name):
        store, q = self.server, self.query
        assert self.headers["Authorization"].startswith("SharedKey account:")
        if container != "bucket":
            return self.answer(404, x_ms_error_code="ContainerNotFound")
        if not name:
            return self.azure_list() if q.get("comp") == "list" else self.answer(200)
        if self.command == "PUT":
            return self.azure_put(name)
        data = store.objects[name]
        if self.command == "DELETE":
            del store.objects[name]
            return self.answer(202)
        if q.get("comp") == "blocklist":
            return self.answer(200, b"<BlockList><CommittedBlocks/></BlockList>")
        return self.part(data) if "Range" in self.headers else self.answer(200, **azure_item(data))

    def azure_put(self, name):
        store, q = self.server, self.query
        if q.get("comp") == "block":
            store.pieces[q["blockid"]] = self.body
        else:
            wanted = re.findall(r"<Latest>(.*?)</Latest>", self.body.decode())
            store.objects[name] = b"".join(store.pieces.pop(block) for block in wanted)
        return self.answer(201, ETag="1")

    def azure_list(self):
        store = self.server
        names, folders = store.below(self.query.get("prefix", ""), self.query.get("delimiter"))
        rows = [f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in folders]
        for name in names:
            values = {k.replace("_", "-"): v for k, v in azure_item(store.objects[name]).items()}
            values |= {"Creation-Time": values.pop("x-ms-creation-time"), "Etag": values.pop("ETag")}
            shown = "".join(f"<{k}>{v}</{k}>" for k, v in values.items())
            rows.append(f"<Blob><Name>{escape(name)}</Name><Properties>{shown}</Properties></Blob>")
        page = f"<EnumerationResults><Blobs>{''.join(rows)}</Blobs><NextMarker/></EnumerationResults>"
        self.answer(200, page.encode())


def changed(data):
    """When an object was written, in s; another time for another content."""
    return 1e9 + zlib.crc32(data) % 10**6


def google_item(name, data):
    date = datetime.fromtimestamp(changed(data), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.678Z")
    return {"name": name, "size": str(len(data)), "updated": date, "timeCreated": date, "generation": "1"}


def azure_item(data):
    when = formatdate(changed(data), usegmt=True)
    return dict(Content_Length=len(data), Last_Modified=when, x_ms_creation_time=when, ETag="1",
                x_ms_blob_type="BlockBlob")  # fmt: skip


class Killed(BaseException):
    """Like SIGKILL, nothing handles it."""


@contextmanager
def killed_after(requests, monkeypatch):
    """Ends whatever asks a store for more than so many requests, which go out one after the other."""
    left, request = iter(range(requests)), urllib3.PoolManager.request

    def counted(self, *args, **how):
        if next(left, None) is None:
            raise Killed
        return request(self, *args, **how)

    with monkeypatch.context() as patched:
        patched.setattr(stores, "_each", lambda do, names, text="": [do(name) for name in names])
        patched.setattr(urllib3.PoolManager, "request", counted)
        yield


@contextmanager
def serving(monkeypatch, folder):
    """A store with the buckets `ROOTS`, to which every address of this process leads; folder: for copies here."""
    store = Store()
    here = f"http://127.0.0.1:{store.server_port}"
    request = urllib3.PoolManager.request

    def redirected(self, method, url, **how):
        url = url.replace("https://storage.googleapis.com", f"{here}/gs")
        return request(self, method, re.sub(r"https://(\w+)\.blob\.core\.windows\.net", rf"{here}/az/\1", url), **how)

    monkeypatch.setattr(urllib3.PoolManager, "request", redirected)
    monkeypatch.setenv("DDBM_STORES", str(folder))
    monkeypatch.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")
    monkeypatch.setenv("AZURE_STORAGE_KEY", b64encode(b"key").decode())
    threading.Thread(target=store.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield store
    finally:
        store.shutdown()
        store.server_close()
