"""`python -m stagetree`."""

from stagetree.cli.main import main

main()
