"""`python -m exporter` is the command line, for environments whose scripts are not on PATH."""

from exporter.cli import main

if __name__ == "__main__":
    main()
