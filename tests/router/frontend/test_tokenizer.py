from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from router.frontend.template import TemplateRefused
from router.frontend.tokenizer import INLINE_CHARACTERS, ModelDirError, ModelTokenizer
from sim import tinymodel
from tests.router.frontend.models import byte_level, model_folder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TEMPLATE = "{{ bos_token }}{% for m in messages %}<|end|>{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
CHAT = [{"role": "user", "content": "Hello & <good> day"}]


async def test_the_tiny_model() -> None:
    tokenizer = ModelTokenizer(tinymodel.PATH)
    tokens = await tokenizer.chat(CHAT)
    assert tokens.dtype == np.uint32
    assert tokens[0] == tinymodel.BOS
    assert np.count_nonzero(tokens == tinymodel.BOS) == 1
    assert (tokenizer.context_tokens, tokenizer.vocabulary_size) == (
        tinymodel.CONTEXT_LENGTH,
        tinymodel.VOCABULARY_SIZE,
    )
    assert tokenizer.eos_token_ids == {tinymodel.EOS}
    detokenizer = tokenizer.detokenizer()
    text = detokenizer.push(tokens.tolist()) + detokenizer.finish()
    assert text == "<|user|>\nHello & <good> day\n<|assistant|>\n"
    tokenizer.close()


