"""mlxd over HTTP beside mlx-lm's own loop and server, on the same checkpoints, in the same run.

    python benches/http_overhead.py --programs FOLDER [--shapes 0.5B,3B,7B] [--server] [--first] [--out FILE]

FOLDER holds `mlxd` and `mlxd-worker`. Checkpoints are those of gpu_overhead.py, with a tokenizer
that has one word for each id. Legs, each in tokens a second over the whole request (prompt of 40
tokens included, greedy, median of the runs), for 50, 100 and 200 new tokens:
  mlx_lm         mlx_lm.generate.generate_step, in process, every token read
  direct         our engine alone, inside its worker (`/admin/v1/bench`)
  http           `POST /v1/completions`, streamed, to the last byte
  mlx_lm server  `mlx_lm.server`, the same request, with --server
Runs of `direct` and `http` take turns, and each prompt is another: nothing is found in the prefix cache.
What HTTP loses is the middle of the turns' own ratios, with the interval that holds it in 95 of 100
such runs. Beside it stands what it loses in quiet turns: the middle of the fastest quarter of `http`
against that of `direct`. A virtual machine's hiccups only ever add time, and on some they add it to one
leg more than to the other.
Nothing is guessed ahead either, which `direct` never does.
With --first also the time to the first token of prompts of 2,048 and 8,000 tokens: direct, over HTTP,
and over HTTP again, when all of the prompt is in the prefix cache.
Ratios are of figures from this one run.
"""

import argparse
import contextlib
import http.client
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
from gpu_overhead import PROMPT, SHAPES, make, measure_mlx_lm, prompt_of
from mlx_lm.utils import load_model

START_S = 180
# Of mlx_lm's loop and server, which are not measured by the percent.
LIBRARY_RUNS_MAX = 7


def add_tokenizer(folder, vocabulary):
    """One word for each id, and a template that adds nothing."""
    vocab = {f"t{index}": index for index in range(vocabulary)}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
        "decoder": None, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}))


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("mlxd")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def post(connection, path, body):
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {answer.read().decode()}")
    return answer


def timed_request(connection, body, new):
    """Seconds of one streamed request; insists on `new` tokens."""
    begin = time.perf_counter()
    usage = None
    for line in post(connection, "/v1/completions", body):
        if line.startswith(b"data: {") and b'"usage":{' in line.replace(b'"usage": {', b'"usage":{'):
            usage = json.loads(line[6:])["usage"]
    seconds = time.perf_counter() - begin
    if usage is not None and usage["completion_tokens"] != new:
        raise RuntimeError(f"{usage} instead of {new} tokens")
    return seconds


def body_of(model, prompt, new, more):
    return dict(model=model, prompt=prompt, max_tokens=new, temperature=0, stream=True,
                stream_options=dict(include_usage=True), **more)


def measure_http(connection, prompt, lengths, runs, model, more):
    speeds = {}
    for new in lengths:
        body = body_of(model, prompt, new, more)
        timed_request(connection, body, new)
        seconds = [timed_request(connection, body, new) for _ in range(runs)]
        speeds[new] = new / statistics.median(seconds)
    return speeds


def words(config, run, tokens=PROMPT):
    """A text of so many tokens, another for each run."""
    size = config["vocab_size"]
    return " ".join(f"t{(7919 * index + 13 + 101 * run) % size}" for index in range(tokens))


def direct(admin, folder, question, new, runs=1):
    call = dict(model=str(folder), question=question, new_tokens=new, warmup_runs=0, runs=runs)
    return json.loads(post(UnixConnection(admin), "/admin/v1/bench", call).read())["leg"]


def loss(http_seconds, direct_seconds):
    """Percent that HTTP takes more than `direct`: middle, and the bounds of its 95 % interval."""
    ratios = sorted(100 * (via / alone - 1) for via, alone in zip(http_seconds, direct_seconds))
    turns = len(ratios)
    # Sign test: each ratio is on either side of the middle with equal chance.
    below, tail = -1, 0.0
    while (tail := tail + math.comb(turns, below + 1) / 2 ** turns) <= 0.025:
        below += 1
    low = max(below, 0)
    return statistics.median(ratios), ratios[low], ratios[turns - 1 - low]


