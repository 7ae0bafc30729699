"""Images behind URLs, fetched from a server on localhost that can misbehave in every way needed."""

import hashlib
import io
import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from upath import UPath

from sr_assets.assets.intake import Intake
from sr_assets.lineage.stage import StageError
from sr_assets.output_folder import OutputFolder
from sr_assets.recipe.sources import UrlListSource
from sr_assets.sources import download
from sr_assets.sources.files import Fetching, Found
from sr_assets.sources.finding import find, fingerprint
from sr_assets.sources.url_list import names


def body(seed: int, size: int = 5000) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


class Site:
    """What the server has and how it behaves; paths are looked up without the query."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        #: path -> answers given before the real one: (status, headers) or (status, headers, body)
        self.answers: dict[str, list[tuple[Any, ...]]] = {}
        #: path -> bytes after which the connection is cut, once each
        self.cuts: dict[str, list[int]] = {}
        self.etags = True
        self.ranges = True
        self.lengths = True
        self.extra: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    def ranges_asked(self) -> list[str]:
        return [headers["Range"] for _, headers in self.asked if "Range" in headers]


@contextmanager
def serving(site: Site, tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def send(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                if name != "Content-Length" or site.lengths:
                    self.send_header(name, value)
            if not site.lengths:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            site.asked.append((path, dict(self.headers)))
            if site.answers.get(path):
                return self.send(*site.answers[path].pop(0))
            if path in site.redirects:
                return self.send(302, {"Location": site.redirects[path]})
            if path not in site.files:
                return self.send(404, {})
            data, status = site.files[path], 200
            headers = {"Content-Type": site.types.get(path, "image/png")} | site.extra
            etag = f'"{hashlib.sha256(data).hexdigest()[:8]}"'
            if site.etags:
                headers["ETag"] = etag
            wanted = self.headers.get("Range", "")
            if site.ranges and wanted and self.headers.get("If-Range") == etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                data, status = data[start:], 206
            if site.cuts.get(path):
                cut = site.cuts[path].pop(0)
                self.send(status, headers | {"Content-Length": str(len(data))}, data[:cut])
                self.close_connection = True
                return None
            return self.send(status, headers, data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    scheme = "https" if tls else "http"
    site.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as site:
        yield site


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.001)


class Listed:
    """A list of URLs in a folder, with the cache beside it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "list.txt"
        self.cache = folder / "cache"
        self.logged: list[str] = []
        self.done: Counter[str] = Counter()

    def find(self, *lines: str, **fields: Any) -> Found:
        if lines:
            self.path.write_text("\n".join(lines) + "\n")

        @contextmanager
        def bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
            def advance(n: int) -> None:
                self.done[f"{label} of {total} {unit}"] += n

            yield advance

        fetching = Fetching(
            "datasets.d.source", self.path.parent, self.cache, 3, self.logged.append, bar
        )
        return find(self.source(**fields), fetching)

    def source(self, **fields: Any) -> UrlListSource:
        return UrlListSource(kind="url_list", path=str(self.path), **fields)


@pytest.fixture
def listed(tmp_path: Path) -> Listed:
    return Listed(tmp_path)


def taken(found: Found) -> dict[str, bytes]:
    return {file.shown: file.path.read_bytes() for file in found.files if not file.problem}


def problems(found: Found) -> dict[str, str]:
    return {file.shown: file.problem for file in found.files if file.problem}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def closed_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


def test_a_list_is_fetched_once(site: Site, listed: Listed) -> None:
    site.files = {"/a/1.png": body(1), "/2.JPG": body(2), "/deep/3": body(3)}
    site.types = {"/deep/3": "image/webp; charset=binary"}
    lines = [
        "# comment",
        "",
        f"{site.url}/a/1.png {sha256(body(1)).upper()}",
        f"  {site.url}/2.JPG#fragment\r",
        f"{site.url}/deep/3?size=9",
    ]
    expected = {"1.png": body(1), "2.JPG": body(2), "3.webp": body(3)}
    found = listed.find(*lines)
    assert taken(found) == expected
    assert [file.shown for file in found.files] == sorted(expected)
    assert listed.done == {"list.txt: fetching of 3 images": 3}
    assert listed.logged[-1].startswith("3 of 3 images are here: 0 were in the cache, 0.0 MB")
    assert len(site.asked) == 3
    assert taken(listed.find()) == expected
    assert len(site.asked) == 3
    assert "3 were in the cache" in listed.logged[-1]


