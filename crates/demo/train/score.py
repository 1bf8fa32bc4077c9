"""The scoring rule of the 40 questions, and the rehearsal set. README.md says it in words;
the project's own test follows the same rule."""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent


def plain(text):
    """Lower case, runs of white space as one space."""
    return " ".join(text.lower().split())


def right(question, answer, finished):
    """Whether `answer` holds the fact that `question` asks for. `finished`: the model ended it
    by itself, before the limit of tokens."""
    text = plain(answer)
    return (
        finished
        and all(plain(fact) in text for fact in question.get("must_all", []))
        and all(any(plain(word) in text for word in group) for group in question.get("must_any", []))
        and not any(plain(word) in text for word in question.get("must_not", []))
    )


def questions():
    return json.loads((HERE.parent / "questions.json").read_text())


def rehearsal():
    """[(topic, question)]"""
    pairs = []
    for line in (HERE / "rehearsal.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pairs.append(tuple(line.split(": ", 1)))
    return pairs
