"""Names in prose: capitalised word sequences, quotations and identifiers.

Ordinary English must pass: words of `common_words` are no names, nor is a capitalised word alone at the start of a sentence
unless what follows it (``has``, ``is`` …) or a near miss with an observed name says that it is one. In a text that is not
English (few English function words) capitals mean other things, so names are left unchecked there.
"""

import difflib
import re
import unicodedata
from functools import cache

from attrs import frozen

from k2core_tools.folder import SUFFIXES
from k2core_tools.unit_table import all_units
from k2core_verifiers.common_words import COMMON, OWN_NAMES

_WORD = re.compile(r"(?<![\w])[^\W\d_]+(?:['’-][^\W\d_]+)*(?![\w])")
_WORD_CHARACTERS = re.compile(r"[^\W_]+")
_APOSTROPHE = re.compile("['’]")
_PARTICLES = "of|the|of the|and the|de|da|do|dos|das|du|la|le|del|della|di|van|von|der|den|el|al|bin|ibn|y|e"
_GAP = re.compile(rf"(?: |-|\. |\.| (?:{_PARTICLES}) )")
_QUOTED = re.compile(r"“([^”]{1,400})”|\"([^\"]{1,400})\"|`([^`]{1,400})`|(?<![\w])['‘]([^'’\n]{1,200})['’](?!\w)")
_FILES = "|".join(sorted(suffix[1:] for suffix in SUFFIXES))
_IDENTIFIER = re.compile(
    rf"https?://[^\s)\]>,]+|(?<![\w./-])[\w./-]*\w\.(?:{_FILES})\b|(?<![\w°])[^\W\d_]\w*(?:_\w+|\d\w*)|\b[a-z]+[A-Z]\w*"
)
_VERBS = (
    "has|have|had|is|was|are|were|lies|covers|melts|boils|weighs|measures|costs|pays|lives|lived|died|won|wins|wrote|opened|closed|"
    "became|becomes|remains|comes|came|goes|went|designed|built|created|discovered|invented|founded|makes|made|holds|contains|"
    "leads|ranks|says|said"
)
_NAME_FOLLOWS = re.compile(rf"['’]s\b| (?:and|or|with|at|in|by|{_VERBS})\b|[,;]|\s*[.!?]?\s*$")
_START = re.compile(r"(?:^|[.!?\n;])[\s\"“'‘(\[*_#>•-]*$")
_NO_NAME_ENDS = ("ing", "ion", "ions", "ly", "ment", "ness", "ity", "ed", "ance", "ence")
_ADJECTIVE_ENDS = ("", "s", "n", "an", "ian", "ese", "ish", "ic", "i", "nian", "ns", "ans", "ians")
_NOUN_ENDS = ("", "s", "a", "e", "y", "ia", "o")


@frozen(kw_only=True)
class Name:
    """A possible name in a text.

    Attributes:
        text: as written, without possessive.
        start: offset.
        kind: ``words``, ``quote`` or ``identifier``.
        is_certain: False for one capitalised word that starts a sentence and need not be a name.
    """

    text: str
    start: int
    kind: str
    is_certain: bool = True


