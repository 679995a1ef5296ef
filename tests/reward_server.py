"""A real HTTP service of rewards, in a thread."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

Seen = list[tuple[dict, dict]]  # body and headers of each request


@contextlib.contextmanager
def serve(answer: Callable[[dict, int], tuple[int, str]]) -> Iterator[tuple[str, Seen]]:
    """Address of a service that answers the n-th request with `answer(body, n) -> (status, text)`, and what it has seen."""
    seen: Seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((body, dict(self.headers)))
            status, text = answer(body, len(seen))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # of a client that waits no longer
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", text)
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/score", seen
        finally:
            server.shutdown()


def pixels(body: dict) -> list[np.ndarray]:
    """The images of a request as a service sees them: uint8 [H, W, 3]."""
    return [np.array(Image.open(io.BytesIO(base64.b64decode(image)))) for image in body["images"]]


def brightness(body: dict, number: int) -> tuple[int, str]:
    """Mean pixel of each image in [0, 1], plus the length of its prompt."""
    found = zip(pixels(body), body["prompts"], strict=True)
    return 200, json.dumps({"scores": [float(image.mean()) / 255 + len(prompt) for image, prompt in found]})
