"""What the server that forks ranks has loaded: with this they have nothing left to import but the test's own module."""

from __future__ import annotations

import pytest  # noqa: F401

import graphopt.api.optimize
import graphopt.api.train_step  # noqa: F401
from tests.support import train_together  # noqa: F401
from tests.support.settled import settle

settle()
