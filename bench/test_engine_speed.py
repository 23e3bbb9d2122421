"""The engine on the embedded model: many requests at once, guesses in an agent's run, and the first token of a cached prompt.

Run with ``pytest bench/test_engine_speed.py -s`` on an idle machine. Both sides of a comparison are timed alternately in one
process, and the median of the paired ratios counts. Answers are checked before anything is timed: whatever is batched or
guessed, the tokens are the same.
"""

import asyncio
import json
import random
import statistics
import time
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest

import k2core_specs
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.agent.session import Choice, session_tools
from k2core.engine.engine import EngineModel
from k2core.events import Stored, TurnEnded
from k2core.interfaces import GenerateOptions, ModelProfile
from k2core.messages import Message, TurnEnd
from k2core.plugins import Plugins
from k2core.tools import Registry
from k2core_kimi.chat_format import KimiChatFormat
from k2core_kimi.tokenizer import KimiTokenizer
from k2core_nano import PROFILE, WEIGHTS
from k2core_numba.backend import NumbaBackend

pytestmark = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed"
)
SPEC = tomllib.loads((Path(k2core_specs.__file__).parent / "formats" / "nano_episode.toml").read_text())
TOOLS = [json.loads(SPEC["tools"][name]) for name in SPEC["tool_sets"]["default"]]
ROUNDS = 7
QUESTIONS = [f"What is {23 + 17 * number} times {47 + 3 * number}?" for number in range(16)]
NAMES = ("France", "Germany", "Italy", "Spain", "Poland", "Kenya", "Ghana", "Brazil", "Canada", "Japan", "Norway", "Chile")


def copies(count):
    """Questions whose runs copy what tools return into thoughts, expressions, claims and the answer, and their kind."""
    drawn = random.Random(1)
    for number in range(count):
        first, second, third = drawn.sample(NAMES, 3)
        yield (
            ("three results", f"What is the total population of {first}, {second} and {third}?"),
            ("two results", f"What is the difference between the area of {first} and the area of {second}?"),
            ("one result", f"What is {drawn.randrange(10**4, 10**6)} plus {drawn.randrange(10**4, 10**6)}?"),
        )[number % 3]


def engine(context=PROFILE.context, **options):
    """The embedded model's engine."""
    tokenizer = KimiTokenizer.open(WEIGHTS)
    return EngineModel(
        name="nano",
        backend="numba",
        model=NumbaBackend().load(WEIGHTS),
        tokenizer=tokenizer,
        chat_format=KimiChatFormat(tokenizer),
        profile=ModelProfile(context=context, system=PROFILE.system, temperature=0.0),
        **options,
    )


async def answer(made, question, **options):
    """The end of the first turn on a question."""
    messages = [Message(role="system", content=PROFILE.system), Message(role="user", content=question)]
    async for part in made.generate(messages, TOOLS, GenerateOptions(max_tokens=160, **options)):
        if isinstance(part, TurnEnd):
            return part
    raise AssertionError("no end")


@pytest.mark.parametrize("masks", [False, True], ids=["masks=off", "masks=on"])
def test_sixteen_at_once(masks):
    """Tokens per second of sixteen requests at once over those of the same requests one after the other."""
    made = engine(masks=masks, drafts=0)

    async def alone():
        return [await answer(made, question) for question in QUESTIONS]

    async def together():
        return await asyncio.gather(*(answer(made, question) for question in QUESTIONS))

    rows = []
    with asyncio.Runner() as runner:
        for _ in range(ROUNDS + 1):
            row = []
            for how in (alone, together):
                made.prefix.clear()  # neither finds what the other has computed
                runner.run(answer(made, QUESTIONS[0][::-1]))
                start = time.perf_counter()
                ends = runner.run(how())
                row.append((time.perf_counter() - start, ends))
            (one_s, one), (many_s, many) = row
            assert [end.message.token_ids for end in one] == [end.message.token_ids for end in many]
            tokens = sum(end.usage.completion_tokens for end in one)
            rows.append((tokens / one_s, tokens / many_s, sum(end.usage.model_seconds for end in many) / tokens * 1e6))
    made.close()
    one, many, model_us = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    ratio = statistics.median(together / alone for alone, together, _ in rows[1:])
    print(
        f"\n16 at once: {many:.0f} tokens/s, one after the other {one:.0f}: ratio {ratio:.2f}; "
        f"per token at once {1e6 / many:.0f} us, {model_us:.0f} of them in the model"
    )


