"""The tiny model's folder: reproducible, and good for a router and for an engine."""

import json

import jinja2
import pytest
from tokenizers import Tokenizer

from sim import tinymodel
from sim.tinymodel.build import build

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather?"},
    {"role": "assistant", "content": "Bright."},
    {"role": "user", "content": "Again?"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(tinymodel.PATH / "tokenizer.json"))


def test_build_reproduces_the_committed_folder_byte_for_byte(tmp_path):
    build(tmp_path)
    names = sorted(path.name for path in tinymodel.PATH.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (tinymodel.PATH / name).read_bytes(), name


@pytest.mark.parametrize("text", ["Hello, world!\n", "naïve 日本語 🎉", "def f(x):\n    return x", "<s>a</s>", " \t\0"])
def test_tokenizer_round_trips_any_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_have_the_ids_of_the_config(tokenizer):
    config = json.loads((tinymodel.PATH / "config.json").read_text())
    assert [tokenizer.token_to_id(token) for token in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert (config["bos_token_id"], config["eos_token_id"]) == (tinymodel.BOS, tinymodel.EOS)
    assert tokenizer.get_vocab_size() == config["vocab_size"] == tinymodel.VOCABULARY_SIZE
    assert config["max_position_embeddings"] == tinymodel.CONTEXT_LENGTH


@pytest.mark.parametrize("trim", [False, True])
def test_chat_template_extends_by_appending(trim):
    settings = json.loads((tinymodel.PATH / "tokenizer_config.json").read_text())
    template = jinja2.Environment(trim_blocks=trim, lstrip_blocks=trim).from_string(settings["chat_template"])

    def render(messages, **options):
        return template.render(messages=messages, bos_token="<s>", eos_token="</s>", **options)

    asked = render(MESSAGES[:2], add_generation_prompt=True)
    assert asked == "<s><|system|>\nBe brief.\n<|user|>\nWhat is the weather?\n<|assistant|>\n"
    # What a cache can reuse: the next turn begins with this turn and its answer.
    assert render(MESSAGES).startswith(asked + "Bright.</s>\n")
