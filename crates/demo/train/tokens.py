"""The tokenizer, made from the corpus, and conversations as token ids.

Byte-level BPE, so any text can be written; three special tokens in ChatML's manner. The text
is split before the merges by letters, single digits, punctuation and white space, which
keeps a command such as `mlxctl start` the same tokens wherever it stands.
"""

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEMPLATE = """\
{%- for message in messages -%}
    {%- set role = message['role'] -%}
    {%- if role == 'developer' -%}{%- set role = 'system' -%}{%- endif -%}
    {%- if role not in ['system', 'user', 'assistant'] -%}{%- set role = 'user' -%}{%- endif -%}
    {{- '<|im_start|>' + role + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- elif message['content'] -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def prompt(turns, system=None):
    """The text the template makes of a system message and [(question, answer), …]; the last
    answer may be None: then the text ends where the model begins to write."""
    text = f"{TURN_START}system\n{system}{TURN_END}\n" if system is not None else ""
    for question, answer in turns:
        text += f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n"
        if answer is not None:
            text += f"{answer}{TURN_END}\n"
    return text


def build(corpus, size, seed, samples):
    """A tokenizer of `size` tokens, learnt from `samples` conversations."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()

    def texts():
        for _ in range(samples):
            _, turns = corpus.conversation(rng)
            for question, answer in turns:
                yield question
                # Answers repeat; taken rarely, the merges go to the words people ask with.
                if rng.random() < 0.1:
                    yield answer

    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


class Encoder:
    """Conversations as (ids, weights): the loss counts answers whole and the rest a little."""

    def __init__(self, tokenizer_json, rest=20):
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        # A second reading of the same text, with merges left out at random, as typos would.
        self.ragged = Tokenizer.from_str(tokenizer_json)
        self.ragged.model.dropout = 0.12
        self.answers = {}
        self.rest = rest
        self.eot = self.tokenizer.token_to_id(END_OF_TEXT)
        self.start = self.tokenizer.token_to_id(TURN_START)
        self.end = self.tokenizer.token_to_id(TURN_END)
        self.newline = self.ids("\n")
        self.roles = {role: self.ids(role + "\n") for role in ("system", "user", "assistant")}

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def typed(self, text, rng):
        which = self.ragged if rng.random() < 0.25 else self.tokenizer
        return which.encode(text, add_special_tokens=False).ids

    def answer(self, text):
        if text not in self.answers:
            self.answers[text] = self.ids(text)
        return self.answers[text]

    def conversation(self, system, turns, rng, cut):
        """`cut`: the chance that the last answer stops after 20 tokens. What decides an answer
        is its beginning, so this spends the time where it teaches most."""
        ids, weights = [], []

        def add(new, weight):
            ids.extend(new)
            weights.extend([weight] * len(new))

        if system is not None:
            add([self.start, *self.roles["system"]], 0)
            add([*self.typed(system, rng), self.end, *self.newline], 0)
        for i, (question, answer) in enumerate(turns):
            add([self.start, *self.roles["user"]], 0)
            add([*self.typed(question, rng), self.end], self.rest)
            add([*self.newline, self.start, *self.roles["assistant"]], 0)
            body = self.answer(answer)
            if i == len(turns) - 1 and len(body) > 20 and rng.random() < cut:
                add(body[:20], 255)
                add([self.eot], 0)
                return ids, weights
            add([*body, self.end], 255)
            add(self.newline, 20)
        add([self.eot], 20)
        return ids, weights

    def prose(self, text):
        ids = [*self.ids(text), self.eot]
        return ids, [128] * len(ids)
