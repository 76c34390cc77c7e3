"""A hub on loopback: as much of the Hugging Face hub's HTTP interface as its own client asks for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = hashlib.sha1(b"the only commit").hexdigest()


@contextmanager
def hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories; gives the address for HF_ENDPOINT and the list of paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, *, body: bool = True) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            if match := re.fullmatch(r"/api/models/(.+?)/tree/.+", path):
                self._tree(match[1], body)
            elif match := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
                self._info(match[1], body)
            elif match := re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", path):
                self._file(match[1], match[2], body)
            else:
                self._answer(404, b"{}", body)

        def _info(self, name: str, body: bool) -> None:
            folder = repositories.get(name)
            if folder is None:
                self._answer(404, b'{"error":"Repository not found"}', body, {"X-Error-Code": "RepoNotFound"})
                return
            files = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
            info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files], "tags": []}
            self._answer(200, json.dumps(info).encode(), body, {"Content-Type": "application/json"})

        def _tree(self, name: str, body: bool) -> None:
            folder = repositories[name]
            files = [
                {
                    "type": "file",
                    "path": f.relative_to(folder).as_posix(),
                    "size": f.stat().st_size,
                    "oid": hashlib.sha1(f.read_bytes()).hexdigest(),
                }
                for f in sorted(folder.rglob("*"))
                if f.is_file()
            ]
            self._answer(200, json.dumps(files).encode(), body, {"Content-Type": "application/json"})

        def _file(self, name: str, file: str, body: bool) -> None:
            folder = repositories.get(name)
            if folder is None or not (folder / file).is_file():
                code = "RepoNotFound" if folder is None else "EntryNotFound"
                self._answer(404, b"", body, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
                return
            data = (folder / file).read_bytes()
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            self._answer(200, data, body, {"ETag": etag, "X-Repo-Commit": COMMIT})

        def _answer(self, code: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
