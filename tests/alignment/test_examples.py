"""The example ports say what the tutorial shows: the first ones their mistakes, the others nothing."""

from __future__ import annotations

import pytest

from alignment import Options, check, explain

RUNNING = (1, 3, 4, 5)  # the initialisers are Paddle's own


@pytest.mark.parametrize("twin", ["encoder", "conv_net", "tagger"])
def test_the_ports_are_aligned(twin) -> None:
    report = check(f"examples.port.twins:{twin}", Options(steps=RUNNING, batch_size=3))
    bad = [t.name for stage in report.twins[0].stages for t in stage.tensors if t.verdict != "aligned"]
    assert report.verdict == "aligned", bad


@pytest.mark.parametrize(
    ("twin", "found"),
    [
        ("encoder_first", {"layernorm-eps": "activation norm", "mask-inverted": "input blocks.0.attention.out"}),
        ("conv_net_first", {"avgpool-padding": "activation pool", "bn-momentum": "update norm1.running_mean"}),
        ("tagger_first", {"batch-first": "activation lstm[0]", "embedding-padding-gradient": "gradient words.weight"}),
    ],
)
def test_the_first_ports_mistakes_are_found(twin, found) -> None:
    report = explain(f"examples.port.twins:{twin}", Options(steps=RUNNING, batch_size=3))
    findings = {finding.cause: finding for finding in reversed(report.twins[0].findings)}
    assert set(findings) == set(found)
    for cause, root in found.items():
        assert findings[cause].roots[0] == root
        assert findings[cause].proof
