"""`python -m fastcifar` is the `fastcifar` command."""

from fastcifar.cli import main

if __name__ == "__main__":
    main()
