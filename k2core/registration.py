"""What plugins register: one `Entry` per thing, and the `register` callback that each hook hands to a plugin.

Whatever is registered in a form that cannot work is refused at once, with a `PluginError` that says what it is.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from k2core.errors import PluginError
from k2core.guards import check_guard
from k2core.interfaces import ChatModel, Memory, ModelProfile, Tool, Verifier
from k2core.toolmaking import check_tool
from k2core.tools import CONTROL_NAMES

KINDS = {
    "register_backends": "backend",
    "register_models": "model",
    "register_tokenizers": "tokenizer",
    "register_chat_formats": "chat format",
    "register_tools": "tool",
    "register_verifiers": "verifier",
    "register_guards": "guard",
    "register_memories": "memory",
    "register_evaluations": "evaluation",
}
OBJECTS = ("backend", "verifier", "guard", "memory")  # may be registered as they are, which need not be callable
IMPLEMENTATION = " implementation"  # behind the kind of one that sessions may swap to
FLAGS = {
    "documents": "docs FOLDER",
    "workspace": "workspace FOLDER",
    "data": "store PATH",
}  # needs of tools, and how users meet them


@frozen(kw_only=True)
class Entry:
    """One registered thing.

    Attributes:
        kind: ``backend``, ``model``, ``tokenizer``, ``chat format``, ``tool``, ``verifier``, ``guard``, ``memory``,
            ``evaluation``; with `IMPLEMENTATION` behind it, another implementation of a tool or verifier.
        name: what users write; of another implementation ``TOOL/NAME``.
        plugin: name of the plugin it came from.
        target: the thing itself, or a lazy ``"module:attribute"``.
        summary: one line for listings.
        needs: for a tool's factory, fields of `ToolContext` that must be given.
        state: for a tool, a lazy ``"module:attribute"`` of a function ``ToolContext -> str``, how it stands in a word or two.
        compare: for a tool, how results of two implementations are compared: ``text``, or ``lines`` (in any order, without
            numbers in front).
        options: for a model, where it lies and what it speaks.
    """

    kind: str
    name: str
    plugin: str
    target: Any = field(eq=False, repr=False)
    summary: str = ""
    needs: tuple[str, ...] = ()
    state: str = ""
    compare: str = "text"
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
                f"cannot load {self.kind} '{self.name}' of plugin '{self.plugin}' ({self.target}): {described(error)}"
            ) from error
        return thing

    def make(self, *arguments: Any) -> Any:
        """The thing itself: what a class or a factory makes of *arguments*, or the instance that was registered.

        A `Tool` is taken as it is. A backend, verifier, guard or memory is made where a class was registered, and a tool where
        a factory was.

        Raises:
            PluginError: it does not load, or making it fails in whatever way.
        """
        thing = self.load()
        if not isinstance(thing, type) and (not self.kind.startswith("tool") or isinstance(thing, Tool)):
            return thing
        try:
            return thing(*arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # making what a plugin registered belongs to loading it
            raise PluginError(f"cannot make {self.kind} '{self.name}' of plugin '{self.plugin}': {described(error)}") from error


def registrar(hook: str, plugin: str, into: list[Entry]) -> Callable[..., None]:
    """The `register` callback that *hook* hands to a plugin."""
    kind = KINDS[hook]

    def register(
        thing: Any,
        /,
        *,
        name: str | None = None,
        summary: str = "",
        needs: tuple[str, ...] = (),
        state: str = "",
        implements: str = "",
        compare: str = "text",
    ) -> None:
        if kind == "tool" and not isinstance(thing, str) and not callable(thing):
            check_tool(thing)
        chosen = name or getattr(thing, "name", None)
        if not isinstance(chosen, str) or not chosen:
            raise PluginError(f"it registers a {kind} without a name: {thing!r}. Pass name=…")
        if kind == "tool" and (implements or chosen) in CONTROL_NAMES:
            raise PluginError(
                f"it registers tool '{chosen}', but the names of control tools ({', '.join(CONTROL_NAMES)}) are reserved: "
                "choose another name"
            )
        if isinstance(thing, str) and not thing.partition(":")[2]:
            raise PluginError(f"it registers {kind} '{chosen}' as '{thing}', expected 'module:attribute'")
        if not isinstance(thing, str | Tool) and not callable(thing) and kind not in OBJECTS:
            raise PluginError(
                f"it registers {kind} '{chosen}' as {type(thing).__name__}, which is neither callable nor 'module:attribute'"
            )
        if kind == "backend" and not isinstance(thing, str | type) and not callable(getattr(thing, "load", None)):
            raise PluginError(f"it registers backend '{chosen}' as {type(thing).__name__}, which has no load()")
        if kind == "verifier" and not isinstance(thing, str | type) and not isinstance(thing, Verifier):
            raise PluginError(f"it registers verifier '{chosen}' as {type(thing).__name__}, which has no verify()")
        if kind == "memory" and not isinstance(thing, str | type) and not isinstance(thing, Memory):
            raise PluginError(f"it registers memory '{chosen}' as {type(thing).__name__}, which lacks recalls or make_room()")
        if kind == "guard" and not isinstance(thing, str):
            check_guard(thing)
        unknown = [need for need in needs if need not in FLAGS]
        if unknown:
            raise PluginError(f"it registers {kind} '{chosen}' with needs={unknown}, known are {sorted(FLAGS)}")
        if implements and kind not in ("tool", "verifier"):
            raise PluginError(f"it registers {kind} '{chosen}' with implements='{implements}', known for tools and verifiers")
        summary = summary or (thing.description if isinstance(thing, Tool) else "")
        of, full = (kind + IMPLEMENTATION, f"{implements}/{chosen}") if implements else (kind, chosen)
        entry = Entry(kind=of, name=full, plugin=plugin, target=thing, summary=summary, needs=tuple(needs), state=state)
        into.append(evolve(entry, compare=compare))

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


def described(error: BaseException) -> str:
    """A stranger's exception as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
