"""Files that are not on this machine: object stores and the web, by fsspec and its libraries.

A path with a scheme is one of these (``s3://bucket/in.jsonl``, ``gs://``, ``hf://``, ``https://``).
Credentials come from where the libraries look for them (environment, configuration files, the
machine's role), and are never part of a path: a path is shown in messages and process lists.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from sglang.srt.blendserve.tables.data_error import DataError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PACKAGES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Extras of this package that bring the libraries of a scheme; the others come with SGLang."""
_WEB = ("http://", "https://")


def is_remote(path: str | Path) -> bool:
    """Whether ``path`` has a scheme, so that it is read and written by fsspec."""
    return _SCHEME.match(str(path)) is not None


def _is_web(path: str) -> bool:
    return path.lower().startswith(_WEB)


def shown(path: str) -> str:
    """Return ``path`` as messages have it: without the query, which may be a signature."""
    if not _is_web(path):
        return path
    parts = urlsplit(path)
    return urlunsplit(parts._replace(query="", fragment=""))


def check(path: str) -> None:
    """Check that files at ``path`` can be reached, as far as that shows without asking for one.

    Raises:
        DataError: the scheme is not known, its library is missing, or credentials are in the path.
    """
    _place(path)


@contextmanager
def fetched(path: str) -> Iterator[str]:
    """Give a local path with the content of ``path``: that itself if it is local, else a copy in a
    temporary folder, which is gone at the end.

    A path that ends in a slash, or is a folder, is one of Parquet files; these alone are copied.

    Raises:
        DataError: it cannot be read; the same error out of the context names ``path``.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sglang-blendserve-") as folder:
        local = str(_download(path, Path(folder)))
        try:
            yield local
        except DataError as error:
            raise DataError(str(error).replace(local, shown(path))) from error


def put(local: Path, path: str) -> None:
    """Write a local file to ``path``. It is there whole, or not at all.

    Raises:
        DataError: it cannot be written.
    """
    filesystem, name = _place(path)
    with _said(path, "written"):
        filesystem.put_file(str(local), name, callback=_bar(f"uploading {name_of(path)}"))
        filesystem.invalidate_cache()
        size = filesystem.info(name)["size"]
    if size != local.stat().st_size:
        raise DataError(
            f"{shown(path)} has {size:,} bytes there and {local.stat().st_size:,} here: it was "
            "written by somebody else as well"
        )


def put_bytes(data: bytes, path: str) -> None:
    """Write ``data`` to ``path``, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    filesystem, name = _place(path)
    with _said(path, "written"):
        filesystem.pipe_file(name, data)
        filesystem.invalidate_cache()


def get_bytes(path: str) -> bytes | None:
    """Return the content of ``path``, None if there is nothing.

    Raises:
        DataError: it cannot be read.
    """
    filesystem, name = _place(path)
    with _said(path, "read"):
        try:
            return bytes(filesystem.cat_file(name))
        except FileNotFoundError:
            return None


def exists(path: str) -> bool:
    """Whether there is a file at ``path``.

    Raises:
        DataError: that cannot be found out.
    """
    filesystem, name = _place(path)
    with _said(path, "read"):
        filesystem.invalidate_cache()
        return bool(filesystem.exists(name))


def names_in(path: str) -> list[str]:
    """Return the names of the files in a folder, sorted; none if there is no such folder.

    Raises:
        DataError: it cannot be listed.
    """
    filesystem, name = _place(path)
    with _said(path, "listed"):
        filesystem.invalidate_cache()
        try:
            entries = filesystem.ls(name.rstrip("/"), detail=True)
        except FileNotFoundError:
            return []
    return sorted(name_of(entry["name"]) for entry in entries if entry["type"] == "file")


def remove(path: str) -> None:
    """Remove the file at ``path``.

    Raises:
        DataError: it cannot be removed.
    """
    filesystem, name = _place(path)
    with _said(path, "removed"):
        filesystem.rm_file(name)
        filesystem.invalidate_cache()


