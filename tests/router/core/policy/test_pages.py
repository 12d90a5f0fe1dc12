"""What the pages on policies say works."""

import re
from pathlib import Path

import numpy as np
import pytest

import router.core.policy
from router.core import RoutingRequest, Scheduler, Target
from router.core.policy import Policy, names

PACKAGE = Path(router.core.policy.__file__).parent
PAGE = PACKAGE.parents[2] / "docs" / "policies.md"


@pytest.mark.parametrize("name", names())
def test_every_policy_has_its_page_and_its_row(name: str) -> None:
    assert (PACKAGE / f"{name.replace('-', '_')}.md").read_text().startswith(f"# {name}")
    assert f"\n| `{name}`" in PAGE.read_text()


def test_the_example_is_a_policy() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    module: dict[str, type[Policy]] = {"__name__": "mine"}  # type: ignore[dict-item] - a module has a name as well
    exec(code[1], module)
    scheduler = Scheduler(module["Sticky"](load_weight=0.5), 4)  # type: ignore[call-arg] - its own option
    for name in "abc":
        scheduler.add_target(Target(name), capacity_tokens=400, model="m")
    prompt = np.arange(1, 4, dtype=np.uint64)
    placed = {scheduler.place(RoutingRequest(f"r{number}", prompt, 13), 0.0).target for number in range(3)}
    assert len(placed) == 1  # the first leaves a prediction, the others follow it
