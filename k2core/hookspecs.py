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
"""

from pathlib import Path
from typing import Any, Protocol

import pluggy

hookspec = pluggy.HookspecMarker("k2core")
hookimpl = pluggy.HookimplMarker("k2core")


class Register(Protocol):
    """Takes one thing with its name; see each hook for what the thing is."""

    def __call__(self, thing: Any, /, *, name: str | None = None, summary: str = "") -> None:
        """Register it."""


class RegisterTool(Protocol):
    """Takes a function decorated with `k2core.tool`, a `Tool`, or a factory ``ToolContext -> Tool`` with its name."""

    def __call__(self, thing: Any, /, *, name: str | None = None, summary: str = "", needs: tuple[str, ...] = ()) -> None:
        """Register it; *needs* names fields of `ToolContext` that its factory cannot do without."""


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
        profile: Any = None,
        factory: Any = None,
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
def register_evaluations(register: Register) -> None:
    """Register evaluations for ``k2 eval NAME``: callables ``(Plugins, EvaluationRequest) -> EvaluationReport``."""
