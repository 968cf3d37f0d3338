# Copyright 2026 The LoomVideo for Diffusers authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Python imports this at its start where the folder is on `PYTHONPATH`: processes that a test starts count as its."""

import os
import sys
from pathlib import Path


if os.environ.get("LOOMVIDEO_COVERAGE") and os.environ.get("PYTEST_CURRENT_TEST"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import atexit

    import coverage_map

    _measured = coverage_map.start(os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0])
    atexit.register(lambda: (_measured.stop(), _measured.save()))
    sys.path.pop(0)
