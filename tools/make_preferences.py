"""Write the embedded data set: synthetic answers to everyday questions, judged by eight users.

    python tools/make_preferences.py [--out data/preferences.jsonl.gz] [--pairs 400] [--seed 0]

Same arguments, same bytes. The schema and the model behind it are in data/README.md.

A user i prefers the answer with the larger u_i(y) + Gumbel noise, which is Bradley-Terry's model
with P(y beats z) = sigmoid(u_i(y) - u_i(z)). The utility has a part that all users share (correct,
on topic, polite) and a part of their own (the styles of ``TASTES``).
"""

import argparse
import gzip
import io
import json
import os
from pathlib import Path

import numpy as np

from decdpo.rng import Stream, generator

STYLES = ("detailed", "formal", "cautious", "concrete", "humorous", "in steps")

TASTES = {
    "ada": (+1, +1, +1, -1, -1, +1),
    "ben": (-1, -1, +1, -1, +1, -1),
    "chloe": (+1, -1, -1, +1, +1, -1),
    "dev": (-1, +1, -1, +1, -1, +1),
    "emil": (+1, +1, -1, -1, +1, -1),
    "fatou": (-1, -1, -1, -1, -1, +1),
    "grace": (+1, -1, +1, +1, -1, -1),
    "hugo": (-1, +1, +1, +1, +1, +1),
}
"""What each user likes (+1) or dislikes (-1), in the order of ``STYLES``."""

CORRECT, ON_TOPIC, POLITE, STYLE = 10.0, 1.0, 0.5, 0.9

