"""Put a session together from what plugins registered: a model on a backend, tools, verifiers, a journal.

This is the Python API's front door::

    from k2core.agent.session import Session

    with Session.open() as session:
        print(session.agent.run("What is 23 times 47?").answer.text)
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, frozen

from k2core.agent.budget import Limits
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal, default_path
from k2core.agent.loop import Agent
from k2core.errors import InputError, Unavailable, UnknownName
from k2core.interfaces import (
    Backend,
    ChatModel,
    GenerateOptions,
    ModelProfile,
    NotAvailable,
    Numerics,
    Progress,
    ToolContext,
)
from k2core.plugins import Plugins
from k2core.tools import RESULT_LIMIT, Registry

if TYPE_CHECKING:
    from k2core.engine.switch import SwitchReport

DEFAULT_MODEL = "nano"
DEFAULT_BACKEND = "numba"
PATH_CONTEXT = 4096  # tokens an agent may fill with a checkpoint given by its folder
RESULT_SHARE = 2  # characters of one result per token of context: at most about half of the context


@frozen(kw_only=True)
class Choice:
    """What a session is made of.

    Attributes:
        model: a registered model's name, or the path of a checkpoint folder.
        backend: a registered backend's name; unused by models that bring their own (remote, scripted).
        device: as the backend's probe names it.
        numerics: rounding in force.
        tools: exactly these tools (control tools are always there), or None for all whose needs are met.
        documents: folder for the tools that search and read.
        workspace: folder for the tools that run code and write files.
        sandbox: the isolation of code that is acceptable: ``strong``, ``wasm`` or ``reduced``.
        store: the journal's file, or None for the user's own.
        limits: budgets of one question.
        temperature: None takes the model's recommendation.
        top_p: nucleus; 1 is off.
        min_p: 0 is off.
        max_tokens: of one turn.
        seed: of the sampler.
        masks: turns are held to the grammar of calls, where the model can.
        drafts: tokens guessed ahead per step; 0 is off. What is generated does not depend on it.
        cache_bytes: limit of the model's cache memory; None leaves it to the engine.
    """

    model: str = DEFAULT_MODEL
    backend: str = DEFAULT_BACKEND
    device: str = "cpu"
    numerics: Numerics = "exact"
    tools: tuple[str, ...] | None = None
    documents: Path | None = None
    workspace: Path | None = None
    sandbox: str = "strong"
    store: Path | None = None
    limits: Limits = field(factory=Limits)
    temperature: float | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    masks: bool = True
    drafts: int = 8
    cache_bytes: int | None = None


@define(kw_only=True)
class Session:
    """An agent with everything it holds; close it to give the model's memory back."""

    agent: Agent
    plugins: Plugins
    choice: Choice = field(factory=Choice)
    closing: ExitStack = field(factory=ExitStack)

    @classmethod
    def open(
        cls,
        choice: Choice | None = None,
        *,
        plugins: Plugins | None = None,
        model: ChatModel | None = None,
        progress: Progress | None = None,
    ) -> "Session":
        """Load what *choice* names.

        Args:
            choice: see `Choice`.
            plugins: discovered before; None discovers the installed ones.
            model: used instead of the one that *choice* names.
            progress: called with (what, done, total) while something slow happens.

        Raises:
            UnknownName: no such model, backend or tool; names the nearest.
            Unavailable: the backend cannot work here.
            CheckpointError: the checkpoint is malformed.
            InputError: the documents folder is missing.
        """
        choice = choice or Choice()
        plugins = plugins or Plugins.discover()
        with ExitStack() as opened:
            return cls._opened(choice, plugins, model, progress, opened)

    @classmethod
    def _opened(
        cls, choice: Choice, plugins: Plugins, model: ChatModel | None, progress: Progress | None, opened: ExitStack
    ) -> "Session":
        tools = session_tools(plugins, choice, opened)
        chat = model or open_model(plugins, choice, progress=progress)
        opened.callback(chat.close)
        options = GenerateOptions(
            max_tokens=choice.max_tokens,
            temperature=chat.profile.temperature if choice.temperature is None else choice.temperature,
            top_p=choice.top_p,
            min_p=choice.min_p,
            seed=choice.seed,
            masks=choice.masks,
        )
        agent = Agent(
            model=chat,
            tools=Registry.of(tools, result_limit=min(RESULT_LIMIT, RESULT_SHARE * chat.profile.context)),
            verifiers=plugins.verifiers(),
            journal=opened.enter_context(Journal.open(choice.store)),
            limits=choice.limits,
            options=options,
        )
        return cls(agent=agent, plugins=plugins, choice=choice, closing=opened.pop_all())

    def use(
        self, backend: str, *, check: int = 64, limit: float | None = None, progress: Progress | None = None
    ) -> "SwitchReport":
        """Go on with another backend, in the middle of a conversation; see `EngineModel.use`.

        Args:
            backend: a registered backend's name.
            check: tokens of the conversation that are scored on both.
            limit: largest difference of two logits; None is what the contract says.
            progress: as of `open`.

        Raises:
            InputError: the model brings its own backend.
            UnknownName, Unavailable: there is no such backend, or it cannot work here.
            SwitchRefused: the two differ by more than the limit; everything goes on as before.
        """
        from k2core.engine.engine import EngineModel

        chat = self.agent.model
        if not isinstance(chat, EngineModel):
            raise InputError(f"cannot switch the backend of model '{chat.name}': it brings its own")
        choice = evolve(self.choice, backend=backend)
        checkpoint = Path(_checkpoint(self.plugins, choice)["checkpoint"])
        found = _backend(self.plugins, choice)
        loaded = found.load(checkpoint, device=choice.device, numerics=choice.numerics, progress=progress)
        report = chat.use(loaded, backend=backend, check=check, limit=limit)
        self.choice = choice
        return report

    def close(self) -> None:
        """Give back the journal, the model and whatever tools opened."""
        self.closing.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def session_tools(plugins: Plugins, choice: Choice, closing: ExitStack) -> list[Any]:
    """Control tools and the tools that *choice* names; what they open is closed with *closing*."""
    control = control_tools()
    fixed = {one.name for one in control}
    wanted: Iterable[str] | None = None if choice.tools is None else [name for name in choice.tools if name not in fixed]
    if choice.documents is not None and not choice.documents.is_dir():
        what = "is not a folder" if choice.documents.exists() else "does not exist"
        raise InputError(f"cannot use '{choice.documents}' as the documents folder: it {what}")
    data = (default_path() if choice.store is None else choice.store).parent
    context = ToolContext(
        documents=choice.documents,
        workspace=choice.workspace,
        sandbox=choice.sandbox,
        data=data,
        closing=closing,
    )
    return control + plugins.tools(context, wanted)


