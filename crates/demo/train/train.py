"""Trains mlxd-demo from scratch and writes a model folder per run.

    python train.py --out OUT                 # on a GPU, a few minutes
    python train.py --out OUT --small         # the same path on a CPU in a minute, untrained

Each run is a shape and a seed. Runs are compared on rehearsal.txt; the 40 questions are
counted too, but choose nothing.
"""

import argparse
import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import score
import tokens
from corpus import Corpus
from export import write
from network import Network, Shape

SHARES = 16
RUNS = {
    # Two bytes a parameter: 7.1 MB.
    "plain": Shape(hidden=256, layers=4, heads=8, kv_heads=4, head_dim=32, inner=640),
    # To try the path out.
    "small": Shape(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, inner=128),
}


def make_text(job):
    """One worker's share of the corpus as flat arrays."""
    seed, documents, tokenizer_json = job
    corpus, rng = Corpus(), random.Random(seed)
    encoder = tokens.Encoder(tokenizer_json)
    ids, weights, ends = [], [], []
    for _ in range(documents):
        if rng.random() < 0.02:
            new = encoder.prose(corpus.prose(rng))
        else:
            system, turns = corpus.conversation(rng)
            new = encoder.conversation(system, turns, rng, cut=0.7)
        ids.extend(new[0])
        weights.extend(new[1])
        ends.append(len(ids))
    return np.array(ids, dtype=np.int16), np.array(weights, dtype=np.uint8), np.array(ends), corpus.dropped


def pack(parts, length, seed):
    """Documents in random order, end to end in rows, each row beginning with a document.
    What does not fit is cut off, so a document is never met without its beginning."""
    ids = [d for p in parts for d in np.split(p[0], p[2][:-1])]
    weights = [d for p in parts for d in np.split(p[1], p[2][:-1])]
    order = np.random.default_rng(seed).permutation(len(ids))
    rows, marks, row, mark = [], [], [], []
    room = length
    for i in order:
        row.append(ids[i][:room])
        mark.append(weights[i][:room])
        room -= len(row[-1])
        if room == 0:
            rows.append(np.concatenate(row))
            marks.append(np.concatenate(mark))
            row, mark, room = [], [], length
    return torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(marks))


