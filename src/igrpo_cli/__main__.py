"""`python -m igrpo_cli` is `igrpo`."""

from igrpo_cli.cli import main

if __name__ == "__main__":
    main()
