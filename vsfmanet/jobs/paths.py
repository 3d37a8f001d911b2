"""The sources of a batch and the names of their outputs, checked before anything starts."""

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from vsfmanet.errors import ConfigError
from vsfmanet.jobs.files import exposure_sidecar, record_path
from vsfmanet.jobs.record import read_record
from vsfmanet.settings import SIDECAR_SUFFIXES, check_choice

VIDEOS = tuple(
    f"*.{suffix}"
    for suffix in (
        *("mkv", "mp4", "mov", "m4v", "avi", "webm", "wmv", "asf", "flv", "f4v", "mpg", "mpeg", "m2v", "vob", "mod"),
        *("ts", "m2ts", "mts", "m2t", "tod", "mxf", "ogv", "3gp", "3g2", "dv", "y4m", "gif", "apng", "webp"),
        *("h264", "264", "avc", "h265", "265", "hevc"),
    )
)
"""Patterns of the files that are restored by default."""

ALSO_TEXT = {".ts", ".mod", ".tod"}
"""Suffixes of videos that text files have too, such as those of TypeScript."""

BEGINNING = 4096
"""Bytes at the start of a file that distinguish text from video."""

LONGEST = 240
"""Most bytes of an output's name: its record has a longer one, and other file systems allow fewer than 255."""

RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE | re.DOTALL)
"""Names that Windows reserves for devices, with any suffix."""

FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
"""Characters that Windows allows in no name."""


