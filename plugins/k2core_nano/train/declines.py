# ruff: noqa: E501, SIM905  (word lists read best as text, one wording per line)
"""Questions that must not reach a tool: outside the tools' world, a tool that is not declared, or no question at all."""

import random
from collections.abc import Callable

from k2core_nano.train import facts, names, phrasing
from k2core_nano.train.oracle import DECLINE, Policy, final
from k2core_nano.train.questions import Question
from k2core_nano.train.wordings import GOODS

WORDS = {
    "thing": "bread soup coffee music love time rain snow fire water sleep football chess tennis money luck war peace truth history art poetry physics grammar magic dreams fashion tea cheese cats dogs birds robots cars trains winter summer school work family friendship happiness fear hope beauty silence garden".split(),
    "genre": "poem,song,story,letter,joke,haiku,speech,novel,essay,riddle,limerick,rhyme,fairy tale,short story,blog post,email,recipe,slogan,prayer,toast,script,review,summary,advertisement,love letter,apology,menu,postcard,diary entry,rap".split(","),
    "language": "French German Spanish Italian Latin Greek Japanese Chinese Russian Arabic Hindi Dutch Polish Swedish Turkish Korean Portuguese Danish Finnish Czech".split(),
    "code": "Python Java Rust C Go JavaScript Haskell Ruby PHP Swift Kotlin Perl SQL Bash Scala".split(),
    "task": "sorts a list,reads a file,prints the time,opens a window,sends a mail,draws a circle,counts words,checks a password,plays a sound,parses JSON,downloads a page,reverses a string,finds primes,renames files,makes a table".split(","),
    "work": "Hamlet,the Odyssey,War and Peace,the Ninth Symphony,Don Quixote,the Mona Lisa,this song,the Iliad,Faust,Macbeth,the national anthem,Moby Dick,the Magic Flute,that film,the Bible,Dracula,Emma,The Night Watch,the last album,this picture".split(","),
    "made": "wrote,painted,composed,directed,invented,sang,published,designed,translated,illustrated,produced,filmed".split(","),
    "event": "the war,the election,the world cup,the final,the match,the revolution,the race,the first moon landing,the fire of London,the last game,the concert,the wedding,the treaty,the strike,the earthquake,the festival".split(","),
    "day": "today,tomorrow,now,this evening,next week,on Sunday,tonight,this weekend,on Monday,at noon,yesterday,in July".split(","),
    "ill": "a cold,a headache,back pain,the flu,a cough,a fever,a burn,a broken arm,bad sleep,an allergy,a sore throat,stress".split(","),
    "act": "cook rice,learn to swim,fix a bike,plant a tree,tie a tie,lose weight,make friends,clean a carpet,bake a cake,open a bottle,write a letter,win at chess,start a fire,build a table,save energy,train a dog,paint a wall,sleep better,sell a car,choose a school,brew beer,knit a scarf".split(","),
    "role": "president,king,queen,prime minister,mayor,leader,head,emperor,chancellor,foreign minister".split(","),
    "odd": "currency,language,flag,climate,anthem,religion,food,history,culture,army,government,president,national animal,time zone,highest building,best beach,most famous singer,oldest town,national dish,football team".split(","),
    "item": "phone,laptop,hotel,restaurant,film,book,camera,bank,doctor,school,bike,game,city,beach,wine,museum,car,song,shoe,airline".split(","),
    "short": "why,how come,what do you think,really,and you,maybe,what else,who are you,what now,are you sure,tell me more,go on,explain,help,stop,yes,no,what is this,do something,surprise me".split(","),
}  # fmt: skip
OUTSIDE = (
    "(How|What) is the weather (in {e}|) {day}?", "Will it (rain|snow|be warm|be cold|be windy) (in {e} |){day}?", "What is the temperature outside {day}?", "Do I need (an umbrella|a coat|boots) {day}?",
    "(Write|Compose|Make up|Give me|Invent) a {genre} about {thing}.", "(Write|Make) me a {genre} (for|about) {w}.", "(Can you write|Could you write|Please write) a {genre} on {thing}?", "(Tell|Read) me a {genre}.",
    "I need a {genre} about {thing} (by|for) {day}.", "(Finish|Continue|Improve|Correct) my {genre} about {thing}.", "(Translate|Put) this into {language}: {thing} and {thing2}.", "(Translate|Say) \"{thing}\" (to|in) {language}.",
    "How do you say {thing} in {language}?", "What does {thing} mean in {language}?", "(Do you speak|Can you speak|Can you read) {language}?", "What is the {language} word for {thing}?",
    "(Write|Give me|Show me) a {code} (program|function|script) that {task}.", "How do I write {code} code that {task}?", "(Fix|Debug|Explain|Review) my {code} (program|code|function).", "Why does my {code} program (crash|hang|fail|stop)?",
    "Is {code} better than {code2}?", "Who {made} {work}?", "(When|In what year) was {work} (written|made|published)?", "(What is|Tell me) the (plot|meaning|ending|theme) of {work}.", "(Tell me|Do you know) who {made} {work}(?|.)",
    "(Summarize|Describe|Discuss|Review) {work}.", "Who won {event}?", "When (was|is) {event}?", "(Why did|How did) {event} (start|end|begin)?", "(Tell me|What do you know) about {event}(?|.)", "Who took part in {event}?",
    "What (do you think|is your opinion) (of|about|on) {thing}?", "Do you (like|love|hate|enjoy|prefer) {thing}?", "(What|Which) is your favourite {item}?", "Is {thing} (good|bad|better than {thing2}|worse than {thing2}|important)?",
    "(Which|What) {item} (should I|would you|can I) (buy|choose|take|recommend)?", "(Recommend|Suggest|Find) (a good|a cheap|a nice|the best) {item} (in {e}|for {w}|near me).", "What is the best {item} (of all|in the world|in {e})?",
    "(How do I|How can I|How does one|Teach me to|Show me how to|Explain how to) {act}(?|.)", "What is the best way to {act}?", "(Help me to|Help {w} to|I want to) {act}.", "Why is it hard to {act}?",
    "What (helps|is good|should I take) (against|for) {ill}?", "I have {ill}. What (should|can|must) I do?", "Is {ill} dangerous?", "{w} has {ill}. (Which doctor|What medicine) is right?",
    "Who is the {role} of {e}?", "Who was the (first|last) {role} of {e}?", "(What|Which) is the {odd} of {e}?", "(Tell me|Describe|Explain) the {odd} of {e}.", "(What|Which) {odd} does {e} have?", "What do people (eat|speak|wear|drink|sing) in {e}?",
    "(Why|How) (is|was|did) {e} (founded|famous|so nice|get its name)?", "Who (discovered|named|found) {e}?", "(When|Who) discovered {e}?", "What is {e} used for?", "Where (is|can I find|can I buy) {e}?", "Which countries are next to {e}?", "Is {e} (worth a visit|safe|beautiful|poisonous|expensive)?",
    "(Book|Reserve|Order) (a flight|a hotel|a table|a taxi|a train) (to {e}|for {w}|for {day}).", "(Call|Text|Email|Message|Remind) {w} {day}.", "(Set|Start|Stop) (an alarm|a timer|the music|a reminder) (for {day}|).", "(Play|Sing|Hum) (some|me some) {thing}.",
    "(Turn on|Turn off|Switch on|Switch off) the (light|heating|radio|lamp|oven).", "What time is it(?| in {e}?)", "What (day|date) is it {day}?", "When does the (shop|bank|train|library|bus|museum) (open|close|leave)(?| {day}?)",
    "What is the (price|value) of (gold|oil|bitcoin|a house|this share) {day}?", "How (will|did) the (stock market|team|economy) (do|go) {day}?", "What is in the (news|paper) {day}?", "Who is {w}?", "How old is {w}?", "Where does {w} live?", "What is {w}'s (phone number|address|job|hobby)?",
    "What (is|are) {thing}?", "(Explain|Define|Describe) {thing}(.| to me.| to a child.| in simple words.)", "Why do people (like|need|hate|fear) {thing}?", "(Where does|How does) {thing} (come from|work)?", "What is the (meaning|history|origin|purpose|future) of {thing}?",
    "What is the difference between {thing} and {thing2}?", "Compare {thing} and {thing2}.", "Are {thing} and {thing2} the same?", "(List|Name|Give me) {n} (kinds|examples|facts|books|words|ideas) (of|about) {thing}.", "(Give|Tell) me (advice|tips|a fact|news) about {thing}.",
    "(Am I|Are you|Is {w}) (happy|human|right|smart|late|in love)?", "(Should I|Can I|May I|Must I) (marry|call|trust|forgive|visit|hire) {w}?", "(Draw|Paint|Sketch|Show me) (a picture|an image|a photo) of (a cat|a house|{e}|{w}|the sea|{thing}).", "(Does|Will|Can) {w} (love me|win|come {day}|help me)?",
    "Is there (life|water|a god|anyone) (on Mars|out there|after death)?", "What happens (when we die|after {event}|if it rains|{day})?", "Tell me (a secret|something|your name|your dreams|about yourself).", "(Guess|Find|Tell me) my (name|age|password|birthday).", "What (colour|color|shape|smell|taste) (is|has) {thing}?",
    "(Proofread|Rewrite|Shorten|Check) (this text|my letter|this sentence|my essay) about {thing}.", "What rhymes with {thing}?", "How do you spell {thing}?", "What is the (plural|opposite|past tense) of {thing}?", "{short}(?|)", "(Please|Now|So) {short}(?|.|)",
    "What is the (square root|cube root|sine|logarithm) of (happiness|love|nothing|everything)?", "How many (stars|fish|words|songs|birds) are there(?| in the world?)", "How many (books|films|children|friends) does {w} have?", "How much do {g} cost(?| in {e}?)", "{w} buys some {g}. What does {w} pay?", "{w} has {n} {g} and gets some more. How many now?",
    "What did {w} (say|eat|do|buy|wear) {day}?", "Who (will win|lost|started|joined) {event}?", "(Plan|Organize|Prepare) (a trip to {e}|a party|dinner {day}|my week).", "Is it (legal|allowed|healthy|safe|wise) to {act}?", "How long does it take to {act}?", "What (tools|skills) do I need to {act}?", "(Solve|Answer) the (riddle|mystery|puzzle) of {thing}.",
    "I feel (sad|tired|bored|lonely|sick) {day}.", "I love {thing}.", "{w} is my friend.", "My {item} is (broken|lost|new|too slow). What now?", "Which team plays {day}?", "What should {w} (cook|wear|read|watch|do) {day}?",
    "Predict (the future|my future|the lottery numbers|{event}).", "Pretend to be (a pirate|a king|{w}|a cat|a doctor).", "Who is (stronger|smarter|better|older), {w} or {v}?", "Compose music in the style of {w}.", "What would {w} say about {thing}?", "Convince me that {thing} matters more than {thing2}.",
)  # fmt: skip
CHAT = {
    "Hello! Ask me to calculate or to look up facts.": ("(Hello|Hi|Hey|Good morning|Good evening|Good afternoon|Greetings|Hello there|Hi there|Hey there)(!|.|)", "(Hello|Hi|Hey) (agent|nano|k2|you|again|my friend)(!|.|)", "(Hello|Hi), (how are you|nice to meet you|are you there|is anyone there|I am {w})(?|!|.|)", "(My name is|I am|This is) {w}.", "How are you(?| today?| doing?)", "(Nice|Good|Happy) to (meet|see) you(!|.|)", "What a (nice|fine|lovely) day to say hello!", "Ahoy there!", "I just wanted to greet you."),
    "You are welcome.": ("(Thanks|Thank you|Many thanks|Thank you very much|Thanks a lot|Thx)(!|.|)", "(Great|Good|Perfect|Super|Nice), (thanks|thank you)(!|.|)", "(Thanks|Thank you) (for your help|for that|for the answer|{w})(!|.|)", "That (was|is) (helpful|great|right|all), (thanks|thank you)(!|.|)", "I am (grateful|thankful).", "Much obliged!", "You have been kind."),
    "Goodbye.": ("(Bye|Goodbye|Good night|See you|Bye bye|Farewell|So long)(!|.|)", "(See you|Talk to you) (later|soon|tomorrow)(!|.|)", "(I must|I have to) (go|leave) now(!|.|)", "That is all, (bye|goodbye|good night)(!|.|)", "Until next time!", "I am off now.", "Take care, {w}!"),
    "I can calculate, look up facts and check the results.": ("What can you do(?| for me?)", "(What|Which) (tools|skills) do you have?", "How can you help(?| me?)", "What are you (good for|able to do)?", "(Tell|Show) me what you can do(.|!|)", "What is your (job|purpose|use)?", "What should one ask you?", "Which questions suit you?", "Your abilities, please?"),
}  # fmt: skip
CONVERT = (
    "Convert {n} {u} (to|into) {u2}.", "(How many|What number of) {u2} (are|is) {n} {u}?", "{n} {u} in {u2}?", "What is {n} {u} in {u2}?", "(Express|Write|Give) {n} {u} in {u2}.", "Change {n} {u} to {u2}.", "How much is {n} {u} in {u2}?", "{n} {u} to {u2}", "(Turn|Transform) {n} {u} into {u2}.", "I have {n} {u}. How many {u2} is that?", "Please convert {n} {u} to {u2}.", "If something is {n} {u}, what is it in {u2}?",
)  # fmt: skip
UNITS = (
    "km m cm mm miles feet inches yards".split(),
    "kg g pounds ounces tons mg".split(),
    "hours minutes seconds days weeks".split(),
    "liters ml gallons pints".split(),
    "celsius fahrenheit kelvin".split(),
)


