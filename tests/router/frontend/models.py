"""Small tokenizers of the three families, and model folders around them."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from pathlib import Path

CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "Größe, Straße, naïve café: übermäßig schöne Wörter.",
    "日本語の文章とカタカナ。東京都は日本の首都です。",
    "emoji 🙂🙃👩‍👩‍👧‍👦 and 🇩🇪 flags 🏳️‍🌈",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


@cache
def byte_level() -> tokenizers.Tokenizer:
    """BPE over bytes, as GPT-2, Llama 3 and Qwen have it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def byte_fallback() -> tokenizers.Tokenizer:
    """BPE over characters with bytes for the rest, as Llama 2 and Mistral have it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS[:1], trainer)
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] in SPECIAL]
    return tokenizers.Tokenizer.from_str(json.dumps(fields))


def model_folder(path: Path, *, template: str | None = None, **files: Any) -> Path:
    """A complete folder; `files` replaces or adds (None: leaves out) a file by the name of its stem."""
    settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    if template is not None:
        settings["chat_template"] = template
    contents = {
        "config": {"vocab_size": 512, "max_position_embeddings": 2048, "eos_token_id": 2},
        "generation_config": {"eos_token_id": [2, 3]},
        "tokenizer_config": settings,
        **files,
    }
    path.mkdir(exist_ok=True)
    byte_level().save(str(path / "tokenizer.json"))
    for stem, content in contents.items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (path / f"{stem}.json").write_text(text, encoding="utf-8")
    return path