Order = Literal["natural", "shortest"]
Container = Literal["mkv", "mp4", "mov"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which files of a folder are restored, and in which order."""

    include: tuple[str, ...] = VIDEOS
    """Take files whose name, or path in IN_DIR, matches this pattern (`*`, `?`, `[...]`), whatever its case; may be
    repeated. By default all common video suffixes."""
    exclude: tuple[str, ...] = ()
    """Leave out files and folders that match this pattern; may be repeated."""
    order: Order = "natural"
    """By name with numbers as numbers, or the smallest file first."""
    container: Container = "mkv"
    """Suffix of the results; mkv holds everything."""
    shard: tuple[int, int] = (1, 1)
    """Do only share I of N of the files, and leave the others to other machines (see below)."""

    def __post_init__(self) -> None:
        check_choice("order", self.order, Order)
        check_choice("container", self.container, Container)
        number, count = self.shard
        if not 1 <= number <= count:
            raise ConfigError(f"a shard of 1/N to N/N is needed, got {number}/{count}; mend --shard")

    @property
    def suffix(self) -> str:
        """Suffix of the outputs, with its dot."""
        return f".{self.container}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairing:
    """A source and its output."""

    source: Path
    """Absolute path of the source."""
    target: Path
    """Absolute path of the output."""
    size: int
    """Size of the source, bytes."""
    mtime_ns: int
    """Time of the last change of the source, or of the file with its exposures if that is later, ns."""


SIDECARS = tuple(f"*.exposure{suffix}" for suffix in SIDECAR_SUFFIXES)
"""Names of files with exposures, which belong to the films beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """The jobs of a batch, and what stands in their way."""

    jobs: Sequence[Pairing]
    """Jobs, in order."""
    refused: Sequence[tuple[Pairing, str]]
    """Sources whose outputs would have a name that is taken, and why; the others can be restored without them."""
    elsewhere: int
    """Number of jobs in other shards, whose names are checked too."""
    problems: Sequence[str]
    """Names and folders that cannot be used; with any of them the batch must not start."""
    skipped: Sequence[str]
    """Symbolic links, which are not followed."""
    passed_over: Sequence[str]
    """Files that `Selection.include` does not take, or that hold text; not those that are hidden or excluded."""


def survey(in_folder: Path, out_folder: Path, selection: Selection) -> Survey:
    """Find the sources in a folder, and name their outputs in another one, in the same subfolders.

    Args:
        in_folder: Searched with all its folders; symbolic links are not followed, hidden files are not taken.
        out_folder: Need not exist. If it lies inside `in_folder`, it is not searched.
        selection: Which files are meant.

    Raises:
        ConfigError: `in_folder` is no folder, or is `out_folder`.
    """
    if not in_folder.is_dir():
        raise ConfigError(f"{in_folder}: IN_DIR must be a folder that exists; for one file use vsfmanet restore")
    root, out_root = Path(os.path.realpath(in_folder)), Path(os.path.realpath(out_folder))
    if root == out_root:
        raise ConfigError(f"{out_folder}: OUT_DIR must be another folder than IN_DIR, got the same; name another")
    jobs, problems, skipped, passed_over = [], [], [], list[str]()
    for entry, inside in _walk(root, out_root, selection, passed_over):
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            skipped.append(f"{inside}: a symbolic link, which is not followed")
        elif not stat.S_ISREG(status.st_mode):
            problems.append(
                f"{inside}: a regular file is needed, got a pipe, socket or device; leave it out (--exclude)"
            )
        else:
            target = (out_root / inside).with_suffix(selection.suffix)
            sidecar = exposure_sidecar(root / inside)
            changed = max(status.st_mtime_ns, sidecar.stat().st_mtime_ns if sidecar is not None else 0)
            jobs.append(Pairing(source=root / inside, target=target, size=status.st_size, mtime_ns=changed))
    jobs.sort(key=lambda job: (_natural(str(job.source.relative_to(root))), str(job.source)))
    jobs = _told_apart(jobs, out_root)
    clashes = _collisions(jobs, out_root)
    refused = [(job, clashes[job.source]) for job in jobs if job.source in clashes]
    jobs = [job for job in jobs if job.source not in clashes]
    problems += [problem for job in jobs for problem in _name_problems(job, out_root)]
    problems += _place_problems(jobs, out_root)
    if selection.order == "shortest":
        jobs.sort(key=lambda job: job.size)
    mine = [job for job in jobs if _is_in(selection.shard, job.source.relative_to(root))]
    return Survey(
        jobs=mine,
        refused=[(job, why) for job, why in refused if _is_in(selection.shard, job.source.relative_to(root))],
        elsewhere=len(jobs) - len(mine),
        problems=problems,
        skipped=skipped,
        passed_over=sorted(passed_over),
    )


def _walk(
    root: Path, out_root: Path, selection: Selection, passed_over: list[str]
) -> Iterator[tuple[os.DirEntry[str], Path]]:
    """Selected files below a folder, with their paths inside it; paths of others are added to `passed_over`."""
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise ConfigError(
                f"{folder}: the folder must be readable ({error.strerror}); mend its rights, or --exclude it"
            ) from error
        for entry in entries:
            path = Path(entry.path)
            inside = path.relative_to(root)
            if entry.name.startswith(".") or _matches(inside, selection.exclude):
                continue
            if entry.is_dir(follow_symlinks=False):
                if path != out_root:
                    folders.append(path)
            elif (_matches(inside, selection.include) and not _is_text(path)) or (
                entry.is_symlink() and entry.is_dir()
            ):
                yield entry, inside
            elif not _matches(inside, SIDECARS):
                passed_over.append(str(inside))


def _is_text(path: Path) -> bool:
    """Whether a file with one of the suffixes `ALSO_TEXT` holds text and no video."""
    if path.suffix.lower() not in ALSO_TEXT or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            beginning = file.read(BEGINNING)
        beginning.decode()
    except OSError:
        return False  # the job will report why
    except UnicodeDecodeError as error:
        if error.start < BEGINNING - 3:  # otherwise the last character is cut
            return False
    return bool(beginning) and b"\0" not in beginning


def _matches(inside: Path, patterns: Sequence[str]) -> bool:
    """Whether the name or the path matches one of the patterns."""
    names = (inside.name.lower(), inside.as_posix().lower())
    return any(fnmatch(name, pattern.lower()) for pattern in patterns for name in names)


def _is_in(shard: tuple[int, int], inside: Path) -> bool:
    """Whether a file is in a shard, by a hash of its path that is the same on all systems."""
    number, count = shard
    name = unicodedata.normalize("NFC", inside.as_posix()).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()) % count == number - 1


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts `part 2` before `part 10`."""
    pieces = re.split(r"([0-9]+)", text.casefold())
    return [(0, int(piece), "") if re.fullmatch("[0-9]+", piece) else (1, 0, piece) for piece in pieces if piece]


def _name_problems(job: Pairing, out_root: Path) -> Iterator[str]:
    """What is wrong with an output's name on some system."""
    inside = job.target.relative_to(out_root)
    if len(os.fsencode(inside.name)) > LONGEST:
        yield f"{inside}: names of at most {LONGEST} bytes are needed; shorten it, or leave it out (--exclude)"
    for name in inside.parts:
        if RESERVED.fullmatch(name):
            yield f"{inside}: {name!r} is the name of a device on Windows; rename it, or leave it out (--exclude)"
        elif name[-1] in ". ":
            yield f"{inside}: {name!r} ends with a blank or dot, which Windows drops; rename it, or --exclude it"
        elif os.name == "nt" and FORBIDDEN.search(name):
            yield f"{inside}: {name!r} holds characters that Windows takes in no name; rename it, or --exclude it"


