"""`vsfmanet doctor`."""

from cyclopts import App

from vsfmanet.cli.terminal import put

app = App(
    name="doctor",
    help_epilogue="Shows what is found, what is not, and what to do. Exits with 0 if all that a job needs is there.",
)


@app.default
def doctor() -> int:
    """Check the installation."""
    from vsfmanet.doctor import examine

    checks = examine()
    for check in checks:
        put(f"{check}\n")
    lacking = [check for check in checks if not check.found and check.exit_code]
    verdict = f"missing: {', '.join(check.name for check in lacking)}" if lacking else "all essentials are there"
    put(f"{verdict}\n")
    return lacking[0].exit_code if lacking else 0
