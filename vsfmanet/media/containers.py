"""What a source or an output can be, by its name. Imports no library: names are checked before one is loaded."""

import re
from pathlib import Path

CONTAINERS = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov"}
"""FFmpeg's name of each, by suffix: those that keep a timestamp for each frame and take any encoder."""

PICTURES = {".png": "png", ".tif": "tiff", ".tiff": "tiff"}
"""FFmpeg's codec of pictures, by suffix: lossless, 8 and 16 bit."""

PIPE = Path("-")
"""Stands for stdin or stdout, which carries frames as y4m."""

NUMBER = re.compile(r"%(?:0(\d+))?d")
"""Place of a picture's number in its name, with the number of digits."""


def is_sequence(path: Path) -> bool:
    """Whether a path names numbered pictures, as `frames/%06d.png` does."""
    return path.suffix.lower() in PICTURES and len(NUMBER.findall(path.name)) == 1


def numbered(pattern: Path, number: int) -> Path:
    """Path of one picture of a sequence."""
    found = NUMBER.search(pattern.name)
    assert found is not None
    digits = f"{number:0{found[1] or 1}d}"
    return pattern.with_name(f"{pattern.name[: found.start()]}{digits}{pattern.name[found.end() :]}")


def pictures(pattern: Path) -> dict[int, Path]:
    """Pictures of a sequence that are there, by their numbers, ascending.

    Raises:
        OSError: Their folder cannot be read.
    """
    found = NUMBER.search(pattern.name)
    assert found is not None
    before, after = map(re.escape, (pattern.name[: found.start()], pattern.name[found.end() :]))
    named = re.compile(rf"{before}(\d+){after}", re.ASCII | re.DOTALL)
    there = ((named.fullmatch(path.name), path) for path in pattern.parent.iterdir())
    numbers = {int(match[1]): path for match, path in there if match and numbered(pattern, int(match[1])) == path}
    return dict(sorted(numbers.items()))
