"""Drives mlxd with OpenAI's own Python client.

    python openai_client.py {scripted|demo|dying} BASE_URL MODEL

Exits 0 when every check holds. Started by the Rust tests.
"""

import asyncio
import sys

import openai


def client_of(base_url, **options):
    return openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60, **options)


def ask(client, model, question="hello", **more):
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model=model, messages=messages, **more)


def refused(kind, call):
    """The error of this class that `call` raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def check_models(client, model):
    listed = {entry.id for entry in client.models.list()}
    assert {model, "mlxd-demo"} <= listed, listed
    found = client.models.retrieve(model)
    assert (found.id, found.object) == (model, "model"), found


def check_chat(client, model):
    answer = ask(client, model, max_tokens=12, seed=1)
    assert answer.object == "chat.completion" and answer.model == model, answer
    assert answer.id.startswith("chatcmpl-"), answer.id
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, choice
    assert choice.finish_reason in ("stop", "length"), choice
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 12, usage
    assert usage.prompt_tokens_details.cached_tokens >= 0, usage
    assert answer._request_id.startswith("req_"), answer._request_id
    assert ask(client, model, max_tokens=12, seed=1).choices[0].message.content == choice.message.content


def check_stream(client, model):
    whole = ask(client, model, max_tokens=20, seed=3)
    stream = ask(client, model, max_tokens=20, seed=3, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    first, last = chunks[0], chunks[-1]
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", ""), first
    assert last.choices == [] and last.usage == whole.usage, (last, whole.usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content, (text, whole)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1]), reasons


def check_choices(client, model):
    answer = ask(client, model, n=3, max_tokens=8, seed=5, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = {index: "" for index in range(3)}
    for chunk in ask(client, model, n=3, max_tokens=8, seed=5, temperature=1, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in answer.choices}, (texts, answer)


def check_logprobs(client, model):
    answer = ask(client, model, logprobs=True, top_logprobs=3, max_tokens=5, temperature=0, seed=4)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens, content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content), content
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer.choices[0].message.content
    streamed = []
    for chunk in ask(client, model, logprobs=True, top_logprobs=3, max_tokens=5, temperature=0, seed=4, stream=True):
        logprobs = chunk.choices[0].logprobs
        streamed += logprobs.content if logprobs else []
    assert streamed == content, (streamed, content)


def check_parts_and_roles(client, model):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four", "name": "me"},
    ]
    answer = client.chat.completions.create(
        model=model,
        messages=messages,
        max_completion_tokens=3,
        user="someone",
        metadata={"any": "thing"},
        extra_body={"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "enable_thinking": False},
    )
    assert answer.usage.completion_tokens <= 3, answer


def check_completions(client, model):
    answer = client.completions.create(model=model, prompt="Once", max_tokens=6, seed=2, logprobs=2)
    assert answer.object == "text_completion", answer
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 6, logprobs
    assert "".join(logprobs.tokens) == choice.text and logprobs.text_offset[0] == 0, choice
    stream = client.completions.create(model=model, prompt="Once", max_tokens=6, seed=2, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == choice.text
    echoed = client.completions.create(model=model, prompt="Once", max_tokens=6, seed=2, echo=True)
    assert echoed.choices[0].text == "Once" + choice.text, echoed
    several = client.completions.create(model=model, prompt=["a", "b"], n=2, max_tokens=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3], several


def check_errors(client, model):
    error = refused(openai.NotFoundError, lambda: ask(client, "no/such-model"))
    assert error.code == "model_not_found" and model in error.message, error
    error = refused(openai.BadRequestError, lambda: ask(client, model, temperature=3))
    assert error.param == "temperature" and "from 0 to 2" in error.message, error
    error = refused(openai.BadRequestError, lambda: ask(client, model, "x " * 40_000))
    assert error.code == "context_length_exceeded", error
    error = refused(openai.BadRequestError, lambda: ask(client, model, response_format={"type": "json_object"}))
    assert "not supported yet" in error.message, error
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    error = refused(openai.BadRequestError, lambda: ask(client, model, image))
    assert "takes text only" in error.message, error
    error = refused(openai.NotFoundError, lambda: client.models.retrieve("no/such-model"))
    assert error.request_id.startswith("req_"), error


def check_left_early(client, model):
    for _ in range(3):
        with ask(client, model, max_tokens=100, stream=True) as stream:
            next(iter(stream))
    assert ask(client, model, max_tokens=2).choices


async def many(base_url, model):
    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as client:

        async def one(seed):
            messages = [{"role": "user", "content": f"number {seed}"}]
            stream = await client.chat.completions.create(
                model=model, messages=messages, seed=seed, max_tokens=20, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        return await asyncio.gather(*(one(seed) for seed in range(16)))


def check_many_at_once(client, model):
    base_url = str(client.base_url)
    together = asyncio.run(many(base_url, model))
    assert all(together)
    alone = ask(client, model, "number 7", seed=7, max_tokens=20).choices[0].message.content
    return together[7], alone


def common(client, model):
    check_models(client, model)
    check_chat(client, model)
    check_stream(client, model)
    check_choices(client, model)
    check_logprobs(client, model)
    check_parts_and_roles(client, model)
    check_errors(client, model)
    check_left_early(client, model)


def scripted(client, model):
    common(client, model)
    check_completions(client, model)
    together, alone = check_many_at_once(client, model)
    assert together == alone, (together, alone)
    # The scripted answer is the seed's alone, so other seeds give other choices.
    answer = ask(client, model, n=3, max_tokens=8, seed=5)
    assert len({choice.message.content for choice in answer.choices}) == 3, answer
    text = ask(client, model, seed=9, max_tokens=60).choices[0].message.content
    stop = text[20:23]
    cut = ask(client, model, seed=9, max_tokens=60, stop=["\0", stop]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop"), cut


def demo(client, model):
    common(client, model)
    check_many_at_once(client, model)
    answer = ask(client, model, "On which port can I reach you?", temperature=0)
    assert "11440" in answer.choices[0].message.content, answer
    assert answer.choices[0].finish_reason == "stop", answer
    silenced = ask(client, model, "hello", temperature=0, max_tokens=1, logprobs=True, top_logprobs=2)
    first = silenced.choices[0].logprobs.content[0]
    ids = client.completions.create(model=model, prompt=[[1, 2, 3]], max_tokens=1)
    assert ids.usage.prompt_tokens == 3, (first, ids)


def dying(client, model):
    seen = []

    def read():
        for chunk in ask(client, model, max_tokens=1000, stream=True):
            seen.append(chunk)

    error = refused(openai.APIError, read)
    assert error.code == "quarantined", (error, error.body)
    assert seen and all(not chunk.choices[0].finish_reason for chunk in seen)


def main():
    checks, base_url, model = sys.argv[1:]
    with client_of(base_url) as client:
        {"scripted": scripted, "demo": demo, "dying": dying}[checks](client, model)


main()
