"""Mutants: changes of the code, each of which must make a test fail.

    python scripts/mutants.py                 all of them
    python scripts/mutants.py --share 3/9     every ninth, from the third on
    python scripts/mutants.py --only NAME     those whose name contains NAME

Each mutant is one replacement in a copy of the project, in which one test, or the tests of one file, are then run. A
mutant that survives stands for a promise that no test keeps. CI runs one share at each change, another one each time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
COPIED = ("pyproject.toml", "scripts", "tests", "training", "vsfmanet")
LINKED = ("CHANGELOG.md", "README.md", "docs", "models")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One change of the code."""

    name: str
    """What the code no longer does."""
    file: str
    """Path in the project."""
    old: str
    """Text that occurs once in the file."""
    new: str
    """Text in its place."""
    test: str
    """Test, or file of tests, that must fail, as pytest names it."""


POWER = "tests/test_power_loss.py"
MUTANTS = (
    # On the disk
    Mutant(
        name="a new content is flushed before it has its name",
        file="vsfmanet/atomic.py",
        old='            os.fsync(file.fileno())\n            if sys.platform != "win32":',
        new='            if sys.platform != "win32":',
        test=POWER,
    ),
    Mutant(
        name="the name of a new content is flushed",
        file="vsfmanet/atomic.py",
        old="        beside.unlink(missing_ok=True)\n    sync(path.parent)",
        new="        beside.unlink(missing_ok=True)",
        test=POWER,
    ),
    Mutant(
        name="a range is flushed before it counts as finished",
        file="vsfmanet/jobs/scratch.py",
        old="        sync(unfinished)\n",
        new="",
        test=POWER,
    ),
    Mutant(
        name="a part is flushed before it has the name of the output",
        file="vsfmanet/jobs/scratch.py",
        old="            sync(part)\n",
        new="",
        test=POWER,
    ),
    Mutant(
        name="the names of an output and of its record are flushed",
        file="vsfmanet/jobs/scratch.py",
        old="                    write_record(record, record_path(target))\n                sync(target.parent)\n",
        new="                    write_record(record, record_path(target))\n",
        test=POWER,
    ),
    Mutant(
        name="the journal is flushed with every change",
        file="vsfmanet/jobs/journal.py",
        old="PRAGMA synchronous = FULL",
        new="PRAGMA synchronous = OFF",
        test=POWER,
    ),
    Mutant(
        name="a cached file is flushed before it has its name",
        file="vsfmanet/atomic.py",
        old='            os.fsync(file.fileno())\n            if sys.platform != "win32":',
        new='            if sys.platform != "win32":',
        test="tests/test_caches.py::test_a_file_is_on_the_disk_before_it_has_its_name",
    ),
    Mutant(
        name="a cached file is readable by its user alone",
        file="vsfmanet/caches.py",
        old="mode=0o600, ",
        new="",
        test="tests/test_caches.py::test_what_another_user_owns_or_may_write_to_is_not_trusted",
    ),
    Mutant(
        name="a temporary file is deleted by no other writer",
        file="vsfmanet/atomic.py",
        old="        if try_lock(handle) and beside.exists():",
        new="        if True:",
        test="tests/test_files.py::test_writers_of_one_file_do_not_disturb_each_other",
    ),
    Mutant(
        name="temporary files are created exclusively",
        file="vsfmanet/atomic.py",
        old="os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW | BINARY",
        new="os.O_RDWR | os.O_CREAT | BINARY",
        test="tests/test_files.py::test_no_link_that_lies_in_wait_has_its_target_overwritten",
    ),
    Mutant(
        name="what a living process has locked is not deleted",
        file="vsfmanet/atomic.py",
        old="        unheld = try_lock(handle)\n",
        new="        unheld = True\n",
        test="tests/test_files.py",
    ),
    Mutant(
        name="what others may write to is not trusted",
        file="vsfmanet/caches.py",
        old="and not found.st_mode & _WRITABLE_BY_OTHERS",
        new="",
        test="tests/test_caches.py::test_what_another_user_owns_or_may_write_to_is_not_trusted",
    ),
    # Publishing
    Mutant(
        name="the record waits beside the part before the output has its name",
        file="vsfmanet/jobs/scratch.py",
        old="                write_pending(record, pending_path(part))\n",
        new="",
        test="tests/test_record.py::test_a_record_that_cannot_be_put_beside_its_output_is_not_lost",
    ),
    Mutant(
        name="of two runs of a job, one publishes",
        file="vsfmanet/jobs/scratch.py",
        old="            _refuse_twin(target, record)\n            beside",
        new="            beside",
        test="tests/test_record.py::test_of_two_runs_of_one_job_one_publishes",
    ),
    Mutant(
        name="an output that another run is making is left alone",
        file="vsfmanet/jobs/scratch.py",
        old="            if living := sweep(target):",
        new="            if living := []:",
        test="tests/test_record.py::test_two_runs_do_not_make_the_same_output",
    ),
    Mutant(
        name="a dead process's part is deleted",
        file="vsfmanet/jobs/supervise.py",
        old="    sweep(job.output)\n    if code is not None and told",
        new="    if code is not None and told",
        test="tests/test_supervise.py::test_every_end_without_an_output_has_its_verdict_and_leaves_nothing",
    ),
    Mutant(
        name="an older record does not pass for a new one",
        file="vsfmanet/jobs/supervise.py",
        old="if record is not None and renewed and _is_of(record, job)",
        new="if record is not None and _is_of(record, job)",
        test="tests/test_supervise.py::test_an_older_output_or_a_changed_one_does_not_pass_for_a_new_one",
    ),
    Mutant(
        name="an output that has changed does not pass for a new one",
        file="vsfmanet/jobs/supervise.py",
        old="_is_of(record, job) and is_intact(job.output, record):",
        new="_is_of(record, job):",
        test="tests/test_supervise.py::test_a_new_record_counts_only_beside_the_bytes_that_were_verified",
    ),
    Mutant(
        name="a full disk ends a batch",
        file="vsfmanet/jobs/supervise.py",
        old="MACHINE = {4, 5, 8}",
        new="MACHINE = {4, 8}",
        test="tests/test_supervise.py::test_outcomes_of_the_machine_are_told_apart",
    ),
    # Verification
    Mutant(
        name="frames are counted",
        file="vsfmanet/media/verify.py",
        old="    if count != len(times):",
        new="    if count > len(times):",
        test="tests/test_jobs.py::test_verification_finds_missing_and_surplus_frames",
    ),
    Mutant(
        name="the time of each frame is compared",
        file="vsfmanet/media/verify.py",
        old="> TIME_TOLERANCE + tick:",
        new="> 1000:",
        test="tests/test_jobs.py::test_verification_finds_one_frame_that_is_late",
    ),
    Mutant(
        name="the size of a frame is compared",
        file="vsfmanet/media/verify.py",
        old="if (frame.width, frame.height) != size:",
        new="if False:",
        test="tests/test_jobs.py::test_verification_finds_a_wrong_size",
    ),
    Mutant(
        name="a picture is looked for where the source has one",
        file="vsfmanet/media/verify.py",
        old='np.ptp(frame.to_ndarray(format="gray")) <= FLAT',
        new="False",
        test="tests/test_jobs.py::test_verification_finds_a_frame_of_one_colour_where_the_source_has_a_picture",
    ),
    Mutant(
        name="what the decoder complains of is damage",
        file="vsfmanet/media/decode.py",
        old="if step.complaint and (begun or not open_start):",
        new="if False:",
        test="tests/test_faults_files.py::test_a_first_key_frame_that_ffmpeg_complains_of_is_damage",
    ),
    # Arguments and names
    Mutant(
        name="options that name files are refused",
        file="vsfmanet/media/encoder_args.py",
        old="        if name in OF_FILES:",
        new="        if False:",
        test="tests/test_encoder_args.py::test_what_is_not_an_option_with_its_value_is_refused",
    ),
    Mutant(
        name="names that differ in case or form are one",
        file="vsfmanet/jobs/paths.py",
        old='    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", inside).casefold())',
        new="    return inside",
        test="tests/test_properties.py::test_outputs_that_a_file_system_takes_as_one_are_found",
    ),
    Mutant(
        name="each file is in one shard",
        file="vsfmanet/jobs/paths.py",
        old="% count == number - 1",
        new="% count == number",
        test="tests/test_properties.py::test_a_file_is_in_one_shard",
    ),
    # Exposures
    Mutant(
        name="an exposure of 0 is refused",
        file="vsfmanet/exposures/sidecar.py",
        old="and 0 < value <= 1:",
        new="and 0 <= value <= 1:",
        test="tests/test_properties.py::test_a_sidecar_of_any_content_is_read_or_refused",
    ),
    Mutant(
        name="an argument comes before a property",
        file="vsfmanet/exposures/__init__.py",
        old="        if given is not None:\n            return KnownExposure",
        new="        if given is not None and not props:\n            return KnownExposure",
        test="tests/test_exposure.py::test_the_argument_comes_before_the_properties",
    ),
    # Frames and windows
    Mutant(
        name="the last segment ends with the clip",
        file="vsfmanet/segments.py",
        old="        return first, min(first + self.length, self.num_frames)",
        new="        return first, first + self.length",
        test="tests/test_segments.py::test_segments_cover_every_frame_once_and_in_order",
    ),
    Mutant(
        name="a window holds what a state is built up from",
        file="vsfmanet/segments.py",
        old="range(max(0, first - self.reach.furthest),",
        new="range(max(0, first - self.reach.before),",
        test="tests/test_segments.py::test_a_window_is_its_segment_with_context_inside_the_clip",
    ),
    Mutant(
        name="a state is built up from a fixed grid",
        file="vsfmanet/segments.py",
        old="        return frame - frame % self.period - self.before, frame + self.after",
        new="        return frame - self.before, frame + self.after",
        test="tests/test_segments.py::test_a_state_is_built_up_from_a_fixed_grid",
    ),
    Mutant(
        name="tiles overlap",
        file="vsfmanet/tiling.py",
        old="            left=max(0, self.left - reach),",
        new="            left=self.left,",
        test="tests/test_tiles.py::test_every_part_of_the_network_is_the_same_in_tiles",
    ),
    Mutant(
        name="a standard property marks a cut",
        file="vsfmanet/clips/scenes.py",
        old="            if marked is not None:",
        new="            if False:",
        test="tests/test_scene.py::test_tags_are_trusted_unless_a_threshold_asks_for_the_detector",
    ),
    Mutant(
        name="frames are skipped in long runs only",
        file="vsfmanet/clips/skipping.py",
        old="SHORTEST = 8",
        new="SHORTEST = 1",
        test="tests/test_skipping.py::test_a_short_rest_is_restored_with_what_is_around_it",
    ),
    # Damage
    Mutant(
        name="a frame of the output that is marked as corrupt is damage",
        file="vsfmanet/media/verify.py",
        old="            if frame.is_corrupt:",
        new="            if False:",
        test="tests/test_faults_files.py::test_a_frame_that_is_marked_as_corrupt_without_a_message_is_damage",
    ),
    Mutant(
        name="a frame of the source that is marked as corrupt is damage",
        file="vsfmanet/media/decode.py",
        old="if frame.is_corrupt and (begun or not open_start):",
        new="if False:",
        test="tests/test_faults_files.py::test_a_frame_that_is_marked_as_corrupt_without_a_message_is_damage",
    ),
    Mutant(
        name="one picture is never read as a series",
        file="vsfmanet/media/decode.py",
        old='"hls", "image2", ',
        new='"hls", ',
        test="tests/test_faults_sources.py::"
        "test_a_number_in_a_name_means_a_series_of_pictures_and_nothing_in_that_of_a_video",
    ),
    Mutant(
        name="a result that stdout cannot take is an error",
        file="vsfmanet/cli/terminal.py",
        old="        sys.stdout.write(text)\n        sys.stdout.flush()\n",
        new="        sys.stdout.write(text)\n",
        test="tests/test_faults_processes.py::test_a_result_that_stdout_cannot_take_is_told_and_the_output_stays",
    ),
    Mutant(
        name="messages that nobody reads are dropped at the end",
        file="vsfmanet/cli/terminal.py",
        old="    except OSError:\n        _let_go(sys.stderr)\n",
        new="    except OSError:\n        pass\n",
        test="tests/test_faults_processes.py::test_messages_that_nobody_reads_do_not_change_the_exit_code",
    ),
    Mutant(
        name="blurred frames are found",
        file="vsfmanet/media/thumbnails.py",
        old="    if found / sharp < bounds.strong:",
        new="    if False:",
        test="tests/test_thumbnails.py::test_a_real_film_passes_at_the_quality_asked_for_and_a_changed_one_does_not",
    ),
    # Weights
    Mutant(
        name="weights that are not finite are refused",
        file="vsfmanet/weights.py",
        old="        if value.is_floating_point() and not value.isfinite().all():\n"
        '            raise WeightsError(f"{path.name} must hold',
        new='        if False:\n            raise WeightsError(f"{path.name} must hold',
        test="tests/test_weights.py::test_values_that_are_not_finite_are_refused",
    ),
    Mutant(
        name="a shipped file has the hash of the manifest",
        file="vsfmanet/weights.py",
        old="    if expected is not None and digest != expected:",
        new="    if False:",
        test="tests/test_weights.py::test_a_shipped_file_with_another_hash_is_refused",
    ),
    Mutant(
        name="the pixels of a shipped model are what they were",
        file="vsfmanet/ops/warp.py",
        old="padding_mode=padding, align_corners=False)",
        new="padding_mode=padding, align_corners=True)",
        test="tests/test_golden.py",
    ),
)


