"""`python -m ftray.cli`."""

from ftray.cli import main

main()
