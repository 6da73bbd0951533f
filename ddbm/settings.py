"""The mechanism of settings: a frozen dataclass is command line flags, JSON and checkpoint header in one.

Unknown names are refused everywhere, so that a typo never becomes a silent default.
"""

import argparse
import dataclasses
import difflib
import math
import reprlib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, NoReturn, TypeVar

T = TypeVar("T")
Marks = Mapping[str, float | str]  # what tells a data set from others: numbers, digests, means


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    above: float | None = None,
    below: float | None = None,
    signed: bool = False,
    changes: str = "",
) -> Any:
    """A field with its default, the help text of its flag, and the values it may take (numbers: 0 or more).

    changes: what another value would change in a run or sampling that goes on: the "images" that come out, the "state"
    that is saved, or "nothing" of both; empty: what its section says.
    """
    limits = {"help": help, "choices": choices, "above": above, "below": below, "signed": signed, "changes": changes}
    return field(default=default, metadata=limits)


def hint(word: object, known: Iterable[str]) -> str:
    """`; did you mean NAME?` for a name in another case, those that begin with the word, or the one most like it."""
    names = {_plain(name): name for name in known}
    plain = _plain(word)
    near = [plain] if plain in names else [name for name in names if plain and name.startswith(f"{plain}_")]
    near = near or difflib.get_close_matches(plain, names, 1)
    return f"; did you mean {' or '.join(names[name] for name in near)}?" if near else ""


def _plain(name: object) -> str:
    return str(name).casefold().replace("-", "_")


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not in a table."""
    return ValueError(f"unknown {kind} '{name}': known are {', '.join(known)}{hint(name, known)}")


def choose(table: dict[str, T], name: str, kind: str) -> T:
    """`table[name]`, or a ValueError that lists the known names."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


class Settings:
    """Base of all groups of settings: refuses values outside the limits of their fields."""

    CHANGES: ClassVar[str] = "images"  # of the fields that do not say

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value, limits = getattr(self, f.name), f.metadata
            if limits.get("choices") and value not in limits["choices"]:
                raise unknown(f.name, value, limits["choices"])
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    _check_number(f.name, number, limits)


def _check_number(name: str, value: float, limits: Mapping[str, Any]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"--{name} must be a finite number, found {value}")
    if limits["above"] is not None and value <= limits["above"]:
        raise ValueError(f"--{name} must be above {limits['above']}, found {value}")
    if limits["above"] is None and not limits["signed"] and value < 0:
        raise ValueError(f"--{name} must be 0 or more, found {value}")
    below = 2**63 if limits["below"] is None and isinstance(value, int) else limits["below"]
    if below is not None and value >= below:
        raise ValueError(f"--{name} must be below {below}, found {value}")


to_dict = dataclasses.asdict


def from_dict(cls: type[T], values: dict[str, Any], where: str = "config") -> T:
    """The dataclass `cls` from its JSON form; unknown keys and wrong types are refused by name.

    A setting that is missing was unknown to the version that wrote the file, and its default is what that version did.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a table of settings, found {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {name: value for name, value in values.items() if name not in getattr(cls, "RETIRED", ())}
    if extra := set(values) - names:
        raise ValueError(f"{where}: unknown settings {', '.join(sorted(extra))}; written by a newer version?")
    read: dict[str, Any] = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            read[name] = from_dict(kind, value, f"{where}.{name}")  # type: ignore[arg-type]
            continue
        if typing.get_origin(kind) is tuple:  # a number, where an older version had only one
            value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        plain = typing.get_origin(kind) or kind
        allowed = (int, float) if plain is float else plain
        if isinstance(value, bool) != (plain is bool) or not isinstance(value, allowed):
            raise ValueError(f"{where}.{name}: expected {plain.__name__}, found {reprlib.repr(value)}")
        read[name] = value
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    if lost := [name for name in required if name not in read]:
        raise ValueError(f"{where} is damaged: it lacks {', '.join(lost)}")
    return cls(**read)


def section_names(config: Any) -> list[str]:
    """The names of a config's sub-dataclasses."""
    return [f.name for f in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, f.name))]


