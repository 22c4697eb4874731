"""Fastformer in PaddlePaddle: the candidate side of four twins (``fastformer_torch`` holds the other)."""

from ._processor import use_avx2
from .fast_transformer import FastTransformer, FastTransformerClassifier
from .fastformer_classifier import FastformerClassifier
from .fastformer_text_classifier import FastformerTextClassifier

__all__ = ["FastTransformer", "FastTransformerClassifier", "FastformerClassifier", "FastformerTextClassifier"]

use_avx2()
