"""Run PyMongo's own tests on FerretDB, without and with the instrumentation on, and compare."""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.driver_suite.comparison import Difference, differences, verdict
from tests.driver_suite.files import ALL, chosen
from tests.driver_suite.runs import Run, run
from tests.driver_suite.sources import unpack
from tests.servers.processes import Missing
