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
"""Runs jobs on all that a Ray cluster has; without one, on a Ray of this machine."""

import heapq
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoomVideoError, one_line
from ..media.sequences import is_sequence, sequence_files
from ..progress import message, without_bars
from .addresses import Address, list_sizes, redact
from .jobs import EditJob, Job
from .run import Tracker
from .work import JobResult, Plan, Worker, plan_job


if TYPE_CHECKING:
    from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline

    Load = Callable[[], LoomVideoEditPipeline | LoomVideoPipeline]

SECONDS_BETWEEN_LOOKS = 2.0

# Options of an actor, and what they are called of a node
RAY_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}

# One that runs, and one that is fetched or delivered meanwhile
JOBS_AT_HAND = 2


class RemoteWorker:
    """A worker in a process of its own, an actor of Ray."""

    def start(self, load: "Load", plan: Plan, disk: float | None, folder: str) -> str:
        """Loads the pipeline. Returns the node's id. Relative paths are those of the driver, which is in `folder`."""
        import ray

        with suppress(OSError):
            os.chdir(folder)
        with without_bars():
            self.worker = Worker(load(), plan, disk)
        return ray.get_runtime_context().get_node_id()

    def do(self, job: Job) -> JobResult:
        with without_bars():
            return replace(self.worker(job), node=socket.gethostname())


@dataclass
class Member:
    """
    A worker as the driver sees it.

    Attributes:
        actor: Ray's handle.
        node: Ray's id of where it is, when it has started.
        jobs: indices of those that it has.
    """

    actor: Any
    node: str = ""
    jobs: list[int] = field(default_factory=list)


def run_jobs_on_ray(
    jobs: Sequence[Job],
    load: "Load",
    plan: Plan = plan_job,
    *,
    address: str = "local",
    cpus: int | None = None,
    workers: int | None = None,
    attempts: int = 3,
    disk: float | None = None,
) -> Iterator[JobResult]:
    """
    Plans and runs jobs on all that a cluster has, the longest first. One that fails is reported on stderr.

    Each worker holds a pipeline. Whoever is free gets the next job; what it takes is fetched while the one before
    runs. A job is tried again, on another node if there is one, when its worker is lost or when what it failed for may
    pass. Nodes that join are used.

    Args:
        jobs: what `read_jobs` returned, or a part of it.
        load: returns the pipeline, such as `functools.partial(load_pipeline, LoomVideoEditPipeline, "nano")`; it is
            sent to the workers, as `plan` is, and called in each.
        plan: plans a job, such as `functools.partial(plan_job, num_inference_steps=20)`.
        address: of the cluster, as `ray.init` takes it; `local` starts a Ray of this machine.
        cpus: how many CPUs a worker has; by default each has a GPU, or without any in the cluster a node's CPUs.
        workers: how many to ask for, which makes an autoscaler start machines; by default as many as fit.
        attempts: how many times a job is tried.
        disk: gigabytes of a worker's local disk for files on their way; by default half of what is free.

    Yields:
        The result of each job as soon as it is done, in the order in which they end.

    Raises:
        LoomVideoError: if Ray is not installed, the cluster cannot be reached, or no worker can start.
    """
    with connected(address) as ray:
        fleet = Fleet(
            ray, jobs, (load, plan, disk, os.getcwd()), resources_of_a_worker(ray, cpus, workers), workers, attempts
        )
        try:
            with fleet.tracker.bar:
                yield from fleet.run()
        finally:
            fleet.dismiss_all()


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connects to a cluster, unless this process is connected to one already. Yields the module `ray`."""
    # The bars of this process tell what there is to tell.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise LoomVideoError("Many machines need Ray: pip install 'loomvideo-diffusers[ray]'.") from error
    if ray.is_initialized():
        yield ray
        return
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        check_answers(address)
        ray.init(address, log_to_driver=False, logging_level="error", **options)
    except Exception as error:  # Ray's own errors for this have no class in common.
        reason = redact(" ".join(str(error).split()))[:300]
        raise LoomVideoError(f"No cluster answers at {redact(address)} ({reason}): see --ray.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raises an OSError if nothing listens at an address with a port, where Ray itself would try for minutes."""
    place = re.fullmatch(r"(?:ray://)?([\w.-]+):(\d+)", address)
    if place:
        socket.create_connection((place[1], int(place[2])), timeout=10).close()


