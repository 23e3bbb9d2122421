# ruff: noqa: E501, SIM905  (word lists read best as text)
"""Names and numbers of the generated world, and the rule that keeps a tenth of them for evaluation only.

A name or an operand tuple whose crc32 is divisible by ten never occurs in training; evaluation draws nothing else.
"""

import random
import zlib

COUNTRIES = tuple(
    """Afghanistan;Albania;Algeria;Andorra;Angola;Argentina;Armenia;Australia;Austria;Azerbaijan;Bahrain;Bangladesh;Barbados;Belarus;Belgium;
Belize;Benin;Bhutan;Bolivia;Bosnia and Herzegovina;Botswana;Brazil;Brunei;Bulgaria;Burkina Faso;Burundi;Cambodia;Cameroon;Canada;Cape Verde;
Chad;Chile;China;Colombia;Comoros;Costa Rica;Croatia;Cuba;Cyprus;Czechia;Denmark;Djibouti;Dominica;Ecuador;Egypt;El Salvador;Eritrea;Estonia;
Eswatini;Ethiopia;Fiji;Finland;France;Gabon;Gambia;Georgia;Germany;Ghana;Greece;Grenada;Guatemala;Guinea;Guyana;Haiti;Honduras;Hungary;Iceland;
India;Indonesia;Iran;Iraq;Ireland;Israel;Italy;Ivory Coast;Jamaica;Japan;Jordan;Kazakhstan;Kenya;Kiribati;Kuwait;Kyrgyzstan;Laos;Latvia;Lebanon;
Lesotho;Liberia;Libya;Liechtenstein;Lithuania;Luxembourg;Madagascar;Malawi;Malaysia;Maldives;Mali;Malta;Mauritania;Mauritius;Mexico;Moldova;
Monaco;Mongolia;Montenegro;Morocco;Mozambique;Myanmar;Namibia;Nauru;Nepal;Netherlands;New Zealand;Nicaragua;Niger;Nigeria;North Korea;
North Macedonia;Norway;Oman;Pakistan;Palau;Panama;Papua New Guinea;Paraguay;Peru;Philippines;Poland;Portugal;Qatar;Romania;Russia;Rwanda;Samoa;
San Marino;Saudi Arabia;Senegal;Serbia;Seychelles;Sierra Leone;Singapore;Slovakia;Slovenia;Solomon Islands;Somalia;South Africa;South Korea;
South Sudan;Spain;Sri Lanka;Sudan;Suriname;Sweden;Switzerland;Syria;Taiwan;Tajikistan;Tanzania;Thailand;Togo;Tonga;Tunisia;Turkey;Turkmenistan;
Tuvalu;Uganda;Ukraine;United Arab Emirates;United Kingdom;United States;Uruguay;Uzbekistan;Vanuatu;Venezuela;Vietnam;Yemen;Zambia;Zimbabwe""".replace(
        "\n", ""
    ).split(";")
)
ELEMENTS = tuple(
    """hydrogen helium lithium beryllium boron carbon nitrogen oxygen fluorine neon sodium magnesium aluminium silicon phosphorus sulfur chlorine
argon potassium calcium scandium titanium vanadium chromium manganese iron cobalt nickel copper zinc gallium germanium arsenic selenium bromine
krypton rubidium strontium yttrium zirconium niobium molybdenum technetium ruthenium rhodium palladium silver cadmium indium tin antimony
tellurium iodine xenon caesium barium lanthanum cerium praseodymium neodymium promethium samarium europium gadolinium terbium dysprosium holmium
erbium thulium ytterbium lutetium hafnium tantalum tungsten rhenium osmium iridium platinum gold mercury thallium lead bismuth polonium astatine
radon francium radium actinium thorium protactinium uranium neptunium plutonium americium curium berkelium californium einsteinium fermium
mendelevium nobelium lawrencium rutherfordium dubnium seaborgium bohrium hassium meitnerium darmstadtium roentgenium copernicium nihonium
flerovium moscovium livermorium tennessine oganesson""".split()
)
PEOPLE = tuple(
    """Anna Tom Maria Ali Wei Fatima John Olga Ravi Lena Omar Yuki Peter Nadia Carlos Ingrid Ahmed Sofia David Mei Paul Amina Leo Clara Ivan
Rosa Sam Zoe Max Ella Hugo Nora Emma Ben Kofi Aisha Liam Mia Noah Eva Jack Lucy Adam Sara Mark Julia Simon Grace Daniel Alice""".split()
)
_OPENINGS = "b c d f g h j k l m n p r s t v w z br dr fr gr kr pl pr sl st tr th sh ch qu y".split()
_VOWELS = "a e i o u a e o ai ou ea ie".split()
_ENDINGS = "n r l s k m nd rt x t th st ck".split()
_ACCENTS = {"a": "á", "e": "é", "o": "ö", "u": "ü", "n": "ñ", "i": "í"}


