"""``python -m saematch``."""

from saematch.cli import main

if __name__ == "__main__":
    main()
