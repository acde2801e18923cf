"""Bounded protocol: uvicorn's on httptools, which keeps what it has of a header without any bound, with one."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 << 10  # of a header or trailer that is not whole yet; one that comes whole in one read may fill that read, 256 KiB


class BoundedProtocol(HttpToolsProtocol):
    """A connection that ends when a header grows too long."""

    unfinished_bytes = 0  # since the last that was a whole header, or part of a body

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self.unfinished_bytes += len(data)
        super().data_received(data)
        if self.unfinished_bytes > MAX_HEADER_BYTES:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Take note of a header's end."""
        self.unfinished_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self.unfinished_bytes = 0
        super().on_body(body)
