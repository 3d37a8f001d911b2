"""`vsfmanet doctor`."""

from dataclasses import asdict
from typing import Annotated

from cyclopts import App, Parameter

from vsfmanet.cli.terminal import print_json, put

NOTES = """\
Prints what is found, what is missing, and the command that mends it. Exits with 0 if all that a job needs is there,
else with the exit code that a job would have.
"""

app = App(name="doctor", help_epilogue=NOTES)


@app.default
def doctor(*, as_json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Check the installation.

    Args:
        as_json: Print the checks as JSON, for programs.
    """
    from vsfmanet.doctor import examine

    checks = examine()
    missing = [check for check in checks if not check.found and check.exit_code]
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        verdict = f"missing: {', '.join(check.name for check in missing)}" if missing else "all essentials are there"
        put("".join(f"{line}\n" for line in (*checks, verdict)))
    return missing[0].exit_code if missing else 0