def _download(path: str, folder: Path) -> Path:
    filesystem, name = _place(path)
    with _said(path, "read"):
        filesystem.invalidate_cache()  # what it was told before may have changed
        if not _is_folder(path, filesystem, name):
            local = folder / name_of(path)
            _get(filesystem, name, local, path)
            return local
        entries = filesystem.ls(name.rstrip("/"), detail=True)
    _refuse_subfolders(path, filesystem, entries)
    local = folder / name_of(path.rstrip("/"))
    local.mkdir()
    parts = [name_of(entry["name"]) for entry in entries if entry["type"] == "file"]
    parts = [part for part in parts if part.endswith(".parquet") and part[0] not in "._"]
    if not parts:
        raise DataError(f"{shown(path)} is a folder without .parquet files; name the file")
    for part in parts:
        with _said(path, "read"):
            _get(filesystem, f"{name.rstrip('/')}/{part}", local / part, path)
    return local


def _is_folder(path: str, filesystem: Any, name: str) -> bool:
    if _is_web(path):
        return False  # whatever links a page has
    return path.endswith("/") or bool(filesystem.isdir(name) and not filesystem.isfile(name))


def _refuse_subfolders(path: str, filesystem: Any, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        if entry["type"] == "directory":
            with _said(path, "read"):
                inside = filesystem.glob(f"{entry['name']}/**/*.parquet")
            if inside:
                message = f"{shown(path)} has tables in folders of its own, {inside[0]} say; "
                raise DataError(message + "give one")


def _get(filesystem: Any, name: str, local: Path, path: str) -> None:
    size = filesystem.info(name).get("size")
    free = shutil.disk_usage(local.parent).free
    if size is not None and size > free:
        raise DataError(
            f"{shown(path)} has {size / 1e9:,.1f} GB and {local.parent} room for "
            f"{free / 1e9:,.1f}: free some, or let TMPDIR name a place with more"
        )
    filesystem.get_file(name, str(local), callback=_bar(f"downloading {name_of(path)}"))


def _place(path: str) -> tuple[Any, str]:
    """The file system of a path, and its name there."""
    parts = urlsplit(path)
    if "@" in parts.netloc:
        raise DataError(
            f"{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}{parts.path}: leave the "
            "credentials out of the path; they come from the environment or a configuration file"
        )
    extra = _PACKAGES.get(parts.scheme.lower())
    try:
        from fsspec.core import url_to_fs

        filesystem, name = url_to_fs(path)
    except ImportError as error:
        hint = f"pip install 'sglang-blendserve[{extra}]'" if extra else str(error)
        raise DataError(f"{shown(path)} needs a library that is not installed: {hint}") from error
    except ValueError as error:
        message = f"{shown(path)}: {error}. Known are s3://, gs://, hf://, https:// and local files"
        raise DataError(message) from error
    return filesystem, str(name)


@contextmanager
def _said(path: str, done: str) -> Iterator[None]:
    """Turn whatever a store's library raises into one error that names the path."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # each library has errors of its own, not all of them OSErrors
        reason = str(error) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            reason = "there is no such file, or it is nobody's to know"
        if error.__cause__ is not None:
            reason += f": {error.__cause__}"
        if _is_web(path) and (query := urlsplit(path).query):  # it may be a signature
            for form in (query, unquote(query)):
                reason = reason.replace(form, "...")
        raise DataError(f"{shown(path)} cannot be {done}: {reason}") from error


def name_of(path: str) -> str:
    """Return the last part of ``path``, by which a copy of it is called."""
    given = urlsplit(path).path if _is_web(path) else path.partition("://")[2] or path
    return given.rstrip("/").rpartition("/")[2]


def _bar(what: str) -> Any:
    """A progress bar, where a person watches."""
    from fsspec.callbacks import TqdmCallback

    bar = {"desc": what, "unit": "B", "unit_scale": True, "file": sys.stderr}
    return TqdmCallback(tqdm_kwargs={**bar, "disable": None, "leave": False})
