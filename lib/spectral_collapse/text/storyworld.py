"""Storyworld: a stochastic grammar of short children's stories whose true distribution is known exactly.

A story is eleven sentences in a fixed order, four of them optional. Each sentence has several wordings with Zipf
probabilities, and the wordings share eleven slots (place, name, kind, …), whose fillers have Zipf probabilities too.
The problem and the helper depend on the region of the place (water, woods, farm, hills, town, house) through a mixture,
so their marginals are sums in closed form. Every filler is a word that occurs in no other slot and in no wording: the
first filler of a slot in a story is the one that was drawn.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..estimate import Estimate
from .metrics import words

ZIPF_EXPONENT = 1.0
REGIONS = 6
LOCALITY = 0.6  # weight of the region's own fillers in the mixture of helper and problem
KL_SMOOTHING = 0.5  # pseudo-count per filler in slot_kl
_STREAM = 0x570B  # separates these draws from other streams of the same seed

# Tables are in rank order, most probable first. A starred word is the filler by which a phrase is recognised.
# Places, helpers and problems cycle through the regions: water, woods, farm, hills, town, house.
_PLACES = """
by the *river* | in the *forest* | on the *farm* | on the *hill* | in the *town* | in the *garden*
by the *pond* | in the *grove* | in the *barn* | in the *valley* | in the *park* | in the *cottage*
by the *lake* | in the *jungle* | in the *orchard* | on the *mountain* | near the *school* | in the *kitchen*
on the *beach* | in the *meadow* | in the *field* | in the *cave* | near the *market* | in the *attic*
by the *stream* | in the *woodland* | in the *stable* | near the *cliff* | near the *bakery* | on the *porch*
on the *island* | in the *thicket* | in the *pasture* | in the *canyon* | in the *library* | in the *shed*
in the *harbor* | in the *glade* | in the *vineyard* | on the *ridge* | near the *museum* | in the *den*
by the *lagoon* | in the *swamp* | near the *mill* | by the *geyser* | near the *station* | in the *cellar*
"""
_HELPERS = """
fisherman | ranger | farmer | climber | teacher | grandmother
sailor | woodcutter | shepherd | hiker | baker | neighbor
captain | fairy | beekeeper | giant | doctor | uncle
lifeguard | elf | milkmaid | explorer | postman | aunt
diver | wizard | cowboy | dwarf | firefighter | cousin
mermaid | scout | miller | goatherd | librarian | grandfather
surfer | gnome | blacksmith | monk | mayor | plumber
rower | hermit | scarecrow | troll | tailor | nanny
"""
_PROBLEMS = """
fell into the cold *water* | got lost in the *fog* | got stuck in the *mud* | fell into a deep *hole*
got lost in a *crowd* | broke a *window*
slipped on the wet *rocks* | tripped over a *root* | could not open the *gate* | was caught in a *storm*
took the wrong *street* | spilled the *milk*
was hit by a *wave* | walked into a *spiderweb* | was chased by a *bull* | was frightened by *thunder*
missed the last *bus* | fell down the *stairs*
got caught in a *net* | got stuck in a *bush* | ran into a *fence* | could not cross the *bridge*
was bumped by a *cart* | got locked in a *closet*
was pinched by a *crab* | heard a scary *growl* | knocked over a *bucket* | lost the *trail*
could not read the *sign* | slipped on some *soap*
floated away on a *log* | fell from a *branch* | got buried in *hay* | was blocked by a *boulder*
was startled by a *siren* | burned the *toast*
got stuck in the *reeds* | stepped on a *thorn* | dropped all the *eggs* | sank into a *snowdrift*
lost the *tickets* | tripped over a *rug*
lost an *oar* | stumbled into a *burrow* | got stuck in the *silo* | ran from an *avalanche*
got stuck in an *elevator* | dropped a *vase*
got stranded on a *sandbar* | was scratched by *brambles* | sat on a *beehive* | slid into a *crevice*
stepped into wet *cement* | got stuck in the *chimney*
"""
# Girls and boys alternate.
_NAMES = """
Lily Tom Mia Ben Lucy Sam Anna Tim Sara Max Ella Leo Emma Jack Zoe Noah Amy Finn Nora Oliver Molly Henry
Sophie Oscar Clara Felix Maya Peter Julia Hugo Alice Theo Chloe Simon Tara Eddie Nina Walter Ida Caleb Wendy
Bruno Martha Ralph Elsa Victor Greta Rufus Olga Dexter Tilda Boris Fiona Angus Sylvia Otis Beatrix Edgar
Ingrid Magnus Odette Silas Winnie Barnaby
"""
_KINDS = """
dog cat rabbit bear mouse fox duck bird frog pig lion squirrel turtle monkey elephant sheep owl kitten puppy
penguin deer hedgehog goat horse tiger otter wolf chicken butterfly beaver panda koala zebra giraffe raccoon
donkey ladybug hamster snail goose swan kangaroo camel badger mole robin crow seal parrot lizard moose ferret
weasel ostrich walrus lynx possum llama armadillo chipmunk
"""
_TRAITS = """
curious brave shy clever playful gentle lazy cheerful hungry silly quiet friendly sleepy stubborn careful
messy polite noisy grumpy fluffy eager jolly bold calm funny greedy nervous lonely bossy clumsy merry timid
dreamy fearless thoughtful helpful chatty restless loyal fussy humble cranky daring sneaky tidy nosy
absentminded bashful
"""
_WEATHER = """
sunny rainy windy warm cloudy snowy bright foggy chilly breezy stormy hot misty frosty icy mild gray crisp
humid drizzly hazy blustery overcast muggy
"""
_LOOKS = """
red blue shiny yellow wooden green tiny purple round pink dusty golden soft striped silver heavy orange smooth
painted sparkly crooked rusty square spotted woolen copper ancient velvet speckled turquoise
"""
_OBJECTS = """
ball kite book box hat drum bell doll basket flower shell feather blanket button ribbon lantern whistle flute
mirror spoon umbrella scarf candle pillow teapot wagon necklace puzzle marble crown jar broom ladder hammer
shovel teddy acorn pebble magnet compass telescope violin backpack notebook envelope mitten bracelet locket
kettle trophy accordion anchor easel tambourine thimble wheelbarrow statue goblet parasol harmonica quilt
pinwheel boomerang kaleidoscope
"""
_WISHES = """
learn to *swim* | see the *ocean* | bake a *cake* | win a *race* | catch a *star* | build a *castle*
climb the tallest *tree* | learn to *dance* | find a *treasure* | fly to the *moon* | throw a *party*
grow a *pumpkin* | sing a *song* | ride a *train* | see a *rainbow* | visit the *zoo* | play the *piano*
make a *pie* | meet a *king* | touch a *cloud* | do a magic *trick* | tell a good *joke* | make a *snowman*
ride a *bicycle* | sail around the *world* | dig a *tunnel* | draw a *map* | taste *honey*
watch the *sunrise* | visit the *circus* | write a *poem* | count to a *hundred* | learn to *skate*
fly a *rocket* | cook some *soup* | knit a *sweater* | see the *desert* | become a *pirate* | build a *robot*
see the *fireworks* | learn to *juggle* | win a *medal* | plant a *sunflower* | see a *volcano*
learn *chess* | walk a *tightrope* | play the *trumpet* | ride a *scooter*
"""
_MORALS = """
*kindness* always comes back | *sharing* makes everyone happy | *patience* brings good things
even small *courage* counts | *honesty* is always best | *friendship* makes us strong
*practice* makes things easy | *teamwork* makes hard work light | *listening* is a gift
there is always *hope* | *laughter* can mend a bad day | good *manners* open doors
*trust* takes time to grow | everyone makes *mistakes* | *love* is stronger than fear
a *promise* must be kept | *helping* others feels good | *trying* again is never wrong
*forgiveness* makes us free | saying *sorry* can fix a lot | good *questions* make us grow
*gratitude* makes a small thing enough | the *truth* always comes out | *planning* saves a lot of work
*respect* goes both ways | a *smile* costs nothing | *imagination* has no end | *fairness* matters to everyone
*caring* for others is worth it | *wisdom* comes with time | *generosity* makes us rich
*confidence* grows step by step | everyone needs some *rest* | *safety* comes first
*loyalty* cannot be bought | *humility* makes us great | *perseverance* wins in the end
*cooperation* is better than fighting | *moderation* keeps us well | *diligence* always pays
"""

# Wordings of each sentence, most probable first, a blank line between sentences; "-" leaves the sentence out.
# A sentence gets its capital, and "a" its "n", after the slots are filled.
_WORDINGS = """
once upon a time, there was a {trait} {kind} named {name} who lived {in_place}.
{name} was a {trait} {kind} who lived {in_place}.
once there was a {trait} {kind} called {name} who lived {in_place}.
{in_place}, there lived a {trait} {kind} named {name}.
a {trait} {kind} named {name} had a cozy home {in_place}.
long ago, a {trait} {kind} lived {in_place}, and everyone called {him} {name}.
{name}, a {trait} young {kind}, lived {in_place} with {his} family.
do you know {name}, the {trait} {kind} who lives {in_place}?

