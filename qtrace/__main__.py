"""`python -m qtrace` is `qtrace`."""

from qtrace.cli import main

if __name__ == "__main__":
    main()
