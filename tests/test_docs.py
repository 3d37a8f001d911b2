"""The documentation against what it describes: links, options, defaults, models, and the README's own commands."""

from __future__ import annotations

import dataclasses
import inspect
import io
import os
import re
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import av
import pytest

import vsfmanet
from vsfmanet.cli import main
from vsfmanet.jobs.job import STALL_LIMIT, RestoreJob
from vsfmanet.media.ffmpeg import find_ffmpeg
from vsfmanet.settings import RestoreSettings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md"), ROOT / "tests" / "FAULTS.md"])
COMMANDS = ("restore", "batch", "cluster", "compare", "verify", "probe", "models", "doctor", "completion")
ENGINES = ("ray", "slurm", "kubernetes", "run")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

VSPIPE = {"--requests", "--timecodes"}
OTHERS = {
    *VSPIPE,
    *("--hwdec", "--vf"),  # of mpv
    *("--help", "--nproc-per-node", "--threads"),  # of any command, torchrun, scripts/benchmark.py
    "--requeue",  # of Slurm
    *("--rm", "--tag", "--target", "--user"),  # of docker
    *("--clip", "--no-sharp", "--crop", "--out"),  # of scripts/make_picture.py
}
"""Options in the documentation that belong to other programs."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """Markdown without its fenced blocks and code spans, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@cache
def help_of(*command: str) -> str:
    """What `vsfmanet COMMAND --help` prints, as users see it."""
    with redirect_stdout(io.StringIO()) as printed:
        assert main([*command, "--help"]) == 0
    return printed.getvalue()


@cache
def options_of(*command: str) -> frozenset[str]:
    """The options that a command's help defines, one a line; not those of its examples."""
    heads = re.findall(r"^\W*?((?:--[a-z][a-z-]+ )+)", help_of(*command), re.MULTILINE)
    return frozenset(option for head in heads for option in head.split())


def documented(text: str) -> set[str]:
    """The options that a text names; --no-sound stands for --sound too, which is the default."""
    named = set(OPTION.findall(text))
    return named | {option.replace("--no-", "--", 1) for option in named}


def section(page: str, heading: str) -> str:
    """A section of a page, from its heading to the next of the same or a higher rank."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text_of(page), re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {heading!r}"
    return found[2]


def table_rows(text: str) -> list[list[str]]:
    """The rows of all tables, without headings and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = {n for n, row in enumerate(rows) if all(set(cell) <= set("-: ") for cell in row)}
    return [row for n, row in enumerate(rows) if n not in rules and n + 1 not in rules]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target}: no such file"
        assert linked.is_relative_to(ROOT), f"{target}: outside the project"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{target}: no such heading"


@pytest.mark.parametrize("page", ["docs/restore.md", "docs/archive.md", "docs/models.md", "docs/vapoursynth.md"])
def test_every_option_in_the_documentation_exists(page: str) -> None:
    own = {"--help", *(option for command in COMMANDS for option in options_of(command))}
    own |= {option for engine in ENGINES for option in options_of("cluster", engine)}
    own |= options_of("engines", "build")
    assert set(OPTION.findall(text_of(page))) - own <= OTHERS


def test_the_options_of_vspipe_exist() -> None:
    program = Path(sys.executable).with_name("vspipe")
    run = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    assert set(OPTION.findall(run.stdout + run.stderr)) >= VSPIPE | {"--json", "--arg"}


@pytest.mark.parametrize(
    "command", ["vsfmanet restore", "vsfmanet batch", "vsfmanet compare", "vsfmanet probe", "vsfmanet verify"]
)
def test_every_example_command_takes_its_options(command: str) -> None:
    name = command.split()[1]
    for page in PAGES:
        code = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
        for line in re.findall(rf"^{command} .*$", code.replace("\\\n", " "), re.MULTILINE):
            given = re.sub(r'--encoder-args="[^"]*"', "--encoder-args", line.partition("#")[0])
            assert set(OPTION.findall(given)) <= options_of(name), f"{page.name}: {line}"


def test_every_option_of_restore_is_documented_and_what_batch_and_cluster_add() -> None:
    restore = text_of("docs/restore.md")
    assert options_of("restore") - {"--help"} <= documented(restore)
    archive = text_of("docs/archive.md")
    added = options_of("batch") - options_of("restore")
    added |= {option for engine in ENGINES for option in options_of("cluster", engine)} - options_of("restore")
    assert added <= documented(archive)
    assert options_of("engines", "build") <= documented(text_of("docs/vapoursynth.md")) | {"--help"}
    assert options_of("probe") | options_of("verify") | options_of("compare") <= documented(restore) | {"--help"}


def test_the_defaults_of_options_are_those_of_their_fields() -> None:
    fields = [*dataclasses.fields(RestoreSettings), *dataclasses.fields(RestoreJob)]
    defaults = {f"--{field.name.replace('_', '-')}": field.default for field in fields}
    defaults |= {"--stall-limit": STALL_LIMIT, "--progress": "auto", "--json": False}
    words = {"None": None, "": None, "False": "off", "True": "copied"}  # None: described in other words
    for row in table_rows(section("docs/restore.md", "Options")):
        for option in OPTION.findall(row[0]):
            default = defaults[option.replace("--no-", "--")]
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            assert words.get(shown, shown) in (None, row[1].strip("`")), option


@pytest.mark.parametrize("name", [name for name in vsfmanet.__all__ if name != "__version__"])
def test_every_argument_is_documented_with_its_default(name: str) -> None:
    documented = section("docs/vapoursynth.md", f"`{name}({'clip, *, ...' if name != 'models' else ''})`")
    rows = {row[0].strip("`"): row[1] for row in table_rows(documented) if len(row) >= 3}
    parameters = inspect.signature(getattr(vsfmanet, name)).parameters.values()
    expected = {
        parameter.name: f"`{parameter.default!r}`".replace("'", '"')
        for parameter in parameters
        if parameter.default is not inspect.Parameter.empty
    }
    assert {key: value for key, value in rows.items() if key in expected} == expected


