"""The chat format writes exactly the wire that the embedded model was trained on."""

import json
import tomllib
from importlib.resources import files

import pytest
from kimi.vocabularies import small

from k2core.messages import Message, ToolCall
from k2core_kimi.chat_format import KimiChatFormat

SPEC = tomllib.loads((files("k2core_specs") / "formats" / "nano_episode.toml").read_text(encoding="utf-8"))
WIRE = SPEC["wire"]


@pytest.mark.parametrize("tools", list(SPEC["tool_sets"]))
@pytest.mark.parametrize("answered", [False, True])
def test_episode(tools: str, answered: bool) -> None:
    """Declarations, a step with its result, and a finished answer with the step's thinking gone."""
    declared = [SPEC["tools"][name] for name in SPEC["tool_sets"][tools]]
    arguments = '{"expression":"23*47"}'
    call = ToolCall(id="call_1", name="calculator", arguments=arguments)
    messages = [
        Message(role="system", content=SPEC["system"]),
        Message(role="user", content="What is 23*47?"),
        Message(role="assistant", reasoning="Plan times: 23*47.", tool_calls=(call,)),
        Message(role="tool", name="calculator", tool_call_id="call_1", content="1081"),
    ]
    parts = {"tool": "calculator", "index": 0, "arguments": arguments, "think": "Plan times: 23*47."}
    expected = WIRE["declaration"].replace("TOOLS", ",".join(declared)) + WIRE["system"].format(text=SPEC["system"])
    expected += WIRE["user"].format(text="What is 23*47?") + WIRE["past_step" if answered else "step"].format(**parts)
    expected += WIRE["result"].format(result="1081", **parts)
    if answered:
        messages.append(Message(role="assistant", content="The answer is 1081."))
        expected += WIRE["final"].format(text="The answer is 1081.")
    spoken = KimiChatFormat(small())

    assert spoken.render_text(messages, [json.loads(text) for text in declared], generate=False) == expected
    ids = spoken.render(messages, [json.loads(text) for text in declared], generate=False)
    assert ids == small().encode(expected, control=True)