def resources_of_a_worker(ray: Any, cpus: int | None, num_workers: int | None) -> dict[str, int]:
    """What a worker takes of its node, as options of Ray's actors: a GPU and its share of the CPUs, or CPUs."""
    if cpus is not None:
        return {"num_cpus": cpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpus or num_workers is not None:
        shares = [int(node.get("CPU", 0) // node["GPU"]) for node in with_gpus]
        return {"num_cpus": min(shares, default=0), "num_gpus": 1}
    message("loomvideo: The cluster has no GPU: each worker takes all CPUs of a node. Give it fewer with --cpus.")
    return {"num_cpus": min((int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1), default=1)}


class Fleet:
    """
    The workers of a cluster, and the jobs that they are to do.

    Args:
        ray: the module, connected.
        jobs: all of them.
        start: the arguments of `RemoteWorker.start`.
        resources: what a worker takes of its node, as options of Ray's actors.
        num_workers: how many to ask for; None for as many as fit.
        attempts: how many times a job is tried.
    """

    def __init__(
        self,
        ray: Any,
        jobs: Sequence[Job],
        start: tuple["Load", Plan, float | None, str],
        resources: dict[str, int],
        num_workers: int | None,
        attempts: int,
    ):
        self.ray = ray
        self.jobs = jobs
        self.start = start
        self.resources = resources
        self.num_workers = num_workers
        self.attempts = attempts
        self.members: list[Member] = []
        # Who is waited for, and for which job; for none while a worker starts
        self.waited: dict[Any, tuple[Member, int | None]] = {}
        self.work = measure_work(ray, jobs)
        self.queue = [(-work, index) for index, work in enumerate(self.work)]
        heapq.heapify(self.queue)
        self.tried_on: dict[int, list[str]] = {}
        self.again: dict[int, float] = {}  # when a job may be tried again
        self.num_left = len(jobs)
        self.nodes: set[str] = set()
        self.failed_starts = 0
        self.has_started = False
        self.reasons: set[str] = set()
        self.next_look = 0.0
        self.tracker = Tracker(len(jobs), sum(self.work))

    def run(self) -> Iterator[JobResult]:
        """Yields the results as they come."""
        while self.num_left:
            self.hire()
            for member in self.members:
                self.occupy(member)
            if not self.waited:
                time.sleep(SECONDS_BETWEEN_LOOKS)  # All nodes have gone, and others may come.
                continue
            waited = list(self.waited)
            ready, _ = self.ray.wait(waited, num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
            if ready:  # and whoever else is, since each call looks at all
                ready, _ = self.ray.wait(waited, num_returns=len(waited), timeout=0)
            for reference in ready:
                if reference not in self.waited:
                    continue  # Its worker was lost a moment ago.
                for index, result in self.hear(reference):
                    self.num_left -= 1
                    result = replace(
                        result, job=self.jobs[index], attempts=len(self.tried_on.pop(index, [])) + result.attempts
                    )
                    self.tracker.add(result, self.work[index])
                    yield result

    def hire(self) -> None:
        """Asks for as many workers as there is room for, now and then, since nodes come and go."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        nodes = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        if set(nodes) != self.nodes:
            if not self.nodes and self.num_workers is None:
                check_room(nodes.values(), self.resources)
            self.nodes, self.failed_starts = set(nodes), 0
        if self.failed_starts >= self.attempts:
            return
        wanted = self.num_workers or sum(room_for(node, self.resources) for node in nodes.values())
        actor_class = self.ray.remote(RemoteWorker).options(max_concurrency=JOBS_AT_HAND, **self.resources)
        for _ in range(min(wanted, self.num_left) - len(self.members)):
            member = Member(actor_class.remote())
            self.members.append(member)
            self.waited[member.actor.start.remote(*self.start)] = member, None

    def occupy(self, member: Member) -> None:
        """Gives a worker a job, and one to fetch meanwhile, except beside one whose worker was lost before."""
        while member.node and len(member.jobs) < JOBS_AT_HAND and not any(job in self.tried_on for job in member.jobs):
            index = self.choose_job(member)
            if index is None:
                return
            member.jobs.append(index)
            self.waited[member.actor.do.remote(self.jobs[index])] = member, index

    def choose_job(self, member: Member) -> int | None:
        """The longest job, or one to try again, if possible on another node."""
        if member.jobs:
            # Towards the end jobs stay for whoever is free first.
            return heapq.heappop(self.queue)[1] if len(self.queue) > len(self.members) else None
        nodes = {other.node for other in self.members if other.node} if self.again else set()
        for index, due in self.again.items():
            is_elsewhere = member.node not in self.tried_on[index] or nodes <= set(self.tried_on[index])
            if time.monotonic() >= due and is_elsewhere:
                del self.again[index]
                return index
        return heapq.heappop(self.queue)[1] if self.queue else None

    def hear(self, reference: Any) -> Iterator[tuple[int, JobResult]]:
        """Takes what a worker answers. Yields jobs that have ended, and their results."""
        member, index = self.waited.pop(reference)
        try:
            answer = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            yield from self.lose(member, error)
            return
        if index is None:
            member.node, self.failed_starts, self.has_started = answer, 0, True
            return
        member.jobs.remove(index)
        if answer.fault in ("passes", "device"):
            yield from self.try_again(index, member, answer)
            if answer.fault == "device":
                yield from self.lose(member, None)
        else:
            yield index, answer

    def lose(self, member: Member, error: Exception | None) -> Iterator[tuple[int, JobResult]]:
        """Gives the jobs of a worker that is no more, or that could not start, to others."""
        self.members.remove(member)
        self.waited = {reference: waiting for reference, waiting in self.waited.items() if waiting[0] is not member}
        self.ray.kill(member.actor)
        if not member.node:
            # Where the first raises an error, the others will too; one that was killed says nothing about others.
            is_raised = isinstance(error, self.ray.exceptions.RayTaskError)
            self.failed_starts += self.attempts if is_raised and not self.has_started else 1
            reason = reason_of(error)
            if self.failed_starts >= self.attempts and not self.members:
                raise LoomVideoError(f"No worker can start: {reason}")
            if reason not in self.reasons:
                self.reasons.add(reason)
                message(f"loomvideo: A worker cannot start: {reason}")
            return
        if member.jobs:
            message("loomvideo: A worker was lost: its jobs are tried again.")
        for index in member.jobs:
            result = JobResult(self.jobs[index], error="Its worker was lost.", fault="worker")
            if getattr(error, "preempted", False):
                self.again[index] = 0.0
                self.tried_on.setdefault(index, [])
            else:
                yield from self.try_again(index, member, result)

    def try_again(self, index: int, member: Member, result: JobResult) -> Iterator[tuple[int, JobResult]]:
        """Puts a job aside to be tried again, or yields its result if it was tried often enough."""
        tried = self.tried_on.setdefault(index, [])
        if len(tried) + 1 >= self.attempts:
            yield index, result
            return
        tried.append(member.node)
        self.again[index] = time.monotonic() + 4 ** len(tried) / 4

    def dismiss_all(self) -> None:
        """Ends all workers."""
        for member in self.members:
            self.ray.kill(member.actor)


def room_for(node: dict[str, float], resources: dict[str, int]) -> int:
    """How many workers fit on a node."""
    return min(int(node.get(RAY_NAMES[option], 0) // count) for option, count in resources.items() if count)


def check_room(nodes: Iterable[dict[str, float]], resources: dict[str, int]) -> None:
    """Raises a LoomVideoError if no worker fits on any node."""
    if not any(room_for(node, resources) for node in nodes):
        what = " and ".join(
            f"{count} {RAY_NAMES[option]}{'s' if count > 1 else ''}" for option, count in resources.items()
        )
        raise LoomVideoError(
            f"No node of the cluster has {what}: give fewer --cpus, or --workers if nodes are to come."
        )


def reason_of(error: Exception | None) -> str:
    """Why a worker could not start, in a sentence."""
    cause = getattr(error, "cause", None) or error
    assert cause is not None
    sentence = one_line(cause) or f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    return redact(sentence)[:500]


def measure_work(ray: Any, jobs: Sequence[Job]) -> list[float]:
    """How much work each job is: the size of its input, or if it is unknown, as much as the others on average."""
    inputs = [job.input if isinstance(job, EditJob) else None for job in jobs]
    addresses = [location for location in inputs if isinstance(location, Address)]
    if addresses:
        # Listings of large folders take memory, and so their place is not in this process.
        listed = iter(ray.get(ray.remote(sizes_at).options(num_cpus=0).remote(addresses)))
    sizes = []
    for location in inputs:
        if location is None:
            sizes.append(0)
        elif isinstance(location, Address):
            sizes.append(int(next(listed)))
        else:
            files = sequence_files(location) if is_sequence(location) else [location]
            sizes.append(sum(file.stat().st_size for file in files))
    known = [size for size in sizes if size]
    average = sum(known) / len(known) if known else 1.0
    return [float(size or average) for size in sizes]


def sizes_at(addresses: list[Address]) -> np.ndarray:
    """The sizes of files at addresses in bytes, 0 where they are unknown."""
    with without_bars():
        sizes = list_sizes(addresses)
    return np.array([sizes.get(address, 0) for address in addresses], np.int64)