{he} wanted to {wish} more than anything.
{name} always wanted to {wish}.
{his} big dream was to {wish}.
every day, {he} wished to {wish}.
"I will {wish} one day," {he} often said.
nobody believed that {he} could {wish}.
more than anything, {name} hoped to {wish}.

one {weather} day, {name} found a {look} {object}.
one {weather} morning, {he} saw a {look} {object} outside.
on a {weather} afternoon, {he} went out with a {look} {object}.
it was a {weather} day, and {name} had a {look} {object}.
one {weather} morning, {his} sister gave {him} a {look} {object}.
on a {weather} evening, {name} was playing with a {look} {object}.
then, on a {weather} day, a {look} {object} came by mail.

-
"what a nice {object}!" {he} said.
{he} had never seen such a {object}.
{name} held the {object} and smiled.
{he} played with the {object} all day.
the {object} made {him} very happy.
{he} showed the {object} to everyone.

but then {name} {problem}.
suddenly, {he} {problem}.
on the way home, {name} {problem}.
{he} was not looking and {problem}.
later that day, {name} {problem}.
then something went wrong, and {he} {problem}.
oh dear, poor {name} {problem}!

-
{name} was sad and began to cry.
"oh no!" said {name}. "What now?"
{he} sat down and thought hard.
it was a big problem for {him}.
{he} felt scared and all alone.
{name} called as loud as {he} could.