def quiet(seconds):
    """The middle of the fastest quarter."""
    return statistics.median(sorted(seconds)[:math.ceil(len(seconds) / 4)])


def measure_in_turns(connection, admin, folder, config, lengths, runs):
    """`http` and `direct`, run by run."""
    found = {"http": {}, "direct": {}}
    run = 0
    for new in lengths:
        seconds = {"http": [], "direct": []}
        for turn in range(runs + 1):
            run += 1
            body = body_of(str(folder), words(config, run), new, dict(ignore_eos=True))
            http_seconds = timed_request(connection, body, new)
            direct_seconds = direct(admin, folder, words(config, run), new)["seconds"][0]
            if turn > 0:
                seconds["http"].append(http_seconds)
                seconds["direct"].append(direct_seconds)
        for leg, taken in seconds.items():
            found[leg][new] = new / statistics.median(taken)
        middle, low, high = loss(seconds["http"], seconds["direct"])
        in_quiet = 100 * (quiet(seconds["http"]) / quiet(seconds["direct"]) - 1)
        print(f"{new} tokens over HTTP lose {middle:.1f} % ({low:.1f} to {high:.1f}), "
              f"in quiet turns {in_quiet:.1f} %", flush=True)
    return found


def first_delta(connection, body):
    """Seconds to the first piece of text, and how many prompt tokens were cached."""
    begin = time.perf_counter()
    first, cached = None, 0
    for line in post(connection, "/v1/completions", body):
        if not line.startswith(b"data: {"):
            continue
        said = json.loads(line[6:])
        if first is None and any(choice["text"] for choice in said["choices"]):
            first = time.perf_counter() - begin
        if said.get("usage"):
            cached = said["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return first, cached


def measure_first(connection, admin, folder, config, runs):
    found = {}
    for tokens in (2048, 8000):
        legs = {"direct": [], "cold": [], "cached": []}
        for run in range(runs + 1):
            text = words(config, 1000 + tokens + run, tokens)
            body = body_of(str(folder), text, 2, dict(ignore_eos=True))
            cold, none = first_delta(connection, body)
            cached, all_but_one = first_delta(connection, body)
            if none or all_but_one < tokens - 65:
                raise RuntimeError(f"{none}, then {all_but_one} cached of {tokens}")
            alone = direct(admin, folder, text, 1)["first_token_seconds"][0]
            if run > 0:
                for leg, seconds in zip(legs, (alone, cold, cached)):
                    legs[leg].append(seconds)
        found[tokens] = {leg: 1e3 * statistics.median(taken) for leg, taken in legs.items()}
    return found


@contextlib.contextmanager
def mlxd(programs, **settings):
    """A running `mlxd`, by its card; on a failure what it and its workers logged is shown."""
    with tempfile.TemporaryDirectory() as home:
        environment = dict(os.environ, MLXD_PATHS_RUNTIME=f"{home}/run",
                           MLXD_PATHS_STATE=f"{home}/state", MLXD_PATHS_LOGS=f"{home}/logs",
                           **settings)
        log = open(f"{home}/log", "w")
        server = subprocess.Popen([str(programs / "mlxd"), "serve", "--port", "0"],
                                  env=environment, stdout=log, stderr=log)
        try:
            yield wait_for(lambda: json.loads(Path(f"{home}/run/mlxd.json").read_text()), server)
        except Exception:
            log.flush()
            sys.stderr.write(Path(f"{home}/log").read_text()[-4000:])
            for worker_log in Path(f"{home}/logs").glob("*"):
                sys.stderr.write(worker_log.read_text()[-4000:])
            raise
        finally:
            server.terminate()
            server.wait()


def host_of(card):
    return card["base_url"].split("/")[2]


def mlxd_legs(arguments, folder, config, lengths):
    with mlxd(arguments.programs, MLXD_MODELS_GUESSES_MAX="0") as card:
        connection, admin = http.client.HTTPConnection(host_of(card)), card["admin_socket"]
        found = measure_in_turns(connection, admin, folder, config, lengths, arguments.runs)
        if arguments.first:
            for tokens, legs in measure_first(connection, admin, folder, config, 3).items():
                text = "  ".join(f"{leg} {ms:.1f} ms" for leg, ms in legs.items())
                print(f"first token of {tokens}: {text}; HTTP {legs['cold'] / legs['direct']:.3f}×, "
                      f"cached {100 * legs['cached'] / legs['cold']:.1f} %", flush=True)
        return found


def with_own_tokenizer_class(folder, copy):
    """The same checkpoint for transformers, which would give every Qwen2 the tokenizer of Qwen2 and
    leave nothing of these words."""
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "words.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\n"
        "class Words(PreTrainedTokenizerFast):\n    pass\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").unlink()
    (copy / "tokenizer_config.json").write_text(json.dumps(
        dict(config, tokenizer_class="Words", auto_map={"AutoTokenizer": [None, "words.Words"]})))