def open_model(plugins: Plugins, choice: Choice, *, progress: Progress | None = None) -> ChatModel:
    """The chat model that *choice* names: a registered one, or the engine over a checkpoint folder."""
    if choice.model in plugins.names("model"):
        entry = plugins.get("model", choice.model)
        if entry.target is not None:
            chat: ChatModel = entry.load()()
            return chat
    return _engine(plugins, choice, _checkpoint(plugins, choice), progress)


def _checkpoint(plugins: Plugins, choice: Choice) -> dict[str, Any]:
    """The options of the checkpoint that *choice* names: a registered one's, or a folder's."""
    folder = Path(choice.model)
    if choice.model in plugins.names("model"):
        return dict(plugins.get("model", choice.model).options)
    if folder.is_dir():
        return of_folder(folder)
    if "/" in choice.model or folder.exists():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"cannot open model '{choice.model}': it {what}. "
            f"Give a checkpoint folder or one of {', '.join(plugins.names('model'))}."
        )
    raise UnknownName("model", choice.model, plugins.names("model"), "A checkpoint folder's path works too.")


def of_folder(folder: Path) -> dict[str, Any]:
    """The options of a checkpoint folder that nobody registered: it speaks the family's language, its profile is its own.

    Raises:
        CheckpointError: its profile cannot be read.
    """
    from k2core.model.profile import read_profile

    return {"checkpoint": folder, "tokenizer": "kimi", "chat_format": "kimi", "profile": read_profile(folder)}


def _backend(plugins: Plugins, choice: Choice) -> Backend:
    """The backend that *choice* names, if it can work here."""
    backend: Backend = plugins.get("backend", choice.backend).make()
    probed = backend.probe()
    if isinstance(probed, NotAvailable):
        others = [name for name in plugins.names("backend") if name != choice.backend]
        raise Unavailable(
            f"backend '{choice.backend}' is not available: {probed.reason}"
            + (f" Others: {', '.join(others)}." if others else "")
        )
    return backend


def _engine(plugins: Plugins, choice: Choice, options: dict[str, Any], progress: Progress | None) -> ChatModel:
    from k2core.engine.engine import EngineModel
    from k2core.model.config import Geometry

    checkpoint = Path(options["checkpoint"])
    backend = _backend(plugins, choice)
    Geometry.read(checkpoint)  # a folder that is no checkpoint should be told so, not that it has no vocabulary
    tokenizer = plugins.get("tokenizer", options["tokenizer"]).load()(checkpoint)
    chat_format = plugins.get("chat format", options["chat_format"]).load()(tokenizer)
    loaded = backend.load(checkpoint, device=choice.device, numerics=choice.numerics, progress=progress)
    profile = options["profile"] or ModelProfile(context=min(PATH_CONTEXT, loaded.geometry.max_position_embeddings))
    try:
        return EngineModel(
            name=choice.model,
            backend=choice.backend,
            model=loaded,
            tokenizer=tokenizer,
            chat_format=chat_format,
            profile=profile,
            checkpoint=checkpoint,
            cache_bytes=choice.cache_bytes,
            drafts=choice.drafts,
        )
    except BaseException:
        loaded.close()
        raise
