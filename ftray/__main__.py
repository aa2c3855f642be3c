"""`python -m ftray`."""

from ftray.cli import main

main()
