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
"""Says so where this code does not fit the Diffusers that is installed. Pipelines import it before everything else."""

import diffusers
from diffusers.utils import logging


logger = logging.get_logger(__name__)

# The first and the last minor version that this code is tested with. It needs parts of Diffusers that are not public
# (hooks of caches, the registry of attention backends, the settings of a LoKr), which each minor version may change.
OLDEST, NEWEST = (0, 41), (0, 42)


def check_diffusers(version: str) -> None:
    """
    Warns of a version that is newer than what this code is tested with.

    Raises:
        ImportError: if it is too old.
    """
    minor = tuple(int(part) for part in version.split(".")[:2])
    oldest, after = f"{OLDEST[0]}.{OLDEST[1]}", f"{NEWEST[0]}.{NEWEST[1] + 1}"
    if minor < OLDEST:
        raise ImportError(
            f"LoomVideo needs diffusers {oldest} or newer, and {version} is installed: run "
            f"`pip install --upgrade 'diffusers>={oldest},<{after}'`."
        )
    if minor > NEWEST:
        logger.warning(
            f"This code of LoomVideo is older than the diffusers {version} that is installed: if it fails, take a "
            f"newer revision of it, or run `pip install 'diffusers<{after}'`."
        )


check_diffusers(diffusers.__version__)
