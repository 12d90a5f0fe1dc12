"""A scripted load for one engine fleet: everything that changes a prefix cache, in a seeded order."""

from __future__ import annotations

import random
from typing import NamedTuple

VOCABULARY = range(3, 2000)  # no special tokens


class Step(NamedTuple):
    """One thing to do."""

    kind: str
    """"ask": send and compare; "abort": start a long answer and leave; "flush": empty one worker's cache."""
    prompt: list[int]
    max_tokens: int = 1
    worker: int = 0


def tokens(generator: random.Random, count: int) -> list[int]:
    return generator.choices(VOCABULARY, k=count)


def steps(seed: int, asks: int = 110) -> list[Step]:
    """A script with at least `asks` compared requests.

    Long shared prefixes, exact repeats, growth turn by turn, divergence at any token (inside a page as a rule), prompts that fill
    the pool until something is evicted, aborts and flushes.
    """
    generator = random.Random(seed)
    seen = [tokens(generator, 200)]
    script: list[Step] = [Step("ask", seen[0])]
    while sum(step.kind == "ask" for step in script) < asks:
        base = generator.choice(seen)
        kind = generator.choices(
            ["repeat", "grow", "diverge", "fresh", "long", "abort", "flush"], weights=[20, 25, 20, 15, 12, 5, 3]
        )[0]
        if kind == "flush":
            script.append(Step("flush", [], worker=generator.randrange(2)))
            continue
        if kind == "repeat":
            prompt = base
        elif kind == "grow":
            prompt = base + tokens(generator, generator.randint(1, 150))
        elif kind in ("diverge", "abort"):
            prompt = base[: generator.randint(1, len(base))] + tokens(generator, generator.randint(1, 120))
        elif kind == "fresh":
            prompt = tokens(generator, generator.randint(5, 400))
        else:
            prompt = tokens(generator, generator.randint(800, 1500))
        prompt = prompt[:1800]
        seen.append(prompt)
        script.append(Step("abort" if kind == "abort" else "ask", prompt, generator.choice([1, 1, 2, 9, 24])))
    return script
