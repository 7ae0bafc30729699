"""Images behind the URLs of a text file, fetched into a cache that runs and projects share.

How one file is fetched is `download.py`. A URL can hold secrets: no message shows more of it than
its host and path.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urlsplit

from sr_assets.lineage.stage import StageError
from sr_assets.recipe.sources import UrlListSource
from sr_assets.sources.download import Downloads, Failed
from sr_assets.sources.download_cache import Kept
from sr_assets.sources.files import EXTENSIONS, Fetching, Found, SourceFile, stamp

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_ERRORS_SHOWN = 5
_FAILURES_LOGGED = 20
_NO_NETWORK_AFTER = 8  # files without any host that answers
_LONGEST_STEM = 150  # bytes; digest and extension come after it
#: Extension for a URL that has none, by the content type of the answer.
_TYPES = {
    "image/jpeg": ".jpg",
    "image/jpg": ".jpg",
    "image/png": ".png",
    "image/apng": ".apng",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/x-ms-bmp": ".bmp",
    "image/tiff": ".tif",
    "image/avif": ".avif",
    "image/heic": ".heic",
    "image/heif": ".heif",
    "image/jxl": ".jxl",
    "image/jp2": ".jp2",
    "image/x-portable-pixmap": ".ppm",
    "image/x-portable-graymap": ".pgm",
    "image/x-portable-anymap": ".pnm",
}


@dataclass(frozen=True)
class Line:
    """One URL of a list."""

    number: int
    url: str
    sha256: str | None


def find(source: UrlListSource, fetching: Fetching) -> Found:
    """Every image of the list, in the cache of downloads.

    What a server says is not there, or is not the file of the digest, is quarantined.

    Raises:
        StageError: the list is missing or has a wrong line, there is no network, or files could
            not be fetched for a reason that may pass: a dataset must not shrink by chance.
    """
    path = Path(source.path)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise StageError(
            f"{fetching.where}.path: list {path} is not a regular file; name a text file"
        )
    lines = _read(path, fetching)
    downloads = Downloads(fetching.cache / "urls", int(source.max_megabytes * 1e6))
    try:
        with _quiet():
            results = _fetch(lines, downloads, source, fetching)
            _settle(results, downloads, source, fetching)
    except OSError as error:
        raise StageError(
            f"{fetching.where}: cache {fetching.cache}: {error.strerror or error}"
        ) from None
    found = Found()
    for line, (stem, suffix) in zip(lines, names([line.url for line in lines]), strict=True):
        result = results[line]
        if isinstance(result, Kept):
            shown = stem + (suffix or _TYPES.get(result.content_type.lower(), ""))
            found.files.append(SourceFile(result.path, shown))
        else:
            # No path of this machine, no line number: the manifest is the same without them.
            problem = f"{_shown(line.url)}: {result.reason}"
            found.files.append(SourceFile(path, stem + suffix, problem))
    found.files.sort(key=lambda file: file.shown)
    return found


def fingerprint(source: UrlListSource) -> dict[str, str]:
    """Size, time of change and digest of the list; to touch it has everything asked for again."""
    path = Path(source.path)
    if not path.is_file():
        return {"list": "missing"}
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return {"list": "unreadable"}
    return {"list": stamp(path), "list.sha256": digest}


def names(urls: list[str]) -> list[tuple[str, str]]:
    """Name and extension under which each URL is shown, from the list alone.

    The last part of the path, made safe. Names that differ in nothing but the extension or case
    all get the first digits of their URL's digest, so that a name hangs on no other's answer.
    """
    plain = [_name(url) for url in urls]
    shared = Counter(_key(stem) for stem, _ in plain)
    for digits in (8, 16, 64):
        stems = [
            f"{stem}-{hashlib.sha256(url.encode()).hexdigest()[:digits]}"
            if shared[_key(stem)] > 1
            else stem
            for (stem, _), url in zip(plain, urls, strict=True)
        ]
        if len({_key(stem) for stem in stems}) == len(stems):
            break
    return [(stem, suffix) for stem, (_, suffix) in zip(stems, plain, strict=True)]


def _name(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    last = next((p for p in reversed(parts.path.split("/")) if p), parts.hostname or "image")
    text = unicodedata.normalize("NFC", unquote(last, errors="replace"))
    safe = "".join("_" if c in "/\\:" or not c.isprintable() else c for c in text).lstrip(".")
    suffix = PurePosixPath(safe).suffix
    suffix = suffix if suffix.lower() in EXTENSIONS else ""
    stem = safe.removesuffix(suffix).encode()[:_LONGEST_STEM].decode(errors="ignore")
    return stem or "image", suffix


def _key(stem: str) -> str:
    return unicodedata.normalize("NFC", stem.casefold())


def _read(path: Path, fetching: Fetching) -> list[Line]:
    """The URLs of a list, each once."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise StageError(f"{fetching.where}.path: list {path}: {reason}; mend the path") from None
    lines: dict[str, Line] = {}
    errors = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = _parse(number, raw)
            if line is None:
                continue
            first = lines.setdefault(line.url, line)
            if first.sha256 != line.sha256:
                raise ValueError(f"the URL of line {first.number} with another sha256")
        except ValueError as error:
            errors.append(f"{path}:{number}: {error}")
            continue
        if first is not line:
            fetching.log(f"{path}:{number}: the same URL as line {first.number}; taken once")
    if errors:
        more = len(errors) - _ERRORS_SHOWN
        shown = "; ".join(errors[:_ERRORS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise StageError(f"{fetching.where}.path: {shown}")
    if not lines:
        raise StageError(f"{fetching.where}.path: {path} has no URL; write one a line")
    return list(lines.values())


def _parse(number: int, raw: bytes) -> Line | None:
    """One line; its text is in no message, since it can hold secrets."""
    try:
        words = raw.decode().split()
    except UnicodeDecodeError:
        raise ValueError("not valid UTF-8") from None
    if not words or words[0].startswith("#"):
        return None
    if len(words) > 2 or (len(words) == 2 and not _SHA256.fullmatch(words[1])):
        raise ValueError("after a URL comes nothing, or one sha256 of 64 hex digits")
    try:
        url = urldefrag(words[0]).url
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ValueError("no valid URL") from None
    if not known:
        raise ValueError("no URL of a host that begins with http:// or https://")
    return Line(number, url, words[1].lower() if len(words) == 2 else None)


def _fetch(
    lines: list[Line], downloads: Downloads, source: UrlListSource, fetching: Fetching
) -> dict[Line, Kept | Failed]:
    results: dict[Line, Kept | Failed] = {}
    label, started = f"{Path(source.path).name}: fetching", time.monotonic()
    with (
        ThreadPoolExecutor(max(1, fetching.workers)) as pool,
        fetching.bar(label, len(lines), "images") as advance,
    ):
        try:
            futures = {pool.submit(downloads.fetch, line.url, line.sha256): line for line in lines}
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                advance(1)
                if not downloads.answered("") and _unreachable(results) >= _NO_NETWORK_AFTER:
                    raise _no_network(results, source, fetching)
        except BaseException:
            downloads.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    kept = [result for result in results.values() if isinstance(result, Kept)]
    new = sum(result.size for result in kept if not result.was_there) / 1e6
    speed = new / max(time.monotonic() - started, 1e-3)
    there = sum(result.was_there for result in kept)
    fetching.log(
        f"{len(kept)} of {len(lines)} images are here: {there} were in the cache, "
        f"{new:.1f} MB fetched at {speed:.1f} MB/s"
    )
    return results


def _settle(
    results: dict[Line, Kept | Failed],
    downloads: Downloads,
    source: UrlListSource,
    fetching: Fetching,
) -> None:
    """Stops the run where a failure says nothing about the file."""
    unreachable = _unreachable(results)
    if unreachable and not downloads.answered(""):
        raise _no_network(results, source, fetching)
    # A host that has answered went away, or all of them did: then the others may be there too.
    gone = bool(unreachable) and not downloads.still_answered()
    passing = [
        f"{source.path}:{line.number}: {_shown(line.url)}: {result.reason}"
        for line, result in sorted(results.items(), key=lambda item: item[0].number)
        if isinstance(result, Failed)
        and (
            result.kind == "passing"
            or (result.kind == "unreachable" and (gone or downloads.answered(line.url)))
        )
    ]
    for text in passing[:_FAILURES_LOGGED]:
        fetching.log(f"not fetched {text}")
    if passing:
        raise StageError(
            f"{fetching.where}: {len(passing)} of {len(results)} images could not be fetched now, "
            f"such as {passing[0]}; build again, what was fetched is kept, or comment the lines out"
        )


def _unreachable(results: dict[Line, Kept | Failed]) -> int:
    return sum(isinstance(r, Failed) and r.kind == "unreachable" for r in results.values())


def _no_network(
    results: dict[Line, Kept | Failed], source: UrlListSource, fetching: Fetching
) -> StageError:
    line, failed = next(
        (line, result)
        for line, result in results.items()
        if isinstance(result, Failed) and result.kind == "unreachable"
    )
    return StageError(
        f"{fetching.where}: no network: no host of {source.path} can be reached "
        f"(line {line.number}: {failed.reason}); images that are in the cache need none"
    )


def _shown(url: str) -> str:
    """As much of a URL as can be shown."""
    parts = urlsplit(url)
    return f"{parts.hostname}{parts.path}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps urllib3 from logging URLs with their queries."""
    logger = logging.getLogger("urllib3.connectionpool")

    def silent(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(silent)
    try:
        yield
    finally:
        logger.removeFilter(silent)
