"""What tokenizing costs the router: chats and texts that extend earlier ones, and answers that come token by token.

    python -m benchmarks.tokens [--rounds 15] [--json FILE]

Two models: one with a byte-level BPE of 32,768 tokens, trained here on generated text, split as Llama 3 splits and with
ChatML's special tokens; and the tiny model, whose chats have no special tokens between messages. Times are CPU time of the whole
process, threads included; the rival is the same prompt tokenized whole, with the same library, in turns with ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from functools import partial
from itertools import chain, count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.figures import Figure, at_most, interleaved, report
from router.frontend.detokenizer import ByteDetokenizer, ContextDetokenizer
from router.frontend.token_bytes import TokenBytes
from router.frontend.tokenizer import INLINE_CHARACTERS, ModelTokenizer
from sim import tinymodel
from sim.tinymodel.corpus import lines

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from router.frontend.detokenizer import Detokenizer

    Prompt = Coroutine[Any, Any, NDArray[np.uint32]]

VOCABULARY_SIZE = 32_768
PROMPT_TOKENS = 13_800
TURNS = 40
SHORT_CHATS = 200
EXTENSION = 0.02
REACH_MILLISECONDS = 2.5
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
SYLLABLES = "ka to mi ren sol ve tra qui lo ph ster ing ion ul ba de or an".split()  # noqa: SIM905  reads better

Messages = list[dict[str, str]]


class Conversation(NamedTuple):
    """A chat, and what an answer and a further question make of it."""

    earlier: Messages
    extended: Messages


def words(draw: random.Random, texts: int = 20_000) -> Iterator[str]:
    """Made-up words, so that the vocabulary fills."""
    for _ in range(texts):
        yield " ".join("".join(draw.choices(SYLLABLES, k=draw.randint(1, 5))) for _ in range(12))


def train() -> Tokenizer:
    """The byte-level BPE of `VOCABULARY_SIZE` tokens."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(lines(), words(random.Random(1))), trainer)
    return tokenizer


def build(folder: Path) -> Path:
    """The model folder of the trained tokenizer."""
    train().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    return folder


