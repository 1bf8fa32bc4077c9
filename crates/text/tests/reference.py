"""What Python's transformers and tokenizers make of a list of cases, for comparison.

Reads one JSON object from standard input and writes one to standard output:

    {"now": 1756900805, "render": [{...}], "tokenizers": [{"json": "...", "texts": [...], "ids": [...]}]}
    {"render": [{"text": "..."} | {"error": "...", "raised": true}],
     "tokenizers": [{"encoded": [[...]], "decoded": ["..."], "shown": ["..."]}]}
"""

import datetime
import json
import sys

import jinja2
import transformers.utils.chat_template_utils as chat_template_utils
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast


def freeze(timestamp):
    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(timestamp, tz)

    chat_template_utils.datetime = Frozen


def render(case):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE()), chat_template=case["template"], **case["specials"]
    )
    try:
        text = tokenizer.apply_chat_template(
            case["messages"],
            tools=case.get("tools"),
            documents=case.get("documents"),
            add_generation_prompt=case.get("add_generation_prompt", False),
            continue_final_message=case.get("continue_final_message", False),
            tokenize=False,
            **case.get("extra", {}),
        )
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error), "raised": type(error) is jinja2.exceptions.TemplateError}
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        return {"error": str(error), "raised": False}
    return {"text": text}


def tokenize(case):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(case["json"]))
    decode = lambda ids, skip: tokenizer.decode(  # noqa: E731
        ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
    )
    return {
        "encoded": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in case["texts"]],
        "decoded": [decode(ids, True) for ids in case["ids"]],
        "shown": [decode(ids, False) for ids in case["ids"]],
    }


def main():
    request = json.load(sys.stdin)
    freeze(request["now"])
    json.dump(
        {
            "render": [render(case) for case in request.get("render", [])],
            "tokenizers": [tokenize(case) for case in request.get("tokenizers", [])],
        },
        sys.stdout,
    )


main()
