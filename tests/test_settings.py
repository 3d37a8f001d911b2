"""The user's choices as values: what they refuse, and that JSON carries them unchanged."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import vsfmanet
from vsfmanet.errors import ConfigError, VsfmanetError
from vsfmanet.jobs.job import RestoreJob
from vsfmanet.settings import RestoreSettings

JOB = RestoreJob(
    source=Path(os.fsdecode(b"in \xe4.mkv")),
    target=Path("out.mkv"),
    settings=RestoreSettings(
        model="other",
        height=480,
        width=640,
        exposure=Path("film.csv"),
        source_path=Path("camera.mp4"),
        device="cuda",
        device_index=(1, 0),
        precision="bf16",
        backend="onnx",
        provider="cpu",
        tile=(64, 48),
        segment=3,
        sc_threshold=0.25,
        output_format=3,
        strength="Strength",
        grain=0.5,
        shutter=0.5,
        self_check=True,
        skip=True,
    ),
    start=1,
    end=9,
    preset="prores",
    bit_depth=12,
    encoder_args="-crf 20 -x 'a b'",
    audio_from=Path("film.mkv"),
    audio=False,
    subtitles=False,
    attachments=False,
    on_damage="as-is",
    deinterlace=True,
    overwrite=True,
    range_frames=77,
    reserve=1.5,
    ffmpeg=Path("ffmpeg"),
)
"""No field has its default."""


def through_json(job: RestoreJob) -> RestoreJob:
    return RestoreJob.from_json(json.loads(json.dumps(job.to_json()).encode("ascii")))


def test_the_filter_has_the_arguments_and_defaults_of_the_settings() -> None:
    parameters = list(inspect.signature(vsfmanet.restore).parameters.values())[1:]
    assert {parameter.name: parameter.default for parameter in parameters} == {
        field.name: field.default for field in fields(RestoreSettings)
    }


def test_a_job_survives_json_with_names_that_are_no_text() -> None:
    scaled = replace(JOB, settings=replace(JOB.settings, height=None, width=None, scale=1.5))
    pictures = RestoreJob(source=Path("in/%03d.png"), target=Path("out/%03d.png"), fps="24000/1001", start_number=3)
    for job in (JOB, scaled, pictures, RestoreJob(source=Path("in.mkv"), target=Path("out.mkv"))):
        back = through_json(job)
        expected = replace(
            job,
            settings=replace(
                job.settings,
                exposure=str(job.settings.exposure),
                source_path=job.settings.source_path and str(job.settings.source_path),
            ),
        )
        assert back == expected
    default = RestoreJob(source=Path("in.mkv"), target=Path("out.mkv"))
    for value in (JOB, JOB.settings):
        plain: Any = default if isinstance(value, RestoreJob) else default.settings
        assert all(
            getattr(value, field.name) != getattr(plain, field.name)
            for field in fields(plain)
            if field.name not in ("target", "scale", "fps", "start_number")  # the three exclude others
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crf": 20}, "RestoreJob has no crf; known are source, "),
        ({"settings": {"modle": "x"}}, "RestoreSettings has no modle; known are model, "),
        ({"settings": []}, "RestoreSettings must be a JSON object, got list"),
        ({"source": 3}, "RestoreJob has a value of the wrong type: "),
        ({"audio": "no"}, "audio must be True or False, got 'no'"),
        ({"start": 1.5}, "0 <= start < end is needed, got 1.5 to None"),
        ({"end": True}, "0 <= start < end is needed, got 0 to True"),
        ({"start": "0:01:00", "end": "60s"}, "0 <= start < end is needed, got 0:01:00 to 60s"),
        ({"start": "1.5"}, "a frame number or a time is needed, such as 1500, 0:01:00.5 or 60.5s, got '1.5'"),
        ({"encoder_args": ["-crf", "20"]}, "encoder_args must be one string"),
        ({"preset": "best"}, "preset must be one of 'default', 'archive', 'hevc10', 'av1', 'prores', 'nvenc', 'qsv', "),
        ({"bit_depth": 9}, "bit_depth must be one of 8, 10, 12, 16, got 9"),
        ({"preset": "av1", "encoder_args": "-c:v ffv1"}, "either a preset or an encoder is needed, got --preset av1"),
        ({"on_damage": "ignore"}, "on_damage must be one of 'stop', 'salvage', 'as-is', got 'ignore'"),
        ({"range_frames": -1}, "range_frames must be a number of frames, or 0 for one pass, got -1"),
        ({"reserve": "2"}, "reserve must be a number of GiB from 0, got '2'"),
        ({"reserve": float("nan")}, "reserve must be a number of GiB from 0, got nan"),
        ({"settings": {"device": "tpu"}}, "device must be one of 'auto', 'cpu', 'cuda', got 'tpu'; choose one"),
        ({"settings": {"precision": "int8"}}, "precision must be one of 'auto', 'fp32', 'bf16', 'fp16', got 'int8'"),
        ({"settings": {"backend": "jax"}}, "backend must be one of 'auto', 'torch', 'onnx', 'tensorrt', got 'jax'"),
        ({"settings": {"device_index": []}}, "device_index must be a whole number, or several different ones"),
        ({"settings": {"tile": [64, 15]}}, r"tile must be \(width, height\) of at least 16 input pixels each, got"),
        ({"settings": {"tile": 64}}, r"tile must be \(width, height\)"),
        ({"settings": {"segment": "3"}}, "segment must be a whole number of frames from 1 to 64, got '3'"),
        ({"settings": {"exposure": "much"}}, 'exposure must be "auto" or a number in'),
        ({"settings": {"height": 0}}, "height must be a whole number of pixels from 8, got 0"),
        ({"settings": {"width": 1920.0}}, r"width must be a whole number of pixels from 8, got 1920\.0"),
        ({"settings": {"scale": 0}}, "scale must be a number above 0 and up to 16, got 0"),
        ({"settings": {"scale": 1080}}, "scale must be a number above 0 and up to 16, got 1080"),
        ({"settings": {"scale": 2, "height": 480}}, "either scale or height and width are needed, got both"),
        ({"settings": {"strength": 1.5}}, r"strength must be a number from 0 to 1, got 1\.5"),
        ({"settings": {"strength": True}}, "strength must be a number from 0 to 1, got True"),
        ({"settings": {"strength": None}}, "strength must be a number from 0 to 1, got None"),
        ({"settings": {"grain": -0.1}}, r"grain must be a number from 0 to 4, got -0\.1"),
        ({"settings": {"grain": "much"}}, "grain must be a number from 0 to 4, got 'much'"),
        ({"settings": {"shutter": 0}}, r"shutter must be a number in \(0, 1\], got 0"),
        ({"settings": {"shutter": 180}}, r"shutter must be a number in \(0, 1\], got 180"),
        ({"settings": {"self_check": "yes"}}, "self_check must be True or False, got 'yes'"),
        ({"settings": {"skip": 1}}, "skip must be True or False, got 1"),
    ],
)
def test_what_json_must_not_hold_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(VsfmanetError, match=f"^{message}"):
        RestoreJob.from_json({"source": "in.mkv", "target": "out.mkv", **change})


@pytest.mark.parametrize("table", [None, "in.mkv", []])
def test_a_job_is_an_object(table: object) -> None:
    with pytest.raises(ConfigError, match=r"^RestoreJob must be a JSON object"):
        RestoreJob.from_json(table)


def test_a_job_needs_its_files() -> None:
    with pytest.raises(ConfigError, match=r"^RestoreJob needs target"):
        RestoreJob.from_json({"source": "in.mkv"})


def test_a_function_cannot_be_written_as_json() -> None:
    with pytest.raises(ConfigError, match=r"^exposure must be a value that a file can hold, got a function"):
        RestoreSettings(exposure=lambda n, props: 0.5).to_json()
    with pytest.raises(ConfigError, match=r"^strength must be a value that a file can hold, got a function"):
        RestoreSettings(strength=lambda n, props: 0.5).to_json()


def test_settings_and_jobs_load_nothing_heavy() -> None:
    script = "import sys, vsfmanet.jobs.job; print({'torch', 'vapoursynth', 'av', 'numpy', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"
