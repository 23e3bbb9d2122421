"""``python -m k2core``: the command line."""

from k2core.cli import main

if __name__ == "__main__":
    main()
