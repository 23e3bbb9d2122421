"""Training documents as text, to be read before anything is trained on them.

python -m k2core_nano.train.preview --documents 3
"""

import argparse
from itertools import islice

from k2core_nano.train.documents import stream
from k2core_nano.train.tokenizer import load
from k2core_nano.train.wire import Document


def shown(document: Document) -> str:
    """A document's text; what the loss counts stands between ⟦ and ⟧."""
    tokenizer, text, counted = load(), b"", False
    for token, weight in zip(document.ids, document.weights, strict=True):
        if (weight > 0) != counted:
            counted = not counted
            text += ("⟦" if counted else "⟧").encode()
        text += tokenizer.decode_single_token_bytes(token)
    return text.decode(errors="replace") + ("⟧" if counted else "")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m k2core_nano.train.preview", description="Print training documents.")
    parser.add_argument("--documents", type=int, default=3, help="how many")
    parser.add_argument("--phase", choices=("copy", "main"), default="main")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    groups = stream(options.seed, tokens=1, phase=options.phase)
    for document in (group.documents[0] for group in islice(groups, options.documents)):
        print(f"--- {document.family}, {len(document.ids)} tokens\n{shown(document)}")


if __name__ == "__main__":
    main()