def run(mutant: Mutant, folder: Path) -> bool:
    """Whether a test fails on a mutant.

    Args:
        mutant: The change.
        folder: A copy of the project, as `copy_project` makes it.

    Raises:
        RuntimeError: The text to replace does not occur once, or no test has run.
    """
    path = folder / mutant.file
    code = path.read_text(encoding="utf-8")
    if code.count(mutant.old) != 1:
        raise RuntimeError(f"{mutant.name}: its text must occur once in {mutant.file}, got {code.count(mutant.old)}")
    path.write_text(code.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", mutant.test]
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(code, encoding="utf-8")
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"{mutant.name}: {mutant.test} did not run:\n{ended.stdout}{ended.stderr}")
    return ended.returncode == 1


def copy_project(folder: Path) -> None:
    """Copy what tests need; what they only read is linked."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)


def share(text: str) -> tuple[int, int]:
    """Number and count of a share, from text such as 3/9."""
    number, count = map(int, text.split("/"))
    if not 1 <= number <= count:
        raise ValueError(f"a share from 1/N to N/N is needed, got {text}")
    return number, count


def main() -> int:
    """Run mutants, and print which survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=share, default=(1, 1), help="K/N: every Nth mutant, from the Kth on")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    args = parser.parse_args()
    number, count = args.share
    chosen = [mutant for mutant in MUTANTS[number - 1 :: count] if args.only in mutant.name]
    survivors = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_project(folder)
        for mutant in chosen:
            found = run(mutant, folder)
            print(f"{'found' if found else 'SURVIVES'}: {mutant.name} ({mutant.test})", flush=True)
            if not found:
                survivors.append(mutant)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were found")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