def prose(seed: int, characters: int) -> str:
    """Text of the corpus."""
    return "\n".join(lines(characters // 20, seed))[:characters]


def conversation(seed: int, characters: int) -> Conversation:
    """Turns of equal size, and an exchange of `EXTENSION` of them."""
    size, last = characters // TURNS, int(characters * EXTENSION / 2)
    text = prose(seed, TURNS * size + 2 * last)
    starts = [*range(0, TURNS * size, size), TURNS * size, TURNS * size + last, len(text)]
    turns = [
        {"role": ("user", "assistant")[number % 2], "content": text[start:stop]}
        for number, (start, stop) in enumerate(pairwise(starts), 1)
    ]
    return Conversation(turns[:TURNS], turns)


class Bench:
    """One model, its tokenizer with a cache and without, and a loop to run on."""

    def __init__(self, name: str, path: Path, runner: asyncio.Runner, rounds: int) -> None:
        self.name = name
        self.rounds = rounds
        self.cached = ModelTokenizer(path, check_every=0)
        self.whole = ModelTokenizer(path, cache_bytes=0, check_every=0)
        self._runner = runner
        self._seeds = count(1)
        sample = prose(0, 100_000)
        self.characters = int(PROMPT_TOKENS * len(sample) / len(self.run(self.whole.text(sample))))

    def run(self, prompt: Prompt) -> NDArray[np.uint32]:
        """Its tokens."""
        return self._runner.get_loop().run_until_complete(prompt)

    def extended_chat(self) -> Figure:
        """A chat that extends an earlier one."""

        def prompt(tokenizer: ModelTokenizer, chat: Conversation, extended: bool) -> Prompt:
            return tokenizer.chat(chat.extended if extended else chat.earlier)

        figure = f"chat of 13.8k tokens that extends an earlier one by 2 %, {self.name}, CPU; rival: tokenized whole"
        ours, whole = self._extended(prompt, conversation)
        return at_most(figure, "ms", ours, REACH_MILLISECONDS, whole)

    def extended_text(self) -> Figure:
        """A text that extends an earlier one."""

        def prompt(tokenizer: ModelTokenizer, text: str, extended: bool) -> Prompt:
            return tokenizer.text(text if extended else text[: int(len(text) / (1 + EXTENSION))])

        ours, whole = self._extended(prompt, prose)
        return Figure(f"plain text of 13.8k tokens, likewise, {self.name}", "ms", ours, whole)

    def _extended(
        self, prompt: Callable[[ModelTokenizer, Any, bool], Prompt], make: Callable[[int, int], Any]
    ) -> tuple[float, float]:
        """(extended, whole) in CPU milliseconds; a new conversation each round."""
        subject: Any = None

        def ours() -> float:
            nonlocal subject
            subject = make(next(self._seeds), self.characters)
            self.run(prompt(self.cached, subject, False))
            return cpu_seconds(lambda: self.run(prompt(self.cached, subject, True)))

        def whole() -> float:
            return cpu_seconds(lambda: self.run(prompt(self.whole, subject, True)))

        seconds = interleaved(self.rounds, ours=ours, whole=whole)
        tokens = [self.run(prompt(tokenizer, subject, True)).tolist() for tokenizer in (self.cached, self.whole)]
        assert tokens[0] == tokens[1]
        return 1e3 * seconds["ours"], 1e3 * seconds["whole"]

    def new_chat(self) -> Figure:
        """A chat nothing is known of."""

        def side(tokenizer: ModelTokenizer) -> float:
            chat = conversation(next(self._seeds), self.characters).extended
            return cpu_seconds(lambda: self.run(tokenizer.chat(chat)))

        seconds = interleaved(self.rounds, ours=partial(side, self.cached), whole=partial(side, self.whole))
        return Figure(
            f"the same with nothing known of it, {self.name}", "ms", 1e3 * seconds["ours"], 1e3 * seconds["whole"]
        )

    def short_chat(self) -> Figure:
        """A question of a line, and one just too long for the event loop."""

        async def chats(characters: int) -> None:
            for _ in range(SHORT_CHATS):
                await self.cached.chat([{"role": "user", "content": prose(next(self._seeds), characters)}])

        def side(characters: int) -> float:
            return cpu_seconds(lambda: self._runner.run(chats(characters))) / SHORT_CHATS

        seconds = interleaved(
            self.rounds, ours=partial(side, INLINE_CHARACTERS), thread=partial(side, INLINE_CHARACTERS + 1)
        )
        figure = f"new chat of {INLINE_CHARACTERS} characters, {self.name}; rival: one more, and so in a thread"
        return Figure(figure, "µs", 1e6 * seconds["ours"], 1e6 * seconds["thread"])

    def cache_bytes(self) -> Figure:
        """What the cache takes for what it holds."""
        tokenizer = ModelTokenizer(self.cached.path, check_every=0)
        tokens = sum(len(self.run(tokenizer.text(prose(1000 + n, self.characters)))) for n in range(4))
        return Figure(f"cache, {self.name}", "bytes/token", tokenizer.statistics().cache.size_bytes / tokens)

    def detokenized(self) -> Figure:
        """An answer, token by token."""
        library = Tokenizer.from_file(str(self.cached.path / "tokenizer.json"))
        tokens = library.encode(prose(next(self._seeds), 20_000)).ids
        table = TokenBytes(library)

        def side(make: Callable[[], Detokenizer]) -> float:
            detokenizer = make()
            return cpu_seconds(lambda: [detokenizer.push([token]) for token in tokens]) / len(tokens)

        seconds = interleaved(
            self.rounds,
            ours=partial(side, lambda: ByteDetokenizer(table)),
            library=partial(side, lambda: ContextDetokenizer(library)),
        )
        figure = f"token into text, {self.name}; rival: decoded by the library behind its context"
        return Figure(figure, "µs", 1e6 * seconds["ours"], 1e6 * seconds["library"])

    def rows(self) -> list[Callable[[], Iterator[Figure]]]:
        """For `report`."""
        figures = (
            self.extended_chat,
            self.extended_text,
            self.new_chat,
            self.short_chat,
            self.cache_bytes,
            self.detokenized,
        )
        return [_row(figure) for figure in figures]


def _row(figure: Callable[[], Figure]) -> Callable[[], Iterator[Figure]]:
    return lambda: iter([figure()])


def cpu_seconds(run: Callable[[], object]) -> float:
    """Of all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Run all rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokens", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="of which the median counts (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        benches = [
            Bench("BPE 32k", build(Path(folder)), runner, options.rounds),
            Bench("tiny model", tinymodel.PATH, runner, options.rounds),
        ]
        report([row for bench in benches for row in bench.rows()], options.json)


if __name__ == "__main__":
    main()
