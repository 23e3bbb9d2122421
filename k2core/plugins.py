"""Find plugins, keep what fails apart, and offer what the others registered.

Every entry point of the group ``k2core`` is loaded and registered on its own, ours first, the others in name order, so that a
stranger who repeats a name of ours is the one that fails. Whatever one of them does wrong
(fails on import, misspells a hook, registers nonsense, repeats a name) ends as a `PluginReport` with the reason; all that
plugin's registrations are dropped, and everything else works.
"""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy
from attrs import define, evolve, field, frozen

from k2core import hookspecs
from k2core.errors import PluginError, UnknownName, UsageError
from k2core.guards import MissingGuard, check_guard
from k2core.interfaces import Memory, Tool, ToolContext, Verifier
from k2core.registration import FLAGS, KINDS, Entry, described, registrar
from k2core.toolmaking import check_tool

GROUP = "k2core"  # of entry points; our distribution has the same name


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
        """Load every entry point of the group, those of our own distribution first, the others in name order.

        Args:
            disabled: names of plugins to leave out.
            points: entry points to use instead of the installed ones.
        """
        plugins = cls()
        off = set(disabled)
        every = entry_points(group=GROUP) if points is None else points
        found = sorted(every, key=lambda point: (getattr(point.dist, "name", "") != GROUP, point.name, point.value))
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
                reason = f"cannot import {point.value}: {described(error)}"
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
            reason = str(error) if isinstance(error, PluginError) else described(error)
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
                raise UsageError(f"tool '{entry.name}' needs {' and '.join('--' + FLAGS[need] for need in missing)}")
            if missing:
                continue
            try:
                made.append(make_tool(entry, context))
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

    def guards(self) -> list[Any]:
        """Every registered guard, by name; for one that does not load or cannot be made stands a `MissingGuard`."""
        made: list[Any] = []
        for entry in self.entries("guard"):
            try:
                made.append(guard_of(entry))
            except PluginError as error:
                self._failed_late(entry, error)
                made.append(MissingGuard(name=entry.name, reason=str(error)))
        return made

    def memory(self, name: str) -> Memory:
        """The memory of that name; `UnknownName` where there is none, a `PluginError` where it cannot be made or is none."""
        entry = self.get("memory", name)
        made = entry.make()
        if not isinstance(made, Memory):
            what = f"is {type(made).__name__}, which lacks name, recalls or make_room()"
            raise PluginError(f"plugin '{entry.plugin}' registers memory '{name}', but what it gives {what}")
        return made

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
                    implementation.function(registrar(caller.name, name, collected))
        return collected


def guard_of(entry: Entry) -> Any:
    """The guard of an entry; a `PluginError` where it does not load, cannot be made, is none or is named otherwise."""
    made = entry.make()
    where = f"plugin '{entry.plugin}' registers guard '{entry.name}', but"
    try:
        check_guard(made)
    except PluginError as error:
        raise PluginError(f"{where} {error}") from error
    if getattr(made, "name", None) != entry.name:
        raise PluginError(f"{where} what it gives is named {getattr(made, 'name', None)!r}: both names must be the same")
    return made


def make_tool(entry: Entry, context: ToolContext) -> Tool:
    """The tool of an entry, or of an implementation of it; a `PluginError` where it fails or is named otherwise."""
    made = check_tool(entry.make(context))
    if made.name != entry.name.partition("/")[0]:
        raise PluginError(
            f"plugin '{entry.plugin}' registers tool '{entry.name}', but what it gives is named '{made.name}': "
            "both names must be the same"
        )
    return made


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager
