"""Checks of configurations, which may come from a file that somebody else wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from vsfmanet.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check_fields(config: DataclassInstance, least: Mapping[str, int] | None = None) -> None:
    """Check the type of every field of a configuration, and that no size is below 1.

    Args:
        config: Dataclass whose fields are `int`, `float`, `bool` or a `Literal` of strings.
        least: Smallest value of the integers for which it is not 1, by name.

    Raises:
        ConfigError: A field has another type, an integer is too small, or a float is not finite.
    """
    for name, hint in get_type_hints(type(config)).items():
        value: Any = getattr(config, name)
        if get_origin(hint) is Literal:
            *most, last = get_args(hint)
            if not isinstance(value, str) or value not in (*most, last):
                raise ConfigError(f"{name} must be {', '.join(most)} or {last}, got {value!r}")
        elif hint is bool and type(value) is not bool:
            raise ConfigError(f"{name} must be true or false, got {value!r}")
        elif hint is int and (type(value) is not int or value < (least or {}).get(name, 1)):
            raise ConfigError(f"{name} must be a whole number of at least {(least or {}).get(name, 1)}, got {value!r}")
        elif hint is float and not (type(value) in (int, float) and math.isfinite(value)):
            raise ConfigError(f"{name} must be a finite number, got {value!r}")
