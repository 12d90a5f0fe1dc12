"""Text to train the tiny tokenizer on: sentences, code and JSON made of a fixed word list by a seeded generator."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 20
LINES = 12_000


def _words(text: str) -> list[str]:
    return text.split()


NOUNS = _words(
    """
    answer apple author bank bicycle bird block board boat body book border bottle box branch bread bridge brother
    budget building bus cache camera captain car card case castle cat cause center chain chair chance channel chapter
    child choice church circle city class cloud coast code coffee color column company computer corner cost country
    course cousin customer daughter day decision desert design detail device dinner direction distance doctor document
    door dream driver earth edge effect energy engine error evening event example experience eye factory family farm
    father field figure finger fire fish flower food forest form friend fruit future game garden gate glass goal
    government group guest hand harbor head health heart history hole holiday home horse hospital hotel hour house idea
    image index industry information island issue job journey judge key kitchen lake lamp land language law leader leaf
    letter level library light limit line list machine map market material matter meaning measure meeting member memory
    message metal method middle minute mirror model moment money month moon morning mother mountain mouth movement
    museum music name nation nature network night node noise north number object ocean office order page paint paper
    parent park part party path pattern people period person phone picture piece place plan planet plant player point
    police population position power prefix president price problem process product program project purpose quality
    queen question queue radio rain reason record region report request result river road rock role room root route rule
    sample school science screen sea season section server service session shadow ship shop shoulder side signal silver
    sister size sky snow society soil soldier song sound source south space speed spring square stage star state station
    step stone store storm story street student subject summer sun surface system table target task teacher team theory
    thing thread time token tool tower town track trade train travel tree trip truth type uncle unit university valley
    value version village voice wall war watch water wave weather week weight west wheel wind window winter woman wood
    word work worker world writer year zone
    """
)
VERBS = _words(
    """
    accept add agree allow appear apply arrive ask become begin believe borrow break bring build buy call carry catch
    change check choose clean climb close collect come compare complete consider contain continue control copy count
    cover create cross cut decide deliver depend describe discover discuss draw drink drive drop eat enjoy enter expect
    explain fall feel fill find finish follow forget gather get give go grow guess happen hear help hide hold hope
    improve include inform invite join jump keep know laugh learn leave listen live look lose love make manage mean meet
    mention move need notice offer open paint pass pay play prefer prepare press produce promise protect prove publish
    pull push put raise reach read receive remain remember remove repeat replace reply return ride run save say search
    see seem sell send serve share show sing sit sleep solve speak spend stand start stay stop study suggest supply
    support suppose talk taste teach tell test think throw touch translate travel try turn understand use visit wait
    wake walk want warn wash watch wear win wish wonder write
    """
)
ADJECTIVES = _words(
    """
    able active afraid ancient angry available bad beautiful best better big bitter black blue brave bright broad broken
    brown busy calm careful cheap clean clear clever close cold common complete cool correct dark dead deep different
    difficult dry early easy empty equal exact false famous far fast fine first foreign free fresh full funny general
    gentle good great green happy hard heavy high honest hot huge human important large last late light local long loose
    loud low main modern narrow native natural near new nice old open orange other perfect plain pleasant poor popular
    possible private proper public quick quiet rare ready real recent red rich right round sad safe same second serious
    several sharp short silent simple single slow small smooth social soft special stable strange strong sudden sweet
    tall thick thin third tired total true useful usual various warm weak wet white whole wide wild wise wooden wrong
    yellow young
    """
)
ADVERBS = _words(
    """
    again almost already also always away carefully certainly clearly daily directly early easily enough especially even
    ever exactly finally first forward generally here hardly however indeed inside instead just later maybe mostly
    nearly never now often once only outside perhaps probably quickly quietly quite rather really simply slowly
    sometimes soon still suddenly then there therefore today together tomorrow too usually very well yesterday yet
    """
)
PREPOSITIONS = _words(
    """
    about above across after against along among around as at because before behind below between but by during for from
    if in into like near of off on or out over since so than that the through to toward under until up when where which
    while who why with without
    """
)
PRONOUNS = _words(
    """
    he her him his I it its me my our she their them they this these those us we what you your
    """
)

SENTENCES = (
    "The {a} {n} {d} {v}s the {n} {p} the {a} {n}.",
    "{P} {v} the {n} and {v} {p} a {n}, {p} {N} {d} {v}s.",
    "How do {r} {v} a {a} {n} {p} the {n}?",
    "Please {v} {r} {n} {p} {x} {n}s, and {v} {d}.",
    "It is {d} {a} to {v} {n}s {p} {y}: {r} {n} was {v}ed by the {n}.",
    "“{N} {n},” said the {n}; “{r} can't {v} it {d}!”",
    "You are a {a} {n}. {V} the {n} {d} and {v} {r} {n}s.",
    "{x}. {N} {v}ing ({a}, {y}%) is {d} {a} - {v} it or not.",
    "I have been {v}ing {r} {n} {p} {x} {n}s; I'll {v} there {d}.",
    "# {N} {n}\n\n* {v} the {n}: {a}\n* {v} {x} {n}s\n",
    "def {v}_{n}({n}, {n}s=None):\n    for {n} in {n}s:\n        return self.{n}.{v}({n}[{x}])\n",
    'if ({n} == {x}) {{\n  {n}.{v}("{a}");\n}} else {{ return null; }} // {v} {n}',
    '{{"id": "{n}-{y}", "{n}": {{"{a}": {x}.{y}, "{n}s": ["{n}", "{n}"]}}, "{v}": true}}',
    "https://{n}.example.com/{n}/{n}?{v}={y}&{n}={x}",
    "{x}{y}, {y}/{x}/{y} = {x} + {y} * {x} <{n}> {x}:{y}\n",
    "<|system|>\n{N} {n} {v}s.\n<|user|>\n{V} the {n}?\n<|assistant|>\n{P}.\n",
)


def _fill(draw: random.Random, sentence: str) -> str:
    """The sentence with each slot filled by a word of its own."""
    slots = {
        "n": lambda: draw.choice(NOUNS),
        "N": lambda: draw.choice(NOUNS).capitalize(),
        "v": lambda: draw.choice(VERBS),
        "V": lambda: draw.choice(VERBS).capitalize(),
        "a": lambda: draw.choice(ADJECTIVES),
        "d": lambda: draw.choice(ADVERBS),
        "p": lambda: draw.choice(PREPOSITIONS),
        "r": lambda: draw.choice(PRONOUNS),
        "P": lambda: draw.choice(PRONOUNS).capitalize(),
        "x": lambda: str(draw.randrange(100)),
        "y": lambda: str(draw.randrange(1900, 2100)),
    }
    pieces = sentence.replace("{{", "\0").replace("}}", "\1").split("{")
    filled = [pieces[0]] + [slots[piece[0]]() + piece[2:] for piece in pieces[1:]]
    return "".join(filled).replace("\0", "{").replace("\1", "}")


def lines(count: int = LINES, seed: int = SEED) -> Iterator[str]:
    """The corpus, line by line; the same for the same arguments. O(count)."""
    draw = random.Random(seed)
    for _ in range(count):
        yield _fill(draw, draw.choice(SENTENCES))
