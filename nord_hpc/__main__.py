"""`python -m nord_hpc` is the command `nord-hpc`; supervised ranks are started this way."""

from nord_hpc.cluster import launch

launch.follow_supervisor()  # before the slow imports, so that hardly any moment is left in which it could be missed

from nord_hpc.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
