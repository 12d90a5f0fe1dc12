"""Writes the tiny model's folder, the same bytes each time: `python -m sim.tinymodel.build [FOLDER]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sim.tinymodel import BOS, CONTEXT_LENGTH, EOS, PATH, VOCABULARY_SIZE
from sim.tinymodel.corpus import lines

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]  # ids 0, 1, 2

# Written so that it renders the same with and without Jinja's trim_blocks.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + (message['content'] or '') }}"
    "{{ (eos_token if message['role'] == 'assistant' else '') + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": CONTEXT_LENGTH,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY_SIZE,
}

GENERATION_CONFIG = {"bos_token_id": BOS, "eos_token_id": EOS}

TOKENIZER_CONFIG = {
    "add_bos_token": False,
    "add_eos_token": False,
    "added_tokens_decoder": {
        str(token_id): {
            "content": content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token_id, content in enumerate(SPECIAL_TOKENS)
    },
    "bos_token": "<s>",
    "chat_template": CHAT_TEMPLATE,
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "model_max_length": CONTEXT_LENGTH,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "<unk>",
}


def train() -> Tokenizer:
    """The byte-level BPE tokenizer of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE, "the corpus has too few distinct words"
    return tokenizer


def _pretty(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def build(folder: Path) -> None:
    """Write the model folder's four files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": _pretty(CONFIG),
        "generation_config.json": _pretty(GENERATION_CONFIG),
        "tokenizer_config.json": _pretty(TOKENIZER_CONFIG),
        "tokenizer.json": train().to_str(pretty=True) + "\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else PATH)
