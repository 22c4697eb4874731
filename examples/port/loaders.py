"""Reviews by each framework's own loader: a reference, a first port in which much went wrong, and both with one order."""

from __future__ import annotations

from typing import Any

import numpy as np

from alignment.training.feeding import Order, OrderSampler
from fake_data.amazon import encode_reviews, synthetic_reviews

REVIEWS = encode_reviews(synthetic_reviews(1000, seed=0), length=128)
IDS, LABELS = REVIEWS.ids.astype(np.int64), REVIEWS.labels


def reference(**options: Any) -> Any:
    """Ids padded with 0 on the right, labels 0 to 4; torch's own order after a seed."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    data = TensorDataset(torch.from_numpy(IDS), torch.from_numpy(LABELS))
    return DataLoader(data, **(options or {"batch_size": 64, "shuffle": True}))


def first_port() -> Any:
    """The same seed; but another draw, no last batch, padding on the left, and labels from 1, int32 [B, 1]."""
    import paddle

    class Reviews(paddle.io.Dataset):
        def __len__(self) -> int:
            return len(IDS)

        def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray]:
            row = IDS[place]
            return np.concatenate([row[row == 0], row[row != 0]]), np.array([LABELS[place] + 1], dtype=np.int32)

    np.random.seed(0)  # noqa: NPY002 - the generator that Paddle's loaders draw from
    paddle.seed(0)
    return paddle.io.DataLoader(Reviews(), batch_size=64, shuffle=True, drop_last=True)


def reference_in_order() -> Any:
    """The reference with an order that both frameworks can be given."""
    return reference(batch_sampler=OrderSampler(Order(len(IDS), batch_size=64, seed=0)))


def port() -> Any:
    """The right port, with that order."""
    import paddle

    class Reviews(paddle.io.Dataset):
        def __len__(self) -> int:
            return len(IDS)

        def __getitem__(self, place: int) -> tuple[np.ndarray, np.int64]:
            return IDS[place], LABELS[place]

    return paddle.io.DataLoader(Reviews(), batch_sampler=OrderSampler(Order(len(IDS), batch_size=64, seed=0)))
