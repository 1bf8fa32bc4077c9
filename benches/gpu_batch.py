"""Many sequences at once beside mlx-lm's, on the same checkpoints, in the same run.

    python benches/gpu_batch.py --direct PATH/direct_loop [--programs FOLDER] [--shapes 0.5B,3B,7B]
        [--kinds 4-bit,bf16] [--server] [--out FILE]

Checkpoints are those of gpu_overhead.py, packed, and the same shapes dense in bfloat16. Legs, each
in tokens a second over all requests together (prompts of 40 tokens included, greedy, 200 new tokens
each, median of the runs), for 1, 5 and 16 at once:
  mlx_lm         mlx_lm.generate.generate_step, in process, one request
  batch          mlx_lm.generate.BatchGenerator, in process
  direct         our engine in a bare loop: no scheduler, no HTTP
  http           `POST /v1/completions` of mlxd, streamed, one connection a request
  mlx_lm server  the same requests to `mlx_lm.server`, with --server
"""

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import mlx.core as mx
from gpu_overhead import SHAPES, make, prompt_of, run_direct, run_mlx_lm
from http_overhead import add_tokenizer, host_of, mlx_lm_server, mlxd, timed_request
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load_model

NEW = 200


def prompts(config, rows):
    vocabulary = config["vocab_size"]
    return [[(token + 101 * row) % vocabulary for token in prompt_of(config)] for row in range(rows)]


def run_batch(model, given):
    begin = time.perf_counter()
    generator = BatchGenerator(model, max_tokens=NEW)
    generator.insert(given, [NEW] * len(given))
    tokens = 0
    while answers := generator.next_generated():
        tokens += len(answers)
    seconds = time.perf_counter() - begin
    generator.close()
    if tokens != NEW * len(given):
        raise RuntimeError(f"{tokens} tokens from BatchGenerator")
    return seconds


def median_speed(runs, rows, run):
    run()
    return rows * NEW / statistics.median(run() for _ in range(runs))


def run_clients(host, given, model, more):
    """Seconds until the last of these requests, all sent at once, is answered."""
    connections = [http.client.HTTPConnection(host) for _ in given]
    failed = []
    ready = threading.Barrier(len(given) + 1)

    def ask(connection, text):
        body = dict(model=model, prompt=text, max_tokens=NEW, temperature=0, stream=True,
                    stream_options=dict(include_usage=True), **more)
        connection.connect()
        ready.wait()
        try:
            timed_request(connection, body, NEW)
        except Exception as error:  # told by the caller
            failed.append(error)

    def words(prompt):
        return " ".join(f"t{token}" for token in prompt)

    threads = [threading.Thread(target=ask, args=(connection, words(prompt)))
               for connection, prompt in zip(connections, given)]
    for thread in threads:
        thread.start()
    ready.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(given)} requests: {failed[0]}")
    return seconds


def mlxd_leg(arguments, folder, config, sizes):
    with mlxd(arguments.programs, MLXD_MODELS_RUNNING_MAX=str(max(sizes))) as card:
        more = dict(ignore_eos=True)
        return {rows: median_speed(arguments.runs, rows, lambda: run_clients(
            host_of(card), prompts(config, rows), str(folder), more)) for rows in sizes}


def server_leg(arguments, folder, config, sizes):
    speeds = {}
    try:
        with mlx_lm_server(folder) as host:
            for rows in sizes:
                speeds[rows] = median_speed(arguments.runs, rows, lambda: run_clients(
                    host, prompts(config, rows), "default_model", {}))
    except Exception as error:  # The others' figures are worth keeping.
        print(f"mlx_lm server: {error!r}", flush=True)
    return speeds


def legs(arguments, folder, config, sizes):
    """Each leg's name and its speeds by requests at once, as it is done."""
    model, _ = load_model(folder)
    mx.eval(model.parameters())
    yield "batch", {rows: median_speed(
        arguments.runs, rows, lambda: run_batch(model, prompts(config, rows))) for rows in sizes}
    yield "mlx_lm", {1: median_speed(
        arguments.runs, 1, lambda: run_mlx_lm(model, prompt_of(config), NEW))}
    del model
    mx.clear_cache()
    more = ["--rows", ",".join(map(str, sizes)), "--apart", str(max(sizes))]
    said = run_direct(arguments.direct, folder, [], [NEW], arguments.runs, *more)
    print(f"logits of {max(sizes)} rows together are {said['apart']:.4f} deviations from each alone",
          flush=True)
    yield "direct", {
        rows: rows * NEW / statistics.median(seconds[0] for seconds in said["together"][str(rows)])
        for rows in sizes}
    if arguments.programs:
        yield "http", mlxd_leg(arguments, folder, config, sizes)
    if arguments.server:
        yield "mlx_lm server", server_leg(arguments, folder, config, sizes)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--direct", required=True)
    parser.add_argument("--programs", type=Path, help="folder of mlxd and mlxd-worker")
    parser.add_argument("--shapes", default="0.5B,3B,7B")
    parser.add_argument("--kinds", default="4-bit,bf16")
    parser.add_argument("--rows", default="1,5,16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--server", action="store_true", help="mlx_lm.server too")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "overhead")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sizes = [int(rows) for rows in arguments.rows.split(",")]
    results = {}
    for name in arguments.shapes.split(","):
        for kind in arguments.kinds.split(","):
            config = dict(SHAPES[name])
            folder = arguments.folder / name
            if kind == "bf16":
                config.update(dense=True, dtype="bfloat16")
                folder = arguments.folder / f"{name}-bf16"
            if not (folder / "config.json").exists():
                make(config, folder)
                add_tokenizer(folder, config["vocab_size"])
                mx.clear_cache()
            found = results[f"{name} {kind}"] = {}
            for leg, speeds in legs(arguments, folder, config, sizes):
                found[leg] = speeds
                def ratio(rows):
                    base = found["batch"].get(rows)
                    return f" ({speeds[rows] / base:.2f}×)" if base and leg != "batch" else ""
                row = "  ".join(f"{rows}: {speed:7.1f}{ratio(rows)}" for rows, speed in speeds.items())
                print(f"{name:5} {kind:5} {leg:14} {row}", flush=True)
                if arguments.out:
                    arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