def test_offline_with_a_filled_cache(listed: Listed) -> None:
    with serving(Site()) as site:
        site.files = {"/1.png": body(1), "/2.png": body(2)}
        listed.find(f"{site.url}/1.png", f"{site.url}/2.png")
    assert taken(listed.find()) == {"1.png": body(1), "2.png": body(2)}


def test_a_cached_file_that_was_changed_is_fetched_again(site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1)}
    path = listed.find(f"{site.url}/1.png").files[0].path
    path.write_bytes(body(9))
    assert taken(listed.find()) == {"1.png": body(1)}


def test_a_new_digest_in_the_list_has_the_file_fetched_again(site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1)}
    listed.find(f"{site.url}/1.png")
    site.files = {"/1.png": body(2)}
    assert taken(listed.find()) == {"1.png": body(1)}
    assert taken(listed.find(f"{site.url}/1.png {sha256(body(2))}")) == {"1.png": body(2)}


def test_a_resume_takes_what_is_in_the_cache_now(
    site: Site, listed: Listed, tmp_path: Path
) -> None:
    def photo(grey: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (8, 8), grey).save(file, "BMP")  # of one size, whatever is in it
        return file.getvalue()

    def take(found: Found) -> list[str]:
        intake = Intake(OutputFolder(UPath(tmp_path / "out")), 100.0)
        return [intake.take(file).sha256 for file in found.files]

    site.files = {"/1.bmp": photo(1)}
    line = f"{site.url}/1.bmp"
    assert take(listed.find(line)) == [sha256(photo(1))]
    site.files = {"/1.bmp": photo(2)}
    assert take(listed.find(f"{line} {sha256(photo(2))}")) == [sha256(photo(2))]


def test_what_a_server_refuses_is_quarantined(site: Site, listed: Listed) -> None:
    site.files = {"/good.png": body(1), "/wrong.png": body(2)}
    for status in (401, 403, 410, 418):
        site.answers[f"/{status}.png"] = [(status, {})]
    found = listed.find(
        *(f"{site.url}/{name}.png?token=SECRET" for name in (401, 403, 404, 410, 418)),
        f"{site.url}/good.png",
        f"{site.url}/wrong.png {'0' * 64}",
    )
    assert list(taken(found)) == ["good.png"]
    assert problems(found) == {
        "401.png": "127.0.0.1/401.png: HTTP 401 Unauthorized",
        "403.png": "127.0.0.1/403.png: HTTP 403 Forbidden",
        "404.png": "127.0.0.1/404.png: HTTP 404 Not Found",
        "410.png": "127.0.0.1/410.png: HTTP 410 Gone",
        "418.png": "127.0.0.1/418.png: HTTP 418 I'm a Teapot",
        "wrong.png": f"127.0.0.1/wrong.png: sha256 is {sha256(body(2))}, the list says {'0' * 64}",
    }
    assert not list(listed.cache.rglob("*.part"))


# Transfers


def test_a_cut_transfer_goes_on_where_it_stopped(site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1, 100_000)}
    site.cuts = {"/1.png": [30_000, 0, 0, 0, 20_000, 0, 0, 0]}  # more than five, but not in a row
    assert taken(listed.find(f"{site.url}/1.png")) == {"1.png": body(1, 100_000)}
    assert site.ranges_asked() == ["bytes=30000-"] * 4 + ["bytes=50000-"] * 4


@pytest.mark.parametrize("validator", [None, "W/weak"])
def test_without_a_strong_validator_it_starts_again(
    validator: str | None, site: Site, listed: Listed
) -> None:
    site.etags = False
    site.extra = {"ETag": f'{validator[:2]}"weak"'} if validator else {}
    site.files = {"/1.png": body(1, 100_000)}
    site.cuts = {"/1.png": [30_000]}
    assert taken(listed.find(f"{site.url}/1.png")) == {"1.png": body(1, 100_000)}
    assert site.ranges_asked() == []


