"""Command-line options made from the fields of `TrainConfig`.

Name, type, default and help of an option are those of the field, so that a setting is written once.
An option that is not given is None here: a preset's value or the run's own stands in its place.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fastgan.training.config import TrainConfig

_TYPES = {"int": int, "float": float, "bool": bool, "str": str}


def with_settings(
    *, resuming: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that takes `**settings` one option for each field of `TrainConfig`.

    `resuming` leaves those that a resumed run may not change out of the help; they are accepted,
    so that the refusal can name them.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters = own + [
            _parameter(field, resuming)
            for field in dataclasses.fields(TrainConfig)
            if field.name != "data"
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """Only the settings that stood on the command line."""
    return {name: value for name, value in settings.items() if value is not None}


def _parameter(field: dataclasses.Field[Any], resuming: bool) -> inspect.Parameter:
    rules = field.metadata
    kind = _TYPES.get(str(field.type).removesuffix(" | None"), str)
    flag = field.name.replace("_", "-")
    # A switch needs its opposite where it is on by default, or may be on in the run resumed.
    both_ways = kind is bool and (field.default or rules["resumable"])
    option = typer.Option(
        f"--{flag}/--no-{flag}" if both_ways else f"--{flag}",
        help=rules["help"] if rules["help"].endswith(".") else rules["help"] + ".",
        show_default=False if resuming else _default_text(field.default),
        hidden=resuming and not rules["resumable"],
        rich_help_panel="Run (may change on resume)" if rules["resumable"] else "Hyperparameters",
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _default_text(default: Any) -> str | bool:
    if default is None:
        return False
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        separator = "x" if isinstance(default[0], int) else ","
        return separator.join(str(part) for part in default)
    return f"{default:g}" if isinstance(default, float) else str(default)
