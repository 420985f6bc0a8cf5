"""`python -m ctcli`."""

from ctcli.process import main

if __name__ == "__main__":
    main()
