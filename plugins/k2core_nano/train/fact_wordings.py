# ruff: noqa: E501  (one wording per line reads best)
"""The wordings of facts questions (see phrasing for the notation). The last three frames of each family are held out.

``{e}`` and ``{f}`` are entities, ``{l}`` a list of them; ``<A>`` names the attribute, ``<Q>`` asks for it, ``<H>`` asks indirectly; a comparison
that wants the smaller one ends in ``=less``.
"""

from attrs import frozen


@frozen(kw_only=True)
class Attribute:
    """One attribute: its unit, its words, its range (decades of ten, decimals) and the names a data base may use instead."""

    unit: str
    kinds: tuple[str, ...]
    terms: str
    direct: str
    indirect: str
    more: str = ""
    less: str = ""
    most: str = ""
    decades: tuple[float, float] = (1, 4)
    places: tuple[int, ...] = (0,)
    synonyms: tuple[str, ...] = ()
    dated: bool = False
    compared: bool = True
    adds_up: bool = True


ATTRIBUTES = {
    "area": Attribute(
        unit="km2", kinds=("country", "country", "country", "lake"), terms="(area|area|surface area|total area|land area)",
        direct="(How large is {e}?|How big is {e}?|What area does {e} cover?|What area does {e} have?|How many square kilometers does {e} have?|How much land does {e} cover?)",
        indirect="(how large {e} is|how big {e} is|what area {e} has|how much area {e} covers)", more="(larger|bigger)", less="smaller", most="(largest|biggest)",
        decades=(1, 7), places=(0, 0, 0, 1), synonyms=("size", "surface", "extent"), dated=True,
    ),
    "population": Attribute(
        unit="people", kinds=("country", "country", "town"), terms="(population|population|number of people|number of inhabitants)",
        direct="(How many people live in {e}?|How many inhabitants does {e} have?|How many people are there in {e}?|How many people does {e} have?|How populous is {e}?)",
        indirect="(how many people live in {e}|how many inhabitants {e} has|how many people {e} has|how populous {e} is)", more="more populous", less="less populous", most="most populous",
        decades=(2.5, 9), synonyms=("inhabitants", "residents", "people"), dated=True,
    ),
    "capital": Attribute(
        unit="", kinds=("country",), terms="(capital|capital|capital city)",
        direct="(What is the capital of {e}?|Which city is the capital of {e}?|What capital does {e} have?|What is the capital city of {e}?|What city is capital of {e}?)",
        indirect="(what the capital of {e} is|which city is the capital of {e}|what capital {e} has)", synonyms=("seat", "main city"), compared=False,
    ),
    "elevation": Attribute(
        unit="m", kinds=("mountain",), terms="(elevation|height|altitude)",
        direct="(How high is {e}?|How tall is {e}?|What height does {e} reach?|How many meters high is {e}?|How high does {e} rise?)",
        indirect="(how high {e} is|how tall {e} is|what height {e} has|how high {e} rises)", more="(higher|taller)", less="lower", most="(highest|tallest)",
        decades=(2.2, 3.94), synonyms=("height", "altitude"), dated=True,
    ),
    "length": Attribute(
        unit="km", kinds=("river",), terms="(length|length|total length)", direct="(How long is {e}?|What length does {e} have?|How many kilometers long is {e}?|How many km does {e} run?)",
        indirect="(how long {e} is|what length {e} has|how many km {e} runs)", more="longer", less="shorter", most="longest", decades=(1, 3.9), places=(0, 0, 0, 1), synonyms=("extent", "course"), dated=True,
    ),
    "depth": Attribute(
        unit="m", kinds=("lake",), terms="(depth|maximum depth|greatest depth)", direct="(How deep is {e}?|What depth does {e} have?|How many meters deep is {e}?|How deep does {e} go?)",
        indirect="(how deep {e} is|what depth {e} has|how deep {e} goes)", more="deeper", less="shallower", most="deepest", decades=(0.7, 3.2), places=(0, 0, 0, 1), synonyms=("maximum depth", "bottom"), dated=True,
    ),
    "symbol": Attribute(
        unit="", kinds=("element",), terms="(symbol|chemical symbol|element symbol)", direct="(What is the symbol of {e}?|Which symbol stands for {e}?|What is the symbol for {e}?|What symbol does {e} have?)",
        indirect="(what the symbol of {e} is|which symbol stands for {e}|what symbol {e} has)", synonyms=("sign", "abbreviation"), compared=False,
    ),
    "atomic number": Attribute(
        unit="", kinds=("element",), terms="(atomic number|atomic number|proton number)", direct="(What is the atomic number of {e}?|What number does {e} have in the periodic table?|How many protons does {e} have?|Which atomic number has {e}?)",
        indirect="(what the atomic number of {e} is|what atomic number {e} has|how many protons {e} has)", decades=(0, 2.1), synonyms=("number", "protons"), compared=False,
    ),
    "atomic weight": Attribute(
        unit="u", kinds=("element",), terms="(atomic weight|atomic weight|atomic mass)", direct="(What is the atomic weight of {e}?|How heavy is an atom of {e}?|What atomic mass does {e} have?|What is the atomic mass of {e}?)",
        indirect="(what the atomic weight of {e} is|what atomic mass {e} has|how heavy an atom of {e} is)", more="heavier", less="lighter", most="heaviest",
        decades=(0, 2.5), places=(0, 1, 2, 3, 3, 3), synonyms=("atomic mass", "mass"),
    ),
    "density": Attribute(
        adds_up=False,
        unit="g/cm3", kinds=("element",), terms="(density|density|mass density)", direct="(How dense is {e}?|What density does {e} have?|What is the density of {e}?|How much does a cubic centimeter of {e} weigh?)",
        indirect="(how dense {e} is|what density {e} has|what the density of {e} is)", more="denser", less="less dense", most="densest", decades=(0, 1.4), places=(1, 2, 2, 3), synonyms=("mass density", "specific weight"),
    ),
    "melting point": Attribute(
        adds_up=False,
        unit="K", kinds=("element",), terms="(melting point|melting point|melting temperature)", direct="(When does {e} melt?|At what temperature does {e} melt?|How hot must {e} be to melt?|What is the melting point of {e}?|Where does {e} melt?)",
        indirect="(when {e} melts|at what temperature {e} melts|how hot {e} must be to melt|what the melting point of {e} is)", decades=(1, 3.6), places=(0, 0, 1, 2), synonyms=("melting temperature", "fusion point"),
    ),
    "boiling point": Attribute(
        adds_up=False,
        unit="K", kinds=("element",), terms="(boiling point|boiling point|boiling temperature)", direct="(When does {e} boil?|At what temperature does {e} boil?|How hot must {e} be to boil?|What is the boiling point of {e}?|Where does {e} boil?)",
        indirect="(when {e} boils|at what temperature {e} boils|how hot {e} must be to boil|what the boiling point of {e} is)", decades=(1, 3.7), places=(0, 0, 1, 2), synonyms=("boiling temperature", "vapor point"),
    ),
}  # fmt: skip
FACT = (
    "<Q>",
    "<Q>",
    "<Q>",
    "(What is|Give me|Tell me|What do we know as|Do you have) the <A> of {e}(?|.)",
    "(Find|Look up|Get|Check|Show me|State|Report|Name) the <A> of {e}.",
    "(Find|Look up|Tell me|Check|Find out|Say|Let me know) <H>.",
    "(I want to know|Do you know|Can you find out|Could you tell me|Can you say|Can you look up|I wonder|I forgot|I need to know) <H>(?|.)",
    "What <A> does {e} have?",
    "What is {e}'s <A>?",
    "{e}'s <A>(?|, please.|.)",
    "(The|Only the|Just the) <A> of {e}, please.",
    "(Search|Show|State|Look for) the <A> (of|for) {e}.",
    "I am (reading|writing|thinking|learning|talking) about {e}. (What is|Give me|Tell me) its <A>.",
    "(For {e}|About {e}): (what is the|which is the|give the) <A>(?|.)",
    "{e}: <A>?",
    "{e} - what is its <A>?",
    "<A> of {e}?",
    "<A> of {e}",
    "{e} <A>?",
    "What does the (table|data base|book|source) say about the <A> of {e}?",
    "(I need|We need|I am looking for|I would like to have) the <A> of {e}.",
    "Please (find|look up|tell me|check) the <A> of {e}.",
    "Which <A> has {e}?",
    "How about the <A> of {e}?",
    "(My book|The test|The quiz|The teacher) asks for the <A> of {e}.",
    "Is the <A> of {e} known?",
    "Do you know the <A> of {e}?",
    "What value has the <A> of {e}?",
    "According to your data, what is the <A> of {e}?",
    "Fill in: the <A> of {e} is ...",
    "What would you put down as <A> for {e}?",
    "Let me hear <H>.",
    "On {e}, I lack one thing: its <A>.",
)
TOTAL = (
    "What is the total <A> of {l}?",
    "(Add|Sum|Add up|Sum up) the <A> of {l}.",
    "(Find|Look up|Get) the <A> of {l} and (add|sum) them.",
    "(Find|Compute|Give me|Tell me|Calculate|Work out) the total <A> of {l}.",
    "(Find|Compute|Give me|Tell me) the sum of the <A> of {l}.",
    "How much is the <A> of {l} (together|in all|altogether|in total|combined)?",
    "{l}: what is (their total|the total|their combined|the sum of their) <A>?",
    "I need the (total|summed|combined) <A> of {l}.",
    "(Take|Use) the <A> of {l}. What is the (sum|total)?",
    "What is the combined <A> of {l}?",
    "What is the sum of the <A> of {l}?",
    "What <A> do {l} have (together|in all|in total|combined)?",
    "(I want|We need|Please give me) the <A> of {l} (together|added up|in total|summed up).",
    "Total <A> of {l}(?|, please.|.)",
    "Combined <A> of {l}?",
    "Sum of the <A> of {l}?",
    "(Put|Take) {l} together. What is the <A>?",
    "What total do you get for the <A> of {l}?",
    "Tell me what the <A> of {l} (makes|comes to|is) (together|in total|in all).",
    "(Look at|Consider|Take) {l}. What is their total <A>?",
    "Counting {l} together, what is the <A>?",
    "What do we get when we add the <A> of {l}?",
    "How large is the total <A> of {l}?",
    "(Please|Kindly) add the <A> of {l}.",
    "For {l}, compute the total <A>.",
    "(Several|Some) names: {l}. What is the <A> in total?",
    "Give the <A> of {l} as one total.",
    "If you add the <A> of {l}, what do you get?",
    "Together, what <A> do {l} have?",
    "Merge {l} into one; which <A> results?",
)
DIFFERENCE = (
    "What is the difference in <A> between {e} and {f}?",
    "(Find|Give me|Compute|Tell me|Calculate|Work out) the difference in <A> between {e} and {f}.",
    "By how much does the <A> of {e} exceed the <A> of {f}?",
    "By how much does the <A> of {e} exceed that of {f}?",
    "How much (greater|larger|higher|more) is the <A> of {e} than that of {f}?",
    "By how much is the <A> of {e} (greater|larger|higher|bigger) than that of {f}?",
    "(Compare|Take) {e} (with|and) {f}: what is the difference in <A>?",
    "{e} and {f}: (what is|find|give me) the difference in <A>(?|.)",
    "I know the <A> of {e} is (larger|greater|higher) than that of {f}. (By how much?|How much?)",
    "How far apart are {e} and {f} in <A>?",
    "(Subtract|Take) the <A> of {f} from the <A> of {e}.",
    "(Look up|Find|Get) the <A> of {e} and of {f} and subtract them.",
    "(Find|Tell me|Compute) how much the <A> of {e} exceeds that of {f}.",
    "What must be added to the <A> of {f} to get the <A> of {e}?",
    "(I need|We need|I want) the difference between the <A> of {e} and that of {f}.",
    "Difference in <A> between {e} and {f}(?|, please.|.)",
    "How big is the (gap|difference) in <A> between {e} and {f}?",
    "What is the <A> of {e} minus the <A> of {f}?",
    "<A> of {e} minus <A> of {f}?",
    "How much more <A> does {e} have than {f}?",
    "How much less <A> does {f} have than {e}?",
    "By what amount does {e} beat {f} in <A>?",
    "How much smaller is the <A> of {f} than that of {e}?",
    "{e} has a (larger|greater|higher) <A> than {f}. What is the difference?",
    "{f} has a (smaller|lower) <A> than {e}. By how much?",
    "What separates {e} from {f} in <A>?",
    "How much does {f} lack in <A> compared to {e}?",
    "Take away the <A> of {f} from the <A> of {e}.",
    "With respect to <A>, how much is {e} ahead of {f}?",
    "The <A> of {e} is above that of {f}; tell me the margin.",
)
COMPARE = (
    "Which has the (larger|greater|higher|bigger) <A>, {e} or {f}?",
    "Which has the (smaller|lower|lesser) <A>, {e} or {f}?=less",
    "Does {e} or {f} have the (larger|greater|higher|bigger) <A>?",
    "Does {e} or {f} have the (smaller|lower) <A>?=less",
    "Compare the <A> of {e} and {f}. Which is (larger|greater|higher|bigger)?",
    "Compare the <A> of {e} and {f}. Which is (smaller|lower)?=less",
    "Of {e} and {f}, which has the (larger|greater|higher|bigger) <A>?",
    "Of {e} and {f}, which has the (smaller|lower) <A>?=less",
    "Is the <A> of {e} (larger|greater|higher|bigger) than that of {f}?",
    "Is the <A> of {e} (smaller|lower|less) than that of {f}?=less",
    "Who has (the larger|the greater|the higher) <A>: {e} or {f}?",
    "{e} or {f}: which has the (larger|greater|higher|bigger) <A>?",
    "{e} or {f}: which has the (smaller|lower) <A>?=less",
    "(Tell me|Find out|Find|Say) which has the (larger|greater|higher) <A>, {e} or {f}.",
    "(Tell me|Find out|Find|Say) which has the (smaller|lower) <A>, {e} or {f}.=less",
    "(Between|Out of) {e} and {f}, which one has the (larger|greater|higher) <A>?",
    "(I wonder|I want to know) (whether|if) {e} or {f} has the (larger|greater|higher) <A>.",
    "Does {e} have a (larger|greater|higher|bigger) <A> than {f}?",
    "Does {e} have a (smaller|lower) <A> than {f}?=less",
    "Which of the two has the (larger|greater|higher) <A>: {e} or {f}?",
    "Look up the <A> of {e} and {f} and name the (larger|greater|higher) one.",
    "Look up the <A> of {e} and {f} and name the (smaller|lower) one.=less",
    "Is it {e} or {f} that has the (larger|greater|higher) <A>?",
    "My friend says {e} has a (larger|greater|higher) <A> than {f}. (Is that so?|Is it true?|Is this right?)",
    "Which of {l} has the (largest|greatest|highest|biggest) <A>?",
    "Which of {l} has the (smallest|lowest) <A>?=less",
    "Which has the (largest|greatest|highest) <A>: {l}?",
    "Which has the (smallest|lowest) <A>: {l}?=less",
    "{l}: which has the (largest|greatest|highest) <A>?",
    "Compare {l}. Which has the (largest|greatest|highest|biggest) <A>?",
    "Compare {l}. Which has the (smallest|lowest) <A>?=less",
    "(Find|Name|Tell me|Give me) the one with the (largest|greatest|highest) <A>: {l}.",
    "(Find|Name|Tell me|Give me) the one with the (smallest|lowest) <A>: {l}.=less",
    "Among {l}, which has the (largest|greatest|highest) <A>?",
    "Among {l}, which has the (smallest|lowest) <A>?=less",
    "Who leads in <A>, {e} or {f}?",
    "Put {e} beside {f}: whose <A> is the bigger one?",
    "If I compare {e} with {f}, which of them has less <A>?=less",
    "Who leads in <A> among {l}?",
    "Put {l} in a row: whose <A> is the biggest?",
    "Whose <A> is the least: {l}?=less",
)
MORE = (
    "Which is <more>, {e} or {f}?",
    "Which is <less>, {e} or {f}?=less",
    "Is {e} <more> than {f}?",
    "Is {e} <less> than {f}?=less",
    "{e} or {f}: which is <more>?",
    "{e} or {f}: which is <less>?=less",
    "What is <more>, {e} or {f}?",
    "What is <less>, {e} or {f}?=less",
    "Which one is <more>: {e} or {f}?",
    "Which one is <less>: {e} or {f}?=less",
    "(Tell me|Find out|Find|Say) which is <more>, {e} or {f}.",
    "(Tell me|Find out|Find|Say) which is <less>, {e} or {f}.=less",
    "Compare {e} and {f}: which is <more>?",
    "Compare {e} with {f}. Which one is <less>?=less",
    "Of {e} and {f}, which is <more>?",
    "Of {e} and {f}, which is <less>?=less",
    "I think {e} is <more> than {f}. (Is that so?|Is it true?|Am I right?|Is this right?)",
    "I think {e} is <less> than {f}. (Is that so?|Is it true?|Am I right?)=less",
    "(I wonder|I want to know) (whether|if) {e} or {f} is <more>.",
    "Is it {e} or {f} that is <more>?",
    "Which of {l} is the <most>?",
    "Which is the <most>: {l}?",
    "{l}: which is the <most>?",
    "Compare {l}. Which is the <most>?",
    "Among {l}, which is the <most>?",
    "(Find|Name|Tell me) the <most> of {l}.",
)
MORE_DIFFERENCE = (
    "How much <more> is {e} than {f}?",
    "By how much is {e} <more> than {f}?",
    "How much <less> is {f} than {e}?",
    "By how much is {f} <less> than {e}?",
    "(Find|Tell me|Compute|Calculate) how much <more> {e} is than {f}.",
    "{e} is <more> than {f}. (By how much?|How much?)",
    "I know {e} is <more> than {f}. (By how much?|How much?)",
    "How much <more> is {e} (compared to|compared with) {f}?",
)
