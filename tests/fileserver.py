"""A real HTTP server on 127.0.0.1 with Range and ETag, and faults to order."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class FileServer:
    """What is served, by path, and what goes wrong."""

    files: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)  # answered instead of a file
    types: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # bytes that the next connections send before they break off
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range of each request
    address: str = ""

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


@contextmanager
def serving() -> Iterator[FileServer]:
    """A running server; it stops with the block."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            name, wanted = self.path.partition("?")[0].lstrip("/"), self.headers.get("Range")
            state.asked.append((name, wanted))
            status = state.statuses.get(name, 200 if name in state.files else 404)
            body = state.files.get(name, b"") if status == 200 else b"no"
            total, etag = len(body), f'"{hash(body)}"'
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.ranges else 0
            if self.headers.get("If-Range", etag) != etag:
                start = 0
            if start >= total and status == 200:
                status, body = 416, b""
            elif start:
                status, body = 206, body[start:]
            self.send_response(status)
            self.send_header("Content-Type", state.types.get(name, "application/octet-stream"))
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", etag)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if status == 416:
                self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            if state.cuts and status in (200, 206):
                body = body[: state.cuts.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
