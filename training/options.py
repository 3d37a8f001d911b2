"""Options of commands: arguments and fields of dataclasses, with docstrings as help."""

import sys
from collections.abc import Callable
from pathlib import Path

from cyclopts import App, Parameter

FLAT = Parameter(name="*")
"""Decorator of a dataclass of options: each of its fields is an option of the command."""

SEVERAL = Parameter(consume_multiple=True)
"""An option that takes one value or more: `--name A B`. Without it, the option is repeated."""


def _shown_default(value: object) -> str | None:
    """Format a default for the help; None hides it."""
    return None if value in (None, False, "", (), float("inf")) else str(value)


PARAMETERS = Parameter(negative_bool="", negative_iterable="", show_default=_shown_default, allow_repeating=True)
"""Defaults of all options: switches have no --no-... form, and the last value of an option counts."""


def command(function: Callable[..., object], about: str | None) -> Callable[[], None]:
    """Turn a function into the `main` of a script, which calls it with the options of the command line.

    Args:
        function: Takes files as positional-only arguments, if any, options as keywords, and dataclasses decorated by
            `FLAT`. Docstrings are the help.
        about: Head of the help: the docstring of the script.
    """

    def main() -> None:
        app = App(
            name=f"python -m training.{Path(sys.argv[0]).stem}",
            help=about,
            help_format="plaintext",
            version_flags=(),
            default_parameter=PARAMETERS,
            result_action="return_value",
        )
        app.default(function)
        app(sys.argv[1:])

    return main
