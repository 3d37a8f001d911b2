"""How the end of a job is judged, and when it is stopped: by small programs in place of `vsfmanet`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import light
from tests.batch_stub import stub_recipe
from tests.films import nothing_but
from vsfmanet.errors import ConfigError
from vsfmanet.jobs import supervise as supervision
from vsfmanet.jobs.files import TemporaryFolder, part_path, pending_path, record_path
from vsfmanet.jobs.job import RestoreJob
from vsfmanet.jobs.record import Fingerprint, Record, write_pending, write_record
from vsfmanet.jobs.supervise import KEPT_BUFFERS, Event, Outcome, Verdict, Watch, supervise
from vsfmanet.manifest import file_sha256
from vsfmanet.settings import RestoreSettings


@pytest.fixture
def job(tmp_path: Path) -> RestoreJob:
    (tmp_path / "film.mkv").write_text("a film")
    return RestoreJob(source=tmp_path / "film.mkv", target=tmp_path / "made.mkv")


def program(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let a job be this Python code; `target` is its output, `say` writes an event."""
    begin = (
        "import json, os, signal, sys, time\n"
        "from pathlib import Path\n"
        "job = json.load(sys.stdin)\n"
        "target = Path(job['target'])\n"
        "def say(event, **fields): print(json.dumps({'event': event, **fields}), file=sys.stderr, flush=True)\n"
    )
    monkeypatch.setattr(supervision, "PROGRAM", (sys.executable, "-I", "-S", "-c", begin + code))


def record_of(job: RestoreJob, content: str) -> Record:
    """A record of an output with this content, beside which it is not yet."""
    job.target.write_text(content)
    record = Record(
        key="key",
        attempt=1,
        source=str(job.source),
        fingerprint=Fingerprint.of(job.source),
        recipe=stub_recipe(""),
        versions={},
        frames=1,
        width=4,
        height=4,
        output_size=job.target.stat().st_size,
        output_sha256=file_sha256(job.target),
    )
    job.target.unlink()
    return record


