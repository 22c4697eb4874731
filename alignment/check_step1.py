"""Step 1, structure: `python alignment/check_step1.py [TWIN] [options]` is `align check --step 1` with the same options."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, Python puts this folder first on its path, where our modules would hide others of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from alignment.cli import run

    sys.exit(run(["check", "--step", "1", *sys.argv[1:]], prog_name="align"))
