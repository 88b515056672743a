"""`python -m cli` is the `recipe` command."""

from cli.app import main

main()