def question(rng: random.Random, family: str, level: int | None) -> Question:
    """A question to decline ("decline") or a message to answer with a short reply ("chat")."""
    held_out = level is not None
    picks = {key: rng.choice(options) for key, options in WORDS.items()}
    some = facts.entity(rng, rng.choice(("country", "country", "element", "town", "mountain", "river", "lake")), held_out)
    slots = dict(
        picks,
        e=some,
        w=names.person(rng, held_out),
        v=names.person(rng, held_out),
        n=str(rng.randint(2, 20)),
        thing2=rng.choice(WORDS["thing"]),
        code2=rng.choice(WORDS["code"]),
        g=rng.choice(GOODS),
    )
    reply, think = DECLINE, "No tool knows this. Decline."
    if family == "chat":
        reply = rng.choice(tuple(CHAT))
        template, think = _chat(rng, CHAT[reply], level), "No question. Reply."
    else:
        template, _ = phrasing.phrase(rng, family, OUTSIDE, level)
    return Question(
        family=family, level=level, text=template.format_map(slots), declines=(reply,), policy=reply_at_once(think, reply)
    )


def _chat(rng: random.Random, frames: tuple[str, ...], level: int | None) -> str:
    chosen = frames[-phrasing.HELD_OUT_FRAMES :] if level == 2 else frames[: -phrasing.HELD_OUT_FRAMES]
    text = "".join(rng.choice(options) for options in phrasing.parsed(rng.choice(chosen)).parts)
    return text.lower() if rng.random() < 0.15 and "{" not in text else text


def conversion(rng: random.Random, level: int | None) -> Question:
    """A conversion, to be declined where ``units`` is not declared."""
    unit, other = rng.sample(rng.choice(UNITS), 2)
    template, _ = phrasing.phrase(rng, "convert", CONVERT, level)
    text = template.format_map({"n": str(names.number(rng, 2, 5000)), "u": unit, "u2": other})
    return without(Question(family="convert", level=level, text=text, needed=("units",), policy=reply_at_once("", "")), "units")


def without(question: Question, tool: str) -> Question:
    """The same question where a tool it needs is not declared."""
    policy = reply_at_once(f"This needs {tool}, not declared. Decline.", DECLINE)
    return Question(
        family="missing", level=question.level, text=question.text, needed=question.needed, declines=(DECLINE,), policy=policy
    )


def reply_at_once(think: str, reply: str) -> Callable[[], Policy]:
    """A policy of one step: the answer without claims."""

    def policy() -> Policy:
        yield from ()
        return final(think, reply, weight=3)

    return policy