def is_held_out(key: str) -> bool:
    """Whether a name or an operand tuple (joined by spaces) is kept for evaluation."""
    return zlib.crc32(key.lower().encode()) % 10 == 0


def invented(rng: random.Random, held_out: bool) -> str:
    """A capitalised name made of two or three syllables; one in thirty carries accents."""
    while True:
        count = rng.choice((2, 2, 3))
        parts = []
        for place in range(count):
            parts.append(rng.choice(_OPENINGS) if place or rng.random() < 0.8 else "")
            parts.append(rng.choice(_VOWELS))
            if (place == count - 1 and rng.random() < 0.6) or rng.random() < 0.25:
                parts.append(rng.choice(_ENDINGS))
        name = "".join(parts)
        if rng.random() < 0.033:
            name = "".join(_ACCENTS.get(letter, letter) if rng.random() < 0.4 else letter for letter in name)
        name = name.capitalize()
        if 3 < len(name) < 12 and is_held_out(name) == held_out:
            return name


def listed(rng: random.Random, names: tuple[str, ...], held_out: bool) -> str:
    """One of the real names that belongs to this side of the split."""
    while True:
        name = rng.choice(names)
        if is_held_out(name) == held_out:
            return name


def person(rng: random.Random, held_out: bool) -> str:
    """A first name, real or invented."""
    return listed(rng, PEOPLE, held_out) if rng.random() < 0.6 else invented(rng, held_out)


def number(rng: random.Random, low: int = 2, high: int = 999) -> int:
    """A whole number in [low, high]; small ones are as frequent as large ones."""
    if rng.random() < 0.5:
        high = max(low + 1, min(high, int(10 ** rng.choice((1, 1.5, 2, 3, 4)))))
    return rng.randint(low, high)


def misspelt(rng: random.Random, name: str) -> str:
    """The name with one letter dropped, doubled, exchanged or swapped with its neighbour (never the first letter)."""
    while True:
        place = rng.randrange(1, len(name) - 1)
        if not (name[place].isalpha() and name[place + 1].isalpha()):
            continue
        kind = rng.random()
        if kind < 0.3:
            wrong = name[:place] + name[place + 1 :]
        elif kind < 0.5:
            wrong = name[:place] + name[place] + name[place:]
        elif kind < 0.8:
            wrong = name[:place] + rng.choice("aeiounrstlk") + name[place + 1 :]
        else:
            wrong = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
        if wrong != name:
            return wrong


def is_variant(name: str, near: str) -> bool:
    """Whether two names are spellings of one: one letter dropped, added, exchanged, or two neighbours swapped."""
    left, right = name.lower(), near.lower()
    if left == right or sorted(left) == sorted(right):
        return True
    short, long = sorted((left, right), key=len)
    if len(long) - len(short) > 1:
        return False
    same = next((place for place, letter in enumerate(short) if letter != long[place]), len(short))
    return short[same + (len(short) == len(long)) :] == long[same + 1 :]
