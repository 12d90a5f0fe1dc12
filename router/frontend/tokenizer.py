"""A model folder in the Hugging Face layout: its tokenizer, chat template and limits."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jinja2
import msgspec
import numpy as np
import tokenizers

from router.frontend.detokenizer import ByteDetokenizer, ContextDetokenizer
from router.frontend.encoder import CACHE_BYTES, CHECK_EVERY, Encoder
from router.frontend.framing import framing_of
from router.frontend.template import ChatTemplate, TemplateRefused
from router.frontend.token_bytes import TokenBytes, decodes_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from router.frontend.detokenizer import Detokenizer
    from router.frontend.encoder import EncoderStatistics

logger = logging.getLogger(__name__)

INLINE_CHARACTERS = 256
"""A prompt up to this length is tokenized on the event loop: that costs less than the way to a thread and back."""
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class ModelDirError(Exception):
    """A model folder cannot be used; the text names the path and the reason."""


class ModelTokenizer:
    """Text ↔ tokens as the engine does it.

    Rendering and encoding run in threads (the tokenizer lets go of the interpreter): they are most of the router's work on a
    request. What was encoded before is remembered, see `encoder`.
    """

    def __init__(self, path: Path, *, cache_bytes: int = CACHE_BYTES, check_every: int = CHECK_EVERY) -> None:
        """Read the folder. `cache_bytes` and `check_every` are the encoder's.

        :raises ModelDirError: it is missing, or one of its files is missing, unreadable or malformed. A folder without a chat
            template is fine: `chat` then says so.
        """
        self.path = path
        if not path.is_dir():
            raise ModelDirError(f"{path}: not a folder")
        config = _text_config(_json(path / "config.json"))
        settings = _json(path / "tokenizer_config.json")
        self._tokenizer = _tokenizer(path / "tokenizer.json")
        self._special_tokens = _special_tokens(settings)
        self._template = _template(path, settings, self._special_tokens)
        self.eos_token_ids = _eos_token_ids(_json(path / "generation_config.json"), config)
        self.context_tokens = next((config[key] for key in CONTEXT_KEYS if isinstance(config.get(key), int)), None)
        """Longest sequence by the model's own configuration; None: it does not say."""
        self.vocabulary_size = max(self._tokenizer.get_vocab_size(), int(config.get("vocab_size") or 0))
        self._hidden = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._token_bytes = TokenBytes(self._tokenizer, self._hidden) if decodes_bytes(self._tokenizer) else None
        self._encoder = Encoder(self._tokenizer, cache_bytes, check_every)
        self._framing = framing_of(self._tokenizer)
        if self._framing is None:
            logger.warning("%s: plain prompts are tokenized whole, as their special tokens depend on the text", path)
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="tokenizer")

    def __repr__(self) -> str:
        return f"ModelTokenizer({str(self.path)!r}, {self.vocabulary_size} tokens, chat={self.chats})"

    @property
    def chats(self) -> bool:
        """Whether the folder has a chat template."""
        return self._template is not None

    async def text(self, text: str) -> NDArray[np.uint32]:
        """A plain prompt, special tokens added as the tokenizer does; may be read-only. O(n), in a thread if long."""
        if len(text) <= INLINE_CHARACTERS:
            return self._encode_text(text)
        return await self._in_thread(self._encode_text, text)

    def plain(self, text: str) -> NDArray[np.uint32]:
        """A short text without any special tokens, uint32 (n,). O(n)."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)

    async def chat(
        self, messages: Iterable[Mapping[str, Any]], arguments: Mapping[str, Any] | None = None
    ) -> NDArray[np.uint32]:
        """A chat through its template, which alone decides on special tokens; may be read-only. O(n), in a thread if long.

        :raises TemplateRefused: there is no template, or it does not take these messages.
        """
        messages = list(messages)
        if not arguments and sum(map(_content_characters, messages)) <= INLINE_CHARACTERS:
            return self._encode_chat(messages, arguments)
        return await self._in_thread(self._encode_chat, messages, arguments)

    def with_template(self, source: str) -> ModelTokenizer:
        """The same tokenizer, threads and cache, with another chat template.

        :raises jinja2.TemplateSyntaxError: `source` is no template.
        """
        other = copy.copy(self)
        other._template = ChatTemplate(source, self._special_tokens)  # noqa: SLF001  it is one of us
        return other

    def detokenizer(self) -> Detokenizer:
        """For one answer: special tokens are not shown."""
        if self._token_bytes is not None:
            return ByteDetokenizer(self._token_bytes)
        return ContextDetokenizer(self._tokenizer, self._hidden)

    def statistics(self) -> EncoderStatistics:
        """What encoding has reused, and what its cache holds."""
        return self._encoder.statistics()

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, function: Any, *arguments: Any) -> NDArray[np.uint32]:
        tokens: NDArray[np.uint32] = await asyncio.get_running_loop().run_in_executor(
            self._threads, function, *arguments
        )
        return tokens

    def _encode_chat(
        self, messages: Iterable[Mapping[str, Any]], arguments: Mapping[str, Any] | None
    ) -> NDArray[np.uint32]:
        if self._template is None:
            raise TemplateRefused("this model has no chat template; use /v1/completions")
        return self._encoder.encode(self._template.render(messages, arguments))

    def _encode_text(self, text: str) -> NDArray[np.uint32]:
        if self._framing is None:
            return np.array(self._tokenizer.encode(text).ids, np.uint32)
        return self._framing.around(self._encoder.encode(text))


class Tokenizers:
    """One folder's tokenizer for all models, with the chat template that a model's workers were started with.

    `template_of` gives its source; None: the folder's own.
    """

    def __init__(self, tokenizer: ModelTokenizer, template_of: Callable[[str], str | None]) -> None:
        self._tokenizer = tokenizer
        self._template_of = template_of
        self._others: dict[str, ModelTokenizer] = {}  # by template, of which a fleet has few

    def __repr__(self) -> str:
        return f"Tokenizers({self._tokenizer!r}, {len(self._others)} other templates)"

    def of(self, model: str) -> ModelTokenizer:
        """A model's. O(1)."""
        source = self._template_of(model)
        if source is None:
            return self._tokenizer
        if source not in self._others:
            self._others[source] = self._tokenizer.with_template(source)
        return self._others[source]


