"""`python -m stagetree`."""

from stagetree.cli import main

main()
