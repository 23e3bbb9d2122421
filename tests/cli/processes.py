"""The files of a plugin with scripted models and ill-behaved tools, and what running ``k2`` gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen

ROOT = Path(__file__).parents[2]
ROOMS = [ROOT, *(ROOT / room for room in ("backends", "plugins", "kernels", "specs"))]

PLUGIN = '''\
"""Scripted models and ill-behaved tools for tests of the command line."""

import atexit
import os
import subprocess
import sys
import threading
import time

from k2core import hookimpl, tool
from k2core.errors import K2Error
from k2core.interfaces import Available, Finding, ModelProfile, NotAvailable, Verdict
from k2core.messages import Message, ToolCall
from k2core.testing.models import ScriptedModel, call_turn


@tool(effect="pure")
def multiply(a: int, b: int) -> int:
    """Multiply two whole numbers."""
    print("a tool that prints")
    return a * b


@tool(effect="read")
async def loud(text: str) -> str:
    """Print and return."""
    print("an async tool that prints")
    return text


@tool(effect="pure")
def raises(kind: str) -> str:
    """Fail."""
    if kind == "exit":
        sys.exit(3)
    raise RuntimeError("broken\\nin two lines")


@tool(effect="pure", timeout_s=0.3)
def hangs() -> str:
    """Never return."""
    while True:
        time.sleep(0.01)
        print("still here")


@tool(effect="pure", timeout_s=60)
def huge(returned: bool) -> str:
    """Print or return 100 MB."""
    if returned:
        return "x" * 100_000_000
    for _ in range(100):
        print("x" * 1_000_000)
    sys.stdout.buffer.write(b"raw bytes")
    return "printed"


@tool(effect="read")
def below(text: str) -> str:
    """Write to the descriptors, and let a child process do so."""
    os.write(1, f"descriptor {text}\\n".encode())
    os.write(2, b"error\\n")
    subprocess.run(["echo", "child"], check=True)
    thread = threading.Thread(target=print, args=("a thread",))
    thread.start()
    thread.join()
    return text


@tool(effect="pure")
def blob(text: bool) -> bytes:
    """Return bytes."""
    return "grün".encode() if text else b"\\xff\\xfe\\x00"


@tool(timeout_s=60)
def pay(amount: int) -> str:
    """Pay; the first time it takes a minute until the bank says so."""
    with open(os.environ["PAID"], "a") as book:
        book.write(f"{amount}\\n")
    with open(os.environ["PAID"]) as book:
        if len(book.readlines()) == 1:
            time.sleep(50)
    return f"{amount} paid"


def pays(messages):
    called = sum(len(one.tool_calls) for one in messages)
    if called == 0:
        return call_turn(0, "pay", reasoning="It is due.", amount=7)
    return call_turn(called, "answer", claims=[{"evidence": [0], "text": "7 paid"}], text="7 paid.")


class NumbersSeen:
    """Every number of the answer is in a result."""

    name = "numbers"

    def verify(self, answer, trajectory):
        findings = []
        for word in answer.text.replace(".", " ").split():
            if word.isdigit():
                seen = [one for one in trajectory.observations if one.ok and one.tool != "answer" and word in one.text]
                findings.append(
                    Finding(verifier="numbers", subject=word, status="supported", events=(seen[0].event,), claim=0)
                    if seen
                    else Finding(verifier="numbers", subject=word, status="unsupported", hint=f"number {word} is in no result")
                )
        return Verdict(findings=tuple(findings))


CLAIMS = [{"evidence": [0], "text": "23 times 47 is 1081"}]


def product(reasoning="Multiply 23 by 47."):
    return [
        call_turn(0, "multiply", reasoning=reasoning, a=23, b=47),
        call_turn(1, "answer", reasoning="That is it.", claims=CLAIMS, text="The product is 1081."),
    ]


def wrong(first=1):
    return [call_turn(first + n, "answer", claims=[], text="The product is 1082.") for n in range(3)]


def bad(name, **arguments):
    return [
        call_turn(0, name, **arguments),
        call_turn(1, "answer", claims=[{"evidence": [], "text": "Done."}], text="Done."),
    ]


class Broken(ScriptedModel):
    def __init__(self):
        super().__init__([product()[0]], name="broken")


class Lingers(ScriptedModel):
    def __init__(self):
        super().__init__(product(), name="lingers")
        atexit.register(time.sleep, 5)


class SlowToClose(ScriptedModel):
    def __init__(self):
        super().__init__(product(), name="slow-to-close")

    def close(self):
        time.sleep(5)


class Slow(ScriptedModel):
    def __init__(self):
        super().__init__([Message(role="assistant", reasoning="word " * 4000, content="late")] * 9, name="slow", delay_s=0.05)


EVIL = "\\x1b[31mred\\x1b[0m [bold]markup[/bold] \\x1b]0;title\\x07 \\x9b2J \\u202egnp"
SCRIPTS = {
    "product": product,
    "wrong": lambda: [product()[0], *wrong()],
    "evil": lambda: [
        call_turn(0, "loud", reasoning=EVIL, text=EVIL),
        call_turn(1, "answer", claims=[{"evidence": [0], "text": EVIL}], text=EVIL),
    ],
    "declines": lambda: [call_turn(0, "answer", claims=[], text="I cannot answer this with my tools.")],
    "words": lambda: [Message(role="assistant", content="Plain words.")] * 5,
    "endless": lambda: [call_turn(n, "multiply", reasoning="Again.", a=n, b=n) for n in range(60)],
    "raises": lambda: bad("raises", kind="error"),
    "exits": lambda: bad("raises", kind="exit"),
    "hangs": lambda: bad("hangs"),
    "prints": lambda: bad("huge", returned=False),
    "returns": lambda: bad("huge", returned=True),
    "bytes": lambda: bad("blob", text=False),
    "garbled": lambda: [
        Message(role="assistant", tool_calls=(ToolCall(id="functions.multiply:0", name="multiply", arguments="{a: 1"),)),
        call_turn(1, "answer", claims=[{"evidence": [], "text": "Done."}], text="Done."),
    ],
    "repeats": lambda: [
        Message(
            role="assistant",
            tool_calls=tuple(
                ToolCall(id="functions.multiply:0", name="multiply", arguments=f'{{"a":2,"b":{b}}}') for b in (3, 5)
            ),
        ),
        call_turn(2, "answer", claims=[{"evidence": [], "text": "Done."}], text="Done."),
    ],
    "pays": lambda: [pays] * 9,
    "below": lambda: bad("below", text="x"),
    "twice": lambda: [*product(), call_turn(2, "answer", claims=CLAIMS, text="Still 1081.")],
}


class Here:
    name = "here"
    compiled = 0

    def probe(self):
        return Available(device="cpu", detail="always")

    def load(self, checkpoint, *, device="cpu", numerics="exact", progress=None):
        raise K2Error("this backend loads nothing")

    def warmup(self, progress=None):
        for done in range(1, 15):
            progress("compiling kernels (once)", done, 14)


class Elsewhere(Here):
    name = "elsewhere"

    def probe(self):
        return NotAvailable(reason="libfast.so not found. Install fast.")


def fake_evaluation(plugins, request):
    from k2core.testing.evaluation import EvaluationReport

    for done in range(request.count):
        request.progress("asking", done + 1, request.count)
    row = {"family": "sums", "right": request.count}
    text = f"sums {request.count} {request.model}"
    return EvaluationReport(rows=(row,), text=text, json={"rows": [row], "seed": request.seed})


class Failing(Here):
    name = "failing"

    def probe(self):
        print("a backend that prints")
        raise OSError("driver\\nis gone")


print("a plugin that prints when it is imported")
os.write(1, b"and below")


@hookimpl
def register_tools(register):
    for one in (pay, multiply, loud, raises, hangs, huge, blob, below):
        register(one)


@hookimpl
def register_verifiers(register):
    register(NumbersSeen)


@hookimpl
def register_backends(register):
    register(Here)
    register(Elsewhere)
    register(Failing)


@hookimpl
def register_evaluations(register):
    register(fake_evaluation, name="fake", summary="counts")


@hookimpl
def register_models(register):
    def factory(name):
        return lambda: ScriptedModel(SCRIPTS[name](), name=name, profile=ModelProfile(context=100_000, temperature=0.0))

    for name in SCRIPTS:
        register(name, factory=factory(name), summary="scripted")
    register("broken", factory=Broken)
    register("slow", factory=Slow)
    register("lingers", factory=Lingers)
    register("slow-to-close", factory=SlowToClose)
'''

ENTRY_POINTS = """\
[k2core]
scripted = k2_scripted
shattered = k2_shattered

[k2core.commands]
hello = k2_scripted_command:hello
oops = k2_shattered:command
run = k2_scripted_command:hello
"""

COMMAND = '''\
import click


@click.command()
def hello() -> None:
    """Greet."""
    click.echo("hello")
'''


@frozen(kw_only=True)
class Finished:
    """A process that has ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output as exactly one JSON value."""
        return json.loads(self.out)


K2 = Callable[..., Finished]