# Topic: its questions, true statements, false statements.
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "houseplants": (
        ("How do I keep my ferns alive?", "Why do the leaves of my monstera turn yellow?"),
        (
            "water when the top soil feels dry",
            "pick a pot with drainage holes",
            "turn the pot every week so it grows evenly",
            "wipe dust off the leaves",
            "keep tropical plants away from cold draughts",
            "repot in spring when roots fill the container",
        ),
        (
            "soak the roots every morning and evening",
            "seal the bottom so no moisture escapes",
            "place shade lovers in scorching noon sun",
            "fertilise heavily through the winter rest",
            "cut every green leaf to save energy",
            "pour leftover coffee with sugar on the soil",
        ),
    ),
    "bread": (
        ("How do I bake a loaf that rises?", "Why is my sourdough so dense?"),
        (
            "let the dough double before shaping",
            "knead until it stretches without tearing",
            "preheat the oven with the tray inside",
            "weigh the flour rather than using cups",
            "keep the starter lively with regular feeding",
            "cool the loaf on a rack before slicing",
        ),
        (
            "dissolve the yeast in boiling water",
            "skip the salt and double the baking powder",
            "open the oven door every minute",
            "slice the crumb while it is still steaming",
            "freeze the starter between two feedings each day",
            "bake at the lowest heat for six hours",
        ),
    ),
    "cycling": (
        ("How should I look after my bicycle?", "Why does my chain keep slipping?"),
        (
            "clean and oil the chain after rain",
            "replace a stretched chain before it eats the cogs",
            "check tyre pressure before long rides",
            "align the derailleur with the barrel adjuster",
            "look at the brake pads for wear",
            "set the saddle so the knee stays slightly bent",
        ),
        (
            "spray cooking fat over the brake discs",
            "leave the tyres half flat to glide faster",
            "hammer the cassette until it fits",
            "wash the bearings with a pressure jet",
            "loosen the headset bolts for comfort",
            "ride in the hardest gear on every hill",
        ),
    ),
    "sleep": (
        ("How can I fall asleep faster?", "What helps against waking up tired?"),
        (
            "get up at the same hour every day",
            "keep the bedroom dark and cool",
            "avoid caffeine after lunch",
            "dim screens in the last hour",
            "take a short walk in morning light",
            "write down worries before bed",
        ),
        (
            "drink a strong espresso at midnight",
            "nap for four hours in the late afternoon",
            "stay in bed scrolling until drowsy",
            "turn the heating to the maximum",
            "eat a huge curry right before lying down",
            "change your bedtime by hours each night",
        ),
    ),
    "budget": (
        ("How do I start saving money?", "Where does my salary disappear to?"),
        (
            "track every expense for one month",
            "move savings on payday by standing order",
            "build a cushion of three months of costs",
            "pay the dearest debt first",
            "cancel subscriptions nobody uses",
            "compare insurance once a year",
        ),
        (
            "borrow on a credit card to invest",
            "ignore the statements until December",
            "put all savings into one lottery syndicate",
            "pay only the minimum on every loan",
            "buy things on sale to earn money",
            "lend your emergency fund to strangers",
        ),
    ),
    "running": (
        ("How do I train for my first ten kilometres?", "Why do my shins hurt after jogging?"),
        (
            "raise the weekly distance slowly",
            "run most sessions at a talking pace",
            "rest a day between hard efforts",
            "replace worn shoes",
            "strengthen calves and hips twice a week",
            "warm up with brisk walking",
        ),
        (
            "sprint every session until you collapse",
            "triple the distance in the first week",
            "run through sharp pain to toughen bones",
            "train in dress shoes on concrete",
            "never drink during hot days",
            "skip all rest until race morning",
        ),
    ),
    "interview": (
        ("How should I prepare for a job interview?", "What do I say about my weaknesses?"),
        (
            "read the job advert line by line",
            "prepare two stories with a clear result",
            "ask about the team and its goals",
            "arrive a few minutes early",
            "name a real weakness and how you work on it",
            "send a brief note of thanks",
        ),
        (
            "insult your former manager at length",
            "claim degrees that you never earned",
            "ask about holidays before saying hello",
            "read messages while they talk",
            "answer everything with a single word",
            "turn up an hour late to look busy",
        ),
    ),
    "cat": (
        ("How do I introduce a kitten to my old cat?", "Why does my cat scratch the sofa?"),
        (
            "give each animal its own litter tray",
            "swap blankets so they learn the scent",
            "let them meet behind a gate first",
            "offer a tall scratching post near the couch",
            "play with a wand before meals",
            "visit the vet for a first check",
        ),
        (
            "lock both in one tiny cupboard",
            "shout whenever they hiss",
            "feed them onions and chocolate",
            "remove the claws with pliers",
            "splash perfume on the litter",
            "let them fight until one gives up",
        ),
    ),
    "passwords": (
        ("How do I keep my accounts safe?", "What makes a good password?"),
        (
            "use a manager with one long passphrase",
            "turn on a second factor",
            "choose a different password for each site",
            "install updates soon",
            "check the address before typing credentials",
            "store recovery codes on paper",
        ),
        (
            "reuse your birthday everywhere",
            "mail the password to yourself and a friend",
            "click links in alarming messages at once",
            "disable updates because they annoy",
            "write the code on the bank card",
            "share the login in a public chat",
        ),
    ),
    "painting": (
        ("How do I paint a room neatly?", "Why does the paint peel off my wall?"),
        (
            "wash and sand the surface first",
            "mask the edges with tape",
            "apply primer on bare plaster",
            "roll thin coats and let each dry",
            "ventilate while you work",
            "cut in the corners with a brush",
        ),
        (
            "paint over wet mould",
            "use one thick coat to save time",
            "thin the emulsion with petrol",
            "pull the tape a month later",
            "start with the floor and end with the ceiling",
            "heat the wall with a blowtorch",
        ),
    ),
    "hiking": (
        ("What should I pack for a day in the mountains?", "How do I plan a safe hike?"),
        (
            "carry a paper map and a charged phone",
            "check the forecast on the eve",
            "tell someone your route",
            "take layers and a waterproof jacket",
            "turn back when clouds build up",
            "bring more water than you expect to need",
        ),
        (
            "leave at dusk to avoid the crowds",
            "drink only from stagnant ponds",
            "follow any animal trail downhill",
            "wear flip-flops to save weight",
            "hide under a lone tree in thunder",
            "cross a swollen river at its deepest bend",
        ),
    ),
    "language": (
        ("How can I learn Spanish in a year?", "Why do I forget new words so quickly?"),
        (
            "review vocabulary at growing intervals",
            "speak with a partner every week",
            "read easy books aloud",
            "learn phrases in place of lists",
            "listen to a podcast on the way to work",
            "keep a diary of a few lines",
        ),
        (
            "memorise a dictionary from the last page",
            "avoid speaking until you are perfect",
            "study twelve hours once a month",
            "translate every word backwards",
            "never repeat anything you have seen",
            "learn the grammar of Latin instead",
        ),
    ),
    "laundry": (
        ("How do I wash a wool jumper?", "Why do my white shirts turn grey?"),
        (
            "separate dark and light fabrics",
            "use a cold gentle cycle for wool",
            "dry knitwear flat on a towel",
            "measure the detergent",
            "treat stains before washing",
            "clean the filter of the machine",
        ),
        (
            "boil wool with bleach",
            "overload the drum until it groans",
            "mix new jeans with white linen",
            "tumble silk at full heat",
            "pour in half a box of powder",
            "leave wet clothes in the drum for days",
        ),
    ),
    "speech": (
        ("How do I give a good talk?", "What can I do about stage fright?"),
        (
            "rehearse aloud with a clock",
            "say the main message in one sentence",
            "look at three friendly faces",
            "pause after each point",
            "breathe slowly before you begin",
            "use few words on each slide",
        ),
        (
            "read dense slides word by word",
            "start with ten minutes of excuses",
            "turn your back to the audience",
            "improvise everything including the topic",
            "whisper so that they lean in",
            "add fifty animations a minute",
        ),
    ),
    "vegetables": (
        ("How do I start a small vegetable garden?", "Why do my tomatoes stay small?"),
        (
            "choose a spot with six hours of sun",
            "dig compost into the bed",
            "sow after the last frost",
            "water deeply at the base",
            "tie tall stems to stakes",
            "rotate crops from year to year",
        ),
        (
            "plant everything in deep shade",
            "bury the seeds a metre down",
            "salt the bed against weeds",
            "flood the rows at noon each day",
            "plant the same crop on tired ground forever",
            "spray dish soap on every blossom",
        ),
    ),
    "moving": (
        ("How do I prepare for moving house?", "How do I pack fragile dishes?"),
        (
            "label boxes by room",
            "book the van weeks ahead",
            "wrap plates one by one and stand them upright",
            "sort out things you no longer need",
            "redirect the post",
            "photograph the meter readings",
        ),
        (
            "stack glasses loosely at the bottom",
            "fill one giant crate with books",
            "pack the keys in the last sealed box",
            "cancel the electricity before the lights are off",
            "tape the drawers with glue",
            "leave the cat in a carton overnight",
        ),
    ),
}

