"""Asks for embeddings with OpenAI's own Python client.

    python embeddings.py BASE_URL CHAT_MODEL BERT QWEN3 FOLDER

FOLDER is what crates/models/oracle/embeddings.py wrote: the expected vectors are there. Exits 0
when every check holds. Started by the Rust tests.
"""

import base64
import json
import struct
import sys
from pathlib import Path

import openai


def apart(ours, theirs):
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    return max(abs(a - b) for a, b in zip(ours, theirs))


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def check_ids(client, model, folder):
    """Token ids give the vectors that the reference has, as numbers and in base64."""
    expected = json.loads((folder / model.split("/")[1] / "reference.json").read_text())
    texts, vectors = expected["texts"], expected["vectors"]
    for encoding in ({}, {"encoding_format": "float"}):
        # Without the argument the client asks for base64 and decodes it.
        answer = client.embeddings.create(model=model, input=texts, **encoding)
        assert (answer.object, answer.model) == ("list", model), answer
        assert [one.index for one in answer.data] == list(range(len(texts)))
        for one, vector in zip(answer.data, vectors):
            assert apart(one.embedding, vector) < 1e-5, (model, one.index)
        tokens = sum(map(len, texts))
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    raw = client.embeddings.create(model=model, input=texts[2], encoding_format="base64")
    packed = base64.b64decode(raw.data[0].embedding)
    assert apart(struct.unpack(f"<{len(packed) // 4}f", packed), vectors[2]) < 1e-5
    short = client.embeddings.create(model=model, input=texts[3], dimensions=16).data[0].embedding
    whole = vectors[3][:16]
    length = sum(value * value for value in whole) ** 0.5
    assert apart(short, [value / length for value in whole]) < 1e-5


def check_texts(client, model):
    """A text is its tokens, with the tokenizer's marks at both ends."""
    text = "w3 w4 w5 w6 w7 w8"
    ids = [1, 3, 4, 5, 6, 7, 8, 2]
    one = client.embeddings.create(model=model, input=text)
    same = client.embeddings.create(model=model, input=ids)
    assert one.usage.prompt_tokens == len(ids), one.usage
    assert apart(one.data[0].embedding, same.data[0].embedding) < 1e-6
    many = [f"w{3 + i % 290} w{3 + i * 7 % 290}" for i in range(150)]
    answer = client.embeddings.create(model=model, input=many)
    assert len(answer.data) == 150
    for i in (0, 77, 149):
        alone = client.embeddings.create(model=model, input=many[i]).data[0].embedding
        assert apart(answer.data[i].embedding, alone) < 1e-5, i


def check_errors(client, chat, bert):
    error = refused(openai.BadRequestError, lambda: client.embeddings.create(model=chat, input="hello"))
    assert (error.code, error.param) == ("not_an_embedding_model", "model"), error
    messages = [{"role": "user", "content": "hello"}]
    error = refused(
        openai.BadRequestError, lambda: client.chat.completions.create(model=bert, messages=messages)
    )
    assert error.code == "not_a_chat_model" and "/v1/embeddings" in error.message, error
    error = refused(
        openai.BadRequestError, lambda: client.embeddings.create(model=bert, input="w3 " * 60)
    )
    assert (error.code, error.param) == ("context_length_exceeded", "input"), error
    assert "at most 48" in error.message and "has 62" in error.message, error
    error = refused(
        openai.BadRequestError, lambda: client.embeddings.create(model=bert, input="w3", dimensions=65)
    )
    assert error.param == "dimensions", error


def main():
    base_url, chat, bert, qwen3, folder = sys.argv[1:]
    with openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as client:
        for model in (bert, qwen3):
            check_ids(client, model, Path(folder))
        check_texts(client, bert)
        check_errors(client, chat, bert)


main()