@contextlib.contextmanager
def mlx_lm_server(folder):
    """A running `mlx_lm.server` of the checkpoint, by its host; on a failure what it logged is shown."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"

    def answers():
        connection = http.client.HTTPConnection(host)
        connection.request("GET", "/health")
        return connection.getresponse().read()

    with tempfile.TemporaryDirectory() as copy, tempfile.TemporaryFile("w+") as log:
        with_own_tokenizer_class(folder, Path(copy))
        server = subprocess.Popen([sys.executable, "-m", "mlx_lm", "server", "--model", copy,
                                   "--port", host.split(":")[1], "--trust-remote-code"], stderr=log)
        try:
            wait_for(answers, server)
            yield host
        except Exception:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:])
            raise
        finally:
            server.terminate()
            server.wait()


def server_leg(folder, prompt, lengths, runs):
    text = " ".join(f"t{index}" for index in prompt)
    with mlx_lm_server(folder) as host:
        connection = http.client.HTTPConnection(host)
        return measure_http(connection, text, lengths, runs, "default_model", {})


def wait_for(ready, process):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode}")
        try:
            return ready()
        except (OSError, json.JSONDecodeError):
            time.sleep(0.05)
    raise RuntimeError("did not start")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--shapes", default="0.5B,3B,7B")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--lengths", default="50,100,200")
    parser.add_argument("--server", action="store_true", help="measure mlx_lm.server too")
    parser.add_argument("--first", action="store_true", help="times to the first token too")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "overhead")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lengths = [int(new) for new in arguments.lengths.split(",")]
    results = {}
    for name in arguments.shapes.split(","):
        folder = arguments.folder / name
        if not (folder / "config.json").exists():
            make(SHAPES[name], folder)
        add_tokenizer(folder, SHAPES[name]["vocab_size"])
        prompt = prompt_of(SHAPES[name])
        model, _ = load_model(folder)
        mx.eval(model.parameters())
        library_runs = min(arguments.runs, LIBRARY_RUNS_MAX)
        found = {"mlx_lm": measure_mlx_lm(model, prompt, lengths, library_runs)}
        del model
        mx.clear_cache()
        found.update(mlxd_legs(arguments, folder, SHAPES[name], lengths))
        if arguments.server:
            try:
                found["mlx_lm server"] = server_leg(folder, prompt, lengths, library_runs)
            except Exception as error:  # The others' figures are worth keeping.
                print(f"mlx_lm server: {error!r}", flush=True)
        results[name] = found
        for leg, speeds in found.items():
            text = "  ".join(f"{new}: {speed:7.1f} ({speed / found['mlx_lm'][new]:.2f}×)"
                             for new, speed in speeds.items())
            print(f"{name:5} {leg:13} {text}", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
