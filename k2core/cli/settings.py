"""Settings: a flag over the environment (``K2CORE_*``) over one TOML file over the default, each with its origin.

Nothing is read at import, and reading makes no file and no folder. `KEYS` is the whole list of settings.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import Factory, field, frozen

from k2core.errors import ConfigError, UnknownName

PREFIX = "K2CORE_"
FILE_VARIABLE = "K2CORE_CONFIG"
Kind = Literal["text", "whole number", "number", "yes or no", "path", "list of names"]


@frozen(kw_only=True)
class Key:
    """One setting.

    Attributes:
        name: in the file; in capitals behind ``K2CORE_`` in the environment.
        kind: what its value is.
        help: one line.
        default: used when nobody says otherwise.
        least: the smallest number that is legal.
        most: the largest number that is legal.
        choices: the only texts, or names in a list, that are legal; empty for any.
        flag: on the command line; empty where there is none.
    """

    name: str
    kind: Kind
    help: str
    default: Any = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    flag: str = field(default=Factory(lambda self: "--" + self.name.replace("_", "-"), takes_self=True))

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return PREFIX + self.name.upper()


KEYS: tuple[Key, ...] = (
    Key(name="model", kind="text", default="nano", help="a registered model or a checkpoint folder"),
    Key(name="backend", kind="text", default="numba", help="what runs the model"),
    Key(name="device", kind="text", help="where the backend runs it, e.g. cpu or cuda; the backend's choice unless given"),
    Key(name="moe", kind="text", help="another backend that holds the routed experts, as NAME or NAME:DEVICE"),
    Key(name="expert_mb", kind="whole number", least=1, help="limit of the memory of prepared experts in MB"),
    Key(
        name="shadow",
        kind="text",
        help="a backend that computes everything a second time, to be compared, as NAME or NAME:DEVICE",
    ),
    Key(
        name="shadow_limit",
        kind="number",
        help="the most that two logits of the shadow's may differ by; what the contract says unless given",
    ),
    Key(name="numerics", kind="text", default="exact", choices=("exact", "w4a16", "w4a8"), help="rounding in force"),
    Key(name="threads", kind="whole number", least=1, help="threads of the backend; all cores unless given"),
    Key(name="tools", kind="list of names", flag="--tool", help="exactly these tools; every usable one unless given"),
    Key(name="docs", kind="path", help="folder for the tools that search and read"),
    Key(name="workspace", kind="path", help="folder for the tools that run code and write files"),
    Key(
        name="sandbox",
        kind="text",
        default="strong",
        choices=("strong", "wasm", "reduced"),
        help="isolation of code that is accepted",
    ),
    Key(
        name="approve",
        kind="list of names",
        default=(),
        choices=("pure", "read", "idempotent", "reversible", "external", "all", "none"),
        help="effects of tools whose calls a person approves",
    ),
    Key(name="trust", kind="yes or no", default=False, help="calls need no approval for untrusted content before them"),
    Key(name="store", kind="path", help="file that keeps the runs; in the user's data folder unless given"),
    Key(name="seed", kind="whole number", default=0, least=0, help="of the sampler"),
    Key(name="temperature", kind="number", least=0, help="0 is greedy; the model's recommendation unless given"),
    Key(name="top_p", kind="number", default=1.0, least=0, most=1, help="nucleus sampling; 1 is off"),
    Key(name="min_p", kind="number", default=0.0, least=0, most=1, help="least probability relative to the best; 0 is off"),
    Key(name="max_tokens", kind="whole number", default=1024, least=1, help="most tokens of one turn"),
    Key(
        name="masks",
        kind="yes or no",
        default=True,
        flag="--no-masks",
        help="calls are valid by construction: tokens that would break one cannot be drawn",
    ),
    Key(name="drafts", kind="whole number", default=8, least=0, help="tokens guessed ahead per step; never changes an answer"),
    Key(name="memory", kind="text", help="what makes room in the model's context; what the model expects unless given"),
    Key(name="cache_mb", kind="whole number", least=1, help="limit of the model's cache memory in MB"),
    Key(
        name="effort",
        kind="text",
        default="medium",
        choices=("low", "medium", "high", "max"),
        help="budgets of a question, unless they are set on their own",
    ),
    Key(name="calls", kind="whole number", least=1, help="budget of tool calls per question"),
    Key(name="tokens", kind="whole number", least=1, help="budget of generated tokens per question; no limit unless given"),
    Key(name="thinking_tokens", kind="whole number", least=1, help="budget of thinking per question"),
    Key(name="seconds", kind="number", least=0.001, help="budget of wall time per question"),
    Key(name="cost", kind="number", least=1e-9, help="budget of cost per question, in the currency of the prices"),
    Key(
        name="paths",
        kind="whole number",
        default=1,
        least=1,
        most=64,
        help="trajectories of one question, whose answers are merged",
    ),
    Key(
        name="paths_temperature", kind="number", default=0.7, least=0, help="of all paths but the first, where the model's is 0"
    ),
    Key(name="price_prompt", kind="number", least=0, help="of a million prompt tokens that were not cached"),
    Key(name="price_cached", kind="number", least=0, help="of a million prompt tokens that were cached"),
    Key(name="price_generated", kind="number", least=0, help="of a million generated tokens"),
    Key(name="reasoning", kind="yes or no", default=True, flag="--no-reasoning", help="show the model's thinking"),
    Key(name="disable", kind="list of names", default=(), flag="", help="plugins to leave out"),
    Key(
        name="log_level",
        kind="text",
        default="warning",
        choices=("debug", "info", "warning", "error"),
        help="least level of log lines shown",
    ),
)
_BY_NAME = {key.name: key for key in KEYS}


@frozen(kw_only=True)
class Value:
    """A setting's value and where it came from, e.g. ``flag --seed`` or ``environment K2CORE_SEED``."""

    key: Key
    value: Any
    origin: str

    @property
    def is_default(self) -> bool:
        """Nobody said anything about it."""
        return self.origin == "default"


