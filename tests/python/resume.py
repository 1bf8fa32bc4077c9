"""Reads a stream on with OpenAI's own Python client after its connection broke.

    python resume.py BASE_URL MODEL

Exits 0 when every check holds. Started by the Rust tests.
"""

import sys

import openai
from openai.types.chat import ChatCompletionChunk


def texts(chunks):
    said = {}
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] = said.get(choice.index, "") + (choice.delta.content or "")
    return said


def ask(client, model, **more):
    messages = [{"role": "user", "content": "go on"}]
    return client.chat.completions.create(
        model=model, messages=messages, seed=4, n=2, max_tokens=80, stream=True,
        stream_options={"include_usage": True}, **more,
    )


def read_on(client, answer, events):
    """The chunks after the first `events`: events are numbered from 1, one a chunk."""
    return list(
        client.get(
            f"/streams/{answer}",
            cast_to=ChatCompletionChunk,
            stream=True,
            stream_cls=openai.Stream[ChatCompletionChunk],
            options={"headers": {"Last-Event-ID": str(events)}},
        )
    )


def main():
    base_url, model = sys.argv[1:]
    with openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=60) as client:
        expected = list(ask(client, model))
        for field in ("resumable", "background"):
            seen = []
            with ask(client, model, extra_body={field: True}) as stream:
                for chunk in stream:
                    seen.append(chunk)
                    if len(seen) == 30:
                        break
            rest = read_on(client, seen[0].id, len(seen))
            assert texts(seen + rest) == texts(expected), (field, seen, rest)
            assert {chunk.id for chunk in rest} == {seen[0].id}
            assert rest[-1].usage == expected[-1].usage, rest[-1]
        try:
            read_on(client, "nothing", 0)
        except openai.NotFoundError as error:
            assert error.code == "stream_not_found", error
        else:
            raise AssertionError("an unknown stream was found")


main()
