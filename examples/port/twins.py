"""The twins: each reference with its first port, and with the right one."""

from __future__ import annotations

from typing import Any

from alignment import Side, Twin
from alignment.twins import Settings
from fake_data import Floats, Ids, InputSpec, Labels

ENCODER = {"words": 60, "width": 16, "heads": 4, "depth": 2, "length": 12, "classes": 3}
CONV_NET = {"channels": 8, "classes": 4}
TAGGER = {"words": 60, "width": 8, "tags": 5}


def sentences(settings: Settings) -> InputSpec:
    """Ids with padding at the end, and a class for each sentence, or a tag for each word."""
    tags = settings.get("tags")
    targets = Labels(settings["classes"], ("B",)) if tags is None else Labels(tags, ("B", "N"))
    return InputSpec({"ids": Ids(0, settings["words"], ("B", "N"), padding=0), "targets": targets}, max_length=12)


def images(settings: Settings) -> InputSpec:
    """Pictures of 8 × 8, and a class for each."""
    return InputSpec({"images": Floats(("B", 3, 8, 8)), "targets": Labels(settings["classes"], ("B",))}, max_length=1)


def _twin(model: str, port: str, settings: dict[str, Any], inputs: Any) -> Twin:
    sides = Side("torch", f"examples.port.reference:{model}"), Side("paddle", f"examples.port.{port}:{model}")
    words = "words" if "words" in settings else None
    return Twin(f"{model} ({port.replace('_', ' ')})", "", *sides, settings, inputs, loss="criterion", vocabulary=words)


encoder_first, encoder = (_twin("Encoder", port, ENCODER, sentences) for port in ("first_port", "port"))
conv_net_first, conv_net = (_twin("ConvNet", port, CONV_NET, images) for port in ("first_port", "port"))
tagger_first, tagger = (_twin("Tagger", port, TAGGER, sentences) for port in ("first_port", "port"))