def test_a_server_without_ranges(site: Site, listed: Listed) -> None:
    site.ranges = False
    site.files = {"/1.png": body(1, 100_000)}
    site.cuts = {"/1.png": [30_000]}
    assert taken(listed.find(f"{site.url}/1.png")) == {"1.png": body(1, 100_000)}
    assert site.ranges_asked() == ["bytes=30000-"]


def test_a_file_that_changes_between_two_parts_is_one_of_the_two(
    site: Site, listed: Listed
) -> None:
    site.files = {"/1.png": body(1, 100_000)}
    site.cuts = {"/1.png": [30_000] + [0] * 4}
    with pytest.raises(StageError, match="could not be fetched now"):
        listed.find(f"{site.url}/1.png")
    site.files = {"/1.png": body(2, 100_000)}
    assert taken(listed.find()) == {"1.png": body(2, 100_000)}


def test_a_damaged_part_is_fetched_again(site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1, 100_000)}
    site.cuts = {"/1.png": [30_000] + [0] * 4}
    line = f"{site.url}/1.png {sha256(body(1, 100_000))}"
    with pytest.raises(StageError, match="could not be fetched now"):
        listed.find(line)
    (part,) = listed.cache.rglob("*.part")
    part.write_bytes(bytes(30_000))
    assert taken(listed.find()) == {"1.png": body(1, 100_000)}


def span(data: bytes, first: int, end: int, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """An answer that brings a part."""
    said = {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}
    return 206, said | headers, data[first:end]


def test_a_part_that_was_not_asked_for_is_no_file(site: Site, listed: Listed) -> None:
    data = body(1)
    wrong = {
        "begins": [span(data, 10, len(data))],
        "ends": [span(data, 0, 100)],
        "bare": [(206, {}, data[:100])],
    }
    site.answers = {f"/{name}.png": list(answers) for name, answers in wrong.items()}
    site.answers["/whole.png"] = [span(data, 0, len(data))]
    found = listed.find(*(f"{site.url}{path}" for path in list(site.answers)))
    assert taken(found) == {"whole.png": data}
    assert problems(found) == {
        f"{name}.png": f"127.0.0.1/{name}.png: the server sent another part than was asked for"
        for name in sorted(wrong)
    }
    assert not list(listed.cache.rglob("*.part"))


@pytest.mark.parametrize("how", ["short", "etag", "early", "long"])
def test_what_does_not_continue_a_part_is_not_added_to_it(
    how: str, site: Site, listed: Listed
) -> None:
    old, new = body(1, 100_000), body(2, 100_000)
    site.files = {"/1.png": old}
    site.cuts = {"/1.png": [30_000] + [0] * 4}
    with pytest.raises(StageError, match="could not be fetched now"):
        listed.find(f"{site.url}/1.png")
    etag = f'"{sha256(old)[:8]}"'
    site.files = {"/1.png": new}
    site.answers = {
        "/1.png": [
            {
                "short": span(old, 30_000, 40_000, ETag=etag),
                "etag": span(new, 30_000, 100_000, ETag='"other"'),
                "early": (*span(old, 30_000, 100_000, ETag=etag)[:2], old[30_000:40_000]),
                "long": (*span(old, 30_000, 100_000, ETag=etag)[:2], old[30_000:] + b"more"),
            }[how]
        ]
    }
    assert taken(listed.find()) == {"1.png": new}


def test_an_empty_answer_is_no_image(site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1)}
    site.answers = {"/1.png": [(200, {})]}
    assert problems(listed.find(f"{site.url}/1.png")) == {
        "1.png": "127.0.0.1/1.png: the answer is empty"
    }
    assert taken(listed.find()) == {"1.png": body(1)}, "nothing of it is kept"


KILLED = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
from sr_assets.recipe.sources import UrlListSource
from sr_assets.sources import download
from sr_assets.sources.files import Fetching
from sr_assets.sources.finding import find

download._PIECE = 1000
size = download.Entry.part_size
monotonic = download.time.monotonic
def dies():  # asked once a piece
    if any(p.stat().st_size >= 20_000 for p in Path(sys.argv[2]).rglob("*.part")):
        os.kill(os.getpid(), signal.SIGKILL)
    return monotonic()
