"""Training on both sides: the same recipe, the same batches, step by step, and how far rounding may part the two.

Everything here works on NumPy arrays; a side's model, optimizer and schedule live behind a `Trainer`, which the adapters
in `alignment.frameworks` make.
"""
