"""Folders that are written whole or not at all."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a folder that takes its name when the block ends without an error, and is deleted otherwise.

    Args:
        path: Folder to make; its parents are made too.

    Yields:
        A new folder beside `path`, to be filled.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    beside.mkdir(parents=True)
    try:
        yield beside
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
