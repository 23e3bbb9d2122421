"""Find plugins, keep what fails apart, and offer what the others registered.

Every entry point of the group ``k2core`` is loaded and registered on its own, in name order. Whatever one of them does wrong
(fails on import, misspells a hook, registers nonsense, repeats a name) ends as a `PluginReport` with the reason; all that
plugin's registrations are dropped, and everything else works.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

import pluggy
from attrs import define, evolve, field, frozen

from k2core import hookspecs
from k2core.errors import PluginError, UnknownName, UsageError
from k2core.interfaces import ChatModel, ModelProfile, Tool, ToolContext, Verifier
from k2core.tools import CONTROL_NAMES, check_tool

GROUP = "k2core"
KINDS = {
    "register_backends": "backend",
    "register_models": "model",
    "register_tokenizers": "tokenizer",
    "register_chat_formats": "chat format",
    "register_tools": "tool",
    "register_verifiers": "verifier",
    "register_evaluations": "evaluation",
}


@frozen(kw_only=True)
class Entry:
    """One registered thing.

    Attributes:
        kind: ``backend``, ``model``, ``tokenizer``, ``chat format``, ``tool``, ``verifier`` or ``evaluation``.
        name: what users write.
        plugin: name of the plugin it came from.
        target: the thing itself, or a lazy ``"module:attribute"``.
        summary: one line for listings.
        needs: for a tool's factory, fields of `ToolContext` that must be given.
        options: for a model, where it lies and what it speaks.
    """

    kind: str
    name: str
    plugin: str
    target: Any = field(eq=False, repr=False)
    summary: str = ""
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(factory=dict, eq=False)

    def load(self) -> Any:
        """The thing; a lazy path is imported now.

        Raises:
            PluginError: the import fails or the attribute is missing.
        """
        if not isinstance(self.target, str):
            return self.target
        module_name, _, path = self.target.partition(":")
        try:
            thing: Any = importlib.import_module(module_name)
            for attribute in path.split("."):
                thing = getattr(thing, attribute)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # plugin loading is a border where everything is caught, even a SystemExit
            raise PluginError(
                f"cannot load {self.kind} '{self.name}' of plugin '{self.plugin}' ({self.target}): {_describe(error)}"
            ) from error
        return thing

    def make(self, *arguments: Any) -> Any:
        """The thing itself: what a class or a factory makes of *arguments*, or the instance that was registered.

        A `Tool` is taken as it is. A backend or verifier is made where a class was registered, and a tool where a factory was.

        Raises:
            PluginError: it does not load, or making it fails in whatever way.
        """
        thing = self.load()
        if not isinstance(thing, type) and (self.kind != "tool" or isinstance(thing, Tool)):
            return thing
        try:
            return thing(*arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # making what a plugin registered belongs to loading it
            raise PluginError(f"cannot make {self.kind} '{self.name}' of plugin '{self.plugin}': {_describe(error)}") from error


@frozen(kw_only=True)
class PluginReport:
    """What became of one plugin.

    Attributes:
        name: its entry point's name.
        origin: distribution and version, or where it was registered from.
        status: ``loaded``, ``failed`` or ``disabled``.
        reason: why it failed.
        provides: (kind, name) of everything it registered.
    """

    name: str
    origin: str
    status: Literal["loaded", "failed", "disabled"]
    reason: str = ""
    provides: tuple[tuple[str, str], ...] = ()


@define
class Plugins:
    """Everything that is registered, and what became of each plugin."""

    reports: list[PluginReport] = field(factory=list)
    _entries: dict[tuple[str, str], Entry] = field(factory=dict)
    _manager: pluggy.PluginManager = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._manager = _manager()

    @classmethod
    def discover(cls, *, disabled: Iterable[str] = (), points: Iterable[EntryPoint] | None = None) -> "Plugins":
        """Load every entry point of the group, in name order.

        Args:
            disabled: names of plugins to leave out.
            points: entry points to use instead of the installed ones.
        """
        plugins = cls()
        off = set(disabled)
        found = sorted(entry_points(group=GROUP) if points is None else points, key=lambda point: (point.name, point.value))
        for point in found:
            origin = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
            if point.name in off:
                plugins.reports.append(PluginReport(name=point.name, origin=origin, status="disabled"))
                continue
            try:
                thing = point.load()
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                reason = f"cannot import {point.value}: {_describe(error)}"
                plugins.reports.append(PluginReport(name=point.name, origin=origin, status="failed", reason=reason))
                continue
            plugins.add(thing, name=point.name, origin=origin)
        return plugins

    def add(self, plugin: object, *, name: str, origin: str = "registered by hand") -> PluginReport:
        """Register one plugin object; what goes wrong is in the report, nothing is raised."""
        fresh: dict[tuple[str, str], Entry] = {}
        try:
            if any(report.name == name and report.status == "loaded" for report in self.reports):
                first = next(report.origin for report in self.reports if report.name == name)
                raise PluginError(f"there is a plugin '{name}' already (from {first})")
            self._register_hooks(plugin, name)
            for entry in self._collect(plugin, name):
                key = (entry.kind, entry.name)
                other = self._entries.get(key) or fresh.get(key)
                if other is not None:
                    raise PluginError(
                        f"it registers {entry.kind} '{entry.name}', which plugin '{other.plugin}' has registered already"
                    )
                fresh[key] = entry
        except BaseException as error:  # the other border: a plugin's fault, even a SystemExit, becomes a visible record
            if isinstance(error, KeyboardInterrupt):
                raise
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(plugin)
            reason = str(error) if isinstance(error, PluginError) else _describe(error)
            report = PluginReport(name=name, origin=origin, status="failed", reason=reason)
        else:
            self._entries.update(fresh)
            report = PluginReport(name=name, origin=origin, status="loaded", provides=tuple(fresh))
        self.reports.append(report)
        return report

    def names(self, kind: str) -> tuple[str, ...]:
        """Sorted names of one kind."""
        return tuple(sorted(name for of, name in self._entries if of == kind))

    def entries(self, kind: str) -> list[Entry]:
        """Everything of one kind, by name."""
        return [self._entries[kind, name] for name in self.names(kind)]

    def get(self, kind: str, name: str) -> Entry:
        """One entry.

        Raises:
            UnknownName: names what is known and the nearest; says so when plugins failed to load.
        """
        try:
            return self._entries[kind, name]
        except KeyError:
            failed = [report.name for report in self.reports if report.status == "failed"]
            remedy = f"Plugins that failed to load: {', '.join(failed)} (see k2 plugins)." if failed else ""
            raise UnknownName(kind, name, self.names(kind), remedy) from None

    def tools(self, context: ToolContext, names: Iterable[str] | None = None) -> list[Tool]:
        """Tools ready for a session, in name order.

        Args:
            context: what factories may use.
            names: exactly these, or every tool whose needs are met.

        Raises:
            UnknownName: no such tool.
            UsageError: a named tool's needs are not met.
            PluginError: a named tool does not load, its factory fails or makes a tool of another name; without *names* it is
                left out, logged and listed as failed.
        """
        chosen = self.entries("tool") if names is None else [self.get("tool", name) for name in dict.fromkeys(names)]
        made = []
        for entry in chosen:
            missing = [need for need in entry.needs if getattr(context, need) is None]
            if missing and names is not None:
                raise UsageError(f"tool '{entry.name}' needs {' and '.join('--' + _FLAGS[need] for need in missing)}")
            if missing:
                continue
            try:
                made.append(_make_tool(entry, context))
            except PluginError as error:
                if names is not None:
                    raise
                self._failed_late(entry, error)
        return made

    def verifiers(self) -> list[Verifier]:
        """Every registered verifier that loads and can be made, by name; any other is logged and listed as failed."""
        loaded: list[Verifier] = []
        for entry in self.entries("verifier"):
            try:
                loaded.append(entry.make())
            except PluginError as error:
                self._failed_late(entry, error)
        return loaded

    def _failed_late(self, entry: Entry, error: PluginError) -> None:
        """Something registered lazily turned out not to load: say so, list it, and go on without it."""
        import structlog

        structlog.get_logger().warning(
            "plugin.entry_failed", plugin=entry.plugin, kind=entry.kind, name=entry.name, reason=str(error)
        )
        for place, report in enumerate(self.reports):
            if report.name == entry.plugin:
                self.reports[place] = evolve(report, status="failed", reason=str(error))

    def _register_hooks(self, plugin: object, name: str) -> None:
        if self._manager.register(plugin, name) is None:
            raise PluginError(f"plugin '{name}' is blocked")
        for caller in self._manager.get_hookcallers(plugin) or ():
            if caller.spec is None:  # pluggy accepts a misspelt hook silently
                unknown = UnknownName("hook", caller.name, KINDS)
                self._manager.unregister(plugin)
                raise PluginError(f"it implements {unknown}")

    def _collect(self, plugin: object, name: str) -> list[Entry]:
        collected: list[Entry] = []
        for caller in self._manager.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin:
                    implementation.function(_registrar(caller.name, name, collected))
        return collected


_FLAGS = {"documents": "docs FOLDER", "data": "store PATH"}


def _make_tool(entry: Entry, context: ToolContext) -> Tool:
    made = check_tool(entry.make(context))
    if made.name != entry.name:
        raise PluginError(
            f"plugin '{entry.plugin}' registers tool '{entry.name}', but what it gives is named '{made.name}': "
            "both names must be the same"
        )
    return made


def _registrar(hook: str, plugin: str, into: list[Entry]) -> Callable[..., None]:
    """The `register` callback that *hook* hands to a plugin."""
    kind = KINDS[hook]

    def register(thing: Any, /, *, name: str | None = None, summary: str = "", needs: tuple[str, ...] = ()) -> None:
        if kind == "tool" and not isinstance(thing, str) and not callable(thing):
            check_tool(thing)
        chosen = name or getattr(thing, "name", None)
        if not isinstance(chosen, str) or not chosen:
            raise PluginError(f"it registers a {kind} without a name: {thing!r}. Pass name=…")
        if kind == "tool" and chosen in CONTROL_NAMES:
            raise PluginError(
                f"it registers tool '{chosen}', but the names of control tools ({', '.join(CONTROL_NAMES)}) are reserved: "
                "choose another name"
            )
        if isinstance(thing, str) and not thing.partition(":")[2]:
            raise PluginError(f"it registers {kind} '{chosen}' as '{thing}', expected 'module:attribute'")
        if not isinstance(thing, str | Tool) and not callable(thing) and kind not in ("backend", "verifier"):
            raise PluginError(
                f"it registers {kind} '{chosen}' as {type(thing).__name__}, which is neither callable nor 'module:attribute'"
            )
        if kind == "backend" and not isinstance(thing, str | type) and not callable(getattr(thing, "load", None)):
            raise PluginError(f"it registers backend '{chosen}' as {type(thing).__name__}, which has no load()")
        if kind == "verifier" and not isinstance(thing, str | type) and not isinstance(thing, Verifier):
            raise PluginError(f"it registers verifier '{chosen}' as {type(thing).__name__}, which has no verify()")
        unknown = [need for need in needs if need not in _FLAGS]
        if unknown:
            raise PluginError(f"it registers {kind} '{chosen}' with needs={unknown}, known are {sorted(_FLAGS)}")
        summary = summary or (thing.description if isinstance(thing, Tool) else "")
        into.append(Entry(kind=kind, name=chosen, plugin=plugin, target=thing, summary=summary, needs=tuple(needs)))

    def register_model(
        name: str,
        /,
        *,
        checkpoint: str | Path | None = None,
        tokenizer: str = "kimi",
        chat_format: str = "kimi",
        profile: ModelProfile | None = None,
        factory: Callable[[], ChatModel] | str | None = None,
        summary: str = "",
    ) -> None:
        if not isinstance(name, str) or not name:
            raise PluginError(f"it registers a model without a name: {name!r}")
        if (checkpoint is None) == (factory is None):
            raise PluginError(
                f"it registers model '{name}' with {'neither' if factory is None else 'both'} checkpoint and factory: give one"
            )
        if profile is not None and not isinstance(profile, ModelProfile):
            raise PluginError(
                f"it registers model '{name}' with a profile that is {type(profile).__name__}, expected ModelProfile"
            )
        options = {"checkpoint": checkpoint, "tokenizer": tokenizer, "chat_format": chat_format, "profile": profile}
        line = summary or (profile.description if profile is not None else "")
        into.append(Entry(kind=kind, name=name, plugin=plugin, target=factory, summary=line, options=options))

    return register_model if kind == "model" else register


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