a kind {helper} came by and wanted to help.
just then, a {helper} saw {name} and stopped.
luckily, a {helper} was near and came running.
{name} asked a {helper} for help.
a {helper} heard {him} and came to look.
soon, an old {helper} came along.
who came to help? It was a {helper}!

-
"do not worry," said the {helper}.
"let me help you," said the {helper}.
"can you please help me?" asked {name}.
the {helper} knew just what to do.
"we can fix this," the {helper} said.
the {helper} gave {him} a cookie first.

together they used the {object}, and everything was fine again.
the {helper} took the {object} and made things better.
they worked hard, and soon the trouble was over.
{name} had an idea, and the {object} saved the day.
the {helper} showed {name} how to be safe and strong.
with the {object} and a good plan, they fixed everything.
they tried three times, and then it worked.

that day, {name} learned that {moral}.
from then on, {he} knew that {moral}.
{name} never forgot that {moral}.
so the moral is that {moral}.
the {helper} said, "Remember, {moral}."
and so {he} found out that {moral}.
"now I know that {moral}," said {name}.

-
they were best friends ever after.
{name} gave the {helper} a big hug.
then {name} went home and fell asleep.
and soon {he} really could {wish}.
{he} still has the {object} today.
that night, {name} dreamed about the {object}.
they all had lunch {in_place}.
"""
_SENTENCES = tuple(tuple(block.strip().split("\n")) for block in _WORDINGS.split("\n\n"))


@dataclass(frozen=True, eq=False)
class Slot:
    """A slot: its fillers in rank order and their exact distribution.

    `probabilities` (K,) is the marginal, `by_region` (REGIONS, K) the distribution given the region of the place, and
    `phrases` the text for each of the K fillers.
    """

    name: str
    fillers: tuple[str, ...]
    phrases: tuple[str, ...]
    probabilities: np.ndarray
    by_region: np.ndarray

    @property
    def entropy(self) -> float:
        """Exact entropy of the marginal, -Σ p log p, in nats."""
        return float(-np.sum(self.probabilities * np.log(self.probabilities)))


def _zipf(size: int) -> np.ndarray:
    weights = np.arange(1, size + 1, dtype=np.float64) ** -ZIPF_EXPONENT
    return weights / weights.sum()


def _phrases(table: str) -> list[str]:
    return [phrase.strip() for phrase in re.split(r"[|\n]", table.strip())]


_REGION_PROBABILITIES = _zipf(len(_phrases(_PLACES))).reshape(-1, REGIONS).sum(axis=0)


def _slot(name: str, starred: Sequence[str], locality: float = 0.0) -> Slot:
    """Slot in which filler k belongs to region k mod REGIONS.

    P(k | region r) = (1 - locality) z_k + locality z_k [k in r] / Σ_{j in r} z_j, z being Zipf.
    """
    stars = [re.search(r"\*(\w+)\*", phrase) for phrase in starred]
    zipf = _zipf(len(starred))
    local = zipf * (np.arange(len(starred)) % REGIONS == np.arange(REGIONS)[:, None])
    by_region = (1.0 - locality) * zipf + locality * local / local.sum(axis=1, keepdims=True)
    probabilities = _REGION_PROBABILITIES @ by_region
    by_region.flags.writeable = probabilities.flags.writeable = False
    return Slot(
        name=name,
        fillers=tuple(star[1] if star else phrase for star, phrase in zip(stars, starred, strict=True)),
        phrases=tuple(phrase.replace("*", "") for phrase in starred),
        probabilities=probabilities,
        by_region=by_region,
    )


# The draws depend on the order: the region of the place comes first, and the name decides the pronouns.
SLOTS: tuple[Slot, ...] = (
    _slot("place", _phrases(_PLACES), locality=1.0),
    _slot("name", _NAMES.split()),
    _slot("kind", _KINDS.split()),
    _slot("trait", _TRAITS.split()),
    _slot("wish", _phrases(_WISHES)),
    _slot("weather", _WEATHER.split()),
    _slot("look", _LOOKS.split()),
    _slot("object", _OBJECTS.split()),
    _slot("problem", _phrases(_PROBLEMS), LOCALITY),
    _slot("helper", _phrases(_HELPERS), LOCALITY),
    _slot("moral", _phrases(_MORALS)),
)
_SLOT_OF_WORD = {filler.lower(): (slot.name, filler) for slot in SLOTS for filler in slot.fillers}
_PRONOUNS = ({"he": "she", "his": "her", "him": "her"}, {"he": "he", "his": "his", "him": "him"})


def _draw(uniforms: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Indices (N,) by inversion of uniforms (N,) through probabilities (K,) or (N, K)."""
    return np.sum(uniforms[:, None] >= np.cumsum(probabilities, axis=-1)[..., :-1], axis=1)