@frozen(kw_only=True)
class Settings:
    """All settings in force.

    Attributes:
        values: every key of `KEYS` by name.
        file: the TOML file; it need not exist.
    """

    values: Mapping[str, Value] = field(eq=False)
    file: Path

    @classmethod
    def load(
        cls, flags: Mapping[str, Any] | None = None, *, environ: Mapping[str, str] | None = None, file: Path | None = None
    ) -> "Settings":
        """Gather all settings.

        Args:
            flags: values given on the command line by key; None is "not given".
            environ: used instead of the process's environment.
            file: used instead of ``K2CORE_CONFIG`` or the user's own.

        Raises:
            ConfigError: an unknown key or an illegal value; names the key and its origin.
        """
        environ = os.environ if environ is None else environ
        named = file or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
        path = named or default_file()
        in_file = _read(path, must_exist=named is not None)
        values = {}
        for key in KEYS:
            flag = (flags or {}).get(key.name)
            if flag is not None and flag != ():
                origin = f"flag {key.flag}"
                values[key.name] = Value(key=key, value=_checked(key, flag, origin), origin=origin)
            elif environ.get(key.variable):
                origin = f"environment {key.variable}"
                value = _checked(key, _parsed(key, environ[key.variable], origin), origin)
                values[key.name] = Value(key=key, value=value, origin=origin)
            elif key.name in in_file:
                origin = f"file {path}"
                value = _checked(key, in_file[key.name], f"{path}: {key.name}")
                if isinstance(value, Path):
                    value = path.parent / value  # an absolute path stays as it is
                values[key.name] = Value(key=key, value=value, origin=origin)
            else:
                values[key.name] = Value(key=key, value=key.default, origin="default")
        return cls(values=values, file=path)

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value


def default_file() -> Path:
    """``config.toml`` in k2core's folder for settings of this user."""
    import platformdirs

    return Path(platformdirs.user_config_dir("k2core", appauthor=False)) / "config.toml"


def _read(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"cannot read the settings file {path}: it does not exist") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(f"cannot read the settings file {path}: {reason}") from error
    for name in data:
        if name not in _BY_NAME:
            raise ConfigError(f"{path}: {UnknownName('setting', name, _BY_NAME)}")
    return data


def _parsed(key: Key, text: str, origin: str) -> Any:
    """A value of the environment in the key's type."""
    try:
        if key.kind == "whole number":
            return int(text)
        if key.kind == "number":
            return float(text)
    except ValueError:
        raise ConfigError(f"{origin} is '{text}', expected a {key.kind}") from None
    if key.kind == "yes or no":
        answers = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
        if text.lower() not in answers:
            raise ConfigError(f"{origin} is '{text}', expected yes or no")
        return answers[text.lower()]
    if key.kind == "list of names":
        return [name.strip() for name in text.split(",") if name.strip()]
    return text


def _checked(key: Key, value: Any, origin: str) -> Any:
    """*value* if it is legal for *key*, in the form that `Settings` holds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "text": isinstance(value, str),
        "path": isinstance(value, str | Path) and str(value) != "",
        "whole number": is_number and isinstance(value, int),
        "number": is_number,
        "yes or no": isinstance(value, bool),
        "list of names": isinstance(value, list | tuple) and all(isinstance(one, str) for one in value),
    }[key.kind]
    if not fits:
        raise ConfigError(f"{origin} is {value!r}, expected a {key.kind}".replace("a yes or no", "yes or no (true or false)"))
    for one in value if key.kind == "list of names" else (value,):
        if key.choices and one not in key.choices:
            raise ConfigError(f"{origin}: {UnknownName(key.name.replace('_', ' '), one, key.choices)}")
    if is_number and not (key.least or 0) <= value <= (float("inf") if key.most is None else key.most):  # NaN fails too
        bounds = f"at least {key.least or 0:g}" if key.most is None else f"{key.least or 0:g} to {key.most:g}"
        raise ConfigError(f"{origin} is {value}, expected {bounds}")
    if key.kind == "path":
        return Path(value).expanduser()
    if key.kind == "number":
        return float(value)
    return tuple(value) if key.kind == "list of names" else value
