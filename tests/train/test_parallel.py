"""Two processes compute what one does: gradients, whole runs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kiban.errors import ConfigError
from kiban.nn.attention import Attention
from kiban.train.parallel import Parallel, parallel_of
from kiban.train.parallel.processes import _buckets
from kiban.train.parallel.sharded import split_width

from . import worker  # noqa: F401
