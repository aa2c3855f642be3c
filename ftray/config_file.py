"""The YAML file of a fit: `${VAR}`, and `--set a.b=c` on top of it."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ftray.config import FitConfig, validated
from ftray.errors import ConfigError, nearest

__all__ = ["apply_overrides", "load_config", "read_yaml", "set_value"]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `5e-5` is a number, and no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; of two equal keys PyYAML itself takes the last."""
        first: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in first:
                    raise yaml.constructor.ConstructorError(
                        problem=f"'{key.value}' stands at line {first[key.value].line + 1} already",
                        problem_mark=key.start_mark,
                    )
                first[key.value] = key.start_mark
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _yaml_problem(error: Exception) -> str:
    """PyYAML's message in one line, with the line of the file."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte 0x{error.object[error.start]:02x})"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    context = f" {error.context}" if error.context else ""
    problem = f"{error.problem}{context}"
    if "'\\t'" in problem:
        problem = "a tab; only spaces may indent"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> FitConfig:
    """Read a YAML file; `${VAR}` stands for an environment variable.

    Relative paths inside are taken as they are, from the current folder.

    Args:
        path: the YAML file.
        overrides: `a.b=c` texts, applied in order; `c` is read as YAML.

    Raises:
        ConfigError: for a missing or malformed file, an unset variable, or a wrong key or value.
    """
    values = read_yaml(path, overrides)
    return validated(values, where=str(path))


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, with overrides, and `${VAR}` replaced.

    Raises:
        ConfigError: for a missing or malformed file, or an unset variable.
    """
    file = Path(path)
    if str(path) and file.is_dir():
        inside = nearest("", [p.name for p in file.glob("*.y*ml")]).replace(" Valid:", " In it:")
        raise ConfigError(f"'{path}' is a folder, and a YAML file is expected.{inside}")
    if not file.is_file():
        names = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        there = nearest(file.name, names).replace(" Valid:", " There are:")
        raise ConfigError(f"There is no file '{path}'.{there}")
    try:
        values = _parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_yaml_problem(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no options: a mapping such as 'model: minilm' is expected")
    expanded: dict[str, Any] = _expand(apply_overrides(values, overrides), where=str(path))
    return expanded


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set `a.b=c` in a nested mapping (a copy); list items are addressed by number.

    Raises:
        ConfigError: when a text has no '=' or a key leads into something that has no parts.
    """
    result = values
    for text in overrides:
        key, separator, raw = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {text}: 'key=value' is expected, as in --set epochs=3")
        try:
            value = _parse_yaml(raw)
        except yaml.YAMLError as error:
            problem = _yaml_problem(error)
            raise ConfigError(f"--set {text}: the value is not valid YAML: {problem}") from None
        result = set_value(result, key, value, what=f"--set {text}")
    return result


def set_value(values: dict[str, Any], key: str, value: Any, *, what: str = "") -> dict[str, Any]:
    """Set `a.b` in a nested mapping; only what leads there is copied.

    Args:
        values: stays as it is.
        key: names of mappings and numbers of list items, with dots between.
        value: anything.
        what: for messages.

    Raises:
        ConfigError: when the key leads into something that has no parts.
    """
    result = dict(values)
    target: Any = result
    parts = key.split(".")
    for part in parts[:-1]:
        target = _descend(target, part, what or key)
    _put(target, parts[-1], value, what or key)
    return result


def _descend(target: Any, part: str, what: str) -> Any:
    """A copy of a part, put in its place."""
    place: Any = part
    if isinstance(target, list) and part.isdigit() and int(part) < len(target):
        place = int(part)
    elif not isinstance(target, dict):
        raise ConfigError(f"{what}: '{part}' is not part of anything")
    inside = target[place] if isinstance(target, list) else target.get(part)
    target[place] = {} if inside is None else copy.copy(inside)  # missing, or left empty
    return target[place]


def _put(target: Any, part: str, value: Any, what: str) -> None:
    if isinstance(target, list) and part.isdigit() and int(part) < len(target):
        target[int(part)] = value
    elif isinstance(target, dict):
        target[part] = value
    else:
        raise ConfigError(f"{what}: '{part}' is not part of anything")


def _expand(value: Any, *, where: str) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v, where=where) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, where=where) for v in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda m: _variable(m.group(1), where), value)
    return value


def _variable(name: str, where: str) -> str:
    if name not in os.environ:
        close = nearest(name, os.environ)
        hint = close if "Did you mean" in close else ""  # others are not the reader's business
        raise ConfigError(f"{where}: the environment variable '{name}' is not set.{hint}")
    return os.environ[name]
