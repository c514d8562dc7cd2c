"""`python -m kiban`."""

from kiban.cli.main import main

main()
