"""Asks an exported model the 40 questions through mlx-lm, greedily unless told otherwise, and scores the answers.

    python check.py MODEL_FOLDER [--rehearsal] [--show]
"""

import argparse
import time

import mlx.core as mx
from mlx_lm import load, stream_generate
from mlx_lm.sample_utils import make_sampler

import score
from corpus import Corpus


def greedy(scores):
    return mx.argmax(scores, axis=-1)


def ask(model, tokenizer, messages, limit=512, sampler=None):
    """(answer, whether the model ended it itself, the last response)"""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    text, last = "", None
    for last in stream_generate(model, tokenizer, prompt, max_tokens=limit, sampler=sampler or greedy):
        text += last.text
    return text, last.finish_reason == "stop", last


def main():
    parse = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parse.add_argument("folder")
    parse.add_argument("--rehearsal", action="store_true")
    parse.add_argument("--show", action="store_true")
    parse.add_argument("--temperature", type=float, default=0.0)
    args = parse.parse_args()
    model, tokenizer = load(args.folder)
    # As mlxd's processor path runs it: float32 weights.
    model.set_dtype(mx.float32)
    sampler = make_sampler(temp=args.temperature)
    began, good, made = time.time(), 0, 0
    for question in score.questions():
        text, finished, last = ask(model, tokenizer, [{"role": "user", "content": question["question"]}], sampler=sampler)
        ok = score.right(question, text, finished)
        good, made = good + ok, made + last.generation_tokens
        if args.show or not ok:
            print("right" if ok else "WRONG", "|", question["question"], "|", text.replace("\n", "\n    "))
    print(f"questions: {good}/{len(score.questions())} right, {made / (time.time() - began):.0f} tok/s")
    if args.rehearsal:
        corpus, good = Corpus(), 0
        for topic, question in score.rehearsal():
            text, finished, _ = ask(model, tokenizer, [{"role": "user", "content": question}])
            ok = finished and text in corpus.topics[topic].answers
            good += ok
            if not ok:
                print("WRONG", "|", topic, "|", question, "|", text[:90].replace("\n", " "))
        print(f"rehearsal: {good}/{len(score.rehearsal())}")


if __name__ == "__main__":
    main()
