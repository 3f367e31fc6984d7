"""Little stories from a grammar: the text that the demo model learns. One story draws a world (hero, friend, home, things), then a plot.

The plots are text, in `story_plots.txt` beside this file; the words of the world are the tables below. Everything follows from the seed.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

PLOTS_FILE = Path(__file__).with_name("story_plots.txt")

GIRLS = "Lily Mia Anna Rosa Nora Ella Ruby Zoe Hana Amara Clara Ivy Maya Tess Leila Sofia Greta Lucy Emma Alice"
BOYS = "Tom Ben Sam Max Leo Finn Omar Jack Theo Hugo Kofi Ravi Noah Oscar Felix Jonas Peter Will Adam Tim"
SHE_ANIMALS = "Hazel Willow Daisy Clover Poppy Bella Luna Maple Fern Olive Penny Rosie Pearl Tilly Dot Honey"
HE_ANIMALS = "Pip Bramble Rusty Otto Barnaby Toby Milo Chester Basil Fergus Bruno Patch Monty Jasper Gus Benny"
SPECIES = "fox rabbit bear mouse squirrel hedgehog duck frog owl kitten puppy turtle badger otter lamb pony beaver raccoon"

TRAITS = [
    "little",
    "brave little",
    "kind",
    "curious",
    "clever",
    "cheerful",
    "shy",
    "gentle",
    "quiet",
    "playful",
    "young",
    "lively",
    "dreamy",
]
SHE, HE = ("she", "her", "her", "herself"), ("he", "him", "his", "himself")

# Each helper: how the story names them, whether it is a woman, and how the hero calls them.
FAMILY = [
    ("{his} mother", True, "Mother"),
    ("{his} father", False, "Father"),
    ("{his} grandmother", True, "Grandma"),
    ("{his} grandfather", False, "Grandpa"),
    ("{his} aunt", True, "Auntie"),
    ("{his} uncle", False, "Uncle"),
]
NEIGHBORS = ["the baker", "the old farmer", "Mrs. Bell", "Mr. Green", "the miller", "the fisherman", "old Mrs. Reed", "the gardener"]
ANIMAL_NEIGHBORS = [
    "the old mole",
    "Mrs. Goose",
    "Mr. Toad",
    "the gray donkey",
    "old Mrs. Hen",
    "the wise crow",
    "the big cow",
    "Mr. Stork",
]
RIVALS, ANIMAL_RIVALS = ["older boy", "older girl"], ["rooster", "peacock", "hare", "weasel", "swan"]

# Each home with the places around it, and how one is at them.
HOMES = {
    "in a small village by the sea": "on the beach; at the harbor; near the lighthouse; by the rock pools; in the sand dunes",
    "on a farm at the edge of the woods": "behind the barn; in the orchard; by the duck pond; near the hen house; in the wheat field",
    "in a green forest": "under the old oak tree; by the stream; in the clearing; near the berry bushes; on the mossy rocks",
    "in a busy town": "in the park; at the market; near the library; by the fountain; in the school yard",
    "in a valley between two mountains": "by the waterfall; in the meadow; near the wooden bridge; on the hill; at the mountain lake",
    "on the bank of a wide river": "by the mill; at the river; under the willow tree; on the stone bridge; in the tall reeds",
    "on a warm island": "in the bay; under the palm trees; on the white sand; near the caves; by the blue lagoon",
    "in a quiet village": "by the well; in the village square; near the windmill; in the churchyard; on the green",
    "in a cottage beside a lake": "at the lake; on the wooden pier; in the rose garden; near the boat house; under the tall pines",
    "in the far north": "on the snowy hill; by the frozen pond; in the fir trees; near the red barn; at the ice caves",
}
HIDES = (
    "under a bush|behind a rock|inside a hollow log|beside the fence|between two stones|under a pile of leaves|behind a tree"
    "|under an old bench|behind the wall|inside an empty barrel|beside the path|under a big mushroom|between the roots of a tree"
)

WORDS = {
    "hidehome": "under the bed|behind the curtain|at the bottom of the old chest|in the back of the cupboard|under the rug",
    "hobby": "sing songs|climb trees|count the stars|draw pictures|jump in puddles|collect smooth stones|tell jokes"
    "|listen to stories|chase butterflies|dance in the rain|look for treasure|ask questions|watch the clouds|play hide and seek"
    "|pick flowers|make new friends",
    "color": "red|blue|green|yellow|orange|purple|white|golden|silver|pink",
    "noun": "ball|kite|boat|drum|whistle|train|hoop|spinning top|puppet|bell|jump rope|paper dragon|wooden horse|marble|lantern|flag",
    "treat": "warm apple pie|hot vegetable soup|honey cakes|bread and cheese|ginger cookies|roasted chestnuts|hot cocoa|sweet pancakes"
    "|cherry pie|toast with jam|plum cake|baked apples",
    "happy": "happy|happy|glad|cheerful|joyful|delighted|pleased",
    "sad": "sad|sad|unhappy|lonely|gloomy|upset|miserable",
    "small": "snail|ladybug|cricket|caterpillar|tiny lizard|beetle|little spider|moth|worm|tiny crab",
    "small_toy": "teddy bear|rag doll|pillow|toy rabbit|wool sheep|toy elephant",
    "guide": "white owl|firefly|old toad|gray wolf|tall deer|little bat|wise raven|glowing moth|silver fox|old goat",
    "hunt": "berries|mushrooms|wild flowers|round stones|feathers|pine cones|clover with four leaves",
    "reward": "a little gold star|a new blue cap|a shiny coin|a jar of honey|a basket of pears|a warm wool scarf"
    "|a book of stories|a silver button",
    "reward_pl": "silk scarves and silver rings|fine hats and golden combs|glass birds and painted boxes|velvet slippers and lace gloves",
    "plan2": "a castle|a flying machine|a lighthouse|a secret cabin|a tall tower|a house for a snail",
    "fear2": "spiders|geese|being alone|bad dreams|loud bells|snakes",
    "season": "sunny|warm|bright|windy|cool|cloudy|foggy|fine|quiet|spring|summer|autumn",
    "part": "morning|afternoon|evening|day",
    "storyabout": "a king who could not stop sneezing|a whale who wanted to fly|a dragon who was afraid of mice"
    "|a star that fell into a well|a cat who sailed around the world"
    "|a giant with very small shoes|a princess who lived in a teapot|a pirate who lost his map"
    "|a snail who won a race|a cloud that would not rain|a mouse who ate the moon|a tailor who sewed a coat for the wind"
    "|a ship made of glass|a bear who learned to read|a queen who baked bread|a mountain that sang at night",
}
RULES = {
    "day": [
        "One {season} {part},",
        "One {season} {part},",
        "One day,",
        "Early one morning,",
        "Late one afternoon,",
        "One {part} in {month},",
    ],
    "weather": [
        "The sky was clear and blue.",
        "A soft wind was blowing.",
        "The air was fresh and cool.",
        "White clouds sailed across the sky.",
    ],
}
MONTHS = "April May June July August September October"
OPENINGS = [
    "Once upon a time, there was a {trait} {kind} named {hero}. {He} lived {home}",
    "Once upon a time, there was a {trait} {kind} called {hero}, who lived {home}",
    "Once upon a time, {home}, there lived a {trait} {kind} named {hero}. {He} shared a (small|cozy|yellow|crooked) house",
    "Once there was a {trait} {kind} named {hero}, who lived {home}",
    "Long ago, {home}, there lived a {trait} {kind}. {His} name was {hero}, and {he} shared a (small|tall|warm|white) house",
    "{Hero} was a {trait} {kind} who lived {home}",
    "{Home} lived a {trait} {kind} named {hero}. {He} had a (small|cozy|sunny|round) room in a house",
    "There once was a {trait} {kind} whose name was {hero}. {He} lived {home}",
]
SECOND = [
    "{He} loved to {hobby} and to {hobby2}.",
    "Every day, {he} liked to {hobby} with {his} friend {friend}, a {ftrait} {fkind}.",
    "{His} best friend was a {ftrait} {fkind} named {friend}. They liked to {hobby} together.",
    "{He} liked to {hobby}, but most of all {he} liked to {hobby2}.",
    "When {he} was not busy, {he} liked to {hobby}.",
    "{He} was known for two things: {he} loved to {hobby}, and {he} always smiled.",
]
FRIEND = [
    "{He} had a good friend, a {ftrait} {fkind} named {friend}.",
    "{His} friend {friend}, a {ftrait} {fkind}, lived next door.",
    "{He} liked to share everything with {friend}, a {ftrait} {fkind} who lived nearby.",
    "{He} met {his} friend {friend} almost every day. {Friend} was a {ftrait} {fkind}.",
]
CLOSINGS = ["", "", "", "The end.", "And they all lived happily ever after."]

_CHOICE, _RULE, _SLOT = re.compile(r"\(([^()]*)\)"), re.compile(r"<(\w+)>"), re.compile(r"\{(\w+)\}")


class Plot:
    """One section of the plots file: records that fill slots, and beats, each a list of alternatives (None ends a paragraph)."""

    def __init__(self, name: str):
        self.name = name
        self.records: list[tuple[list[str], list[list[str]]]] = []
        self.beats: list[list[str] | None] = []


def read_plots(file: Path = PLOTS_FILE) -> list[Plot]:
    """Every plot of the file, in its order."""
    plots: list[Plot] = []
    beat: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("//"):
            continue
        if line.startswith("## "):
            plots.append(Plot(line[3:]))
            beat = []
        elif line.startswith("@ "):
            slots, rows = line[2:].split(": ", 1)
            plots[-1].records.append((slots.split(", "), [row.split(" ; ") for row in rows.split(" | ")]))
        elif line == "---":
            plots[-1].beats.append(None)
            beat = []
        elif not line:
            beat = []
        else:
            if not beat:
                plots[-1].beats.append(beat)
            beat.append("" if line == "." else line)
    return plots


def _pronouns(prefix: str, forms: tuple[str, ...]) -> dict[str, str]:
    return {prefix + slot: form for slot, form in zip(("he", "him", "his", "himself"), forms, strict=True)}


def draw_world(rng: random.Random) -> dict[str, str]:
    """The slots of one story: who, where and with what. Values may hold slots themselves."""
    world: dict[str, str] = {}
    for slot, words in WORDS.items():
        first, second = rng.sample(words.split("|"), 2)
        world |= {slot: first, slot + "2": second} if not slot.endswith("2") else {slot: first}
    animals = rng.random() < 0.5
    names = {True: SHE_ANIMALS, False: HE_ANIMALS} if animals else {True: GIRLS, False: BOYS}
    kinds = rng.sample(SPECIES.split(), 2)
    for prefix, name, kind in (("", "hero", kinds[0]), ("f", "friend", kinds[1])):
        female = rng.random() < 0.5
        world |= _pronouns(prefix, SHE if female else HE)
        world[name] = rng.choice([choice for choice in names[female].split() if choice != world.get("hero")])
        world[prefix + "kind"] = kind if animals else "girl" if female else "boy"
    world["friend_full"] = "{friend} the {fkind}" if animals else "{his} friend {friend}"
    world["trait"], world["ftrait"] = rng.sample(TRAITS, 2)
    helper, woman, world["address"] = rng.choice(FAMILY)
    world |= {"helper": helper} | _pronouns("h", SHE if woman else HE)
    world["neighbor"] = rng.choice(ANIMAL_NEIGHBORS if animals else NEIGHBORS)
    world["rival"] = rng.choice(ANIMAL_RIVALS if animals else RIVALS)
    world["home"] = rng.choice(list(HOMES))
    for suffix, at in zip(("", "2"), rng.sample(HOMES[world["home"]].split("; "), 2), strict=True):
        world |= {"atspot" + suffix: at, "spot" + suffix: at.split(" ", 1)[1]}
    world["hide"], world["hide2"], world["hide3"] = rng.sample(HIDES.split("|"), 3)
    world |= {"thing": "{color} {noun}", "month": rng.choice(MONTHS.split())}
    return world


def _fill(text: str, world: dict[str, str], rng: random.Random) -> str:
    """`text` with its choices made, its rules expanded and its slots filled."""
    while _RULE.search(text) or _CHOICE.search(text):
        text = _RULE.sub(lambda found: rng.choice(RULES[found[1]]), text)
        text = _CHOICE.sub(lambda found: rng.choice(found[1].split("|")), text)
    while match := _SLOT.search(text):
        slot = match[1]
        value = world[slot] if slot in world else _capital(_fill(world[slot.lower()], world, rng))
        text = text[: match.start()] + value + text[match.end() :]
    return text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def make_story(rng: random.Random, plots: list[Plot]) -> str:
    """One story: paragraphs of one line each, divided by line feeds."""
    world = draw_world(rng)
    plot = rng.choice(plots)
    for slots, rows in plot.records:
        world |= dict(zip(slots, rng.choice(rows), strict=True))
    # The friend comes in at the start, except in the plot about a newcomer.
    stranger = plot.name == "newcomer"
    second = rng.choice([line for line in SECOND if not stranger or "{friend}" not in line])
    parts: list[str | None] = [rng.choice(OPENINGS) + " with {his} family.", second]
    if not stranger and "{friend}" not in second:
        parts.append(rng.choice(FRIEND))
    parts += [None if beat is None else rng.choice(beat) for beat in plot.beats]
    parts.append(rng.choice(CLOSINGS))
    paragraphs: list[list[str]] = [[]]
    for part in parts:
        if part is None:
            paragraphs.append([])
        elif part:
            paragraphs[-1].append(_fill(part, world, rng))
    text = "\n".join(" ".join(paragraph) for paragraph in paragraphs if paragraph)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def stories(seed: int, count: int) -> Iterator[str]:
    """`count` different stories; the same ones for the same seed."""
    rng, plots, seen = random.Random(seed), read_plots(), set[str]()
    while len(seen) < count:
        story = make_story(rng, plots)
        if story not in seen:
            seen.add(story)
            yield story
