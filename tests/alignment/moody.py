"""A small twin whose candidate aborts, hangs, raises, computes something else or leaves, as its setting `mood` says.

Copied to a folder of its own by the tests that use it: what it does must not happen to them.
"""

import ctypes
import os
import sys
import time

import paddle
import torch

from alignment import Side, Twin
from fake_data import Ids, InputSpec, Labels


class Reference(torch.nn.Module):
    def __init__(self, words, mood):
        super().__init__()
        self.embedding = torch.nn.Embedding(words, 4)
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, ids):
        return self.fc(self.embedding(ids).mean(1))


class Candidate(paddle.nn.Layer):
    def __init__(self, words, mood):
        super().__init__()
        self.mood = mood
        self.embedding = paddle.nn.Embedding(words, 4)
        self.fc = paddle.nn.Linear(4, 3)

    def forward(self, ids):
        if self.mood == "abort":
            print("about to abort", flush=True)
            os.abort()
        if self.mood == "segfault":
            ctypes.string_at(0)
        if self.mood == "hang":
            print("about to hang", flush=True)
            time.sleep(600)
        if self.mood == "raise":
            raise ValueError("a bad mood")
        if self.mood == "leave":
            sys.exit(0)
        result = self.fc(self.embedding(ids).mean(1))
        return result * 2 if self.mood == "double" else result


twin = Twin(
    name="moody",
    summary="a mean of word vectors",
    reference=Side("torch", "moody:Reference"),
    candidate=Side("paddle", "moody:Candidate"),
    settings={"words": 20, "mood": "good"},
    inputs=lambda settings: InputSpec(
        {"ids": Ids(0, settings["words"], ("B", "N"), padding=0), "targets": Labels(3, ("B",))}, max_length=8
    ),
    vocabulary="words",
    loss="criterion",
)
