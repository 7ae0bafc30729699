"""Files on an object store: paths, reading, listing, and errors that people understand.

Which of them make an output, and how they get there, is `remote_outputs.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from upath import UPath

from sr_assets.disk import StorageError
from sr_models.one_line import one_line

#: Protocols of s3fs.
S3 = ("s3", "s3a")
#: When an object was last written: as S3, Azure, Google and others, and fsspec's own name it.
_MODIFIED = ("LastModified", "last_modified", "mtime", "created")
_BULK = 1000  # objects that one request may remove
_opened: dict[tuple[int, str, str], AbstractFileSystem] = {}


class RemoteError(StorageError):
    """An object store cannot be used; the message is one line that says why, and the mend."""


@dataclass(frozen=True)
class Entry:
    """What a listing says of one object."""

    size: int
    version: str | None
    """Differs whenever the content does; None where the store tells no such thing."""
    modified: float | None
    """Seconds since 1970."""


@dataclass(frozen=True)
class Upload:
    """An object that was begun to be sent in parts, which no listing of objects shows."""

    name: str
    """In the folder that was asked for."""
    id: str
    begun: float
    """Seconds since 1970."""


def remote_path(address: str) -> UPath:
    """The path at `address`, such as `s3://bucket/folder`, of which no listing is ever kept.

    Raises:
        RemoteError: the package for this kind of address is not installed.
    """
    path = UPath(address)
    if path.protocol not in S3:
        return path
    if find_spec("s3fs") is None:
        raise RemoteError(f"{address} needs the package s3fs: pip install 'sr-distillery[s3]'")
    return UPath(address.rstrip("/"), use_listings_cache=False)


def file_system(path: UPath) -> AbstractFileSystem:
    """The one file system of `path` in this process, for all of its threads.

    A forked process gets its own: connections of s3fs do not survive a fork.
    """
    key = os.getpid(), path.protocol, repr(sorted(path.storage_options.items()))
    if key not in _opened:
        _opened[key] = fsspec.filesystem(path.protocol, **path.storage_options)
    return _opened[key]


def read_bytes(path: UPath) -> bytes:
    """Content of one object, by one request.

    Raises:
        FileNotFoundError: there is no such object.
        RemoteError: the store cannot be used.
    """
    # s3fs would ask for the size first, to fetch large objects in parts
    once = {"max_concurrency": 1} if path.protocol in S3 else {}
    with explained(path):
        return bytes(file_system(path).cat_file(path.path, **once))


def listed(folder: UPath) -> dict[str, Entry]:
    """Every object below `folder` by its name in it; a request for each thousand.

    Raises:
        RemoteError: the store cannot be used.
    """
    start = folder.path.strip("/") + "/"
    parent, _, name = folder.path.rstrip("/").rpartition("/")
    with explained(folder):
        if folder.protocol in S3 and parent:  # of an empty folder, s3fs would ask thrice
            found = file_system(folder).find(parent, prefix=f"{name}/", detail=True)
        else:
            found = file_system(folder).find(folder.path, detail=True)
    return {
        name.strip("/").removeprefix(start): _entry(info)
        for name, info in found.items()
        if name.strip("/").startswith(start) and not name.endswith("/")
    }


def folders(folder: UPath) -> list[UPath]:
    """The folders directly in `folder`, sorted by name; a request for each thousand.

    Raises:
        FileNotFoundError: there is no such folder.
        RemoteError: the store cannot be used.
    """
    with explained(folder):
        found = file_system(folder).ls(folder.path, detail=True)
    names = {
        one["name"].rstrip("/").rpartition("/")[2] for one in found if one["type"] == "directory"
    }
    return [folder / name for name in sorted(names)]


def remove_objects(folder: UPath, names: Sequence[str]) -> None:
    """Removes objects in `folder`, a request for each thousand; those that are gone are no error.

    Raises:
        RemoteError: the store cannot be used, or keeps one of them.
    """
    fs = file_system(folder)
    bucket, _, key = folder.path.partition("/")
    with explained(folder):
        if folder.protocol not in S3:
            fs.rm([f"{folder.path}/{name}" for name in names])
            return
        for start in range(0, len(names), _BULK):
            some = [{"Key": f"{key}/{name}".lstrip("/")} for name in names[start : start + _BULK]]
            # fs.rm would not tell what the store refuses of them
            told = fs.call_s3(
                "delete_objects", Bucket=bucket, Delete={"Objects": some, "Quiet": True}
            )
            for kept in told.get("Errors", []):
                raise RemoteError(
                    f"s3://{bucket}/{kept['Key']} cannot be removed ({kept.get('Code')}): check "
                    f"that the credentials may delete in bucket {bucket}"
                )


def unfinished_uploads(folder: UPath) -> list[Upload]:
    """What was begun to be sent in parts to below `folder`; a request for each thousand.

    Raises:
        RemoteError: the store cannot be used.
    """
    if folder.protocol not in S3:
        return []
    bucket, _, key = folder.path.strip("/").partition("/")
    start = f"{key}/" if key else ""
    found: list[Upload] = []
    after: dict[str, str] = {}
    while True:
        try:
            with explained(folder):
                page = file_system(folder).call_s3(
                    "list_multipart_uploads", Bucket=bucket, Prefix=start, **after
                )
        except OSError as error:
            if _code(error) != "NotImplemented":
                raise
            return []
        found += [
            Upload(u["Key"].removeprefix(start), u["UploadId"], u["Initiated"].timestamp())
            for u in page.get("Uploads", [])
        ]
        if not page.get("IsTruncated"):
            return found
        after = {
            "KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"],
        }  # fmt: skip


def end_uploads(folder: UPath, uploads: Iterable[Upload]) -> None:
    """Gives up what `unfinished_uploads` told of `folder`, and frees its parts; a request each.

    Raises:
        RemoteError: the store cannot be used.
    """
    bucket, _, key = folder.path.strip("/").partition("/")
    for upload in uploads:
        try:
            with explained(folder):
                file_system(folder).call_s3(
                    "abort_multipart_upload", Bucket=bucket, UploadId=upload.id,
                    Key=f"{key}/{upload.name}".lstrip("/"),
                )  # fmt: skip
        except OSError as error:
            if _code(error) != "NoSuchUpload":  # else it has ended meanwhile
                raise


@contextlib.contextmanager
def explained(path: UPath) -> Iterator[None]:
    """Makes one line with its mend of what a store says of credentials, bucket and connection."""
    bucket = path.path.partition("/")[0]
    try:
        yield
    except FileNotFoundError as error:
        if _code(error) != "NoSuchBucket":
            raise
        raise RemoteError(
            f"{path}: there is no bucket {bucket}: create it, or mend `root`"
        ) from error
    except PermissionError as error:
        raise RemoteError(
            f"{path}: the store refuses ({_line(error)}): check the credentials, and that they may "
            f"list, read, write and delete in bucket {bucket}"
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith("botocore."):
            raise
        raise RemoteError(
            f"{path}: {_line(error)}: check the credentials (AWS_ACCESS_KEY_ID or AWS_PROFILE) and "
            "the address (AWS_ENDPOINT_URL)"
        ) from error


def _entry(info: Mapping[str, Any]) -> Entry:
    modified = next((info[key] for key in _MODIFIED if info.get(key) is not None), None)
    return Entry(
        size=int(info["size"]),
        version=info["ETag"].strip('"') if info.get("ETag") else None,
        modified=modified.timestamp() if isinstance(modified, datetime) else modified,
    )


def _code(error: BaseException) -> str | None:
    """What S3 calls an error."""
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code")


def _line(error: BaseException) -> str:
    return one_line(error).rstrip(".")