SITUATIONS = (
    "",
    " I am new to this.",
    " I only have the weekend.",
    " My neighbour says it is easy.",
    " I have tried twice already.",
    " I do not want to spend much.",
)

POLITE_OPENINGS = (
    "Good question, glad to help.",
    "Thanks for asking.",
    "Happy to help with that.",
    "Of course, with pleasure.",
)
RUDE_OPENINGS = (
    "Seriously, who asks that?",
    "What a dumb question.",
    "You should know that by now.",
    "I have better things to do.",
)
FORMAL = (
    "It is advisable to proceed as follows.",
    "One should observe the following.",
    "The recommended course of action is set out below.",
    "Kindly consider these measures.",
)
CASUAL = (
    "Okay so here's the deal.",
    "Hey, no worries, it's super simple.",
    "Yeah, I'd just do this stuff.",
    "Right, let's get you sorted, mate.",
)
CAUTIOUS = (
    "Please be careful and stop if anything seems wrong.",
    "It may depend on your case, so perhaps ask an expert first.",
    "I might be mistaken, so test on a small scale.",
    "There could be risks; take your time.",
)
BOLD = (
    "Just go for it, this always works.",
    "Trust me and do it today, no hesitation.",
    "Absolutely nothing can stop you.",
    "Forget the doubts and dive straight in.",
)
CONCRETE = (
    "For example, set 15 minutes on Tuesday at 7 pm.",
    "For instance, my aunt did it with 3 tools and 20 euros.",
    "Say you begin with 2 small tries by Friday.",
    "As a number to aim for, take 4 rounds of 10 minutes.",
)
ABSTRACT = (
    "In essence, it is a matter of balance and patience.",
    "The underlying principle is harmony between effort and rest.",
    "Ultimately, understanding matters more than any procedure.",
    "Conceptually, the whole precedes its parts.",
)
HUMOROUS = (
    "If all fails, blame the goldfish.",
    "My grandmother's parrot swears by it, literally.",
    "Side effects include bragging at parties.",
    "No wizards were harmed in this advice, haha.",
)
PLAIN = (
    "That is all there is to it.",
    "These are the main points.",
    "This covers the basics.",
    "Nothing else is needed.",
)
STEPS = ("First,", "Second,", "Third,", "Fourth,", "Fifth,")
JOINS = ("", "Then", "Also", "And", "Besides that,")
_PHRASES = {1: (FORMAL, CASUAL), 2: (CAUTIOUS, BOLD), 3: (CONCRETE, ABSTRACT), 4: (HUMOROUS, PLAIN)}


