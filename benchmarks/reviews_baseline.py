"""What counting words gives on the reviews: the figures that a trained model has to beat.

    python benchmarks/reviews_baseline.py FILE [--split balanced|random]

Two baselines on the rows that `align train` uses: the most frequent class, and logistic regression on tf-idf weighted
counts of words and pairs of words (scikit-learn), its regularisation chosen by the macro-F of the validation rows.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from alignment.metrics import label_metrics
from fake_data.amazon import ReviewReader, balanced_split, random_split, synthetic_reviews, tokenize

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
MIN_COUNT = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a file of reviews, or a number of synthetic ones")
    parser.add_argument("--split", choices=("balanced", "random"), default="balanced")
    parser.add_argument("--split-seed", type=int, default=0)
    asked = parser.parse_args()

    reader = ReviewReader(synthetic_reviews(int(asked.file), 0) if asked.file.isdigit() else asked.file)
    blocks = list(reader.blocks())
    texts = [text for block in blocks for text in block.texts]
    labels = np.array([label for block in blocks for label in block.labels])
    seed = asked.split_seed
    split = balanced_split(labels, seed=seed) if asked.split == "balanced" else random_split(len(labels), seed=seed)
    print(
        f"{len(texts):,} reviews; train {len(split.train):,}, validation {len(split.validation):,}, test {len(split.test):,}"
    )

    majority = np.bincount(labels[split.train]).argmax()
    tell("majority class", np.full(len(split.test), majority), labels[split.test])
    for name, pairs, balanced in (
        ("words", 1, False),
        ("words, classes weighted alike", 1, True),
        ("words and pairs", 2, False),
        ("words and pairs, classes weighted alike", 2, True),
    ):
        counts = TfidfVectorizer(
            tokenizer=tokenize, token_pattern=None, min_df=MIN_COUNT, ngram_range=(1, pairs), sublinear_tf=True
        )
        rows = {part: [texts[row] for row in getattr(split, part)] for part in ("train", "validation", "test")}
        train = counts.fit_transform(rows["train"])
        held = {part: counts.transform(rows[part]) for part in ("validation", "test")}
        models = [
            LogisticRegression(C=strength, max_iter=1000, class_weight="balanced" if balanced else None).fit(
                train, labels[split.train]
            )
            for strength in STRENGTHS
        ]
        scores = [label_metrics(m.predict(held["validation"]), labels[split.validation])["macro_f1"] for m in models]
        best = int(np.argmax(scores))
        tell(f"{name}, C = {STRENGTHS[best]:g}", models[best].predict(held["test"]), labels[split.test])


def tell(name: str, predicted: np.ndarray, actual: np.ndarray) -> None:
    figures = label_metrics(predicted, actual)
    print(f"{name:50} accuracy {100 * figures['accuracy']:.2f}  macro-F {100 * figures['macro_f1']:.2f}")


if __name__ == "__main__":
    main()
