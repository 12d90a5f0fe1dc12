"""A model of 2 layers and 2,048 tokens: big enough for a tokenizer, a chat template and an engine with dummy weights.

`PATH` is a model folder in the Hugging Face layout. `python -m sim.tinymodel.build` writes it again, byte for byte.
"""

from pathlib import Path

PATH = Path(__file__).parent / "model"
VOCABULARY_SIZE = 2048
CONTEXT_LENGTH = 32768
UNK, BOS, EOS = 0, 1, 2
