"""`python -m riprap`."""

from riprap.cli import main

main()
