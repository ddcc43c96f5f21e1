"""Autohypothesis: a fleet of research agents whose results can be believed in the morning."""

TYPE_CHECKING = False  # as type checkers read it: `typing` costs what no command waits for
if TYPE_CHECKING:
    from autohypothesis.api import Search

__all__ = ["Search", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the Python API when it is asked for: a command of ours needs none of it."""
    if name != "Search":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autohypothesis.api import Search

    return Search