def test_the_process_reads_the_whole_job_and_its_number(
    tmp_path: Path, job: RestoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RestoreJob(
        source=job.source,
        target=tmp_path / "odd \udcff.mkv",
        settings=RestoreSettings(exposure=0.5, device_index=(1, 0), tile=(64, 48), skip=True),
        encoder_args="-crf 20 -x 'a b'",
        overwrite=True,
        reserve=1.5,
    )
    program(monkeypatch, "say('note', text=json.dumps([job, sys.argv[1:]]))")
    heard: list[Event | bytes] = []
    supervise(other, attempt=7, hear=heard.append)
    [event] = heard
    assert not isinstance(event, bytes)
    table, arguments = json.loads(event["text"])
    assert RestoreJob.from_json(table) == other
    assert arguments[:4] == ["restore", "--job", "-", "--attempt=7"]


@pytest.mark.parametrize(
    ("code", "kind", "exit_code", "cause"),
    [
        ("os._exit(0)", "failed", 6, "but the job ended as if all were well before the first frame"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "failed", 6, "the job crashed or was killed (-11)"),
        ("sys.exit(143)", "failed", 6, "the job was stopped by SIGTERM from outside"),
        ("sys.exit(9)", "failed", 6, "the job crashed or was killed (9)"),
        ("print('[' * 100000)", "failed", 6, "the job ended as if all were well"),
        ("sys.stderr.write('Traceback ...\\nZeroDivisionError'); sys.exit(1)", "bug", 1, "ZeroDivisionError"),
        ("say('progress', step='restoring', done=3, total=9); os._exit(0)", "failed", 6, "restoring 3 of 9 frames"),
        ("sys.stderr.write('noise\\n' * 500_000 + 'last words'); os._exit(0)", "failed", 6, "last words"),
        *(
            (f"print(json.dumps({{'error': '{error}', 'message': 'why', 'exit_code': {number}}})); sys.exit({number})",
             kind, number, "why")
            for error, number, kind in (
                ("ConfigError", 2, "refused"), ("FormatError", 3, "refused"), ("DamagedError", 3, "damaged"),
                ("DeviceError", 4, "machine"), ("OutputError", 5, "machine"), ("IncompleteError", 6, "failed"),
                ("BusyError", 7, "busy"), ("WeightsError", 8, "machine"),
            )
        ),
        # An error that it reported, and another end: a library has ended it.
        ("print(json.dumps({'error': 'ConfigError', 'message': 'why', 'exit_code': 2})); os._exit(0)", "failed", 6,
         "as if all were well"),
    ],
)  # fmt: skip
def test_every_end_without_an_output_has_its_verdict_and_leaves_nothing(
    tmp_path: Path,
    job: RestoreJob,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    kind: Verdict,
    exit_code: int,
    cause: str,
) -> None:
    part_path(job.target, 1).touch()  # of the process, as it could not clear up
    program(monkeypatch, code)
    outcome = supervise(job)
    assert (outcome.verdict, outcome.code, outcome.record) == (kind, exit_code, None)
    assert cause in outcome.cause
    assert len(outcome.cause) < 100_000
    assert outcome.to_json() == {"error": outcome.error, "message": outcome.cause, "exit_code": exit_code}
    assert [path.name for path in tmp_path.iterdir()] == ["film.mkv"]


PUBLISH = """
target.write_text('restored')
os.replace(job['source'] + '.record', str(target) + '.vsfmanet.json')
"""


@pytest.mark.parametrize(
    ("end", "warned"),
    [("", False), ("os._exit(3)", True), ("os.kill(os.getpid(), signal.SIGKILL)", True)],
)
@pytest.mark.parametrize("told", [True, False])
def test_an_output_that_is_published_counts_however_the_process_ended(
    job: RestoreJob, monkeypatch: pytest.MonkeyPatch, end: str, warned: bool, told: bool
) -> None:
    record = record_of(job, "restored")
    write_record(record, Path(f"{job.source}.record"))
    tell = f"sys.stdout.write(json.dumps({{'output_sha256': '{record.output_sha256}'}})); sys.stdout.flush()\n"
    program(monkeypatch, PUBLISH + (tell if told else "") + end)
    outcome = supervise(job)
    assert (outcome.code, outcome.verdict, outcome.record) == (0, "done", record)
    assert bool(outcome.warnings) == warned


def test_a_process_that_dies_between_the_name_and_the_record_has_done_its_job(
    job: RestoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(job, "restored")
    write_pending(record, pending_path(part_path(job.target, 1)))
    program(monkeypatch, "target.write_text('restored'); os.kill(os.getpid(), signal.SIGKILL)")
    assert supervise(job).record == record
    assert record_path(job.target).is_file()


@pytest.mark.parametrize("code", ["os._exit(0)", "target.write_text('other bytes')", "target.unlink()"])
def test_an_older_output_or_a_changed_one_does_not_pass_for_a_new_one(
    job: RestoreJob, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    record = record_of(job, "older")
    job.target.write_text("older")
    write_record(record, record_path(job.target))
    program(monkeypatch, code)
    assert supervise(job).verdict == "failed"


def test_a_new_record_counts_only_beside_the_bytes_that_were_verified(
    job: RestoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(record_of(job, "restored"), Path(f"{job.source}.record"))
    program(monkeypatch, PUBLISH + "target.write_text('RESTORED')")
    assert supervise(job).verdict == "failed"


def test_warnings_are_kept_and_events_are_passed_on(job: RestoreJob, monkeypatch: pytest.MonkeyPatch) -> None:
    program(
        monkeypatch,
        "say('warning', text='look'); say('note', text='so far'); say('phase', name='reading')\n"
        "print('{', file=sys.stderr)",
    )
    heard: list[Event | bytes] = []
    outcome = supervise(job, hear=heard.append)
    assert outcome.warnings == ("look",)
    assert [each if isinstance(each, bytes) else each["event"] for each in heard] == [
        "warning",
        "note",
        "phase",
        b"{\n",
    ]
    assert outcome.cause.endswith("Its last words were:\nlook\nso far\n{")


def test_a_process_that_hangs_is_stopped_with_what_it_has_started(
    tmp_path: Path, job: RestoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "GRACE", 0.2)
    program(
        monkeypatch,
        "import subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "Path(job['source'] + '.pid').write_text(str(child.pid))\n"
        "say('phase', name='trying the encoder')\n"
        "while True: pass  # busy, as an encoder whose filter never ends keeps it",
    )
    outcome = supervise(job, stall_limit=2.5)
    assert outcome.code == 6
    assert (
        "no progress for 0.5 s (--stall-limit), so that the job was stopped while trying the encoder" in outcome.cause
    )
    assert is_gone(int((tmp_path / "film.mkv.pid").read_text()))


def is_gone(pid: int) -> bool:
    """Whether a process has ended; its number may stay until somebody asks for its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_limit_must_be_above_0(job: RestoreJob) -> None:
    with pytest.raises(ConfigError, match="stall limit above 0 s is needed, got 0"):
        supervise(job, stall_limit=0)


# When a job has come to a halt


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def until_overdue(self, watch: Watch, *, works: bool, seconds: float = 4000, step: float = 1.0) -> float | None:
        """Seconds until a watch with a limit of 10 s has had enough; None if it has not within `seconds`."""
        begun = self.now
        while self.now - begun < seconds:
            self.now += step
            if watch.overdue(10, lambda: works * (self.now - begun)) is not None:
                return self.now - begun
        return None


def progress(done: int, total: int = 9) -> Event:
    return {"event": "progress", "step": "restoring", "done": done, "total": total}


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize(
    ("events", "idle", "working"),
    [
        ([], 31, 31),  # it loads libraries and a network: three times the limit, and no use of the processor helps
        ([{"event": "phase", "name": "reading"}], 11, 1001),  # a long film takes long to read, but not for ever
        ([{"event": "phase", "name": "trying the encoder"}], 3, 3),
        ([progress(3)], 11, 11),  # a lost device keeps a processor busy with waiting
        ([progress(9)], 11, 1001),  # it checks what it has made
        ([progress(9), {"event": "phase", "name": "finishing"}], 31, 31),
    ],
)
def test_each_phase_has_a_limit_of_its_own(
    monkeypatch: pytest.MonkeyPatch, events: list[Event], idle: float, working: float, works: bool
) -> None:
    clock, watch = Clock(monkeypatch), Watch()
    for event in events:
        watch.note(event)
    assert clock.until_overdue(watch, works=works) == (working if works else idle)


def test_only_another_frame_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Clock(monkeypatch), Watch()
    for done in (1, 2, 3):
        watch.note(progress(done))
        assert clock.until_overdue(watch, works=False, seconds=9) is None
    watch.note(progress(3))
    watch.note({"event": "note", "text": "still here"})
    assert clock.until_overdue(watch, works=False) == 2


def test_time_in_which_everything_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Clock(monkeypatch), Watch()
    watch.note(progress(1))
    assert clock.until_overdue(watch, works=False, seconds=300, step=100) is None


def test_outcomes_of_the_machine_are_told_apart() -> None:
    assert [Outcome(code=code).verdict for code in range(9)] == [
        "done", "bug", "refused", "refused", "machine", "machine", "failed", "busy", "machine",
    ]  # fmt: skip


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file()
    or "[madvise]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii"),
    reason="the system gives huge pages to those that ask",
)
def test_a_job_asks_for_huge_pages() -> None:
    look = "kept = b'x' * (64 << 20); print('hg' in ' '.join(open('/proc/self/smaps').read().split()).split(' '))"
    plain, asked = (
        subprocess.run(
            [sys.executable, "-c", look], env=os.environ | more, check=True, capture_output=True, text=True
        ).stdout.strip()
        for more in ({"GLIBC_TUNABLES": ""}, KEPT_BUFFERS)
    )
    assert (plain, asked) == ("False", "True")


def test_where_to_terminate_is_to_kill_the_encoder_and_the_part_file_go_too(
    job: RestoreJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows: the process has no time to clear up."""
    code = (
        "import subprocess\n"
        "encoder = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "say('note', text=str(encoder.pid))\n"
        "time.sleep(60)\n"
    )
    program(monkeypatch, code)
    heard: list[int] = []
    temporary = TemporaryFolder()
    process = supervision.Process(
        [*supervision.PROGRAM], job=job, temporary=temporary, own_group=True,
        hear=lambda event: heard.append(int(event["text"])) if not isinstance(event, bytes) else None,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not heard:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    encoder = psutil.Process(heard[0])
    part_path(job.target, 1).touch()
    monkeypatch.setattr(sys, "platform", "win32")
    process.stop()
    monkeypatch.undo()
    light.wait_until_gone(encoder)
    assert nothing_but(tmp_path, "film.mkv")
