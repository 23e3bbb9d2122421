"""Threads that help: claimed pieces, sleep, and systems without what they need."""

import ctypes
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from k2core.interfaces import SequenceInput, Want
from k2core_numba import crew as crews
from k2core_numba.backend import NumbaBackend

IDS = [index % 100 for index in range(250)]


def logits_of(model):
    """All logits of some ids in a fresh sequence."""
    handle = model.new_sequence()
    logits = model.forward([SequenceInput(handle=handle, token_ids=IDS)], Want(logits="all")).logits
    model.free(handle)
    return logits


@pytest.fixture
def shared(model):
    """A model whose tokens four threads share."""
    if crews.crew() is None:
        pytest.skip("no semaphores that compiled code can wait for on this system")
    model.threads = 4
    return model


def test_helpers_are_hired_once_for_all_models(shared, folder):
    """A second model with as many threads brings no more of them, and none is there for a model of one thread."""
    expected = logits_of(shared)
    before = threading.active_count()
    other = NumbaBackend().load(folder)
    other.threads = 4
    np.testing.assert_array_equal(logits_of(other), expected)
    assert threading.active_count() == before
    other.close()


def test_helpers_that_wait_take_no_time(shared):
    """Some time after a forward nobody looks for work any more."""
    logits_of(shared)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_helpers_that_never_come_are_not_waited_for(shared):
    """A forward finishes, with the same bits, where no helper answers."""
    expected = logits_of(shared)
    crew = crews.crew()
    layout = crews.kernels("crew")
    place = (crew.board + layout.POST - crew._memory.ctypes.data) // 8
    time.sleep(0.05)  # all asleep
    post, crew._memory[place] = crew._memory[place], crew._memory[(crew.board + layout.YIELD - crew._memory.ctypes.data) // 8]
    try:
        np.testing.assert_array_equal(logits_of(shared), expected)
    finally:
        crew._memory[place] = post
        for helper in range(3):  # they were marked awake: wake them, so that later tests have their help
            ctypes.CDLL(None).sem_post(ctypes.c_void_p(crew.board + layout.HELPERS + helper * layout.HELPER + layout.LINE))


@pytest.mark.parametrize("library", [SimpleNamespace(), SimpleNamespace(sem_post=1, sem_wait=1, sched_yield=1)])
def test_a_system_without_semaphores_has_no_crew(folder, monkeypatch, library):
    """Where the C library lacks a function, threads share ops instead, with the same bits."""
    with_crew = NumbaBackend().load(folder)
    monkeypatch.setattr(crews, "_crews", [])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    model = NumbaBackend().load(folder)
    assert crews.crew() is None
    assert not model.by_tokens
    model.threads = 2
    np.testing.assert_array_equal(logits_of(model), logits_of(with_crew))


def test_helpers_keep_off_the_core_of_the_thread_they_help(shared):
    """The system is told so where it can be."""
    logits_of(shared)
    crew = crews.crew()
    if crew._core < 0 or not hasattr(crews.os, "sched_getaffinity"):
        pytest.skip("this system does not say which core a thread runs on")
    everywhere = crews.os.sched_getaffinity(0)
    for thread in crew._threads:
        assert crews.os.sched_getaffinity(thread) == (everywhere - {crew._core} or everywhere)
