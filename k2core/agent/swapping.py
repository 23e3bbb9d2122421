"""Parts of a running session by other implementations: tools, verifiers, the tokenizer.

A plugin registers another implementation of a tool or verifier with ``implements="search"``; ``default`` is the one that is
registered as the part itself. A tokenizer is any registered one that reads the model's folder and has the same token for
every id. What makes the model be told the same as before holds at once, in the middle of a question too; anything else waits
until no question is being worked on. Each swap is an event of the run, and so is one that is refused: see `Swaps`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from k2core.agent.choice import Choice
from k2core.agent.placement import checkpoint_of
from k2core.agent.swaps import DEFAULT, Swap, Swaps, declaration_hash
from k2core.errors import InputError, K2Error, PluginError, UnknownName, UsageError
from k2core.interfaces import ChatFormat, ChatModel, Tokenizer, Tool, ToolContext, Verifier
from k2core.plugins import Plugins, make_tool
from k2core.registration import FLAGS, IMPLEMENTATION, Entry
from k2core.tools import Registry

if TYPE_CHECKING:
    from k2core.engine.engine import EngineModel

Implementations = Mapping[str, tuple[str, tuple[str, ...]]]  # of each part: the one in use, and all


@define(kw_only=True)
class SessionTools:
    """A session's tools and what may carry them out.

    Attributes:
        registry: the tools as the agent has them.
        plugins: where implementations are registered.
        context: what their factories may use.
        swaps: what carries out the session's parts by now.
    """

    registry: Registry
    plugins: Plugins
    context: ToolContext
    swaps: Swaps
    _made: dict[tuple[str, str], Tool] = field(factory=dict, init=False)  # each is made once: it may hold something open

    def __attrs_post_init__(self) -> None:
        for one in map(self.registry.get, self.registry.names()):
            if not one.control:
                self._made[one.name, DEFAULT] = one
                self.swaps.now["tool", one.name] = DEFAULT
                self.swaps.declared[one.name] = declaration_hash(one)

    def use(self, name: str, implementation: str) -> Swap:
        """Have a tool carried out by another implementation.

        One that is declared in the same words is called from the next call on, the prompt being as it was; any other waits
        for the next question.

        Args:
            name: a tool of the session.
            implementation: a registered one, or ``default``.

        Raises:
            UnknownName: no such tool or implementation; names the nearest.
            InputError: the tool is the agent's own.
            UsageError: its needs are not met.
            PluginError: it does not load, or what it needs is not installed.
        """
        with self.swaps.asked(f"tool '{name}' for '{implementation}'"):
            if name not in self.registry.names() and name in self.plugins.names("tool"):
                _check_needs(self.plugins.get("tool", name), self.context)  # why the session has none
            now = self.registry.get(name)
            if now.control:
                raise InputError(f"cannot swap tool '{name}': it is the agent's own")
            if (name, implementation) not in self._made:
                self._made[name, implementation] = tool_of(self.plugins, f"{name}/{implementation}", self.context)
        made = self._made[name, implementation]
        told, put = declaration_hash(made), partial(self.registry.replace, made)
        at_once = declaration_hash(now) == told
        return self.swaps.ask("tool", name, implementation, put, at_once=at_once, declaration=told)

    def implementations(self) -> Implementations:
        """Of each tool of the session the implementation in use, and all."""
        return _listed(self.swaps, "tool", known_implementations(self.plugins, "tool"))


@define(kw_only=True)
class SessionVerifiers:
    """A session's verifiers and what may carry them out.

    Attributes:
        verifiers: the agent's own list; swaps change it.
        plugins: where implementations are registered.
        swaps: what carries out the session's parts by now.
    """

    verifiers: list[Verifier]
    plugins: Plugins
    swaps: Swaps
    _places: dict[str, int] = field(factory=dict, init=False)
    _made: dict[tuple[str, str], Verifier] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        for place, one in enumerate(self.verifiers):
            self._places[one.name], self._made[one.name, DEFAULT] = place, one
            self.swaps.now["verifier", one.name] = DEFAULT

    def use(self, name: str, implementation: str) -> Swap:
        """Have a verifier carried out by another implementation, from the next answer on.

        Args:
            name: a verifier of the session.
            implementation: a registered one, or ``default``.

        Raises:
            UnknownName: no such verifier or implementation; names the nearest.
            PluginError: it does not load, or is no verifier.
        """
        with self.swaps.asked(f"verifier '{name}' for '{implementation}'"):
            if name not in self._places:
                raise UnknownName("verifier", name, self._places)
            if (name, implementation) not in self._made:
                self._made[name, implementation] = verifier_of(self.plugins, f"{name}/{implementation}")
        put = partial(self.verifiers.__setitem__, self._places[name], self._made[name, implementation])
        return self.swaps.ask("verifier", name, implementation, put, at_once=True)

    def implementations(self) -> Implementations:
        """Of each verifier of the session the implementation in use, and all."""
        return _listed(self.swaps, "verifier", known_implementations(self.plugins, "verifier"))


@define(kw_only=True)
class SessionTokenizers:
    """The tokenizer of a session's model, and those that may take its place.

    Attributes:
        model: the session's.
        plugins: where tokenizers are registered.
        choice: which checkpoint the model is.
        swaps: what carries out the session's parts by now.
        is_chosen: the model is the one that *choice* names.
        name: of the tokenizer that the model came with; empty where the model brings its own language.
    """

    model: ChatModel
    plugins: Plugins
    choice: Choice
    swaps: Swaps
    is_chosen: bool = True
    name: str = field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        from k2core.engine.engine import EngineModel

        if self.is_chosen and isinstance(self.model, EngineModel):
            self.name = str(checkpoint_of(self.plugins, self.choice)["tokenizer"])
            self.swaps.now["tokenizer", self.name] = DEFAULT

    def use(self, tokenizer: str) -> Swap:
        """Go on with another tokenizer of the same vocabulary.

        It takes over at once where the conversation used last becomes the same token ids; else with the next question.

        Args:
            tokenizer: a registered one, or ``default``.

        Raises:
            UnknownName: there is no such tokenizer; names the nearest.
            InputError: the model brings its own language, or an id is another token than before, or the chat format does not
                work over it; says which.
            PluginError: it does not load.
            TokenizerError: it cannot read the model's folder.
        """
        with self.swaps.asked(f"the tokenizer for '{tokenizer}'"):
            entry, made, chat_format = self._language(tokenizer)
        chat: EngineModel = self.model  # type: ignore[assignment]  # it has a language of ours, so it is one
        new = DEFAULT if entry.name == self.name else entry.name
        at_once = chat.renders_alike(chat_format)
        return self.swaps.ask("tokenizer", self.name, new, partial(chat.speak, made, chat_format), at_once=at_once)

    def implementations(self) -> Implementations:
        """The model's tokenizer: the one in use, and all that are registered."""
        every = [DEFAULT, *(one for one in self.plugins.names("tokenizer") if one != self.name)]
        return {self.name: (self.swaps.now["tokenizer", self.name], tuple(every))} if self.name else {}

    def _language(self, tokenizer: str) -> tuple[Entry, Tokenizer, ChatFormat]:
        """What is registered under a name, as the model's folder has it, and the model's chat format over it."""
        from k2core.engine.vocabulary import format_problem, vocabulary_difference

        if not self.name:
            raise InputError(f"cannot swap the tokenizer of model '{self.model.name}': it brings its own")
        chat: EngineModel = self.model  # type: ignore[assignment]  # it has a name, so it is one
        options = checkpoint_of(self.plugins, self.choice)
        entry = self.plugins.get("tokenizer", self.name if tokenizer == DEFAULT else tokenizer)
        made: Tokenizer = made_of(entry, Path(options["checkpoint"]))
        difference = vocabulary_difference(chat.tokenizer, made)
        if difference:
            raise InputError(f"cannot go on with tokenizer '{entry.name}': {difference}. Every id must be the same token.")
        chat_format: ChatFormat = made_of(self.plugins.get("chat format", options["chat_format"]), made)
        problem = format_problem(chat_format)
        if problem:
            raise InputError(f"cannot go on with tokenizer '{entry.name}': the chat format does not work over it: {problem}")
        return entry, made, chat_format


