"""A replica joins a run at any moment, also behind a return; in this process, without Ray."""

from __future__ import annotations

import numpy as np
import pytest

from seedtune.distributed.replica import Replica, versions
from seedtune.es.population import Population
from tiny_engine import engine

MEMBERS = Population(4)
C = np.array([0.5, -1, 0, 0.25], np.float32)
#: Iteration 3 was undone.
UPDATES = [(t, C * t, 0.1) for t in (1, 2, 4, 5)]


@pytest.mark.parametrize("saved", [0, 2, 3, 4])
def test_a_replica_repeats_what_a_saved_state_lacks_whatever_was_undone(tmp_path, saved):
    own = engine()
    for number, (t, coefficients, rate) in enumerate(UPDATES, 1):
        own.update(MEMBERS.ask(t), coefficients, rate)
        if number == saved:
            own.save_state(tmp_path / "state.safetensors")
            digest = own.digest()
    state = (str(tmp_path / "state.safetensors"), digest, saved) if saved else None
    replica = Replica(lambda name: engine(), "tiny", MEMBERS)
    assert replica.join(versions(), state, UPDATES, 0.03).digest == own.digest()
    assert replica.engine.sigma == 0.03
    assert replica.join(versions(), state, [*UPDATES, (6, C, 0.1)], 0.03).digest == replica.engine.digest()
    own.update(MEMBERS.ask(6), C, 0.1)
    assert replica.engine.digest() == own.digest()
