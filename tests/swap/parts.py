"""An inline plugin with a tool and a verifier that have other implementations, and an agent over a script that has them."""

import json
from contextlib import ExitStack, closing

from k2core import hookimpl, tool
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.agent.swapping import SessionTools, SessionVerifiers
from k2core.events import Swapped, ToolReturned
from k2core.interfaces import Finding, ToolContext, Verdict
from k2core.messages import Message, ToolCall
from k2core.plugins import Plugins
from k2core.testing.models import ScriptedModel
from k2core.tools import Registry


@tool(effect="pure")
def double(number: int) -> str:
    """Twice a number."""
    return str(2 * number)


def by_shifting(context):
    """The same tool, word for word, with the same results."""

    @tool(effect="pure", name="double")
    def shifted(number: int) -> str:
        """Twice a number."""
        return str(number << 1)

    return shifted


def by_adding(context):
    """The same tool, word for word, with results that tell."""

    @tool(effect="pure", name="double")
    def added(number: int) -> str:
        """Twice a number."""
        return f"{number + number} by adding"

    return added


def by_sending(context):
    """The same tool, word for word, with an effect."""

    @tool(effect="external", name="double")
    def sent(number: int) -> str:
        """Twice a number."""
        return f"{2 * number} sent"

    return sent


def in_other_words(context):
    """The same name with another description."""

    @tool(effect="pure", name="double")
    def other(number: int) -> str:
        """A number, doubled."""
        return f"{2 * number} in other words"

    return other


class Polite:
    """An answer says please."""

    name = "polite"

    def verify(self, answer, trajectory):
        """One finding."""
        fine = "please" in answer.text
        return Verdict(
            findings=(
                Finding(
                    verifier=self.name,
                    subject="manners",
                    status="supported" if fine else "refuted",
                    hint="" if fine else "it does not say please",
                ),
            )
        )


class Lenient(Polite):
    """Any answer will do."""

    def verify(self, answer, trajectory):
        """One finding that blocks nothing."""
        return Verdict(findings=(Finding(verifier=self.name, subject="manners", status="supported"),))


class Parts:
    """A plugin with a tool, a verifier, and other implementations of both."""

    @hookimpl
    def register_tools(self, register):
        """The tool, four that are declared alike, one that is not; one of them needs what is not given."""
        register(double)
        register(by_shifting, name="shifting", implements="double", summary="by shifting")
        register(by_adding, name="adding", implements="double")
        register(by_sending, name="sending", implements="double")
        register(in_other_words, name="words", implements="double")
        register(by_adding, name="needy", needs=("documents",), implements="double")

    @hookimpl
    def register_verifiers(self, register):
        """The verifier and one that lets everything pass."""
        register(Polite)
        register(Lenient, name="lenient", implements="polite")

    @hookimpl
    def register_models(self, register):
        """A script that calls the tool and answers, twice."""
        turns = [call("double", number=4), call("answer", text="It is 8, please.", claims=[])]
        register("script", factory=lambda: ScriptedModel(turns * 2, name="script"))


OPENED = ExitStack()  # journals of agents; conftest.py closes them behind each test


def plugins_with_parts():
    """Plugins with the one above, and nothing else."""
    plugins = Plugins()
    report = plugins.add(Parts(), name="parts")
    assert report.status == "loaded", report.reason
    return plugins


def opened(folder, turns, *, verified=False):
    """An agent over a scripted model, its tools, and its verifiers: none unless they are asked for."""
    plugins = plugins_with_parts()
    registry = Registry.of([*control_tools(), *plugins.tools(ToolContext(), None)])
    verifiers = plugins.verifiers() if verified else []
    journal = OPENED.enter_context(closing(Journal.open(folder / "runs.sqlite")))
    agent = Agent(model=ScriptedModel(turns), tools=registry, verifiers=verifiers, journal=journal)
    tools = SessionTools(registry=registry, plugins=plugins, context=ToolContext(), swaps=agent.swaps)
    return agent, tools, SessionVerifiers(verifiers=verifiers, plugins=plugins, swaps=agent.swaps)


def call(name, **arguments):
    """A turn that calls a tool."""
    return calls((name, arguments))


def calls(*named):
    """A turn that calls several."""
    return Message(
        role="assistant",
        tool_calls=tuple(
            ToolCall(id=f"functions.{name}:{place}", name=name, arguments=json.dumps(arguments))
            for place, (name, arguments) in enumerate(named)
        ),
    )


ANSWER = call("answer", text="Done.", claims=[])


def results(agent, run):
    """What calls of the tool returned, in order."""
    events = [one.event for one in agent.journal.events(run)]
    return [one.text for one in events if isinstance(one, ToolReturned) and one.text[0].isdigit()]


def swaps(agent, run):
    """Swaps in the log."""
    return [one.event for one in agent.journal.events(run) if isinstance(one.event, Swapped)]


class Cut:
    """A tokenizer with another one's vocabulary, and nothing beside the protocol; texts are cut first."""

    def __init__(self, inner, width=None, forges=False):
        self.inner, self.width, self.forges = inner, width, forges
        self.vocab_size, self.control = inner.vocab_size, inner.control

    def encode(self, text, *, control=False):
        """Ids of each cut of the text; with *forges* texts of control tokens become these."""
        cuts = [text] if self.width is None else [text[at : at + self.width] for at in range(0, len(text), self.width)]
        return [one for cut in cuts for one in self.inner.encode(cut, control=control or self.forges)]

    def decode(self, token_ids, *, control=True):
        """As the other does."""
        return self.inner.decode(token_ids, control=control)

    def decode_bytes(self, token_ids):
        """As the other does."""
        return self.inner.decode_bytes(token_ids)


class Renamed(Cut):
    """A tokenizer with one other token."""

    def decode_bytes(self, token_ids):
        """One id is another token."""
        return b"".join(b"?" if one == 65 else self.inner.decode_bytes((one,)) for one in token_ids)


class Blind(Cut):
    """A tokenizer that cannot encode."""

    def encode(self, text, *, control=False):
        """Fail."""
        raise RuntimeError("no text, please")


def over_kimi(kind, **options):
    """A callable that reads a folder as the family's tokenizer does and wraps it."""

    def read(folder):
        from k2core_kimi.tokenizer import KimiTokenizer

        return kind(KimiTokenizer.open(folder), **options)

    return read


def unreadable(folder):
    """A callable that fails."""
    raise OSError(f"no vocabulary in {folder.name}")


class Languages:
    """A plugin with tokenizers that read the folders of the shipped one."""

    @hookimpl
    def register_tokenizers(self, register):
        """One that is the same, one that cuts otherwise, and four that must be refused or found out."""
        register(over_kimi(Cut), name="wrapped")
        register(over_kimi(Cut, width=3), name="narrow")
        register(over_kimi(Cut, forges=True), name="forging")
        register(over_kimi(Renamed), name="renamed")
        register(over_kimi(Blind), name="blind")
        register(unreadable, name="unreadable")


PARTS, LANGUAGES = Parts(), Languages()  # entry points of processes
