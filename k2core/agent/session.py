"""Put a session together from what plugins registered: a model on a backend, tools, verifiers, a journal.

This is the Python API's front door::

    from k2core.agent.session import Session

    with Session.open() as session:
        print(session.agent.run("What is 23 times 47?").answer.text)
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from k2core.agent.approving import Approval
from k2core.agent.choice import Choice
from k2core.agent.control import ANSWER, NOTE, RECALL, control_tools
from k2core.agent.journal import Journal, default_path
from k2core.agent.loop import Agent
from k2core.agent.memories import memory_of
from k2core.agent.placement import is_at, load_model, open_model, usable
from k2core.agent.swapping import SessionTokenizers, SessionTools, SessionVerifiers
from k2core.agent.swaps import Swaps
from k2core.errors import InputError, K2Error, PluginError, said
from k2core.events import ModelSwitched
from k2core.interfaces import (
    Available,
    ChatModel,
    GenerateOptions,
    Numerics,
    Progress,
    ToolContext,
)
from k2core.plugins import Plugins
from k2core.tools import CONTROL_NAMES, RESULT_LIMIT, Registry

if TYPE_CHECKING:
    from k2core.engine.switch import SwitchReport

__all__ = ["Choice", "Session", "open_model", "session_tools"]

RESULT_SHARE = 2  # characters of one result per token of context: at most about half of the context


@define(kw_only=True)
class Session:
    """An agent with everything it holds; close it to give the model's memory back.

    `tools`, `verifiers` and `tokenizers` swap parts of it while it runs, see `k2core.agent.swapping`.
    """

    agent: Agent
    plugins: Plugins
    tools: SessionTools
    verifiers: SessionVerifiers
    tokenizers: SessionTokenizers
    choice: Choice = field(factory=Choice)
    closing: ExitStack = field(factory=ExitStack)
    _asked: str | None = field(init=False, default=None)  # device that was asked for, also where a backend has it not

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
            UnknownName: no such model, backend, tool or memory; names the nearest.
            Unavailable: the backend cannot work here.
            CheckpointError: the checkpoint is malformed.
            InputError: the documents folder is missing.
            UsageError: there is no such class of effects to approve.
        """
        choice = choice or Choice()
        plugins = plugins or Plugins.discover()
        with ExitStack() as opened:
            return cls._opened(choice, plugins, model, progress, opened)

    @classmethod
    def _opened(
        cls, choice: Choice, plugins: Plugins, model: ChatModel | None, progress: Progress | None, opened: ExitStack
    ) -> "Session":
        context = tool_context(choice, opened)
        chat = model or open_model(plugins, choice, progress=progress)
        opened.callback(chat.close)
        memory = memory_of(plugins, choice.memory, chat.profile)
        registry_tools = tools_in(plugins, choice, context, chat.profile.controls, recalls=memory.recalls)
        options = GenerateOptions(
            max_tokens=choice.max_tokens,
            temperature=chat.profile.temperature if choice.temperature is None else choice.temperature,
            top_p=choice.top_p,
            min_p=choice.min_p,
            seed=choice.seed,
            masks=choice.masks,
        )
        registry = Registry.of(registry_tools, result_limit=min(RESULT_LIMIT, RESULT_SHARE * chat.profile.context))
        verifiers, swaps = plugins.verifiers(), Swaps()
        agent = Agent(
            model=chat,
            tools=registry,
            verifiers=verifiers,
            journal=opened.enter_context(Journal.open(choice.store)),
            limits=choice.limits,
            options=options,
            swaps=swaps,
            memory=memory,
            prices=choice.prices,
            made_of={**made_of(choice), "memory": memory.name},
            guards=plugins.guards(),
            approval=Approval.of(choice.approve, trust=choice.trust),
        )
        return cls(
            agent=agent,
            plugins=plugins,
            tools=SessionTools(registry=registry, plugins=plugins, context=context, swaps=swaps),
            verifiers=SessionVerifiers(verifiers=verifiers, plugins=plugins, swaps=swaps),
            tokenizers=SessionTokenizers(
                # a model that was passed is not what *choice* names: its language is its own
                model=chat,
                plugins=plugins,
                choice=choice,
                swaps=swaps,
                is_chosen=model is None,
            ),
            choice=choice,
            closing=opened.pop_all(),
        )

    def use(
        self,
        backend: str,
        *,
        check: int = 64,
        limit: float | None = None,
        device: str | None = None,
        numerics: Numerics | None = None,
        moe: str | None = None,
        progress: Progress | None = None,
    ) -> "SwitchReport":
        """Go on with another backend, in the middle of a conversation; see `EngineModel.use`.

        The switch is an event of the run, and so is its refusal.

        Args:
            backend: a registered backend's name.
            check: tokens of the conversation that are scored on both.
            limit: largest difference of two logits; None is what the contract of the numerics says, where they stay the same.
            device: as the backend's probe names it; None stays on the one that was chosen where the backend has it, else
                takes what it takes unasked.
            numerics: None keeps what is in force.
            moe: a backend that holds the routed experts; None leaves them where they are, if that is another one, and ``""``
                gives them to *backend*. A shadow ends.
            progress: as of `open`.

        Raises:
            InputError: the model brings its own backend, a number is none or out of its range, or the numerics become others
                and no limit is given.
            UnknownName, Unavailable: there is no such backend, or it cannot work here.
            SwitchRefused: the two differ by more than the limit; everything goes on as before.
            PluginError: the backend failed; everything goes on as before.
        """
        with self.agent.swaps.asked(f"the backend for '{backend}'"):
            report = self._use(backend, check, limit, device, numerics or self.choice.numerics, moe, progress)
        self.agent.swaps.tell(ModelSwitched(model=dict(self.agent.model.identity())))
        return report

    def _use(
        self,
        backend: str,
        check: int,
        limit: float | None,
        device: str | None,
        numerics: Numerics,
        moe: str | None,
        progress: Progress | None,
    ) -> "SwitchReport":
        from k2core.engine.engine import EngineModel
        from k2core.engine.limits import accepted, see_one_contract

        chat = self.agent.model
        if not isinstance(chat, EngineModel):
            raise InputError(f"cannot switch the backend of model '{chat.name}': it brings its own")
        if limit is None:  # before anything is loaded
            see_one_contract(self.choice.numerics, numerics)
        else:
            limit = accepted(limit)
        experts = self.choice.moe if moe is None else moe
        moe = experts or None
        choice = evolve(self.choice, backend=backend, device=device, numerics=numerics, moe=moe, shadow=None)
        try:
            choice = evolve(choice, device=device or self._device(backend))
            if moe is not None and is_at(moe, backend, usable(self.plugins, backend, choice.device)[1]):
                choice = evolve(choice, moe=None)
            report = chat.use(load_model(self.plugins, choice, progress=progress), backend=backend, check=check, limit=limit)
        except K2Error:
            raise
        except Exception as error:  # a stranger's backend may raise anything; everything goes on as before
            raise PluginError(f"cannot switch to backend '{backend}': it {said(error)}") from error
        self.choice, self._asked = choice, device or self._asked
        return report

    def __attrs_post_init__(self) -> None:
        self._asked = self.choice.device

    def _device(self, backend: str) -> str | None:
        probed = self.plugins.get("backend", backend).make().probe()
        chosen = self._asked
        return chosen if isinstance(probed, Available) and chosen in (probed.device, *probed.devices) else None

    def close(self) -> None:
        """Give back the journal, the model and whatever tools opened."""
        try:
            self.agent.write_swaps()
        finally:
            self.closing.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def made_of(choice: Choice) -> dict[str, Any]:
    """What a run records of *choice* beside model, tools, limits and sampling: what `k2 resume` needs to make it again."""
    folders = {"docs": choice.documents, "workspace": choice.workspace}
    return {
        **{name: str(path.absolute()) for name, path in folders.items() if path is not None},
        **{name: value for name, value in (("device", choice.device), ("moe", choice.moe)) if value is not None},
        "sandbox": choice.sandbox,
        **({"approve": list(choice.approve)} if choice.approve else {}),
        **({"trust": True} if choice.trust else {}),
    }