download.time.monotonic = dies
find(UrlListSource(kind="url_list", path=sys.argv[1]),
     Fetching("w", Path("."), Path(sys.argv[2]), 1, print, lambda *_: nullcontext(lambda n: 0)))
"""


def test_a_killed_run_is_taken_up(site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1, 500_000)}
    listed.path.write_text(f"{site.url}/1.png\n")
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(listed.path), str(listed.cache)], check=False
    )
    assert ended.returncode == -9
    (part,) = listed.cache.rglob("*.part")
    assert part.read_bytes() == body(1, 500_000)[: part.stat().st_size]
    assert taken(listed.find()) == {"1.png": body(1, 500_000)}
    assert site.ranges_asked() == [f"bytes={part_size}-" for part_size in _starts(site)]
    assert _starts(site)[0] >= 20_000


def _starts(site: Site) -> list[int]:
    return [int(text.removeprefix("bytes=").rstrip("-")) for text in site.ranges_asked()]


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_over_the_limit(lengths: bool, site: Site, listed: Listed) -> None:
    site.lengths = lengths
    site.files = {"/big.png": body(1, 2_000_000), "/fits.png": body(2, 1_000_000)}
    found = listed.find(f"{site.url}/big.png", f"{site.url}/fits.png", max_megabytes=1)
    assert list(taken(found)) == ["fits.png"]
    size = "2000000 bytes" if lengths else "more bytes"
    assert problems(found) == {"big.png": f"127.0.0.1/big.png: {size}, more than max_megabytes 1"}
    assert not list(listed.cache.rglob("*.part"))


def test_a_coded_body_is_not_taken_for_the_file(site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1)}
    site.extra = {"Content-Encoding": "gzip"}
    found = listed.find(f"{site.url}/1.png")
    assert problems(found) == {"1.png": "127.0.0.1/1.png: sent as gzip though not asked to"}


# Trouble that passes


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520, 526])
def test_trouble_that_passes_is_waited_for(status: int, site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1)}
    site.answers = {"/1.png": [(status, {"Retry-After": "0"})] * 4}
    assert taken(listed.find(f"{site.url}/1.png")) == {"1.png": body(1)}
    assert len(site.asked) == 5


def test_retry_after_is_honoured_and_bounded(
    site: Site, listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    kept = download.Downloads(listed.cache, 10**6)
    monkeypatch.setattr(kept._stop, "wait", wait)
    site.files = {"/1.png": body(1)}
    dates = ["Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2099 07:28:00 GMT", "soon"]
    site.answers = {"/1.png": [(429, {"Retry-After": v}) for v in ("7", *dates)]}
    assert not isinstance(kept.fetch(f"{site.url}/1.png", None), download.Failed)
    assert waited == [7, 0, 60, 0.008]


def test_a_dataset_does_not_shrink_for_trouble_that_passes(site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1), "/2.png": body(2)}
    site.answers = {"/2.png": [(503, {})] * 5}
    with pytest.raises(StageError) as raised:
        listed.find(f"{site.url}/1.png", f"{site.url}/2.png?token=SECRET")
    assert f"1 of 2 images could not be fetched now, such as {listed.path}:2: " in str(raised.value)
    assert "HTTP 503 Service Unavailable" in str(raised.value)
    asked = len(site.asked)
    assert len(taken(listed.find())) == 2
    assert len(site.asked) == asked + 1


def test_no_network_is_one_clear_line(listed: Listed) -> None:
    gone = closed_port()
    with pytest.raises(StageError, match=r"no network: no host of .* can be reached") as raised:
        listed.find(*(f"{gone}/{i}.png?token=SECRET" for i in range(50)))
    assert "\n" not in str(raised.value)
    assert "SECRET" not in str(raised.value)
    assert "connection refused" in str(raised.value)


def test_a_dead_host_among_others_is_quarantined(site: Site, listed: Listed) -> None:
    gone = closed_port()
    site.files = {"/1.png": body(1)}
    found = listed.find(f"{site.url}/1.png", *(f"{gone}/{name}.png" for name in "abcdef"))
    assert list(taken(found)) == ["1.png"]
    assert problems(found).keys() == {f"{name}.png" for name in "abcdef"}
    assert all("cannot connect to" in problem for problem in problems(found).values())


def test_a_host_that_goes_away_stops_the_run(listed: Listed) -> None:
    """One connection is answered and then nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            connection, _ = listener.accept()
            listener.close()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(StageError, match="could not be fetched now"):
            listed.find(*(f"{url}/{i}.png" for i in range(6)))
        thread.join()


