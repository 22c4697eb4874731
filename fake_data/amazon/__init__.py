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
from fake_data.amazon.synthetic import synthetic_reviews, write_synthetic
from fake_data.amazon.tokens import tokenize

__all__ = [
    "BadLine",
    "EncodedReviews",
    "ReviewReader",
    "Reviews",
    "TokenisedReviews",
    "Vocabulary",
    "encode_reviews",
    "review_batch",
    "synthetic_reviews",
    "tokenise_reviews",
    "tokenize",
    "write_synthetic",
]