async def run(agent, question):
    """The turns of a run: their ids and the seconds they took."""
    turns = [
        item.event async for item in agent.stream(question) if isinstance(item, Stored) and isinstance(item.event, TurnEnded)
    ]
    return [turn.token_ids for turn in turns], turns


@pytest.mark.parametrize("masks", [False, True], ids=["masks=off", "masks=on"])
def test_guesses_in_an_agents_run(tmp_path, masks):
    """Seconds of the model's turns in agent runs that copy tool results, without guesses over with.

    Each of the two engines keeps what it has computed, as in use: the declarations of the tools are computed once.
    """
    plugins = Plugins.discover()
    closing = ExitStack()
    tools = Registry.of(session_tools(plugins, Choice(), closing))
    journal = Journal.open(tmp_path / "runs.sqlite")
    options = GenerateOptions(max_tokens=400, masks=masks)
    agents = [
        Agent(model=engine(drafts=drafts), tools=tools, verifiers=plugins.verifiers(), journal=journal, options=options)
        for drafts in (0, 8)
    ]
    kinds, forwards, guessed, right = {}, 0, 0, 0
    with asyncio.Runner() as runner:
        for number, (question, kind) in enumerate({question: kind for kind, question in copies(60)}.items()):
            seconds, found = [0.0, 0.0], [None, None]
            for place in (0, 1) if number % 2 else (1, 0):
                found[place], turns = runner.run(run(agents[place], question))
                seconds[place] = sum(turn.usage.seconds for turn in turns)
                if place:
                    guessed += sum(turn.usage.drafted_tokens for turn in turns)
                    right += sum(turn.usage.accepted_tokens for turn in turns)
                    forwards += sum(turn.usage.completion_tokens - turn.usage.accepted_tokens for turn in turns)
            assert found[0] == found[1]
            if number >= 6:  # the first ones warm both up
                kinds.setdefault(kind, []).append(seconds[0] / seconds[1])
    for agent in agents:
        agent.model.close()
    journal.close()
    closing.close()
    print(f"\nguesses: {forwards + right} tokens in {forwards} forwards, {right} of {guessed} guesses right")
    for kind, ratios in kinds.items():
        low, *_, high = statistics.quantiles(ratios, n=10)
        print(
            f"  {kind} copied: {statistics.median(ratios):.2f} x in the median of {len(ratios)} runs ({low:.2f} to {high:.2f})"
        )


def test_first_token_of_a_cached_prompt():
    """Milliseconds to the first token of a prompt of 2,000 tokens that is in the cache."""
    made = engine(context=4096)
    text = "the sea and the wind and the ships " * 120
    messages = [Message(role="system", content=PROFILE.system), Message(role="user", content=text)]

    async def first():
        start = time.perf_counter()
        usage = None
        async for part in made.generate(messages, TOOLS, GenerateOptions(max_tokens=2)):
            if isinstance(part, TurnEnd):
                usage = part.usage
        return time.perf_counter() - start, usage

    cold, usage = asyncio.run(first())
    times = []
    for _ in range(20):
        seconds, usage = asyncio.run(first())
        assert usage.cached_tokens == usage.prompt_tokens - 1
        times.append(seconds)
    made.close()
    assert usage.prompt_tokens >= 2000
    print(
        f"\n{usage.prompt_tokens} tokens, cached: two tokens after {statistics.median(times) * 1e3:.1f} ms "
        f"(the slowest of 20 after {max(times) * 1e3:.1f}), cold after {cold * 1e3:.0f} ms"
    )
