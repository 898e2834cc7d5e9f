"""`python -m nord_hpc` is the command `nord-hpc`."""

from nord_hpc.cli.app import main

if __name__ == "__main__":
    main()