def sections(config: Any) -> list[Any]:
    """The parts of a config whose fields are flags: its sub-dataclasses, or itself."""
    return [getattr(config, name) for name in section_names(config)] or [config]


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments; what is unknown among them is a ValueError too."""
        known, rest = self.parse_known_args(list(argv))
        if rest:
            word = rest[0].split("=")[0]
            if not word.startswith("--"):
                raise ValueError(f"unexpected argument '{rest[0]}': settings are given as --name value")
            flags = [flag for action in self._actions for flag in action.option_strings]
            raise ValueError(f"unknown flag {word}{hint(word, flags) or '; --help lists all'}")
        return known


def _type(kind: Any) -> tuple[str, Callable[[str], Any]]:
    """How the type of a setting is called, and what reads its flag."""
    if typing.get_origin(kind) is tuple:
        number = typing.get_args(kind)[0]
        return f"list of {number.__name__}", lambda text: tuple(number(v) for v in text.split(",") if v)
    return ("true or false", {"true": True, "false": False}.__getitem__) if kind is bool else (kind.__name__, kind)


def from_flags(
    cls: type[T],
    argv: Sequence[str],
    extra: Mapping[str, str] | None = None,
    switches: Mapping[str, str] | None = None,
    tables: Mapping[str, Iterable[str]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> tuple[T, argparse.Namespace]:
    """`cls` from command line flags `--name value` (the last of a repeated flag wins).

    extra: name -> help of positional arguments and of flags that are no setting ("" unless given); switches: the same
    for flags without a value; tables: flag -> the names it may take; about: what --help says besides, as argparse takes
    it. Returns the config and a namespace of extra and switches. Raises ValueError, in one line, for anything that is
    not a flag of `cls`, or not of its type.
    """
    default = cls()
    parser = OneLineParser(allow_abbrev=False, **(about or {}))
    for name, text in (extra or {}).items():
        parser.add_argument(name, help=text, default="")
    for name, text in (switches or {}).items():
        parser.add_argument(name, help=text, action="store_true")

    def add(group: argparse._ArgumentGroup, f: dataclasses.Field[Any], kind: Any) -> None:
        expected, parse = _type(kind)
        table = tuple((tables or {}).get(f.name, ()))

        def read(text: str) -> Any:
            try:
                value = parse(text)
            except (ValueError, KeyError):
                raise argparse.ArgumentTypeError(f"expected {expected}, found '{text}'") from None
            if table and value not in table:
                raise argparse.ArgumentTypeError(str(unknown(f.name, text, table)))
            return value

        shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else str(f.default)
        shown = shown.lower() if isinstance(f.default, bool) else shown
        choices = ", ".join(f.metadata["choices"] or table)
        text = f.metadata["help"] + (f" ({choices})" if choices else "") + f" [{shown}]"
        metavar, text = expected.replace(" ", "_"), text.replace("%", "%%")
        group.add_argument(f"--{f.name}", type=read, metavar=metavar, default=argparse.SUPPRESS, help=text)

    for section in sections(default):
        hints = typing.get_type_hints(type(section))
        group = parser.add_argument_group((type(section).__doc__ or "").splitlines()[0])
        for f in dataclasses.fields(section):
            add(group, f, hints[f.name])
    known = parser.parse(argv)

    def filled(section: Any) -> Any:
        names = {f.name for f in dataclasses.fields(section)}
        return dataclasses.replace(section, **{name: v for name, v in vars(known).items() if name in names})

    if sections(default) == [default]:
        return filled(default), known
    return cls(**{f.name: filled(getattr(default, f.name)) for f in dataclasses.fields(default)}), known  # type: ignore


def values(config: Any, deciding: bool = False) -> dict[str, Any]:
    """Name -> value of all sections; deciding: only what a run or sampling must keep to go on, see `setting`."""
    return {
        f.name: getattr(section, f.name)
        for section in sections(config)
        for f in dataclasses.fields(section)
        if not deciding or (f.metadata["changes"] or section.CHANGES) != "nothing"
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`name: old -> new` for every setting that differs or that only one side has."""
    return [f"{n}: {old.get(n)} -> {new.get(n)}" for n in dict.fromkeys([*old, *new]) if old.get(n) != new.get(n)]


def other_data(old: Marks, new: Marks) -> list[str]:
    """`name: old -> new` for what tells the data apart; what one side does not know is no difference."""

    def same(a: float | str, b: float | str) -> bool:
        return abs(a - b) < 0.01 if isinstance(a, float) and isinstance(b, float) else a == b  # a mean: decoders differ

    return [f"{name}: {old[name]} -> {new[name]}" for name in old if name in new and not same(old[name], new[name])]
