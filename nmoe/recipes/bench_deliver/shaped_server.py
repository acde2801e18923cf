"""A file server with a set rate, in a process of its own: all its connections together send no faster. ``python -m ... FOLDER RATE``.

The rate stands in for a link's: bytes leave in small portions, each at its time, so that a client sees a steady stream, as behind a slow
link. Loss and delay are not imitated.
"""

import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORTION_BYTES = 16 << 10
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class ShapedServer(ThreadingHTTPServer):
    """Serves a folder at ``bytes_per_s``, infinity for no bound."""

    daemon_threads = True

    def __init__(self, folder: Path, bytes_per_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.bytes_per_s = folder, bytes_per_s
        self._free_s = 0.0
        self._lock = threading.Lock()

    def wait_turn(self, num_bytes: int) -> None:
        """Wait until so many bytes may leave."""
        with self._lock:
            now_s = time.monotonic()
            start_s = max(self._free_s, now_s - 0.005)  # a late wake-up of a few ms is made up for, idle time is not
            self._free_s = start_s + num_bytes / self.bytes_per_s
            pause_s = self._free_s - now_s
        if pause_s > 0:
            time.sleep(pause_s)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients leave as they please."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as servers do; else the end of each answer waits for an acknowledgement, 40 ms
    server: ShapedServer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:  # the name that http.server wants
        """Send a file, or a range of it."""
        path = self.server.folder / self.path.strip("/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        total, asked = path.stat().st_size, _RANGE.match(self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2]) + 1, total)) if asked else (0, total)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            while start < end:
                portion = file.read(min(PORTION_BYTES, end - start))
                self.server.wait_turn(len(portion))
                try:
                    self.wfile.write(portion)
                except OSError:
                    return  # the client has left
                start += len(portion)


if __name__ == "__main__":
    server = ShapedServer(Path(sys.argv[1]), float(sys.argv[2]))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