def _told_apart(jobs: Sequence[Pairing], out_root: Path) -> list[Pairing]:
    """Rename outputs that would have the same name: all but one keep the suffix of their source, as `film.mp4.mkv`.

    The short name goes to the source whose output has it already, by its record, or else to the first source.
    """
    owners: dict[str, Pairing] = {}
    for job in jobs:
        name = _folded(job.target, out_root)
        if name not in owners or _has_made(job):
            owners[name] = job
    return [
        job
        if owners[_folded(job.target, out_root)] is job
        else replace(job, target=job.target.with_name(f"{job.source.name}{job.target.suffix}"))
        for job in jobs
    ]


def _has_made(job: Pairing) -> bool:
    """Whether the record beside an output names the job's source."""
    record = read_record(record_path(job.target))
    return record is not None and record.source == str(job.source)


def _collisions(jobs: Sequence[Pairing], out_root: Path) -> dict[Path, str]:
    """Sources whose outputs have a name that is taken, also where a file system takes upper and lower case, or NFC and
    NFD, as the same; and why.
    """
    found, owners = dict[Path, str](), dict[str, Pairing]()
    folders = {_folded(parent, out_root) for job in jobs for parent in job.target.parents if parent != out_root}
    for job in jobs:
        name = _folded(job.target, out_root)
        first = owners.setdefault(name, job)
        if first is not job:
            found[job.source] = f"its output would have the same name as that of {first.source}; rename one of them"
        elif name in folders:
            found[job.source] = "its output would have the name of a folder; rename one of them"
    return found


def _folded(path: Path, root: Path) -> str:
    """Path inside a folder, with case and Unicode form folded as the least exact file system does."""
    inside = os.path.relpath(path, root)
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", inside).casefold())


def _place_problems(jobs: Sequence[Pairing], out_root: Path) -> list[str]:
    """What is wrong with the files and folders that are in the places of outputs."""
    problems = []
    for folder in sorted({parent for job in jobs for parent in job.target.parents if parent.is_relative_to(out_root)}):
        if folder != out_root and folder.is_symlink():
            problems.append(f"{folder}: a symbolic link could lead out of OUT_DIR; put a folder in its place")
        elif os.path.lexists(folder) and not folder.is_dir():
            problems.append(f"{folder}: a folder is needed here, got a file; rename it")
    for job in jobs:
        if job.target.is_symlink() or (os.path.lexists(job.target) and not job.target.is_file()):
            problems.append(f"{job.target}: an output must be a regular file, got a link, folder or device; move it")
        elif job.target.exists() and os.path.samefile(job.target, job.source):
            problems.append(f"{job.target}: the output is its own source under another name; choose another OUT_DIR")
    return problems
