"""The finished runs that evaluations on several processes measure."""

from tests.scripts.method_runs import runs

__all__ = ["runs"]