def session_tools(plugins: Plugins, choice: Choice, closing: ExitStack) -> list[Any]:
    """Control tools and the tools that *choice* names; what they open is closed with *closing*."""
    return tools_in(plugins, choice, tool_context(choice, closing))


def tools_in(
    plugins: Plugins, choice: Choice, context: ToolContext, controls: Sequence[str] | None = (), *, recalls: bool = False
) -> list[Any]:
    """Control tools and the tools that *choice* names, made in *context*.

    Args:
        plugins: where they come from.
        choice: names them.
        context: what their factories may ask for.
        controls: control tools beside `answer` and `note`; None is all.
        recalls: whether the memory wants `recall` to be among them.
    """
    names = CONTROL_NAMES if controls is None else (ANSWER, NOTE, *controls)
    control = control_tools([name for name in names if recalls or name != RECALL])
    wanted: Iterable[str] | None = None
    if choice.tools is not None:
        wanted = [name for name in choice.tools if name not in CONTROL_NAMES]
    return control + plugins.tools(context, wanted)


def tool_context(choice: Choice, closing: ExitStack) -> ToolContext:
    """What factories of tools may use.

    Raises:
        InputError: the documents folder is missing.
    """
    if choice.documents is not None and not choice.documents.is_dir():
        what = "is not a folder" if choice.documents.exists() else "does not exist"
        raise InputError(f"cannot use '{choice.documents}' as the documents folder: it {what}")
    data = (default_path() if choice.store is None else choice.store).parent
    return ToolContext(
        documents=choice.documents,
        workspace=choice.workspace,
        sandbox=choice.sandbox,
        data=data,
        closing=closing,
    )
