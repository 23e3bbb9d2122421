"""The family's history rule and the prefix tree together: what a step, and what a next question, has to compute; by counts."""

import asyncio
import itertools

from kimi.vocabularies import small

from k2core.engine.engine import EngineModel
from k2core.interfaces import GenerateOptions, ModelProfile
from k2core.messages import Message, TurnEnd
from k2core.testing.loaded import HashModel
from k2core_kimi.chat_format import KimiChatFormat

TOKENIZER = small()
FORMAT = KimiChatFormat(TOKENIZER)
CALL = (
    "<think>Let me see, step {0}.</think><|tool_calls_section_begin|><|tool_call_begin|>functions.look:{0}"
    '<|tool_call_argument_begin|>{{"at":{0}}}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
)
FINAL = "<think>That is all.</think>It is there.<|im_end|>"
LOOK = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}}},
}


def played(turns):
    """A model that says *turns* one after the other, whatever the prompt."""
    queue = []

    class Playing(HashModel):
        def _row(self, sequence):
            if not queue:
                queue.extend(TOKENIZER.encode(turns.pop(0), control=True))
            row = super()._row(sequence)
            row[queue.pop(0)] = 100.0
            return row

    return Playing(vocab=TOKENIZER.vocab_size, fork_is_shared=True)


def test_a_step_computes_its_new_tokens_and_a_next_question_what_the_history_rule_changed():
    """Within a chain nothing is computed twice; after an answer, everything up to its first assistant message still holds."""
    model = played([*(CALL.format(number) for number in range(3)), FINAL, FINAL])
    made = EngineModel(
        name="played",
        backend="none",
        model=model,
        tokenizer=TOKENIZER,
        chat_format=FORMAT,
        profile=ModelProfile(context=10_000),
        drafts=0,
    )

    async def turn():
        parts = [part async for part in made.generate(messages, [LOOK], GenerateOptions(max_tokens=200))]
        assert isinstance(parts[-1], TurnEnd)
        return parts[-1]

    messages = [Message(role="system", content="Be brief. " * 20), Message(role="user", content="Where is it?")]
    begin = FORMAT.render(messages, [LOOK])
    with asyncio.Runner() as runner:
        ends = []
        for number in range(4):
            ends.append(runner.run(turn()))
            messages.append(ends[-1].message)
            if number < 3:
                messages.append(Message(role="tool", content=f"not at {number}", tool_call_id=f"functions.look:{number}"))
        chain = FORMAT.render(messages[:-1], [LOOK])
        messages.append(Message(role="user", content="And now?"))
        last = runner.run(turn())
    made.close()
    following = FORMAT.render(messages, [LOOK])

    usages = [end.usage for end in ends]
    assert [end.finish_reason for end in ends] == ["tool_calls"] * 3 + ["stop"]
    assert usages[0].cached_tokens == 0
    for before, after in itertools.pairwise(usages):
        # all but the last generated token of the step before: its logits were not wanted, so it was not computed
        assert after.cached_tokens == before.prompt_tokens + before.completion_tokens - 1
        assert after.hit_rate > 0.8
    assert sum(one.computed_tokens for one in usages) == len(chain) + usages[-1].completion_tokens - 1
    # the rule empties the thinking of that answer's turns: they part right behind their first <think>
    assert following[: len(begin) + 1] == chain[: len(begin) + 1]
    assert following[len(begin) + 1] != chain[len(begin) + 1]
    assert last.usage.cached_tokens == len(begin) + 1
    assert last.usage.computed_tokens == len(following) - len(begin) - 1 + last.usage.completion_tokens - 1
