"""The text that mlxd-demo learns from, generated from the files in text/.

The files hold, per topic, patterns of questions and the answers to them; this module
expands patterns, adds the noise of real typing, and puts conversations together. All
randomness comes from the `random.Random` handed in, so a seed gives the same text.

The 40 questions of questions.json never come out of here, in any spelling: what equals one
of them after lower-casing and dropping punctuation is thrown away.
"""

import json
import math
import random
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEXT = HERE / "text"
QUESTIONS = HERE.parent / "questions.json"


def normalise(text):
    """Lower case, letters and digits only, one space between words."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


# --- patterns -----------------------------------------------------------------------------


def parse(pattern):
    """A pattern as a tree: ("seq", [...]), ("alt", [...]), ("lit", s) or ("name", s)."""
    node, rest = _alternatives(pattern, 0, top=True)
    if rest != len(pattern):
        raise ValueError(f"unbalanced ')' in: {pattern}")
    return node


def _alternatives(text, at, top):
    branches, seq, lit = [], [], []

    def flush():
        if lit:
            seq.append(("lit", "".join(lit)))
            lit.clear()

    while at < len(text):
        c = text[at]
        if c == "(":
            flush()
            node, at = _alternatives(text, at + 1, top=False)
            if at >= len(text):
                raise ValueError(f"missing ')' in: {text}")
            seq.append(node)
            at += 1
        elif c == ")":
            if top:
                raise ValueError(f"stray ')' in: {text}")
            break
        elif c == "|":
            flush()
            branches.append(("seq", seq))
            seq = []
            at += 1
        elif c == "$":
            flush()
            name = re.match(r"[a-z_]+", text[at + 1 :]).group(0)
            seq.append(("name", name))
            at += 1 + len(name)
        else:
            lit.append(c)
            at += 1
    flush()
    branches.append(("seq", seq))
    return (branches[0] if len(branches) == 1 else ("alt", branches)), at


def expand(node, names, rng):
    """One random string of the pattern."""
    kind, value = node
    if kind == "lit":
        return value
    if kind == "seq":
        return "".join(expand(n, names, rng) for n in value)
    if kind == "alt":
        return expand(value[int(rng.random() * len(value))], names, rng)
    target = names[value]
    return target(rng) if callable(target) else expand(target, names, rng)


def count(node, names):
    """How many strings a pattern has, as a float."""
    kind, value = node
    if kind == "lit":
        return 1.0
    if kind == "seq":
        return math.prod(count(n, names) for n in value)
    if kind == "alt":
        return sum(count(n, names) for n in value)
    target = names[value]
    return 50.0 if callable(target) else count(target, names)


# --- made-up names ------------------------------------------------------------------------

FAMILIES = (
    "qwen qwen2 qwen2.5 qwen3 Qwen2.5 Qwen3 Qwen3-Coder llama llama3 llama-3 Llama-3.1 Llama-3.2 mistral Mistral "
    "mixtral tinyllama TinyLlama phi phi-3 Phi-4 gemma gemma-2 gemma3 deepseek deepseek-r1 smollm SmolLM2 "
    "gpt-oss olmo granite falcon yi codestral devstral hermes zephyr starcoder mymodel my-model test-model"
).split()
SIZES = "0.5b 0.6B 0.6b 1b 1B 1.5B 1.7B 2b 3b 3B 4b 4B 7b 7B 8b 8B 12b 13B 14B 20b 27b 30B 32b 70B 72B 120b".split()
TAILS = ["", "", "", "-4bit", "-8bit", "-instruct", "-Instruct-4bit", "-chat", "-base", "-bf16", "-Instruct", "-mlx", ":latest"]
OWNERS = ["", "", "", "", "mlx-community/", "mlx-community/", "Qwen/", "meta-llama/", "mistralai/", "me/", "google/"]
SYLLABLES = (
    "ba be bi bo bu da de di do du fa fe fi fo ga go gu ha he hi ka ke ki ko ku la le li lo lu ma me mi mo mu na ne "
    "ni no nu pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo wa we wi za ze zo cha sho thi bra "
    "kle gri plo stra quin ler ton ver mar sen tal nor vin dor ling rick berg ston ham ly ness ing ed er est tion ous"
).split()


def model_name(rng):
    return (
        rng.choice(OWNERS)
        + rng.choice(FAMILIES)
        + rng.choice(["-", "-", " ", ":", ""])
        + rng.choice(SIZES)
        + rng.choice(TAILS)
    ) if rng.random() < 0.7 else rng.choice(OWNERS) + rng.choice(FAMILIES)


def folder_name(rng):
    root = rng.choice(["/models/", "~/models/", "/Users/anna/", "~/", "./", "/Volumes/disk/", "/data/", "~/Downloads/"])
    return root + rng.choice([rng.choice(FAMILIES), "weights", "my-model", "checkpoint", pseudo_word(rng)])


def pseudo_word(rng):
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice([1, 2, 2, 2, 3, 3, 4])))
    return word.capitalize() if rng.random() < 0.25 else word


def gibberish(rng):
    kind = rng.random()
    if kind < 0.3:
        row = rng.choice(["asdfghjkl", "qwertyuiop", "zxcvbnm", "abcdefghijklmnopqrstuvwxyz"])
        return " ".join(
            "".join(rng.choice(row) for _ in range(rng.randint(3, 9))) for _ in range(rng.choice([1, 1, 1, 2, 3]))
        )
    if kind < 0.45:
        start = rng.choice(["asdf", "qwer", "jkl", "aaaa", "xxx", "blah", "hjkl", "sdfg", "lalala", "foo", "bla bla"])
        return start + rng.choice(["", "", start, "asdf", "jkl"])
    if kind < 0.6:
        return rng.choice(["?", "!", ".", "...", "??", "???", "!!!", "-", ":)", ";-)", "#", "*", ",", "?!", "()", "/", "\\", "&&", ":("])
    if kind < 0.75:
        return "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 8)))
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789#$%&*+-/;<=>@[]^_"
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(4, 16)))


# --- the files ----------------------------------------------------------------------------


@dataclass
class Topic:
    name: str
    weight: float = 1.0
    raw: bool = False
    generator: str = ""
    patterns: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    answers: list = field(default_factory=list)


def lines_of(name):
    return (TEXT / name).read_text(encoding="utf-8").splitlines()


def read_names():
    names = {"model": model_name, "folder": folder_name, "pw": pseudo_word}
    for line in lines_of("macros.txt"):
        if line and not line.startswith("#"):
            key, value = line.split(" = ", 1)
            names[key] = parse(value)
    return names


def read_topics():
    topics, topic = {}, None
    for file in ("about", "start", "models", "config", "status", "api", "social"):
        for line in lines_of(f"{file}.txt"):
            if line.startswith("["):
                topic = Topic(line.strip("[]"))
                if topic.name in topics:
                    raise ValueError(f"topic {topic.name} is there twice")
                topics[topic.name] = topic
            elif line.startswith("weight "):
                topic.weight = float(line[7:])
            elif line == "raw":
                topic.raw = True
            elif line.startswith("generator "):
                topic.generator = line[10:]
            elif line.startswith("? "):
                topic.patterns.append(parse(line[2:]))
            elif line.startswith("! "):
                topic.answers.append(line[2:])
            elif line.startswith("  ") and topic.answers:
                topic.answers[-1] += "\n" + line[2:]
            elif line and not line.startswith("#"):
                raise ValueError(f"{file}.txt: what is this: {line}")
    return topics


def read_outside():
    names, frames = {"pw": pseudo_word}, []
    for line in lines_of("outside.txt"):
        if line.startswith("? "):
            frames.append(re.sub(r"\bpw\b", "$pw", line[2:]))
        elif line and not line.startswith("#"):
            key, value = line.split(" = ", 1)
            names[key] = parse(value)
    return names, [parse(f) for f in frames]


def read_followups():
    follow, topic = {}, None
    for line in lines_of("followups.txt"):
        if line.startswith("["):
            topic = follow.setdefault(line.strip("[]"), [])
        elif line.startswith("-> "):
            target, pattern = line[3:].split(": ", 1)
            topic.append((target, parse(pattern)))
    return follow


# --- noise --------------------------------------------------------------------------------

LEADS = [
    "hi, ", "hello, ", "hello! ", "hey, ", "hey ", "ok, ", "ok ", "so ", "so, ", "please ", "quick question: ", "excuse me, ",
    "I have a question: ", "one more question: ", "sorry, ", "and ", "now ", "well, ", "question: ", "hi! ", "good morning, ",
    "thanks. ", "thanks! ", "dear assistant, ", "by the way, ", "just wondering: ", "another thing: ", "hmm, ", "next: ",
    "I wonder: ", "tell me: ", "please tell me: ", "can you tell me: ", "um, ", "also, ", "but ", "great. ", "I see. ",
    "good evening! ", "good day. ", "yo ", "thx. ", "listen, ", "first question: ", "last question: ", "would you tell me, ",
]
SCENES = [
    "I am new here.", "I am a beginner.", "I have a Mac Studio.", "My boss asks.", "I use an M2 MacBook Air.", "I am writing a script.",
    "We have several Macs in the office.", "I just installed it.", "I come from Windows.", "I read the README.", "My friend told me about you.",
    "I am a developer.", "This is my first time.", "It is late and I am tired.", "I do not know much about computers.", "Sorry to bother you.",
    "I tried for an hour.", "I have only a minute.", "My colleague wants to know.", "I am in a hurry.", "I am curious.", "I looked everywhere.",
    "I could not find it.", "I forgot.", "My teacher asked me.", "I am on a train.", "We are a small team.", "I hope you can help.",
]
TAILS_IN = [" please", " please", " thanks", " thank you", " again", " exactly", " here", " on my Mac", " then", " now", " in mlxd", " with mlxd", " for me", " in short", " quickly", " these days", " by the way", ", please", ", thanks", " on this machine", " properly"]
TAILS_OUT = [" please", " please", " thanks", " thank you", " again", " exactly", " here", " then", " now", " for me", " in short", " quickly", ", please", ", thanks", " at home", " properly", " for my friend", " for school"]
ASKING = re.compile(
    r"^(what|which|how|why|who|where|when|is|are|do|does|did|can|could|may|will|would|should|must|has|have|was|were|whose|whom|on what|on which|in what|at what|under|any|shall|might)\b",
    re.I,
)
NEAR = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wqwryuiopoqsdfghjksazxcvbn"))


def typo(text, rng):
    """One slip of the finger: letters swapped, lost, doubled or replaced by a neighbour."""
    places = [i for i, c in enumerate(text) if c.isalpha()]
    if len(places) < 4:
        return text
    i = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0 and i + 1 < len(text):
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    if kind == 1:
        return text[:i] + text[i + 1 :]
    if kind == 2:
        return text[: i + 1] + text[i:]
    return text[:i] + NEAR.get(text[i].lower(), text[i]) + text[i + 1 :]


def dress(core, rng, raw, tails):
    """A question as a person types it: lead, tail, case, punctuation, slips."""
    text = re.sub(r"\s+([,.?!;:])", r"\1", " ".join(core.split())).strip(" ,")
    asking = bool(ASKING.match(text))
    if not raw:
        if rng.random() < 0.09:
            text += rng.choice(tails)
        r = rng.random()
        if r < 0.14:
            text = rng.choice(LEADS) + text
        elif r < 0.20:
            text = rng.choice(SCENES) + " " + text[:1].upper() + text[1:]
    if text and text[-1] not in "?!.:)":
        r = rng.random()
        if asking:
            text += "?" if r < 0.72 else ""
        else:
            text += "." if r < 0.3 else "!" if r < 0.38 else "?" if r < 0.46 else ""
    r = rng.random()
    if r < 0.62:
        text = text[:1].upper() + text[1:]
    elif r < 0.80:
        text = text.lower()
    elif r < 0.82:
        text = text.upper()
    if rng.random() < 0.05:
        text = re.sub(r"[,.?!;:']", "", text)
    if rng.random() < 0.03:
        text += rng.choice(["?", "!", " ", "\n", "??", "?!", " :)", "...", "!!"])
    for _ in range(rng.choice([0, 0, 0, 0, 0, 0, 0, 0, 1, 2])):
        text = typo(text, rng)
    return text


# --- conversations ------------------------------------------------------------------------

SYSTEMS = [
    "You are a helpful assistant.", "You are a helpful assistant.", "You are mlxd-demo.", "You are an AI assistant.", "Be brief.", "Answer in one sentence.",
    "You are a coding agent. You may use tools.", "You are a pirate. Talk like one.", "Answer in French.", "You are a friendly chatbot.",
    "You are ChatGPT, a large language model.", "Always answer in JSON.", "You are a senior engineer who answers questions.",
    "You are Claude.", "Today is Monday. Be concise and polite.", "You are an expert in Python and write clean code.",
    "Follow the user's instructions carefully. Respond using markdown.", "You help users of this machine.", "Keep answers under 100 words.",
    "You are a travel agent.", "You are a knowledgeable teacher; explain step by step.", "Do not make things up.", "Think before you answer.",
    "You are an assistant inside an editor. The user's file is open.", "Answer truthfully. If you do not know, say so.",
]


class Corpus:
    """Everything read; draws conversations."""

    def __init__(self):
        self.names = read_names()
        self.topics = read_topics()
        self.outside_names, self.frames = read_outside()
        self.followups = read_followups()
        for topic in self.topics.values():
            topic.weights = [min(count(p, self.names), 4000.0) ** 0.5 for p in topic.patterns]
            if not topic.answers or not (topic.patterns or topic.generator):
                raise ValueError(f"topic {topic.name} is not complete")
        for first, nexts in self.followups.items():
            for target, _ in nexts:
                assert first in self.topics and target in self.topics, (first, target)
        self.frame_weights = [min(count(f, self.outside_names), 40000.0) ** 0.33 for f in self.frames]
        self.order = list(self.topics.values())
        self.order_weights = [t.weight for t in self.order]
        self.held_out = {normalise(q["question"]) for q in json.loads(QUESTIONS.read_text())}
        self.dropped = 0

    def core(self, topic, rng):
        if topic.generator == "gibberish":
            return gibberish(rng)
        if topic.generator == "outside":
            return expand(rng.choices(self.frames, self.frame_weights)[0], self.outside_names, rng)
        return expand(rng.choices(topic.patterns, topic.weights)[0], self.names, rng)

    def question(self, topic, rng):
        """A typed question of the topic, never one of the 40."""
        raw = topic.raw or bool(topic.generator == "gibberish")
        tails = TAILS_OUT if topic.generator else TAILS_IN
        while True:
            core = self.core(topic, rng)
            text = dress(core, rng, raw, tails)
            if normalise(core) in self.held_out or normalise(text) in self.held_out:
                self.dropped += 1
                continue
            if text.strip():
                return text

    def answer(self, topic, rng):
        """The first answer three times out of four where there are several."""
        answers = topic.answers
        if len(answers) == 1 or rng.random() < 0.75:
            return answers[0]
        return rng.choice(answers[1:])

    def turn(self, before, rng):
        nexts = self.followups.get(before.name) if before else None
        if nexts and rng.random() < 0.5:
            target, pattern = rng.choice(nexts)
            text = dress(expand(pattern, self.names, rng), rng, True, TAILS_IN)
            if normalise(text) not in self.held_out:
                return self.topics[target], text
        topic = rng.choices(self.order, self.order_weights)[0]
        return topic, self.question(topic, rng)

    def system(self, rng):
        r = rng.random()
        if r < 0.62:
            return None
        if r < 0.82:
            return rng.choice(SYSTEMS)
        if r < 0.90:
            return " ".join(rng.choice(SYSTEMS) for _ in range(rng.randint(2, 8)))
        words = [rng.choice(SYSTEMS) if rng.random() < 0.3 else pseudo_word(rng) for _ in range(rng.randint(3, 40))]
        return " ".join(words)

    def conversation(self, rng):
        """(system or None, [(question, answer), ...])"""
        turns, topic = [], None
        for _ in range(rng.choices([1, 2, 3, 4, 5], [70, 14, 9, 5, 2])[0]):
            topic, text = self.turn(topic, rng)
            turns.append((text, self.answer(topic, rng)))
        return self.system(rng), turns

    def prose(self, rng):
        """Text without a template, for plain completions."""
        if rng.random() < 0.5:
            topic, text = self.turn(None, rng)
            return f"Question: {text}\nAnswer: {self.answer(topic, rng)}"
        topics = [t for t in self.order if not t.raw and not t.generator]
        return "\n\n".join(rng.choice(topics).answers[0] for _ in range(rng.randint(1, 3)))


if __name__ == "__main__":
    # Questions as they are trained on, one JSON string a line: python corpus.py [HOW_MANY] [SEED]
    corpus = Corpus()
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 7)
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 40):
        print(json.dumps(corpus.turn(None, rng)[1]))