def known_implementations(plugins: Plugins, kind: str) -> dict[str, list[str]]:
    """Of each tool or verifier that has others, what they are called."""
    known: dict[str, list[str]] = {}
    for entry in plugins.entries(kind + IMPLEMENTATION):
        of, _, name = entry.name.partition("/")
        known.setdefault(of, []).append(name)
    return known


def entry_of(plugins: Plugins, kind: str, name: str) -> Entry:
    """What is registered as a tool or verifier (``search``, ``search/default``) or as another implementation of one.

    Raises:
        UnknownName: there is none; names the nearest.
    """
    of, _, implementation = name.partition("/")
    known = known_implementations(plugins, kind).get(of, [])
    if implementation in known:
        return plugins.get(kind + IMPLEMENTATION, name)
    if implementation in ("", DEFAULT):
        return plugins.get(kind, of)
    raise UnknownName(f"implementation of {kind} '{plugins.get(kind, of).name}' named", implementation, [DEFAULT, *known])


def tool_of(plugins: Plugins, name: str, context: ToolContext) -> Tool:
    """A tool, by ``search`` or by one of its implementations, ``search/tantivy``.

    Raises:
        UnknownName: no such tool or implementation; names the nearest.
        UsageError: its needs are not met.
        PluginError: it does not load, its factory fails, or it makes a tool of another name.
    """
    entry = entry_of(plugins, "tool", name)
    _check_needs(entry, context)
    return make_tool(entry, context)


def verifier_of(plugins: Plugins, name: str) -> Verifier:
    """A verifier, by its name or by one of its implementations, ``grounding/strict``.

    Raises:
        UnknownName: no such verifier or implementation; names the nearest.
        PluginError: it does not load, or is no verifier.
    """
    entry = entry_of(plugins, "verifier", name)
    made = entry.make()
    if not isinstance(made, Verifier):
        raise PluginError(
            f"plugin '{entry.plugin}' registers verifier '{entry.name}', but what it gives has no name or verify()"
        )
    return made


def made_of(entry: Entry, argument: object) -> Any:
    """What a registered tokenizer or chat format makes of its folder or tokenizer.

    Raises:
        PluginError: it does not load, or fails in a way that is no `K2Error`.
    """
    from k2core.registration import described

    try:
        return entry.load()(argument)
    except K2Error:
        raise
    except Exception as error:
        raise PluginError(f"cannot make {entry.kind} '{entry.name}' of plugin '{entry.plugin}': {described(error)}") from error


def _check_needs(entry: Entry, context: ToolContext) -> None:
    missing = [need for need in entry.needs if getattr(context, need) is None]
    if missing:
        raise UsageError(f"tool '{entry.name}' needs {' and '.join('--' + FLAGS[need] for need in missing)}")


def _listed(swaps: Swaps, kind: str, known: Mapping[str, list[str]]) -> Implementations:
    parts = sorted((name, used) for (what, name), used in swaps.now.items() if what == kind)
    return {name: (used, (DEFAULT, *known.get(name, ()))) for name, used in parts}
