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
"""A real S3 server over loopback, moto's, which can fail now and then and be slow."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


BUSY = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Try again.</Message></Error>"

# What clients of the server have in their environment
KEYS = {"AWS_ACCESS_KEY_ID": "some-key", "AWS_SECRET_ACCESS_KEY": "the-secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Unreliable:
    """
    Stands before a server.

    Args:
        application: the server.
        share: of the requests that fail with status 500.
        delay: of each request in seconds, at most.
    """

    def __init__(self, application, share: float = 0.0, delay: float = 0.0):
        self.application = application
        self.share = share
        self.delay = delay
        self.random = random.Random(0)
        self.num_requests = self.num_failed = 0

    def __call__(self, environ, start_response):
        self.num_requests += 1
        time.sleep(self.random.uniform(0, self.delay))
        if self.random.random() < self.share:
            self.num_failed += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(BUSY)))]
            start_response("500 Internal Server Error", headers)
            return [BUSY]
        return self.application(environ, start_response)


@contextmanager
def serve_s3(share: float = 0.0, delay: float = 0.0) -> Iterator[tuple[str, Unreliable]]:
    """Yields the address of a server, and what stands before it."""
    application = Unreliable(DomainDispatcherApplication(create_backend_app), share, delay)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", application
    finally:
        server.shutdown()
        thread.join()