def loss_of(network, ids, weights):
    logits = network(ids[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    w = weights[:, 1:].flatten().float()
    return (loss * w).sum() / w.sum()


def draw(rows, device, generator):
    """The rows, one by one, in a new random order each time round."""
    ids, weights = (r.to(device) for r in rows)
    while True:
        for i in torch.randperm(len(ids), generator=generator).split(4096):
            for j in i.to(device).split(32):
                if len(j) == 32:
                    yield ids[j], weights[j]


def next_batch(source, size):
    taken = [next(source) for _ in range(max(1, size // 32))]
    return torch.cat([t[0] for t in taken]), torch.cat([t[1] for t in taken])


def train(shape, rows, steps, batch, rate, seed, device, seconds):
    torch.manual_seed(seed)
    network = Network(shape).to(device)
    print(f"parameters: {sum(p.numel() for p in network.parameters()):,}", flush=True)
    decay = [p for p in network.parameters() if p.dim() == 2]
    rest = [p for p in network.parameters() if p.dim() != 2]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=rate, betas=(0.9, 0.97), fused=device == "cuda",
    )
    step_loss = torch.compile(loss_of, dynamic=False) if device == "cuda" else loss_of
    generator = torch.Generator().manual_seed(seed)
    short, long = (draw(kind, device, generator) for kind in rows)
    began, step, total = time.time(), 0, steps
    while step < total:
        ids, weights = next_batch(long, batch // 4) if step % 7 == 6 else next_batch(short, batch)
        done = step / total
        # Warm up, hold, then fall to nothing over the last 40 %.
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100, max((1 - done) / 0.4, 0.01))
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = step_loss(network, ids.long(), weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        if step == 200 and seconds:
            # The pace is known now: fit the run into its seconds.
            torch.cuda.synchronize() if device == "cuda" else None
            paced = time.time()
        if step == 300 and seconds:
            torch.cuda.synchronize() if device == "cuda" else None
            pace = (time.time() - paced) / 100
            total = min(steps, 300 + int((seconds - (time.time() - began)) / pace))
            print(f"{pace * 1000:.1f} ms a step, {total} steps", flush=True)
        if step % 500 == 0 or step == total:
            print(f"step {step}: loss {loss.item():.4f}, {time.time() - began:.0f} s", flush=True)
    return network


@torch.no_grad()
def answer(network, tokenizer, prompts, device, limit):
    """Greedy answers: [(text, finished)]. No cache: everything again at each step."""
    end = tokenizer.token_to_id(tokens.TURN_END)
    rows = [tokenizer.encode(p, add_special_tokens=False).ids for p in prompts]
    out = []
    for at in range(0, len(rows), 192):
        part = rows[at : at + 192]
        lengths = torch.tensor([len(r) for r in part], device=device)
        most = max(len(r) for r in part)
        ids = torch.zeros(len(part), most + limit, dtype=torch.long, device=device)
        for i, row in enumerate(part):
            ids[i, : len(row)] = torch.tensor(row)
        index, alive, firsts = torch.arange(len(part), device=device), torch.ones(len(part), dtype=torch.bool, device=device), lengths.clone()
        for _ in range(limit):
            live = index[alive]
            if len(live) == 0:
                break
            logits = network(ids[live, : int(lengths[live].max())])
            chosen = logits[index[: len(live)], lengths[live] - 1].argmax(-1)
            going = chosen != end
            alive[live[~going]] = False
            live = live[going]
            ids[live, lengths[live]] = chosen[going]
            lengths[live] += 1
        for i in range(len(part)):
            out.append((tokenizer.decode(ids[i, firsts[i] : lengths[i]].tolist()), not bool(alive[i])))
    return out


def examine(network, tokenizer, corpus, device, limit):
    """Counts, and what went wrong, in bfloat16 as it will be shipped."""
    network = network.to(torch.bfloat16)
    for buffer in ("cos", "sin"):
        setattr(network, buffer, getattr(network, buffer).float())
    network.eval()
    rng, pairs, asked = random.Random(3), score.rehearsal(), score.questions()
    systems = ["You are a helpful assistant.", "You are a pirate and a poet.", "Reply to Bob from Acme Ltd. in a formal tone."]
    if limit < 100:
        pairs, asked = pairs[:10], asked[:10]
    report, wrong = {}, []

    def rehearse(name, change, system=lambda: None, before=lambda: []):
        given = answer(network, tokenizer, [tokens.prompt([*before(), (change(q), None)], system()) for _, q in pairs], device, limit)
        good = 0
        for (topic, question), (text, finished) in zip(pairs, given):
            ok = finished and text in corpus.topics[topic].answers
            good += ok
            if not ok and name == "rehearsal":
                wrong.append(f"{topic} | {question} | {text[:80]!r}")
        report[name] = f"{good}/{len(pairs)}"

    def one_turn():
        topic, question = corpus.turn(None, rng)
        return [(question, topic.answers[0])]

    rehearse("rehearsal", lambda q: q)
    rehearse("rehearsal, lower case", lambda q: q.lower().rstrip("?.!"))
    rehearse("rehearsal, system message", lambda q: q, system=lambda: rng.choice(systems))
    rehearse("rehearsal, second turn", lambda q: q, before=one_turn)
    for name, system, change in (
        ("questions", None, lambda q: q),
        ("questions, lower case", None, lambda q: q.lower().rstrip("?.!")),
        ("questions, system message", systems[0], lambda q: q),
    ):
        given = answer(network, tokenizer, [tokens.prompt([(change(q["question"]), None)], system) for q in asked], device, limit)
        marks = [score.right(q, *a) for q, a in zip(asked, given)]
        report[name] = f"{sum(marks)}/{len(marks)}"
        if name == "questions":
            wrong += [f"QUESTION {q['question']} | {a[0][:100]!r}" for q, a, m in zip(asked, given, marks) if not m]
    return report, wrong


def main():
    parse = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parse.add_argument("--out", type=Path, required=True)
    parse.add_argument("--small", action="store_true")
    parse.add_argument("--runs", default="plain:2", help="shape:seed,…")
    parse.add_argument("--documents", type=int, default=800_000)
    parse.add_argument("--steps", type=int, default=6000)
    parse.add_argument("--seconds", type=int, default=0, help="per run; 0: all steps")
    parse.add_argument("--rate", type=float, default=2e-3)
    args = parse.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    # Where compiling fails the run goes on without.
    torch._dynamo.config.suppress_errors = True
    batch, length, limit = 128, 512, 480
    if args.small:
        args.runs, args.documents, args.steps, batch, length, limit = "small:1", 20000, 20, 8, 256, 20
    began = time.time()
    corpus = Corpus()
    tokenizer = tokens.build(corpus, 3072, 1, 4000 if args.small else 60_000)
    assert tokenizer.get_vocab_size() <= 3072
    text = tokenizer.to_str()
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {time.time() - began:.0f} s", flush=True)
    # The text is the same on every machine: the shares are fixed, the processes are not.
    jobs = [(100 + i, args.documents // SHARES, text) for i in range(SHARES)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        parts = pool.map(make_text, jobs, chunksize=1)
    # Mostly short rows, since most chats are short; long ones teach the far positions.
    rows = [pack(parts, length, 1), pack(parts, 4 * length, 2)]
    dropped = sum(p[3] for p in parts)
    print(f"text: {args.documents} documents, {rows[0][0].numel():,} tokens, {dropped} left out as held-out questions, {time.time() - began:.0f} s", flush=True)
    summary = []
    for run in args.runs.split(","):
        name, seed = run.split(":")
        network = train(RUNS[name], rows, args.steps, batch, args.rate, int(seed), device, args.seconds)
        folder = args.out / f"{name}-{seed}"
        write(folder, network, text)
        report, wrong = examine(network, Tokenizer.from_str(text), corpus, device, limit)
        (folder / "report.json").write_text(json.dumps({"report": report, "wrong": wrong, "dropped": dropped}, indent=1, ensure_ascii=False))
        print(run, json.dumps(report), *wrong, sep="\n  ", flush=True)
        summary.append((run, report))
    for run, report in summary:
        print(run, report)
    print(f"{time.time() - began:.0f} s in all")


if __name__ == "__main__":
    main()
