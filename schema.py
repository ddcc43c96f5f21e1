"""The models of every file that a fleet reads or writes, under the name that is published.

`from schema import Hypothesis` works in a clone; the models are those of `autohypothesis.schema`,
which is what a program imports where the package is installed.
"""

from autohypothesis.schema import *  # noqa: F403