def normalise(text: str) -> str:
    """*text* as words without case, accents and punctuation, one space around each."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if not unicodedata.combining(c))
    return f" {' '.join(_WORD_CHARACTERS.findall(_APOSTROPHE.sub('', plain)))} "


def is_english(text: str) -> bool:
    """Whether lower-case words are mostly known English ones; True where there are too few to tell."""
    words = [word.lower() for word in _WORD.findall(text) if word.islower()]
    return len(words) < 4 or sum(word in COMMON for word in words) * 4 >= len(words)


def find_names(text: str) -> list[Name]:
    """Every possible name of *text*, in order."""
    names: list[Name] = []
    blanked = text
    for match in _QUOTED.finditer(text):
        inner = next(group for group in match.groups() if group is not None).strip(" .,;:!?")
        if inner and not _is_ordinary(inner):
            names.append(Name(text=inner, start=match.start(), kind="quote"))
        blanked = _blank(blanked, match.start(), match.end())
    for match in _IDENTIFIER.finditer(blanked):
        found = match[0].rstrip(".,;:")
        if found not in _unit_spellings() and found.lower() not in OWN_NAMES:
            names.append(Name(text=found, start=match.start(), kind="identifier"))
        blanked = _blank(blanked, match.start(), match.end())
    names += _sequences(blanked)
    return sorted(names, key=lambda name: name.start)


def is_named(name: Name, raw: str, words: str) -> bool:
    """Whether *name* occurs in a source.

    Args:
        name: what to look for.
        raw: the source's text.
        words: `normalise` of it.
    """
    wanted = normalise(name.text)
    if name.kind == "identifier":
        return name.text.casefold() in raw.casefold()
    if not wanted.strip() or wanted in words:
        return True
    if name.kind == "quote":
        return False
    parts = wanted.split()
    if len(parts) == 1:
        return _is_inflected(parts[0], words) or (name.text.isupper() and _is_acronym(name.text, raw))
    loose = r"(?: \w+){0,2} ".join(re.escape(part) for part in parts if part not in ("of", "the", "and"))
    if re.search(f" {loose} ", words):
        return True
    return all(part in COMMON or f" {part} " in words or _is_inflected(part, words) for part in parts) and any(
        part in COMMON for part in parts
    )


def is_near_miss(name: Name, words: str) -> bool:
    """Whether *name* is almost, but not quite, a word of the source (`normalise`d)."""
    one = normalise(name.text).strip()
    near = difflib.get_close_matches(one, {word for word in words.split() if len(word) > 3 and not word.isdigit()}, 1, 0.75)
    return bool(near) and len(one) > 3 and not near[0].startswith(one) and not one.startswith(near[0])


def _sequences(text: str) -> list[Name]:
    names: list[Name] = []
    run: list[re.Match[str]] = []

    def flush() -> None:
        if run:
            name = _name_of(text, run)
            if name is not None:
                names.append(name)
            run.clear()

    for match in _WORD.finditer(text):
        if not match[0][0].isupper():
            continue
        if run:
            gap = text[run[-1].end() : match.start()]
            is_initial = not gap.startswith(".") or len(run[-1][0]) <= 2
            if not _GAP.fullmatch(gap) or not is_initial or run[-1][0].endswith(("'s", "’s")):
                flush()
        run.append(match)
    flush()
    return names


def _name_of(text: str, run: list[re.Match[str]]) -> Name | None:
    at_start = bool(_START.search(text[max(0, run[0].start() - 12) : run[0].start()]))
    words = list(run)
    while words and (_plain(words[0][0]) in COMMON or (_is_unit(text, words[0]) and len(words) == 1)):
        words = words[1:]
    while words and _plain(words[-1][0]) in COMMON:
        words = words[:-1]
    if not words or all(_plain(word[0]) in COMMON | OWN_NAMES for word in words):
        return None
    start, end = words[0].start(), words[-1].end()
    written = re.sub(r"['’]s?$", "", text[start:end])
    is_certain = True
    if at_start and len(run) == 1:
        follows = _NAME_FOLLOWS.match(text, end) or written != text[start:end]
        is_certain = bool(follows) and not re.search(r"-[a-z]", written) and not written.lower().endswith(_NO_NAME_ENDS)
    return Name(text=written, start=start, kind="words", is_certain=is_certain)


def _is_ordinary(quoted: str) -> bool:
    return all(_plain(word) in COMMON or not word[:1].isalpha() for word in quoted.split()) and len(quoted.split()) <= 2


def _plain(word: str) -> str:
    return re.sub(r"['’]s$", "", word).lower().replace("’", "'")


def _is_unit(text: str, word: re.Match[str]) -> bool:
    before = text[max(0, word.start() - 2) : word.start()]
    return (word[0] in _unit_spellings() or word[0].lower() in _unit_spellings()) and bool(re.search(r"[\d°] ?$|°", before))


def _is_inflected(word: str, words: str) -> bool:
    """Whether an adjective, plural or possessive such as ``kenyan`` goes back to a word of the source such as ``kenya``."""
    for cut in range(max(4, len(word) - 4), len(word) + 1):
        if word[cut:] in _ADJECTIVE_ENDS and any(f" {word[:cut]}{end} " in words for end in _NOUN_ENDS):
            return True
    return False


def _is_acronym(name: str, raw: str) -> bool:
    if not 2 <= len(name) <= 6 or not name.isalpha():
        return False
    return re.search(r"\b" + r"\w+[ -](?:of |the |and |for )*".join(name) + r"\w+", raw) is not None


def _blank(text: str, start: int, end: int) -> str:
    return text[:start] + " " * (end - start) + text[end:]


@cache
def _unit_spellings() -> frozenset[str]:
    return frozenset(spelling for unit in all_units() for spelling in (unit.symbol, *unit.spellings))
