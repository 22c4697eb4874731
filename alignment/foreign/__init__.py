"""Dumps that other tools wrote: read, and compared as far as one precision allows.

reprod_log's .npy files and PaDiff's dump folders hold one float32 run of each side. Nothing in them tells rounding from a
mistake, so that the rule here is another than a check's: equal bits are aligned, a difference larger than any rounding is
diverged, and what lies between is open, unless the person asking states a tolerance.
"""

from alignment.foreign.dumps import Dump, DumpKey, compare_dumps, judge32

__all__ = ["Dump", "DumpKey", "compare_dumps", "judge32"]
