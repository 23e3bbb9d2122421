"""``python -m k2core.cli``."""

from k2core.cli import main

if __name__ == "__main__":
    main()
