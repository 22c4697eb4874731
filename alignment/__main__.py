"""`python -m alignment` is `align`."""

from alignment.cli import main

if __name__ == "__main__":
    main()
