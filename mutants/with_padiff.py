"""What PaDiff makes of the gallery: its right twins, and every port of them that is wrong.

    pip install padiff
    python -m mutants.with_padiff            prints the table
    python -m mutants.with_padiff --write    writes it to docs/comparison.md, and each outcome to docs/padiff.json

Each pair of models goes to `padiff.auto_diff` as its README says: in evaluation mode, with its own transfer of weights,
with one batch and the loss, forward and backward. PaDiff is asked as it comes, and with an absolute tolerance besides.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

from alignment.isolation import run_isolated
from fake_data import make_batch
from mutants.gallery import GALLERY, GALLERY_MUTANTS, mutant_twin

DOCS = Path(__file__).resolve().parent.parent / "docs"
TOLERANCES: dict[str, dict[str, Any]] = {
    "as it comes: means, rtol 1e-7": {},
    "means, atol 1e-6": {"atol": 1e-6},
    "each element, atol 1e-6": {"atol": 1e-6, "compare_mode": "strict"},
}
SEEDS = range(3)
BEGIN, END = "<!-- PaDiff: written by python -m mutants.with_padiff --write -->", "<!-- end of PaDiff -->"


def pairs() -> list[tuple[str, str]]:
    """(twin, fault) of all right twins, whose fault is "", and of all wrong ones."""
    return [(name, "") for name in GALLERY] + [(mutant.twin, mutant.name) for mutant in GALLERY_MUTANTS]


def judged(name: str, fault: str) -> dict[str, Any]:
    """A twin's answers by tolerance: of a right one with each seed, of a wrong one with the first. None: it died."""
    seen: dict[str, list[bool | None]] = {tolerance: [] for tolerance in TOLERANCES}
    for seed in SEEDS[:1] if fault else SEEDS:
        done = run_isolated([sys.executable, "-m", "mutants.with_padiff", "--one", name, fault, str(seed)], timeout=300)
        answers = [line == "differs" for line in done.last_output.splitlines() if line in ("differs", "same")]
        for tolerance, answer in zip_longest(TOLERANCES, answers):
            seen[tolerance].append(answer)
    return {"twin": name, "fault": fault, "differs": seen}


def differs(name: str, fault: str, seed: int, options: dict[str, Any]) -> bool:
    """Does PaDiff say that the two models differ? It does, too, where it can't carry the weights over."""
    import paddle
    import torch
    from padiff import auto_diff

    os.chdir(tempfile.mkdtemp())  # it writes its logs where it runs
    twin = GALLERY[name]
    if fault:
        twin = mutant_twin(next(mutant for mutant in GALLERY_MUTANTS if (mutant.twin, mutant.name) == (name, fault)))
    torch.manual_seed(seed)
    paddle.seed(seed)
    reference, candidate = (built(side, twin.settings) for side in (twin.reference, twin.candidate))
    spec = twin.inputs(twin.settings)
    batch = make_batch(spec, seed=seed, batch_size=3, length=min(8, spec.max_length or 8))
    torch_batch = {key: torch.from_numpy(value) for key, value in batch.inputs.items()}
    paddle_batch = {key: paddle.to_tensor(value) for key, value in batch.inputs.items()}
    torch_targets, paddle_targets = torch.from_numpy(batch.targets), paddle.to_tensor(batch.targets)

    def paddle_loss(logits: Any) -> Any:
        if twin.loss == "model":
            return candidate.loss_of(logits, paddle_targets)
        return paddle.nn.functional.cross_entropy(logits.reshape([-1, logits.shape[-1]]), paddle_targets.flatten())

    def torch_loss(logits: Any) -> Any:
        if twin.loss == "model":
            return reference.loss_of(logits, torch_targets)
        return torch.nn.functional.cross_entropy(logits.flatten(0, -2), torch_targets.flatten())

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        same = auto_diff(
            candidate, reference, (paddle_batch, torch_batch), options=dict(options), loss_fn=(paddle_loss, torch_loss)
        )
    return not same


def built(side: Any, settings: dict[str, Any]) -> Any:
    module, name = side.target.split(":")
    model = getattr(import_module(module), name)(**{**settings, **side.settings})
    model.eval()
    return model


def table(outcomes: list[dict[str, Any]]) -> str:
    """PaDiff's answers counted, and those of this toolkit on the same twins, out of docs/mutants.json."""
    lines = ["| tool | wrong ports: differs | no answer | right ports: differs | no answer |", "|---|---|---|---|---|"]
    for tolerance in TOLERANCES:
        wrong = [one for o in outcomes if o["fault"] for one in o["differs"][tolerance]]
        right = [one for o in outcomes if not o["fault"] for one in o["differs"][tolerance]]
        lines.append(row(f"PaDiff, {tolerance}", wrong, right))
    own = json.loads((DOCS / "mutants.json").read_text(encoding="utf-8"))
    verdicts = {"aligned": False, "diverged": True}
    wrong = [outcome["detected"] for outcome in own["planted"] if outcome["twin"] in GALLERY]
    right = [verdicts.get(clean["verdict"]) for clean in own["clean"] if clean["twin"] in GALLERY]
    return "\n".join([*lines, row("alignment", wrong, right)])


def row(tool: str, *groups: list[bool | None]) -> str:
    cells = [f"{answers.count(True)} of {len(answers)} | {answers.count(None)}" for answers in groups]
    return f"| {tool} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--write", action="store_true", help="write docs/padiff.json and the table of docs/comparison.md"
    )
    parser.add_argument("--one", nargs=3, metavar=("TWIN", "FAULT", "SEED"), help="one pair's answers, in a process")
    arguments = parser.parse_args()
    if arguments.one:
        name, fault, seed = arguments.one
        for options in TOLERANCES.values():
            print("differs" if differs(name, fault, int(seed), options) else "same", flush=True)
        return
    with ThreadPoolExecutor(arguments.workers) as pool:
        outcomes = list(pool.map(judged, *zip(*pairs(), strict=True)))
    print(table(outcomes))
    if arguments.write:
        lines = ",\n".join(json.dumps(outcome) for outcome in outcomes)
        (DOCS / "padiff.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        page = DOCS / "comparison.md"
        marked = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
        block = f"{BEGIN}\n\n{table(outcomes)}\n\n{END}"
        page.write_text(marked.sub(lambda _: block, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