@contextmanager
def dripping(first: bytes, rest: bytes) -> Iterator[str]:
    """A server that sends `first`, and then `rest` again and again, to whoever connects."""
    ended = threading.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def drip(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                connection.sendall(first)
                while not ended.wait(0.02):
                    connection.sendall(rest)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=drip, args=(listener.accept()[0],)).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"X"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"X"),
    ],
    ids=["interim answers", "head", "body", "chunk"],
)
def test_a_server_that_drips_is_left(
    first: bytes, rest: bytes, listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_ANSWER_WITHIN", 0.2)
    monkeypatch.setattr(download, "_GRACE", 0.2)
    monkeypatch.setattr(download, "_ATTEMPTS", 2)
    with dripping(first, rest) as url, pytest.raises(StageError, match="could not be fetched now"):
        listed.find(f"{url}/1.png")


def test_a_silent_server_does_not_hold_up_an_end(
    listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT", (10.0, None))
    monkeypatch.setattr(download, "_ANSWER_WITHIN", 1e6)
    downloads = download.Downloads(listed.cache, 10**6)
    results: list[object] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/1.png"
        thread = threading.Thread(target=lambda: results.append(downloads.fetch(url, None)))
        thread.start()
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            downloads.stop()
            thread.join(600)
    assert isinstance(results[0], download.Failed)


# Redirects


def test_redirects_are_followed_and_bounded(site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1)}
    site.redirects = {"/old.png": "/1.png", "/loop.png": "/loop.png", "/ftp.png": "ftp://h/1.png"}
    found = listed.find(*(f"{site.url}/{name}.png" for name in ("old", "loop", "ftp")))
    assert taken(found) == {"old.png": body(1)}
    assert problems(found) == {
        "ftp.png": "127.0.0.1/ftp.png: redirected to something that is no http or https",
        "loop.png": "127.0.0.1/loop.png: redirected more than 10 times",
    }


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("a certificate is made with openssl, which is not installed")
    both = tmp_path / "both.pem"
    make = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    command = [*make.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, "-keyout", tmp_path / "key", "-out", tmp_path / "cert"],
        check=True,
        capture_output=True,
    )
    both.write_bytes((tmp_path / "key").read_bytes() + (tmp_path / "cert").read_bytes())
    return both