def _tell(fillers: Sequence[int], wordings: Sequence[int]) -> str:
    fields = {slot.name: slot.phrases[index] for slot, index in zip(SLOTS, fillers, strict=True)}
    fields["in_place"] = fields["place"]
    fields |= _PRONOUNS[fillers[1] % 2]
    chosen = [sentence[index] for sentence, index in zip(_SENTENCES, wordings, strict=True)]
    told = [wording.format_map(fields) for wording in chosen if wording != "-"]
    story = " ".join(re.sub(r'^"?[a-z]', lambda start: start[0].upper(), sentence) for sentence in told)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", story)


def generate_stories(count: int, seed: int) -> list[str]:
    """Draws `count` independent stories; story i of a seed does not depend on the count. ValueError for a negative
    count or seed."""
    if count < 0 or seed < 0:
        raise ValueError(f"generate_stories got count {count} and seed {seed}; both must be 0 or more.")
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_STREAM,)))
    uniforms = np.random.Generator(bits).random((count, len(SLOTS) + len(_SENTENCES)))  # row i is story i
    columns = iter(uniforms.T)
    place = _draw(next(columns), SLOTS[0].probabilities)
    region = place % REGIONS
    fillers = [place, *(_draw(next(columns), slot.by_region[region]) for slot in SLOTS[1:])]
    wordings = [_draw(next(columns), _zipf(len(sentence))) for sentence in _SENTENCES]
    rows = zip(np.transpose(fillers).tolist(), np.transpose(wordings).tolist(), strict=True)
    return [_tell(*row) for row in rows]


def parse_fillers(text: str) -> dict[str, str]:
    """First filler of each slot that occurs in `text`, in any case, as {slot name: filler}.

    For a story of this grammar these are exactly the fillers drawn; slots that do not occur are absent.
    """
    found: dict[str, str] = {}
    for word in itertools.chain(*(joined.split("'") for joined in words(text))):
        if word in _SLOT_OF_WORD:
            name, filler = _SLOT_OF_WORD[word]
            found.setdefault(name, filler)
    return found


def _tail(slot: Slot, tail_mass: float) -> np.ndarray:
    """Mask (K,) of the least probable fillers whose probabilities sum to at most `tail_mass`."""
    order = np.argsort(slot.probabilities, kind="stable")
    mask = np.zeros(len(order), dtype=bool)
    mask[order] = np.cumsum(slot.probabilities[order]) <= tail_mass
    if not mask.any() or mask.all():
        raise ValueError(
            f"tail_mass is {tail_mass}, which puts none or all fillers of slot '{slot.name}' in the tail; "
            f"choose a value from {slot.probabilities.min():.4f} up to 1, 1 excluded."
        )
    return mask