def test_the_table_of_models_lists_those_of_the_manifest() -> None:
    manifest = tomllib.loads(text_of("models/manifest.toml"))
    shipped = {model["name"] for model in manifest["model"]}
    assert set(re.findall(r"^\| `(\w+_x\d\w*)` \|", text_of("docs/models.md"), re.MULTILINE)) == shipped
    assert shipped <= set(re.findall(r"\.\./models/(\w+)\.md", text_of("docs/models.md")))
    for name in shipped:
        assert (ROOT / "models" / f"{name}.md").is_file()


def test_the_gains_in_the_table_of_models_are_those_that_the_command_prints() -> None:
    from vsfmanet.manifest import list_models

    for entry in list_models():
        gains = [entry.gain(condition) for condition in ("5_1", "5_5", "re")]
        shown = ", ".join(f"{gain:+.2f}" for gain in gains if gain is not None)
        [row] = re.findall(rf"^\| `{entry.name}` \|.*\| (.*) \|$", text_of("docs/models.md"), re.MULTILINE)
        assert row == shown, entry.name


def test_every_exit_code_is_documented() -> None:
    from vsfmanet import errors

    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VsfmanetError)
    ]
    codes = {kind.exit_code for kind in kinds} | {0}
    rows = {row[0] for row in table_rows(section("docs/restore.md", "Exit codes"))}
    assert rows == {*map(str, codes), "128 + n"}


def test_the_pages_name_no_machine_and_no_registry() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        places = r"/[w]ork/|/home/|/root/|python[h]osted|py[p]i\.org/simple|download\.py[t]orch"
        assert not re.search(places, text), page.name


NOT_RUN = "<!-- not run by the tests: "
"""Goes before a block of the README that is not run, with the reason."""


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks that are to be run, in order: language and content."""
    found = re.findall(r"^(<!-- .* -->\n)?```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(language, code) for comment, language, code in found if not comment.startswith(NOT_RUN)]


def test_the_readme_is_short_and_all_of_its_commands_but_the_installation_are_run() -> None:
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= 120
    assert readme.count(NOT_RUN) == 1
    assert {language for language, _ in blocks(readme)} == {"bash", "python"}


@pytest.mark.skipif(
    sys.platform != "linux", reason="the README's blocks are for bash, and VSScript is set up for one test"
)
@pytest.mark.timeout(1200)
def test_the_commands_of_the_readme_work_one_after_the_other(tmp_path: Path) -> None:
    """In a folder like the repository, with a smaller example clip: 48 frames as there, of 48x32 pixels."""
    ffmpeg = find_ffmpeg().path
    programs, examples = tmp_path / "bin", tmp_path / "scripts" / "examples"
    programs.mkdir()
    examples.mkdir(parents=True)
    (programs / "ffmpeg").symlink_to(ffmpeg)
    clip = "scripts/examples/dragonfly.mkv"
    sound = ["-f", "lavfi", "-i", "sine=duration=2", "-c:a", "aac"]
    subprocess.run(
        [ffmpeg, "-v", "error", "-i", ROOT / clip, *sound, "-vf", "scale=48:32", "-c:v", "libx264", tmp_path / clip],
        check=True,
    )
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    subprocess.run(["vapoursynth", "config"], env=environment, check=True, capture_output=True)
    for language, code in blocks(text_of("README.md")):
        if language == "python":
            (tmp_path / "script.vpy").write_text(code)
            continue
        command = ["bash", "-e", "-c", code]
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{code}\n{run.stderr}"
        assert "Traceback" not in run.stderr

    made = {"restored.mkv": 48, "script.mkv": 48, "part.mkv": 12, "archive/film.mkv": 48}
    for name, frames in made.items():
        with av.open(str(tmp_path / name)) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height) == (192, 128), name
            assert sum(1 for _ in container.decode(stream)) == frames, name
            assert len(container.streams.audio) == 1, name


def test_the_commands_and_options_of_training_exist() -> None:
    """By the text of the code: to import each command takes seconds."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("training/**/*.py"))
    pages = [ROOT / "docs" / "training.md", ROOT / "docs" / "benchmarks.md", *ROOT.glob("models/*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for module in re.findall(r"\btraining\.(\w+)", text):
            assert (ROOT / "training" / f"{module}.py").is_file(), f"{page.name}: training.{module}"
        commands = re.findall(r"(?:python -m training\.\w+|\$train) ([^\n`]*)", text) + re.findall(r"`(--[^`]*)`", text)
        for option in {option for command in commands for option in OPTION.findall(command)} - OTHERS:
            field = option.removeprefix("--").replace("-", "_")
            assert re.search(rf'"{option}"|"{field}"|\b{field}:', code), f"{page.name}: {option}"


def test_the_design_names_everything_in_the_package() -> None:
    places = {row[0] for row in table_rows(section("docs/design.md", "The house"))} - {"Place"}
    named = {name.rstrip("/") for place in places for name in re.findall(r"`([\w/]+)`", place)}
    package = ROOT / "vsfmanet"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    assert named == modules | {path.parent.name for path in package.glob("*/__init__.py")}


def test_the_modules_that_the_design_names_exist() -> None:
    for name in re.findall(
        r"`((?:clips|streams|engines|jobs|media|cli|networks|ops)\.\w+)`", text_of("docs/design.md")
    ):
        assert (ROOT / "vsfmanet" / f"{name.replace('.', '/')}.py").is_file(), name
