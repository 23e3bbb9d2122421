"""Words of the Lark dialect that llguidance reads: quoted texts and control tokens."""

import json

# Terminals: any text at all but none, and text with a character that is no blank (to Python, which knows more blanks).
TEXTS = r"""
ANY: /(?s:.+)/
TEXT: /(?s:[\s\x1c-\x1f]*[^\s\x1c-\x1f].*)/
"""


def literal(text: str) -> str:
    """*text* as a quoted string of the grammar, whatever characters it holds."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def token(number: int) -> str:
    """One token of the vocabulary, by its id."""
    return f"<[{number}]>"
