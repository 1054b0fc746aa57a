"""``python -m saematch``."""

from saematch.app.main import main

if __name__ == "__main__":
    main()