def test_https_is_not_left_for_http(
    site: Site, listed: Listed, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files = {"/1.png": body(1)}
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with serving(Site(), tls) as safe:
        safe.files = {"/2.png": body(2)}
        safe.redirects = {"/1.png": f"{site.url}/1.png"}
        lines = [f"{safe.url}/1.png", f"{safe.url}/2.png"]
        assert "certificate is not accepted" in str(problems(listed.find(*lines)))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        found = listed.find(*lines)
    assert taken(found) == {"2.png": body(2)}
    assert "redirected from https to http at 127.0.0.1" in problems(found)["1.png"]
    assert site.asked == []


# The list


def test_wrong_lines_are_named_and_not_shown(listed: Listed) -> None:
    lines = [
        "# fine",
        "file:///etc/passwd?SECRET",
        "ftp://host/SECRET.png",
        "https://host/SECRET.png 123",
        "https:///SECRET.png",
        "https://host:port/SECRET.png",
        "http://host/a.png " + "0" * 64 + " SECRET",
        "SECRET",
    ]
    with pytest.raises(StageError) as raised:
        listed.find(*lines)
    said = str(raised.value)
    for number in range(2, 7):
        assert f"{listed.path}:{number}: " in said
    assert said.endswith("; and 2 more")
    assert "SECRET" not in said
    assert "\n" not in said


def test_duplicates_are_told(site: Site, listed: Listed) -> None:
    site.files = {"/1.png": body(1)}
    assert len(listed.find(*[f"{site.url}/1.png?token=SECRET"] * 2).files) == 1
    assert listed.logged[0] == f"{listed.path}:2: the same URL as line 1; taken once"
    with pytest.raises(StageError, match=r"list.txt:2: the URL of line 1 with another sha256"):
        listed.find(f"{site.url}/1.png {'1' * 64}", f"{site.url}/1.png {'2' * 64}")


def test_an_empty_list_and_none(listed: Listed) -> None:
    with pytest.raises(StageError, match="no such file or directory; mend the path"):
        listed.find()
    with pytest.raises(StageError, match="has no URL"):
        listed.find("# nothing")
    listed.path.write_bytes(b"")
    with pytest.raises(StageError, match="has no URL"):
        listed.find()
    listed.path.unlink()
    os.mkfifo(listed.path)
    with pytest.raises(StageError, match="is not a regular file"):
        listed.find()
    listed.path.unlink()
    listed.path.write_bytes(b"\xff\xfe")
    with pytest.raises(StageError, match=r"list.txt:1: not valid UTF-8"):
        listed.find()


def test_the_fingerprint_follows_the_list(listed: Listed) -> None:
    assert fingerprint(listed.source()) == {"list": "missing"}
    listed.path.write_text("http://a/1.png\n")
    before = fingerprint(listed.source())
    assert before["list.sha256"] == sha256(b"http://a/1.png\n")
    listed.path.write_text("http://a/2.png\n")
    assert fingerprint(listed.source())["list.sha256"] != before["list.sha256"]


# Names


def test_names_come_from_the_urls() -> None:
    urls = {
        "http://h/a/b.png": ("b", ".png"),
        "http://h/caf%C3%A9%201.JPG?x=1": ("café 1", ".JPG"),
        "http://h/photo.php?id=1": ("photo.php", ""),
        "http://h/..%2F..%2Fetc%5Cx%0A.png": ("_.._etc_x_", ".png"),
        "http://h/.hidden.png/": ("hidden", ".png"),
        "http://host/": ("host", ""),
        "http://h/" + "n" * 300 + ".png": ("n" * 150, ".png"),
        "http://h/%FF.png": ("\ufffd", ".png"),
    }
    assert dict(zip(urls, names(list(urls)), strict=True)) == urls


def test_names_that_collide_are_told_apart_by_their_urls() -> None:
    urls = ["http://a/1.png", "http://b/1.PNG", "http://c/1", "http://c/2.png"]
    found = names(urls)
    assert found[3] == ("2", ".png")
    for url, (stem, _) in zip(urls[:3], found[:3], strict=True):
        assert stem == f"1-{sha256(url.encode())[:8]}"
    assert names(urls[::-1])[::-1] == found


@given(st.lists(st.text(max_size=8), min_size=1, max_size=10, unique=True))
def test_names_are_safe_and_unique(parts: list[str]) -> None:
    urls = list(dict.fromkeys(f"http://h/{part}.png" for part in parts))
    try:
        shown = [stem + suffix for stem, suffix in names(urls)]
    except ValueError:  # no URL for urllib either: the list is refused before
        return
    assert len({name.casefold() for name in shown}) == len(urls)
    for name in shown:
        assert "/" not in name and "\\" not in name and name not in ("", ".", "..")
        assert name.isprintable()
        assert len(name.encode()) <= 240


def test_no_secret_is_logged_or_stored(
    site: Site, listed: Listed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site.files = {"/1.png": body(1)}
    site.answers = {"/2.png": [(403, {})], "/1.png": [(429, {"Retry-After": "0"})]}
    user = site.url.replace("://", "://name:SECRET@")
    found = listed.find(*(f"{user}/{i}.png?token=SECRET" for i in (1, 2, 3)))
    assert len(taken(found)) == 1
    everything = json.dumps([listed.logged, problems(found), caplog.text, list(listed.done)])
    assert "SECRET" not in everything
    for file in listed.cache.rglob("*"):
        assert "SECRET" not in file.name
        assert not file.is_file() or b"SECRET" not in file.read_bytes()
