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
"""Runs the page."""

import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from ..errors import LoomVideoError, one_line
from ..progress import message
from .guard import Guard
from .limits import Limits
from .models import Models
from .page import STYLE, THEME, Page
from .studio import Studio
from .visits import Visits


SECONDS_BETWEEN_REMOVALS = 60
# Where Gradio keeps what is sent: it asks the environment each time, so that a process has one page at a time.
TEMP_DIR = "GRADIO_TEMP_DIR"

# The names of this machine for itself
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@contextmanager
def serve(
    models: Models,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    auth: Path | None = None,
    limits: Limits | None = None,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda work: work,
) -> Iterator[str]:
    """
    Serves the page, and yields its address. At the end all runs are cancelled, and all files of visitors removed.

    Args:
        models: what is offered.
        host: the address to listen at: by default that of this machine for itself, which no other machine reaches.
        port: by default the first that is free from 7860 on.
        share: whether to make the page reachable by an address of Gradio's.
        auth: a file with a line `NAME:PASSWORD` for each who may come in; by default everybody may.
        limits: of each visitor.
        wrap: what the work of each run is wrapped in, such as what lends it a GPU.

    Raises:
        LoomVideoError: if the file of passwords cannot be read, or the port is taken.
    """
    limits = limits or Limits()
    passwords = None if auth is None else read_passwords(auth)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="loomvideo-", ignore_cleanup_errors=True))
        root = Path(folder).resolve()
        stack.enter_context(_environment(TEMP_DIR, str(root)))
        studio = Studio(models, root, limits, wrap)
        stack.callback(studio.close)
        blocks = Page(studio).blocks
        stack.callback(blocks.close, verbose=False)
        hosts = LOOPBACK if host in LOOPBACK and not share else None
        guard = Middleware(Guard, visits=studio.visits, limits=limits, hosts=hosts)
        try:
            _, address, shared = blocks.queue(default_concurrency_limit=4, max_size=1000).launch(
                server_name=host,
                server_port=port,
                share=share,
                auth=passwords,
                max_file_size=limits.num_bytes,
                app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
                run_history=False,
                enable_monitoring=False,
                show_error=True,
                footer_links=["api"],
                theme=THEME,
                css=STYLE,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            if port is None or "port" not in str(error):
                raise
            raise LoomVideoError(f"Port {port} is taken: choose another, or none.") from error
        ended = threading.Event()
        stack.enter_context(_running(_load, models))
        stack.enter_context(_running(_remove_old, studio.visits, ended))
        stack.callback(ended.set)
        yield shared or address


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable of the environment, and sets it back."""
    earlier = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if earlier is not None:
            os.environ[name] = earlier


@contextmanager
def _running(call: Callable[..., None], *args: Any) -> Iterator[None]:
    """Calls in a thread, and waits for its end."""
    thread = threading.Thread(target=call, args=args, name=call.__name__)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _load(models: Models) -> None:
    """Loads the first model while the page is looked at. What fails is told again by the first run."""
    try:
        models.load(models.names[0], ())
    except Exception as error:
        message(f"loomvideo: {one_line(error) or traceback.format_exc()}")


def launch(models: Models, opened: Callable[[str], None] = print, **options: Any) -> None:
    """
    Runs the page until the process is interrupted.

    Args:
        models: what is offered.
        opened: is told the page's address.
        options: of `serve`.
    """
    with serve(models, **options) as address:
        opened(address)
        while True:
            time.sleep(1)  # in which a signal is noticed, on Windows too


def read_passwords(file: Path) -> list[tuple[str, str]]:
    """
    Reads names and passwords.

    Raises:
        LoomVideoError: if the file cannot be read, holds none, or a line is not `NAME:PASSWORD`.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoomVideoError(f"{file} cannot be read: name a text file with a line NAME:PASSWORD for each.") from error
    passwords = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, colon, password = line.partition(":")
        if not (name and colon and password):
            raise LoomVideoError(f"{file}:{number} is not NAME:PASSWORD: write one of each in the line.")
        passwords.append((name, password))
    if not passwords:
        raise LoomVideoError(f"{file} holds no passwords: write a line NAME:PASSWORD for each who may come in.")
    return passwords


def _remove_old(visits: Visits, ended: threading.Event) -> None:
    while not ended.wait(SECONDS_BETWEEN_REMOVALS):
        visits.remove_old()
