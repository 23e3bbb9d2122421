"""Strings with a pattern, a format or a length as terminals over their JSON texts.

A string has one spelling: a character is written as it is, where JSON demands an escape by the short one. Control characters
that have no short escape occur only where a pattern or a listed value asks for them.
"""

from collections.abc import Sequence

from attrs import frozen

from k2core.engine.schemas.patterns import ANY_CHARACTER, CHARACTER, terminal

FREE = f'/"{CHARACTER}*"/'
MOST_LENGTH = 10_000  # characters that a mask counts; a longer bound is not held to

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP}-02-29)"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_CLOCK = "(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DURATION = f"P(?:[0-9]+W|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)(?:T{_CLOCK})?|T{_CLOCK})"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9\\-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,8}}"
_ATOM = r"[A-Za-z0-9!#$%&'*+\-\/=?^_`{|}~]+"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9a-fA-F]"
_GROUP = f"{_HEX}{{1,4}}"
_IPV6 = "|".join(
    [f"(?:{_GROUP}:){{7}}{_GROUP}", "::", f"(?:{_GROUP}:){{1,7}}:"]
    + [f"(?:{_GROUP}:){{1,{7 - size}}}(?::{_GROUP}){{{size}}}" for size in range(1, 7)]
    + [f":(?::{_GROUP}){{1,7}}"]
)
_PCHAR = rf"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%{_HEX}{{2}})"
_USER = rf"(?:[A-Za-z0-9\-._~!$&'()*+,;=:]|%{_HEX}{{2}})"
_NAME = rf"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%{_HEX}{{2}})"
_URI = (
    rf"[A-Za-z][A-Za-z0-9+.\-]*:(?:\/\/(?:{_USER}*@)?{_NAME}*(?::[0-9]{{1,4}})?(?:\/{_PCHAR}*)*"
    rf"|\/(?:{_PCHAR}+(?:\/{_PCHAR}*)*)?|{_PCHAR}+(?:\/{_PCHAR}*)*)(?:\?(?:{_PCHAR}|[\/?])*)?(?:#(?:{_PCHAR}|[\/?])*)?"
)

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": _DURATION,
    "email": rf"{_ATOM}(?:\.{_ATOM})*@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"(?:{_BYTE}\.){{3}}{_BYTE}",
    "ipv6": f"(?:{_IPV6})",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "uri": _URI,
}


@frozen(kw_only=True)
class Text:
    """What is asked of a string.

    Attributes:
        patterns: regular expressions that must all be found in it.
        formats: names in `FORMATS` that must all hold.
        least: characters (code points) at least.
        most: characters at most; None is no limit.
    """

    patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None

    def terminal(self) -> str:
        """A terminal over the quoted JSON texts; it may match nothing at all.

        Raises:
            Untranslatable: a pattern has no translation.
        """
        conjuncts = [terminal(pattern) for pattern in self.patterns]
        conjuncts += [f'/"{FORMATS[name]}"/' for name in self.formats]
        if self.least or self.most is not None:
            character = ANY_CHARACTER if conjuncts else CHARACTER
            conjuncts.append(f'/"{character}{{{self.least},{"" if self.most is None else self.most}}}"/')
        return conjunction(conjuncts) if conjuncts else FREE


def conjunction(terminals: Sequence[str]) -> str:
    """A terminal for what all of *terminals* match."""
    return terminals[0] if len(terminals) == 1 else " & ".join(f"({one})" for one in terminals)


def without(terminal_: str, *others: str) -> str:
    """A terminal for what *terminal_* matches and none of *others*."""
    return f"({terminal_}) & ~({' | '.join(others)})" if others else terminal_
