"""The hooks a plugin may implement, each with a `register` callback to call any number of times.

A plugin is a module or object under the entry-point group ``k2core``::

    from k2core import hookimpl, tool

    @tool(effect="pure")
    def shout(text: str) -> str:
        '''Return the text in capitals.'''
        return text.upper()

    @hookimpl
    def register_tools(register):
        register(shout)

Anything registered may be given as an object or, so that listing costs no heavy import, as a lazy ``"module:attribute"``
with its ``name``.

A command is no hook: it is an entry point of the group ``k2core.commands``. Its name is what users write behind ``k2``, its
value is a `click.Command` (a group too). It is imported only when it is called; ``k2 --help`` lists the entry point alone.
k2core's own names win, of two strangers the first in order of (name, value). A command that fails to import or is no click
command is one `PluginError` line when called, and ``k2 plugins`` lists it with the reason. What it raises from
`k2core.errors` is shown as one line and gives the exit code; an int that it returns is the exit code.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pluggy

from k2core.interfaces import ChatModel, ModelProfile

hookspec = pluggy.HookspecMarker("k2core")
hookimpl = pluggy.HookimplMarker("k2core")


class Register(Protocol):
    """Takes one thing with its name; see each hook for what the thing is."""

    def __call__(self, thing: Any, /, *, name: str | None = None, summary: str = "", implements: str = "") -> None:
        """Register it; *implements* is for verifiers, as `RegisterTool` has it."""


class RegisterTool(Protocol):
    """Takes a function decorated with `k2core.tool`, a `Tool`, or a factory ``ToolContext -> Tool`` with its name."""

    def __call__(
        self,
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
        """Register it.

        *needs* names fields of `ToolContext` that its factory cannot do without; *state* is a lazy ``"module:attribute"`` of a
        function ``ToolContext -> str`` that tells listings in a word or two how the tool stands on this machine. With
        *implements* it is another implementation, called *name*, of the tool of that name, which sessions may swap to;
        *compare* says how ``k2 tools check`` compares results of two: ``text``, or ``lines`` in any order.
        """


class RegisterModel(Protocol):
    """Takes a model by name: a checkpoint folder with its tokenizer and chat format, or a `ChatModel` factory."""

    def __call__(
        self,
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
        """Register it, with either *checkpoint* or *factory*."""


@hookspec
def register_backends(register: Register) -> None:
    """Register backends: objects with `k2core.interfaces.Backend`'s methods, or lazy paths to such a class."""


@hookspec
def register_models(register: RegisterModel) -> None:
    """Register models by name."""


@hookspec
def register_tokenizers(register: Register) -> None:
    """Register tokenizers: callables ``Path -> Tokenizer`` that read a checkpoint folder."""


@hookspec
def register_chat_formats(register: Register) -> None:
    """Register chat formats: callables ``Tokenizer -> ChatFormat``."""


@hookspec
def register_tools(register: RegisterTool) -> None:
    """Register tools."""


@hookspec
def register_verifiers(register: Register) -> None:
    """Register verifiers: objects with `k2core.interfaces.Verifier`'s method, or lazy paths to such a class."""


@hookspec
def register_guards(register: Register) -> None:
    """Register guards: objects with hooks of `k2core.guards`, or lazy paths to such a class; every session has all of them."""


@hookspec
def register_memories(register: Register) -> None:
    """Register memories: objects with `k2core.interfaces.Memory`'s method, or lazy paths to such a class."""


@hookspec
def register_evaluations(register: Register) -> None:
    """Register evaluations for ``k2 eval NAME``: callables ``(Plugins, EvaluationRequest) -> EvaluationReport``."""
