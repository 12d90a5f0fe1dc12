"""Text to tokens and back: the model folder's tokenizer and chat template."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.sandbox
import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WORD = re.compile(r"[Ġ▁][a-z]{2,}")
"""Tokens that make readable output: a space and a word."""


class TextModel:
    """What a model folder knows about text."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer and the template.

        :raises ValueError: the folder has no tokenizer.json, or it holds no word to speak in.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"model_path: no tokenizer.json in {folder}")
        self._tokenizer = Tokenizer.from_file(str(path))
        settings = _read(folder / "tokenizer_config.json")
        self._specials = {name: _content(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token")}
        self._template = _template(folder, settings)
        self.eos_token = self._eos(folder)
        self.pieces = self._words()
        """Text of each token that outputs are made of; others (the end token) have none."""
        if not self.pieces:
            raise ValueError(f"model_path: the vocabulary of {folder} has no words to speak in")
        self.vocabulary: NDArray[np.uint32] = np.array(sorted(self.pieces), np.uint32)

    def encode(self, text: str, *, special: bool = True) -> NDArray[np.uint32]:
        """Token ids of a text, shape (n,). O(n)."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=special).ids, np.uint32)

    def render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The prompt that the chat template makes of messages.

        :raises ValueError: the folder has no template, or it refuses the messages.
        """
        if self._template is None:
            raise ValueError("the model has no chat template")
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._specials, **options)
        except jinja2.TemplateError as error:
            raise ValueError(f"chat template: {error}") from error

    def decode(self, tokens: list[int]) -> str:
        """Text of output tokens. O(n)."""
        return "".join(self.pieces.get(token, "") for token in tokens)

    def _words(self) -> dict[int, str]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return {number: " " + token[1:] for token, number in vocabulary.items() if WORD.fullmatch(token)}

    def _eos(self, folder: Path) -> int:
        for name in ("generation_config.json", "config.json"):
            ids = _read(folder / name).get("eos_token_id")
            if ids is not None:
                return int(ids[0] if isinstance(ids, list) else ids)
        number = self._tokenizer.token_to_id(self._specials["eos_token"])
        if number is None:
            raise ValueError(f"model_path: {folder} names no eos token")
        return int(number)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token or "")


def _template(folder: Path, settings: dict[str, Any]) -> jinja2.Template | None:
    """The folder's chat template, compiled as transformers does."""
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
    if not isinstance(source, str):
        return None
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
