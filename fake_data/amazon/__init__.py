"""Amazon reviews: the published files read, words indexed, ratings as labels; or made-up reviews in the same format."""

from fake_data.amazon.dataset import (
    EncodedReviews,
    TokenisedReviews,
    Vocabulary,
    encode_reviews,
    review_batch,
    tokenise_reviews,
)
from fake_data.amazon.reader import BadLine, ReviewReader, Reviews
from fake_data.amazon.saved import load_reviews, save_reviews
from fake_data.amazon.split import Split, balanced_split, random_split
from fake_data.amazon.synthetic import synthetic_reviews, write_synthetic
from fake_data.amazon.tokens import tokenize

__all__ = [
    "BadLine",
    "EncodedReviews",
    "ReviewReader",
    "Reviews",
    "Split",
    "TokenisedReviews",
    "Vocabulary",
    "balanced_split",
    "encode_reviews",
    "load_reviews",
    "random_split",
    "review_batch",
    "save_reviews",
    "synthetic_reviews",
    "tokenise_reviews",
    "tokenize",
    "write_synthetic",
]
