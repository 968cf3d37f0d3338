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
"""
The error of a user, which the command line prints as one line.

Any other error but those of files, the network and memory is a mistake in this package, and keeps its traceback.
"""


class LoomVideoError(ValueError):
    """Says in one sentence what is wrong with an argument, a file or a machine, and how to fix it."""


def one_line(error: BaseException) -> str | None:
    """What to tell the user about an error that they can fix, in one line; None about a mistake in the code."""
    if is_out_of_memory(error):
        return "the memory is not enough: choose a smaller --window, --height and --width, or --offload blocks."
    if isinstance(error, (LoomVideoError, OSError)) or _is_input_error(error):
        return " ".join(str(error).split()) or type(error).__name__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of any device, says that memory ran out."""
    words = ("out of memory", "can't allocate memory", "Cannot allocate memory")
    says_so = isinstance(error, (RuntimeError, OSError)) and any(these in str(error) for these in words)
    return isinstance(error, MemoryError) or says_so


def _is_input_error(error: BaseException) -> bool:
    if not isinstance(error, ValueError):
        return False
    from .pipelines.loomvideo_errors import LoomVideoInputError  # with torch, which whoever raised it has imported

    return isinstance(error, LoomVideoInputError)