async def test_a_folder(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(model_folder(tmp_path, template=TEMPLATE))
    expected = byte_level().encode("<s><|end|>user: Hello & <good> day</s>", add_special_tokens=False).ids
    assert (await tokenizer.chat(CHAT)).tolist() == expected
    assert (tokenizer.context_tokens, tokenizer.vocabulary_size) == (2048, 512)
    assert tokenizer.eos_token_ids == {2, 3}
    assert repr(tokenizer) == f"ModelTokenizer({str(tmp_path)!r}, 512 tokens, chat=True)"


async def test_a_plain_prompt_gets_its_special_tokens_a_chat_only_its_templates(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, template=TEMPLATE)
    with_bos = Tokenizer.from_str(byte_level().to_str())
    with_bos.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    with_bos.enable_truncation(4)
    with_bos.enable_padding(length=64)
    with_bos.save(str(folder / "tokenizer.json"))
    tokenizer = ModelTokenizer(folder)
    plain = await tokenizer.text("The quick brown fox jumps over the lazy dog")
    assert plain[0] == 1
    assert plain[1:].tolist() == byte_level().encode("The quick brown fox jumps over the lazy dog").ids
    assert np.count_nonzero(await tokenizer.chat(CHAT) == 1) == 1


async def test_a_post_processor_that_repeats_the_text_is_obeyed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = model_folder(tmp_path)
    twice = Tokenizer.from_str(byte_level().to_str())
    twice.post_processor = TemplateProcessing("$A <s> $A", special_tokens=[("<s>", 1)])
    twice.save(str(folder / "tokenizer.json"))
    text = "The quick brown fox jumps over the lazy dog"
    assert (await ModelTokenizer(folder).text(text)).tolist() == twice.encode(text).ids
    assert "plain prompts are tokenized whole" in caplog.text


@pytest.mark.parametrize(("characters", "in_thread"), [(INLINE_CHARACTERS, False), (INLINE_CHARACTERS + 1, True)])
async def test_long_prompts_leave_the_event_loop(tmp_path: Path, characters: int, in_thread: bool) -> None:
    tokenizer = ModelTokenizer(model_folder(tmp_path, template=TEMPLATE))
    threads: set[threading.Thread] = set()
    encode = tokenizer._encoder.encode

    def noting_encode(text: str) -> NDArray[np.uint32]:
        threads.add(threading.current_thread())
        return encode(text)

    tokenizer._encoder.encode = noting_encode  # type: ignore[method-assign]  # to see where it runs
    await tokenizer.text("x" * characters)
    await tokenizer.chat([{"role": "user", "content": "x" * characters}])
    assert {thread is not threading.main_thread() for thread in threads} == {in_thread}


async def test_messages_of_any_shape_may_come_once(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(model_folder(tmp_path, template="{% for m in messages %}{{ m.content }}{% endfor %}"))
    contents = [None, [{"type": "text", "text": "hi"}], "short"]
    tokens = await tokenizer.chat({"role": "user", "content": content} for content in contents)
    assert tokens.tolist() == byte_level().encode("None[{'type': 'text', 'text': 'hi'}]short").ids


async def test_a_chat_that_goes_on_costs_what_is_new(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(model_folder(tmp_path, template=TEMPLATE), check_every=0)
    earlier = [{"role": "user", "content": f"message {number} of some length " * 50} for number in range(10)]
    await tokenizer.chat(earlier)
    before = tokenizer.statistics()
    extended = [*earlier, {"role": "user", "content": "and one more thing"}]
    tokens = await tokenizer.chat(extended)
    after = tokenizer.statistics()
    rendered = "<s>" + "".join(f"<|end|>user: {message['content']}</s>" for message in extended)
    assert tokens.tolist() == byte_level().encode(rendered, add_special_tokens=False).ids
    assert after.new_tokens - before.new_tokens < len(tokens) / 8
    assert (after.reused_tokens - before.reused_tokens) + (after.new_tokens - before.new_tokens) == len(tokens)


async def test_the_template_file_comes_before_the_configuration(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, template="old")
    (folder / "chat_template.jinja").write_text("new")
    assert (await ModelTokenizer(folder).chat(CHAT)).tolist() == byte_level().encode("new").ids


async def test_of_several_templates_the_default_counts(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    folder = model_folder(tmp_path, tokenizer_config={"chat_template": named})
    assert (await ModelTokenizer(folder).chat(CHAT)).tolist() == byte_level().encode("d").ids


async def test_without_a_template_text_works_and_chat_says_why(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(model_folder(tmp_path))
    assert len(await tokenizer.text("hello")) > 0
    with pytest.raises(TemplateRefused, match="no chat template"):
        await tokenizer.chat(CHAT)


async def test_many_at_once(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(model_folder(tmp_path, template=TEMPLATE))
    texts = [f"text number {i} " * 50 for i in range(30)]
    assert [t.tolist() for t in await asyncio.gather(*map(tokenizer.text, texts))] == [
        byte_level().encode(text).ids for text in texts
    ]


def test_a_multimodal_configuration(tmp_path: Path) -> None:
    config = {"text_config": {"max_position_embeddings": 99, "vocab_size": 1000, "eos_token_id": 7}}
    tokenizer = ModelTokenizer(model_folder(tmp_path, config=config, generation_config=None))
    assert (tokenizer.context_tokens, tokenizer.vocabulary_size, tokenizer.eos_token_ids) == (99, 1000, {7})


def test_a_bare_tokenizer_is_enough(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer(model_folder(tmp_path, config=None, generation_config=None, tokenizer_config=None))
    assert (tokenizer.context_tokens, tokenizer.eos_token_ids, tokenizer.chats) == (None, frozenset(), False)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config": "{"}, "config.json: not JSON"),
        ({"config": "[]"}, "config.json: not a JSON object"),
        ({"tokenizer": "{}"}, "tokenizer.json: not a tokenizer"),
        ({"tokenizer_config": {"chat_template": "{% if %}"}}, "tokenizer_config.json: chat template, line 1"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelDirError, match=message) as caught:
        ModelTokenizer(model_folder(tmp_path, **files))
    assert str(tmp_path) in str(caught.value)


def test_a_missing_folder_or_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelDirError, match=r"nowhere: not a folder"):
        ModelTokenizer(tmp_path / "nowhere")
    with pytest.raises(ModelDirError, match=r"tokenizer\.json: missing"):
        ModelTokenizer(tmp_path)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelDirError, match=r"config\.json: unreadable"):
        ModelTokenizer(folder)
