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
"""Prints the lowest versions that `setup.cfg` allows, as constraints for pip: `python tests/oldest.py`."""

import configparser
import re
from pathlib import Path


def main() -> None:
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parent.parent / "setup.cfg")
    requirements = settings["options"]["install_requires"].split()
    for extra in ("app", "train", "nano", "quantization", "ray", "test"):
        requirements += settings["options.extras_require"][extra].split()
    lowest = (re.fullmatch(r"([\w.-]+)>=([\w.]+)(,.*)?", requirement) for requirement in requirements)
    print("\n".join(sorted({f"{match[1]}=={match[2]}" for match in lowest if match})))


if __name__ == "__main__":
    main()