class _Score(NamedTuple):
    """What one slot contributes to `tail_metrics`."""

    ratio: float
    covered: int
    expected: float
    divergence: float
    entropy: float
    read: float


def _score(slot: Slot, tail: np.ndarray, counts: np.ndarray) -> _Score | None:
    """The score of a slot from its counts (K,); None if it was not read."""
    true, read = slot.probabilities, counts.sum()
    if read == 0:
        return None
    smoothed = (counts + KL_SMOOTHING) / (read + KL_SMOOTHING * len(counts))
    seen = counts[counts > 0] / read
    return _Score(
        counts[tail].sum() / read / true[tail].sum(),
        np.count_nonzero(counts[tail]),
        -np.expm1(read * np.log1p(-true[tail])).sum(),
        np.sum(true * np.log(true / smoothed)),
        -np.sum(seen * np.log(seen)),
        read,
    )


def _combined(scores: Sequence[_Score | None], texts: int) -> dict[str, float]:
    """The values of `tail_metrics` from the scores of all slots in so many texts."""
    scores = [score for score in scores if score]
    ratios, covered, expected, divergences, entropies, read = zip(*scores, strict=True) if scores else [()] * 6
    return {
        "tail_mass_ratio": float(np.mean(ratios)) if scores else float("nan"),
        "tail_coverage": float(sum(covered) / sum(expected)) if scores else float("nan"),
        "slot_kl": float(np.mean(divergences)) if scores else float("nan"),
        "slot_entropy": float(np.mean(entropies)) if scores else float("nan"),
        "slots_read": float(sum(read) / (len(SLOTS) * texts)) if texts else float("nan"),
    }


def tail_metrics(texts: Sequence[str], tail_mass: float = 0.1) -> dict[str, Estimate]:
    """Loss of tails in `texts`, read from the first filler of each slot in each text.

    With p the true probabilities of a slot (K fillers), n the counts read, N = Σ n, and T its tail (the least probable
    fillers, as many as have Σ_T p <= tail_mass):

    - tail_mass_ratio: (Σ_T n / N) / Σ_T p, mean over slots; 1 for true stories, 0 without a tail.
    - tail_coverage: distinct tail fillers read over the number expected from N true draws,
      Σ_slots Σ_T [n > 0] / Σ_slots Σ_T (1 - (1 - p)^N).
    - slot_kl: Σ p log(p / q) in nats, q = (n + 1/2) / (N + K/2), mean over slots.
    - slot_entropy: plug-in entropy of n / N in nats, mean over slots; low by about (K - 1) / 2N.
    - slots_read: Σ_slots N / (number of slots * number of texts).

    Slots that no text mentions are left out of the first four, which are NaN if no slot is read; slots_read is then 0,
    and NaN for an empty list. ValueError for a string in place of a list, and for a tail_mass that leaves a slot's tail
    empty or makes it the full slot.
    """
    if isinstance(texts, str):
        raise ValueError("tail_metrics got one string; pass a list of texts.")
    tails = [_tail(slot, tail_mass) for slot in SLOTS]
    places = [{filler: index for index, filler in enumerate(slot.fillers)} for slot in SLOTS]
    readings = [parse_fillers(text) for text in texts]
    # The filler that each text has in every slot, -1 for none: (texts,).
    read = [
        np.array([place.get(reading.get(slot.name), -1) for reading in readings], dtype=int)
        for slot, place in zip(SLOTS, places, strict=True)
    ]
    counts = [
        np.bincount(each[each >= 0], minlength=len(slot.fillers)).astype(np.float64)
        for slot, each in zip(SLOTS, read, strict=True)
    ]
    # A slot's score without a text depends only on the filler that the text has there; -1, none, comes last.
    without = []
    for slot, tail, count in zip(SLOTS, tails, counts, strict=True):
        less = count - np.eye(len(count) + 1, len(count))
        without.append([_score(slot, tail, each) if (each >= 0).all() else None for each in less])
    values = _combined([scores[-1] for scores in without], len(texts))
    left_out = [
        _combined([scores[filler] for scores, filler in zip(without, own, strict=True)], len(texts) - 1)
        for own in zip(*(each.tolist() for each in read), strict=True)
    ]
    return {name: Estimate.jackknife(value, [each[name] for each in left_out]) for name, value in values.items()}
