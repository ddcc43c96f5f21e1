"""The command line in a clone: `python orchestrator.py COMMAND`."""

from autohypothesis.__main__ import main

if __name__ == "__main__":
    main()
