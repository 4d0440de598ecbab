"""``python -m autocomp`` is the command line."""

from autocomp.cli import main

if __name__ == "__main__":
    main()