def _content_characters(message: Mapping[str, Any]) -> int:
    """Of a message that is a role and a text; any other counts as long."""
    content = message.get("content")
    return len(content) if len(message) <= 2 and isinstance(content, str) else INLINE_CHARACTERS + 1


def _tokenizer(path: Path) -> tokenizers.Tokenizer:
    _readable(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelDirError(f"{path}: not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _template(path: Path, settings: dict[str, Any], special_tokens: dict[str, str]) -> ChatTemplate | None:
    """From `chat_template.jinja`, else from `tokenizer_config.json`."""
    file = path / "chat_template.jinja"
    source = _readable(file) if file.exists() else _chosen(settings.get("chat_template"))
    if source is None:
        return None
    try:
        return ChatTemplate(source, special_tokens)
    except jinja2.TemplateSyntaxError as error:
        where = file if file.exists() else path / "tokenizer_config.json"
        raise ModelDirError(f"{where}: chat template, line {error.lineno}: {error.message}") from error


def _chosen(template: object) -> str | None:
    """The template itself, or of several named ones the default."""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """Each as text; newer files hold a token as an object."""
    found = {name: settings.get(name) for name in SPECIAL_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _eos_token_ids(generation: dict[str, Any], config: dict[str, Any]) -> frozenset[int]:
    ids = generation.get("eos_token_id", config.get("eos_token_id"))
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list) else [ids])


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """A multimodal model keeps the part that matters here in `text_config`."""
    part = config.get("text_config")
    return {**config, **part} if isinstance(part, dict) else config


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        content = msgspec.json.decode(_readable(path))
    except msgspec.DecodeError as error:
        raise ModelDirError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelDirError(f"{path}: not a JSON object")
    return content


def _readable(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelDirError(f"{path}: missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelDirError(f"{path}: unreadable: {error}") from error
