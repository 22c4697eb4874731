"""What goes into a model: seeded batches of a declared spec, adversarial batches, and Amazon reviews."""

from fake_data.batches import Batch, adversarial_batches, make_batch
from fake_data.errors import DataError
from fake_data.order import epoch_order
from fake_data.saved import load_batches, save_batches
from fake_data.spec import Field, Floats, Ids, InputSpec, Labels, Mask

__all__ = [
    "Batch",
    "DataError",
    "Field",
    "Floats",
    "Ids",
    "InputSpec",
    "Labels",
    "Mask",
    "adversarial_batches",
    "epoch_order",
    "load_batches",
    "make_batch",
    "save_batches",
]
