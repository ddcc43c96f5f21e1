"""The repository of the real training pair, as in the tests of the search."""

from tests.search.conftest import cache, project

__all__ = ["cache", "project"]