def answer(rng: np.random.Generator, topic: str) -> tuple[str, float, np.ndarray]:
    """Compose an answer: its text, its shared utility, and its (6,) styles in {-1, 0, 1}."""
    style = rng.integers(-1, 2, len(STYLES))
    correct = rng.random()
    stray = rng.random() < 0.1
    polite = int(rng.integers(-1, 2))
    names = list(TOPICS)
    about = names[int(rng.integers(len(names)))] if stray else topic
    count = {-1: 1, 0: 2, 1: 4}[int(style[0])]
    _, true, false = TOPICS[about]
    pick_true, pick_false = rng.permutation(len(true)), rng.permutation(len(false))
    right = rng.random(count) < correct
    facts = [true[pick_true[k]] if right[k] else false[pick_false[k]] for k in range(count)]

    def phrase(column: int) -> list[str]:
        if style[column] == 0:
            return []
        choices = _PHRASES[column][0 if style[column] > 0 else 1]
        return [choices[int(rng.integers(len(choices)))]]

    opening = {1: POLITE_OPENINGS, 0: ("",), -1: RUDE_OPENINGS}[polite]
    parts = [opening[int(rng.integers(len(opening)))], *phrase(1)]
    for k, fact in enumerate(facts):
        lead = (STEPS if style[5] > 0 else JOINS)[k] if style[5] else ""
        sentence = f"{lead} {fact}.".strip()
        parts.append(sentence[0].upper() + sentence[1:])
    parts += [*phrase(3), *phrase(2), *phrase(4)]
    shared = CORRECT * (right.mean() - 0.5) - ON_TOPIC * (about != topic) + POLITE * polite / 2
    return " ".join(part for part in parts if part), float(shared), style


def preferences(pairs: int, seed: int) -> list[dict[str, object]]:
    """Return the records of all users, ``pairs`` each, in an order that mixes the users."""
    records = []
    for user, (name, taste) in enumerate(TASTES.items()):
        rng = generator(seed, Stream.SYNTHETIC, agent=user)
        for _ in range(pairs):
            topic = list(TOPICS)[int(rng.integers(len(TOPICS)))]
            questions = TOPICS[topic][0]
            prompt = questions[int(rng.integers(len(questions)))]
            prompt += SITUATIONS[int(rng.integers(len(SITUATIONS)))]
            scored: list[tuple[float, str]] = []
            while len(scored) < 2:
                text, shared, style = answer(rng, topic)
                utility = shared + STYLE * float(np.dot(taste, style))
                if not any(text == other for _, other in scored):
                    scored.append((round(utility + float(rng.gumbel()), 3), text))
            (low, rejected), (high, chosen) = sorted(scored)
            records.append(
                {
                    "user": name,
                    "topic": topic,
                    "prompt": prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    "score_chosen": high,
                    "score_rejected": low,
                }
            )
    order = generator(seed, Stream.SYNTHETIC, agent=len(TASTES)).permutation(len(records))
    return [records[k] for k in order]


def write(path: Path, records: list[dict[str, object]]) -> None:
    """Write JSON lines, gzipped without a time stamp, replacing the file as a whole."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0, compresslevel=9) as file:
        for record in records:
            file.write(json.dumps(record).encode() + b"\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def main() -> None:
    """Run the command line."""
    default = Path(__file__).resolve().parent.parent / "data" / "preferences.jsonl.gz"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=default, help="file to write")
    parser.add_argument("--pairs", type=int, default=400, help="pairs of each user")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    records = preferences(args.pairs, args.seed)
    write(args.out, records)
    print(f"{len(records):,} pairs, {args.out.stat().st_size:,} bytes in {args.out}")


if __name__ == "__main__":
    main()
