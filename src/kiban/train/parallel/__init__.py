"""Several processes that train one model, applied from outside of it."""

from kiban.train.parallel.base import Parallel
from kiban.train.parallel.launch import parallel_of

__all__ = ["Parallel", "parallel_of"]
