"""`vsfmanet completion`."""

from typing import Annotated, Literal

from cyclopts import App, Parameter

from vsfmanet.cli.terminal import put, tell
from vsfmanet.errors import OutputError

NOTES = """\
Without --install, the script is printed, for a place of your own.

Examples:

    vsfmanet completion bash --install
    eval "$(vsfmanet completion zsh)"
    vsfmanet completion powershell >> $PROFILE
"""

app = App(name="completion", help_epilogue=NOTES)


@app.default
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish", "powershell"], Parameter(name="SHELL")],
    /,
    *,
    install: bool = False,
) -> int:
    """Complete commands and options in a shell.

    Args:
        shell: The shell.
        install: Write the script to the folder where this shell looks for it, and add a line to its start-up file.
    """
    from vsfmanet.cli import grammar

    program = grammar()
    if not install:
        put(program.generate_completion(shell=shell))
        return 0
    try:
        path = program.install_completion(shell=shell)
    except OSError as error:
        raise OutputError(
            f"the script must be written, but {error}; print it without --install, and put it elsewhere"
        ) from error
    tell(f"{path} is there; open a new {shell} to use it")
    return 0
